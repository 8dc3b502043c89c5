"""Every knob, in frozen sections named after the rooms; the whole is here.

`Settings.load(text, environ)` is pure: YAML text and `GATEWAY__SECTION__KNOB` variables in,
Settings or one `SettingsError` naming every bad key out. Only `gateway.__main__` touches files and
the environment. A part receives its own section, never the whole.

clients      accept, admit, tenants
traffic      hold, choose, merge, relay, tokens
fleet        fleet
operations   batch, peers, account, scale, console, trust
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from ipaddress import ip_address
from typing import Self

from gateway.section import Section, SectionError, SettingsError, read_document
from gateway.settings.clients import (
    AcceptSettings,
    AdmitSettings,
    TenantsSettings,
    TlsFiles,
    TlsSettings,
)
from gateway.settings.fleet import (
    DnsSettings,
    EventSourceSettings,
    FleetSettings,
    KubernetesSettings,
    KvEventSettings,
    ModelSettings,
    ReplicaSettings,
)
from gateway.settings.operations import (
    AccountSettings,
    BatchSettings,
    ConsoleSettings,
    KedaSettings,
    OpaSettings,
    PeersSettings,
    ScaleSettings,
    SpiffeSettings,
    TraceSettings,
    TrustSettings,
)
from gateway.settings.traffic import (
    ChooseSettings,
    CrowdSettings,
    HoldSettings,
    MergeSettings,
    RelaySettings,
    TokensSettings,
)

__all__ = [
    "AcceptSettings",
    "AccountSettings",
    "AdmitSettings",
    "BatchSettings",
    "ChooseSettings",
    "ConsoleSettings",
    "CrowdSettings",
    "DnsSettings",
    "EventSourceSettings",
    "FleetSettings",
    "HoldSettings",
    "KedaSettings",
    "KubernetesSettings",
    "KvEventSettings",
    "MergeSettings",
    "ModelSettings",
    "OpaSettings",
    "PeersSettings",
    "RelaySettings",
    "ReplicaSettings",
    "ScaleSettings",
    "Settings",
    "SpiffeSettings",
    "TenantsSettings",
    "TlsFiles",
    "TlsSettings",
    "TokensSettings",
    "TraceSettings",
    "TrustSettings",
]


class Settings(Section):
    """The whole house, a section per room."""

    accept: AcceptSettings = field(default_factory=AcceptSettings)
    tenants: TenantsSettings = field(default_factory=TenantsSettings)
    admit: AdmitSettings = field(default_factory=AdmitSettings)
    hold: HoldSettings = field(default_factory=HoldSettings)
    choose: ChooseSettings = field(default_factory=ChooseSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    peers: PeersSettings = field(default_factory=PeersSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    tokens: TokensSettings = field(default_factory=TokensSettings)
    account: AccountSettings = field(default_factory=AccountSettings)
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    console: ConsoleSettings = field(default_factory=ConsoleSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)

    def __post_init__(self) -> None:
        if self.trust.spiffe.socket is not None and self.relay.replica_ca is not None:
            raise ValueError("`relay.replica_ca` and `trust.spiffe` exclude each other")
        if self.account.recording is not None and self.peers.workers > 1:
            raise ValueError("`account.recording` is written by one process: set peers.workers: 1")
        if not (self.tenants.path or self.tenants.anonymous or _is_loopback(self.accept.host)):
            raise ValueError(
                f"listening on {self.accept.host} lets anybody in: set tenants.path to a file of "
                "API keys (`headrace keys create`), or say `tenants: {anonymous: true}`"
            )

    @classmethod
    def load(cls, text: str, environ: Mapping[str, str]) -> Self:
        """Settings from YAML text, overridden by GATEWAY__SECTION__KNOB variables.

        Raises SettingsError naming every key that is unknown or out of bounds.
        """
        return cls.of(read_document(text, environ))

    @classmethod
    def of(cls, document: object) -> Self:
        """Settings from a mapping of sections. Raises SettingsError as `load` does."""
        try:
            return super().of(document)
        except SectionError as error:
            lines = [f"  {each}" for each in error.problems]
            raise SettingsError("\n".join(["the settings cannot be used:", *lines])) from None


def _is_loopback(host: str) -> bool:
    """Is it plain that only this machine can reach it?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
