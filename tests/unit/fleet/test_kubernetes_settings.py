"""Kubernetes in the settings and on the command line, and the rights they need."""

from __future__ import annotations

import argparse
import sys

import pytest

from gateway.__main__ import GatewayCommand
from gateway.flags import settings_said
from gateway.fleet.kubernetes_access import Access
from gateway.fleet.kubernetes_rights import PODS, SLICES, rights
from gateway.section import SettingsError
from gateway.settings import KubernetesSettings, Settings


def with_flags(text: str, *flags: str) -> KubernetesSettings:
    parser = argparse.ArgumentParser()
    GatewayCommand().add_arguments(parser)
    settings = settings_said(text, {}, vars(parser.parse_args(flags)))
    return settings.fleet.kubernetes


def test_the_flag_turns_it_on_and_may_name_namespaces() -> None:
    assert not with_flags("", "--replica", "http://10.0.0.1:8000").enabled
    assert with_flags("", "--kubernetes").enabled
    assert with_flags("", "--kubernetes", "a", "b").namespaces == ("a", "b")
    written = "fleet: {kubernetes: {namespaces: [c], enabled: true}}"
    assert with_flags(written).namespaces == ("c",)
    assert with_flags(written, "--kubernetes").namespaces == ("c",)
    assert with_flags(written, "--kubernetes", "a").namespaces == ("a",)


def test_without_any_source_of_replicas_it_is_named_as_one() -> None:
    with pytest.raises(SettingsError, match="--kubernetes"):
        with_flags("")


@pytest.mark.parametrize(
    "knobs",
    [
        "{deletion_cost: true, find: endpointslices}",
        "{namespaces: ['a/b']}",
        "{namespaces: ['../pods']}",
        "{selector: ''}",
        "{find: services}",
    ],
)
def test_what_cannot_be_meant_is_refused(knobs: str) -> None:
    with pytest.raises(SettingsError, match="kubernetes"):
        Settings.load(f"fleet: {{kubernetes: {knobs}}}", {})


def test_patching_is_asked_for_with_deletion_costs_alone() -> None:
    def verbs(**knobs: object) -> dict[str, tuple[str, ...]]:
        found = rights(KubernetesSettings.of({"enabled": True, **knobs}))
        return {right.resource.plural: right.verbs for right in found}

    assert verbs()["pods"] == ("list", "watch")
    assert "endpointslices" not in verbs()
    assert verbs(deletion_cost=True)["pods"] == ("list", "watch", "patch")
    assert "pods" not in verbs(find="endpointslices")
    assert verbs(find="both").keys() >= {"pods", "endpointslices"}
    assert PODS.path("n", "p") == "/api/v1/namespaces/n/pods/p"
    assert SLICES.path("n") == "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices"


def test_without_the_client_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(SettingsError, match=r"headrace\[kubernetes\]"):
        Access(None)
