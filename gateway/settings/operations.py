"""What a gateway does beside requests: batches, other gateways, what is written down and shown,
scaling, trust."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from gateway.section import Matching, Section, knob
from gateway.settings.clients import TlsFiles


class BatchSettings(Section):
    """Files and batches: work that waits for spare capacity. Off until told where to keep them."""

    folder: str | None = knob(
        None, description="where files and the database are; set, the Batch API is on"
    )
    store: str | None = knob(
        None,
        description="the database, instead of one in the folder: postgresql://user@host/name "
        "(needs headrace[postgres]) or sqlite:///path; several gateways may share it",
    )
    files: str | None = knob(
        None,
        description="where the files are, instead of the folder: s3://bucket/path (needs "
        "headrace[s3]) or what else fsspec knows; gateways that share a store share this",
    )
    max_file_bytes: int = knob(200 * 1024 * 1024, gt=0, description="of an uploaded file")
    max_lines: int = knob(50_000, gt=0, description="of a batch")
    max_line_bytes: int = knob(1024 * 1024, gt=0, description="of one request in a batch")
    lines_per_replica: int = knob(
        32, gt=0, description="in flight on a replica that interactive requests leave over"
    )
    lines_beside_others: int = knob(
        1, ge=0, description="in flight in all, where they leave none over; 0 lets batches starve"
    )
    max_attempts: int = knob(3, ge=1, description="of a line that replicas fail on")
    running: int = knob(4, ge=1, description="batches that one gateway works on at a time")
    lease_s: float = knob(
        30.0, gt=0, description="a gateway silent for so long has lost its batches to others"
    )

    def __post_init__(self) -> None:
        if self.folder is None and (self.store is None) != (self.files is None):
            raise ValueError("set `folder`, or both of `store` and `files`")

    @property
    def is_on(self) -> bool:
        """There is a place to keep batches."""
        return self.folder is not None or self.store is not None

    @property
    def store_url(self) -> str:
        """The database, once it is on."""
        return self.store or f"sqlite:///{self.folder}/batches.db"

    @property
    def files_url(self) -> str:
        """Where the files are, once it is on."""
        return self.files or f"{self.folder}/files"


PeerAddress = Annotated[str, Matching(r"^[^/\s?#@]+:[0-9]{1,5}$")]


class PeersSettings(Section):
    """Other gateways before the same replicas: each counts what all have sent. Off until it is said
    where they are; the workers of one gateway know each other without."""

    workers: int = knob(
        1, ge=1, le=64, description="processes that share the port, each with a core to itself"
    )
    dns: str | None = knob(
        None, description="a name whose addresses are gateways (a headless Service, say)"
    )
    addresses: tuple[PeerAddress, ...] = knob((), description="the same by host:port, one by one")
    port: int | None = knob(
        None,
        ge=1,
        le=65535,
        description="UDP, the first worker's; the next ones have those that follow; with dns, the "
        "others' too; unset, the system chooses, which is enough for workers",
    )
    host: str | None = knob(
        None, description="where to listen; unset: 0.0.0.0 if there are others, else 127.0.0.1"
    )
    secret: str | None = knob(
        None,
        description="a file with a secret that all gateways share: others are not listened to; "
        "unset, those at other addresses than the above are not",
    )
    tell_every_s: float = knob(0.005, gt=0, description="how often changes are told")
    whole_every_s: float = knob(1.0, gt=0, description="how often everything is")
    silent_s: float = knob(
        3.0, gt=0, description="who is not heard for so long has nothing any more"
    )
    find_every_s: float = knob(5.0, gt=0, description="how often dns is looked up")

    def __post_init__(self) -> None:
        if self.dns is not None and self.port is None:
            raise ValueError("`dns` needs a `port`: the one all gateways listen on")

    @property
    def are_elsewhere(self) -> bool:
        """There are others than our own workers."""
        return self.dns is not None or bool(self.addresses)

    @property
    def is_on(self) -> bool:
        """There is anybody to speak to."""
        return self.are_elsewhere or self.workers > 1

    @property
    def listen_host(self) -> str:
        """Where we listen."""
        return self.host or ("0.0.0.0" if self.are_elsewhere else "127.0.0.1")


class TraceSettings(Section):
    """Traces by OpenTelemetry (needs headrace[otel]). Off until it is said where they go."""

    endpoint: str | None = knob(
        None,
        pattern=r"^https?://",
        description="a receiver of OTLP by HTTP, as http://collector:4318/v1/traces; headers and "
        "certificates are OpenTelemetry's own variables' (OTEL_EXPORTER_OTLP_HEADERS, ...)",
    )
    ratio: float = knob(
        0.01,
        ge=0,
        le=1,
        description="the part that is traced of requests that come without a trace; those with one "
        "are, if it is written down where it began",
    )
    service: str = knob("headrace", min_length=1, description="service.name of our spans")
    timeout_s: float = knob(
        5.0, gt=0, description="of an export, with all its attempts; spans are dropped after it"
    )


class AccountSettings(Section):
    """What we write down."""

    access_log: str = knob(
        "stdout", description="stdout, off, or a file: one JSON line per request"
    )
    recording: str | None = knob(
        None,
        description="a file, written anew: lengths, times and keyed hashes of each request, no "
        "text; for load tests to play again",
    )
    traces: TraceSettings = field(default_factory=TraceSettings)


class KedaSettings(Section):
    """KEDA's external scaler, over gRPC (needs headrace[keda]). Off until it has a port."""

    port: int | None = knob(None, ge=0, le=65535, description="0 lets the system choose")
    host: str = knob("127.0.0.1", description="loopback unless you say otherwise")
    tls: TlsFiles = field(default_factory=TlsFiles)


