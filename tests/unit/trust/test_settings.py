"""What may be said of trust, and what may not."""

from __future__ import annotations

import pytest

from gateway.section import SettingsError
from gateway.settings import Settings

SOCKET = "unix:/run/spire/agent.sock"
OPA = "http://127.0.0.1:8181/v1/data/headrace/decision"


def trusting(replicas: str, more: str = "") -> Settings:
    return Settings.load(
        f"trust: {{spiffe: {{socket: '{SOCKET}', replicas: {replicas}}}}}\n{more}", {}
    )


@pytest.mark.parametrize(
    "replicas",
    [
        "[spiffe://example.org/models/llama]",
        "[spiffe://example.org/*]",
        "[spiffe://example.org/ns/a/*, spiffe://example.org/ns/b/llama-3.3_70B]",
    ],
)
def test_replicas_are_ids_or_all_that_are_below(replicas: str) -> None:
    assert trusting(replicas).trust.spiffe.socket == SOCKET


@pytest.mark.parametrize(
    "replicas",
    [
        "[]",  # nobody could be spoken to
        "[spiffe://example.org/a, spiffe://other.org/a]",
        "[spiffe://example.org]",
        "[spiffe://example.org/]",
        "[spiffe://example.org/a*]",
        "[spiffe://example.org/*/a]",
        "[spiffe://Example.org/a]",
        "['*']",
        "[https://example.org/a]",
    ],
)
def test_what_names_nobody_in_particular_is_refused(replicas: str) -> None:
    with pytest.raises(SettingsError, match=r"trust\.spiffe"):
        trusting(replicas)


def test_there_is_one_authority_over_replicas() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        trusting("[spiffe://example.org/*]", "relay: {replica_ca: ca.pem}")


@pytest.mark.parametrize("socket", ["/run/agent.sock", "tcp://127.0.0.1:1", "unix:agent.sock"])
def test_the_workload_api_is_a_socket_of_this_machine(socket: str) -> None:
    with pytest.raises(SettingsError, match=r"trust\.spiffe\.socket"):
        Settings.load(f"trust: {{spiffe: {{socket: '{socket}'}}}}", {})


def test_a_policy_is_a_document_of_opas_data() -> None:
    assert Settings.load("", {"GATEWAY__TRUST__OPA__URL": OPA}).trust.opa.url == OPA
    for url in ("http://127.0.0.1:8181", "http://127.0.0.1:8181/v1/query/a", OPA + "?pretty"):
        with pytest.raises(SettingsError, match=r"trust\.opa\.url"):
            Settings.load(f"trust: {{opa: {{url: '{url}'}}}}", {})
