"""The chart of the gateway: its settings are the gateway's own, its Role is what is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.__main__ import main
from gateway.fleet.kubernetes_rights import rights
from gateway.section import reader
from gateway.settings import KubernetesSettings, Settings
from tests.charts.tools import CHARTS, KUBERNETES, Charts, Object, Refused, find, read_values

VERSION = KUBERNETES[-1]
SCHEMA = CHARTS / "gateway/values.schema.json"
EXAMPLES = sorted((CHARTS / "gateway/ci").glob("*-values.yaml"))
OPEN: dict[str, Any] = {"settings": {"tenants": {"anonymous": True}}}

each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def settings_file(objects: list[Object], name: str = "demo") -> str:
    """What the gateway reads."""
    return str(find(objects, "ConfigMap", name)["data"]["settings.yaml"])


def expected_schema() -> tuple[Any, Any]:
    """Of the settings, and what it refers to: the schema is made from the settings themselves."""
    made = reader(Settings).json_schema()
    kinds = made.pop("$defs")
    for name in ("ReplicaSettings", "ModelSettings"):  # a bare URL, or name, will do
        kinds[name] = {"anyOf": [{"type": "string"}, kinds[name]]}
    return made, kinds


def test_schema_is_that_of_the_settings() -> None:
    """`GOLDEN=write make charts` brings it up to date."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    made, kinds = expected_schema()
    if os.environ.get("GOLDEN") == "write":
        schema["properties"]["settings"], schema["$defs"] = made, kinds
        SCHEMA.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    assert schema["properties"]["settings"] == made
    assert schema["$defs"] == kinds


@each_example
def test_the_gateway_takes_its_settings(charts: Charts, path: Path, tmp_path: Path) -> None:
    """As `headrace check-settings` reads them, and nothing of the values is lost."""
    values = read_values(path)
    text = settings_file(charts.rendered("gateway", values, VERSION))
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["check-settings", str(file)]) == 0
    _contains(yaml.safe_load(text), values["settings"])


def _contains(found: Any, said: Any) -> None:
    if not isinstance(said, dict):
        assert found == said
        return
    for key, value in said.items():
        if value is not None:
            _contains(found[key], value)


@pytest.mark.parametrize(
    "said",
    [
        {"enabled": True},
        {"enabled": True, "find": "endpointslices"},
        {"enabled": True, "find": "both", "namespaces": ["one", "two"]},
        {"enabled": True, "deletion_cost": True},
    ],
)
def test_role_is_what_is_asked_for(charts: Charts, said: dict[str, Any]) -> None:
    """No more and no less, in each namespace that is watched."""
    values = {"settings": OPEN["settings"] | {"fleet": {"kubernetes": said}}}
    found = charts.rendered("gateway", values, VERSION)
    needed = [
        {
            "apiGroups": [right.resource.group],
            "resources": [right.resource.plural],
            "verbs": list(right.verbs),
        }
        for right in rights(KubernetesSettings(**said))
    ]
    roles = {each["metadata"]["namespace"]: each for each in found if each["kind"] == "Role"}
    assert set(roles) == set(said.get("namespaces", ["models"]))
    assert all(each["rules"] == needed for each in roles.values())
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True


def test_without_kubernetes_there_is_no_token_and_no_role(charts: Charts) -> None:
    """What is not asked is not allowed."""
    values = {"settings": OPEN["settings"] | {"fleet": {"kubernetes": {"enabled": False}}}}
    found = charts.rendered("gateway", values, VERSION)
    assert not {"Role", "RoleBinding"} & {each["kind"] for each in found}
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False


@each_example
def test_a_pod_outlives_its_streams(charts: Charts, path: Path) -> None:
    """Kubernetes waits for longer than preStop and the streams may take together."""
    found = charts.rendered("gateway", read_values(path), VERSION)
    grace_s = Settings.load(settings_file(found), {}).admit.drain_grace_s
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    pause_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > grace_s + pause_s