class ScaleSettings(Section):
    """How many replicas each model needs: what whoever scales them is told."""

    ttft_objective_s: float = knob(
        2.0, gt=0, description="so long a request may wait for the prompts before it"
    )
    objective_ratio: float = knob(
        0.99, gt=0.5, lt=1, description="the part of requests for which that is to hold"
    )
    load_deadline_s: float = knob(
        1800.0, gt=0, description="a replica that has been loading for longer will not come"
    )
    linger_s: float = knob(
        30.0, ge=0, description="a model is active for so long after its last request: polls see it"
    )
    keda: KedaSettings = field(default_factory=KedaSettings)


class ConsoleSettings(Section):
    """The page at /console. Nobody looks, nothing is computed."""

    enabled: bool = knob(True, description="off: there is no such page")
    admin_key_sha256: str | None = knob(
        None,
        pattern=r"^[0-9a-f]{64}$",
        is_secret=True,
        description="of the key that shows everything, in hexadecimal; tenants' keys show all but "
        "tenants' names, and where there are no tenants only this one opens the page",
    )
    max_watchers: int = knob(16, gt=0, description="pages that are open at once")
    every_s: float = knob(1.0, ge=0.05, description="how often they are told")


SpiffePattern = Annotated[
    str,
    Matching(r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*/([A-Za-z0-9._-]+|\*)$"),
]


class SpiffeSettings(Section):
    """TLS with https replicas in which both show X.509-SVIDs (docs/trust.md; needs
    headrace[spiffe]). Off until it has a socket."""

    socket: str | None = knob(
        None,
        pattern=r"^unix:/",
        description="the Workload API's, as unix:/run/spire/agent-sockets/spire-agent.sock",
    )
    replicas: tuple[SpiffePattern, ...] = knob(
        (),
        description="SPIFFE IDs that replicas may have, all of one trust domain; /* at the end "
        "stands for all below, as in spiffe://example.org/ns/models/*",
    )
    wait_s: float = knob(
        30.0, gt=0, description="how long to wait for the first SVID before we give up starting"
    )

    def __post_init__(self) -> None:
        domains = {pattern.split("/")[2] for pattern in self.replicas}
        if self.socket is not None and len(domains) != 1:
            raise ValueError("`replicas` must name SPIFFE IDs, of one trust domain")


class OpaSettings(Section):
    """A policy is asked whether a tenant may call a model and bring the tools it names
    (docs/trust.md). Off until it has a url; then who gets no answer may not."""

    url: str | None = knob(
        None,
        pattern=r"^http://[^/\s?#@]+:[0-9]{1,5}/v1/data(/[A-Za-z0-9_-]+)+$",
        description="the decision in OPA's REST API, as http://127.0.0.1:8181/v1/data/headrace/decision",
    )
    timeout_s: float = knob(0.5, gt=0, description="from the question to its answer")
    cache_s: float = knob(5.0, ge=0, description="how long an answer is good; 0: for once")
    cache_entries: int = knob(10_000, gt=0, description="answers kept")
    max_asking: int = knob(64, gt=0, description="questions at a time; others wait their timeout_s")


class TrustSettings(Section):
    """Whom we speak to, and who may ask for what."""

    spiffe: SpiffeSettings = field(default_factory=SpiffeSettings)
    opa: OpaSettings = field(default_factory=OpaSettings)
