"""Trust in the charts: identities from SPIRE on both sides, and OPA beside the gateway."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from gateway.trust.identity import Allowed, NotAllowed
from serving.replica.settings import parse
from tests.charts.tools import CHARTS, KUBERNETES, Charts, Object, Refused, find, read_values

VERSION = KUBERNETES[-1]


def example(charts: Charts, chart: str, name: str) -> list[Object]:
    return charts.rendered(chart, read_values(CHARTS / f"{chart}/ci/{name}-values.yaml"), VERSION)


def gateway_settings(found: list[Object]) -> Settings:
    return Settings.load(find(found, "ConfigMap", "demo")["data"]["settings.yaml"], {})


def folders(spec: Any, container: Any) -> dict[str, Any]:
    """What is mounted where, read-only."""
    volumes = {each["name"]: each for each in spec["volumes"]}
    mounts = [each for each in container["volumeMounts"] if each.get("readOnly")]
    return {each["mountPath"]: volumes[each["name"]] for each in mounts}


def test_each_side_finds_the_workload_api(charts: Charts) -> None:
    """The folder of the socket that the settings name is SPIRE's, by its CSI driver."""
    found = example(charts, "gateway", "spiffe")
    spec = find(found, "Deployment")["spec"]["template"]["spec"]
    socket = gateway_settings(found).trust.spiffe.socket
    assert socket is not None
    folder = socket.removeprefix("unix:").rpartition("/")[0]
    csi = {"driver": "csi.spiffe.io", "readOnly": True}
    assert folders(spec, spec["containers"][0])[folder]["csi"] == csi
    found = example(charts, "model", "spiffe")
    pod = find(found, "Deployment")["spec"]["template"]
    told = parse(yaml.safe_load(find(found, "ConfigMap")["data"]["replica.yaml"])).spiffe
    assert told is not None
    folder = told.socket.removeprefix("unix:").rpartition("/")[0]
    assert folders(pod["spec"], pod["spec"]["containers"][0])[folder]["csi"] == csi
    assert pod["metadata"]["annotations"]["headrace.io/scheme"] == "https"


def test_the_gateway_believes_the_identities_that_the_platform_gives(charts: Charts) -> None:
    """Those of models in a namespace that it allows, and not the gateway's own."""
    made = example(charts, "platform", "front")
    allowed = Allowed.of(
        gateway_settings(example(charts, "gateway", "spiffe")).trust.spiffe.replicas
    )

    def identity(name: str, namespace: str, labels: dict[str, str]) -> dict[str, Any]:
        """The certificate of a pod, its SPIFFE ID filled in as SPIRE's controller manager does."""
        text = find(made, "ClusterSPIFFEID", name)["spec"]["spiffeIDTemplate"]
        text = text.replace("{{ .TrustDomain }}", "example.org")
        text = text.replace("{{ .PodMeta.Namespace }}", namespace)
        filled = re.sub(
            r'\{\{ index \.PodMeta\.Labels "([^"]+)" \}\}', lambda it: labels[it[1]], text
        )
        assert "{{" not in filled
        return {"subjectAltName": (("URI", filled),)}

    model = find(example(charts, "model", "spiffe"), "Deployment")["spec"]["template"]
    allowed.check(identity("demo-models", "models", model["metadata"]["labels"]))
    with pytest.raises(NotAllowed):
        allowed.check(identity("demo-models", "elsewhere", model["metadata"]["labels"]))
    gateway = find(example(charts, "gateway", "spiffe"), "Deployment")["spec"]["template"]
    with pytest.raises(NotAllowed):
        allowed.check(identity("demo-gateway", "models", gateway["metadata"]["labels"]))


def test_opa_is_asked_where_it_is(charts: Charts) -> None:
    """It listens to its pod alone, where the gateway's settings have it."""
    found = example(charts, "gateway", "spiffe")
    _, opa = find(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    [address] = [each for each in opa["args"] if each.startswith("--addr=")]
    url = gateway_settings(found).trust.opa.url
    assert url is not None
    assert url.startswith(f"http://{address.removeprefix('--addr=')}/v1/data/headrace/")
    assert address.startswith("--addr=127.0.0.1:")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": {"kind": "sglang"}}, "/engine/kind"),
        ({"monitoring": {"podMonitor": True}}, "/monitoring/podMonitor"),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    """Engines that cannot take up new certificates; and scrapers, that have none to show."""
    spiffe = {"model": {"id": "org/name"}, "spiffe": {"trustDomain": "example.org"}}
    with pytest.raises(Refused) as refused:
        charts.rendered("model", spiffe | values, VERSION)
    assert refused.value.names(said)