@pytest.mark.parametrize(
    ("said", "several"),
    [
        ({"replicas": 1}, False),
        ({"replicas": 2}, True),
        ({"replicas": 1, "autoscaling": {"enabled": True, "min": 1, "max": 2}}, True),
        ({"replicas": 3, "settings": {"peers": {"addresses": ["10.0.0.1:9100"]}}}, False),
    ],
)
def test_gateways_find_each_other(charts: Charts, said: dict[str, Any], several: bool) -> None:
    """By a Service of their own, on ports that the policy lets through, all workers'."""
    knobs = {"workers": 3, "peers": {"port": 9200, "secret": "peers"}, **said}
    knobs["settings"] = OPEN["settings"] | said.get("settings", {})
    found = charts.rendered("gateway", knobs, VERSION)
    peers = Settings.load(settings_file(found), {}).peers
    names = [each["metadata"]["name"] for each in found if each["kind"] == "Service"]
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    assert peers.workers == 3
    assert ("demo-peers" in names) is several
    assert (peers.dns is not None) is several
    assert any(each["name"] == "peers" for each in pod["volumes"]) is several
    if several:
        assert (peers.dns, peers.port) == ("demo-peers.models.svc", 9200)
        policy = find(found, "NetworkPolicy")["spec"]
        opened = [{"port": 9200, "endPort": 9202, "protocol": "UDP"}]
        assert any(rule["ports"] == opened for rule in policy["ingress"])
        assert any(rule.get("ports") == opened for rule in policy["egress"])
        assert find(found, "Service", "demo-peers")["spec"]["publishNotReadyAddresses"] is True


def test_cores_follow_the_workers(charts: Charts) -> None:
    """And what an autoscaler compares with is what they can use."""
    values = OPEN | {"workers": 4, "autoscaling": {"enabled": True, "cpuPercent": 50}}
    found = charts.rendered("gateway", values, VERSION)
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "5", "memory": "10Gi"}
    metric = find(found, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["resource"]
    assert metric["target"]["averageValue"] == "2000m"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "who may ask? Name a Secret in tenantsSecret"),
        ({"settings": {"acept": {}}}, "acept"),
        ({"settings": {"accept": {"port": 70_000}}}, "/settings/accept/port"),
        ({"settings": {"fleet": {"kubernetes": {"find": "nodes"}}}}, "/settings/fleet/kubernetes"),
        ({"settings": {"fleet": {"replicas": [{"models": ["x"]}]}}}, "/settings/fleet/replicas/0"),
        ({"replicaCount": 3}, "replicaCount"),
        ({"workers": 0}, "/workers"),
        (
            {"settings": OPEN["settings"] | {"peers": {"workers": 2}}},
            "settings.peers.workers: say `workers`",
        ),
        ({"service": {"type": "ExternalName"}}, "/service/type"),
        *(
            (
                {"settings": OPEN["settings"] | {"batch": {"store": f"postgresql://{url}"}}},
                "settings.batch.store: a password is no setting",
            )
            for url in ("me:word@db/name", "me:w/rd@db/name", "db/name?user=me&password=word")
        ),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    """By the schema, made from the settings' own."""
    with pytest.raises(Refused) as refused:
        charts.rendered("gateway", values, VERSION)
    assert refused.value.names(said)


def test_who_installs_it_is_told_how_models_find_it(charts: Charts, tmp_path: Path) -> None:
    """The line for a model names this release, whatever its name, port and scheme."""
    values = OPEN | {"tlsSecret": "tls"}
    values["settings"] = OPEN["settings"] | {
        "accept": {"port": 8443},
        "scale": {"keda": {"port": 9999}},
    }
    (tmp_path / "gateway.json").write_text(json.dumps(values), encoding="utf-8")
    where = ["-n", "models", "--kube-version", VERSION]
    told = charts.notes("front", "gateway", ["-n", "models", "-f", str(tmp_path / "gateway.json")])
    line = next(line for line in told.splitlines() if " install " in line)
    words = line.partition("model.yaml")[2].split()
    (tmp_path / "model.json").write_text(
        json.dumps({"model": {"id": "m"}, "scaling": {"enabled": True}}), encoding="utf-8"
    )
    said = [*where, "-f", str(tmp_path / "model.json"), *words]
    model = charts.template("qwen", "model", said)
    (container,) = find(model, "Pod")["spec"]["containers"]
    assert container["env"][0]["value"] == "https://front.models.svc:8443"
    trigger = find(model, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert trigger["scalerAddress"] == "front-scaler.models.svc:9999"
    assert "curl -k https://127.0.0.1:8000/v1/models\n" in told


def test_both_charts_meet(charts: Charts) -> None:
    """The model's trigger and its policy name what a gateway's release is called."""
    gateway = charts.rendered("gateway", OPEN, VERSION)
    values = {"model": {"id": "m"}, "scaling": {"enabled": True}, "gateway": {"name": "demo"}}
    model = charts.rendered("model", values, VERSION)
    trigger = find(model, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    host, _, port = trigger["scalerAddress"].partition(":")
    scaler = find(gateway, "Service", host.split(".")[0])
    assert scaler["spec"]["ports"][0]["port"] == int(port)
    labels = find(gateway, "Deployment")["spec"]["template"]["metadata"]["labels"]
    peer = find(model, "NetworkPolicy")["spec"]["ingress"][0]["from"][0]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
