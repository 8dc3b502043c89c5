"""The chart of what a cluster needs once: what is on, and that its parts add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.__main__ import main
from serving.planner.hardware import kind as planned
from tests.charts.cel import broken_rules, defaulted, evaluated, quantity
from tests.charts.tools import (
    CHARTS,
    KUBERNETES,
    Charts,
    Object,
    Refused,
    crd,
    custom_schemas,
    find,
    read_values,
)

VERSION = KUBERNETES[-1]
EXAMPLES = CHARTS / "platform/ci"
WHOLE = {"name": "h200", "product": "NVIDIA-H200", "perNode": 8, "nodes": 2}
SLICED = {
    "name": "h200-sliced",
    "perNode": 8,
    "nodes": 1,
    "sharing": {"kind": "mig", "profile": "1g.18gb", "perGpu": 7},
}
ROUTE = {"parent": {"name": "public"}}
NODES = {"nodeClass": {"role": "node", "discovery": "models"}}

SWITCHES: list[tuple[str, dict[str, Any], str]] = [
    ("karpenter", NODES, "karpenter.sh/v1/NodePool"),
    ("kueue", {}, "kueue.x-k8s.io/v1beta2/ClusterQueue"),
    ("volcano", {}, "scheduling.volcano.sh/v1beta1/Queue"),
    ("gatewayApi", ROUTE, "gateway.networking.k8s.io/v1/HTTPRoute"),
    ("spiffe", {}, "spire.spiffe.io/v1alpha1/ClusterSPIFFEID"),
]


def kinds(objects: list[Object]) -> set[str]:
    """Without the pod of `helm test`."""
    return {each["kind"] for each in objects} - {"Pod"}


@pytest.mark.parametrize(("name", "values", "kind"), SWITCHES, ids=[it[0] for it in SWITCHES])
def test_a_switch_has_three_positions(
    charts: Charts, name: str, values: dict[str, Any], kind: str
) -> None:
    """auto asks the cluster; true and false do not."""
    gpus = {"gpus": [WHOLE | {"instance": "h200"}]}

    def found(position: Any, *known: str) -> set[str]:
        switched = gpus | {name: values | {"enabled": position}}
        return kinds(charts.rendered("platform", switched, VERSION, known))

    assert not found(False, kind)
    assert not found("auto")
    assert kind.rpartition("/")[2] in found(True)
    assert found("auto", kind) == found(True)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gpus=st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 9), st.sampled_from(["none", "mig", "time"])),
        max_size=4,
    )
)
def test_quotas_are_what_the_nodes_have(charts: Charts, gpus: list[tuple[int, int, str]]) -> None:
    """Of each resource, Kueue's flavours and Volcano's queue hold as many as the nodes offer."""
    shared = {
        "none": ({"kind": "none"}, "nvidia.com/gpu", 1),
        "mig": (
            {"kind": "mig", "profile": "1g.10gb+me", "perGpu": 7},
            "nvidia.com/mig-1g.10gb.me",
            7,
        ),
        "time": ({"kind": "timeSlicing", "perGpu": 4}, "nvidia.com/gpu.shared", 4),
    }
    values: list[dict[str, Any]] = []
    expected: dict[str, int] = {}
    for number, (per_node, nodes, how) in enumerate(gpus):
        sharing, resource, parts = shared[how]
        values += [
            {"name": f"gpu{number}", "perNode": per_node, "nodes": nodes, "sharing": sharing}
        ]
        expected[resource] = expected.get(resource, 0) + per_node * nodes * parts
    on = {"gpus": values, "kueue": {"enabled": True}, "volcano": {"enabled": True}}
    objects = charts.rendered("platform", on, VERSION)
    queue = find(objects, "ClusterQueue")["spec"]
    sums: dict[str, int] = {}
    flavors = {each["metadata"]["name"] for each in objects if each["kind"] == "ResourceFlavor"}
    for group in queue["resourceGroups"][1:]:
        for flavor in group["flavors"]:
            assert flavor["name"] in flavors
            [quota] = flavor["resources"]
            assert [quota["name"]] == group["coveredResources"]
            sums[quota["name"]] = sums.get(quota["name"], 0) + quota["nominalQuota"]
    assert sums == expected
    capability = find(objects, "Queue")["spec"]["capability"]
    assert {key: it for key, it in capability.items() if "/" in key} == expected


def test_nodes_wait_for_streams(charts: Charts) -> None:
    """Only an empty node goes by itself; one that must go outlives its pods' grace period."""
    values = read_values(EXAMPLES / "karpenter-values.yaml")
    objects = charts.rendered("platform", values, VERSION)
    model = {"model": {"id": "org/name"}, "drain": {"seconds": 300}}
    pods = find(charts.rendered("model", model, VERSION), "Deployment")["spec"]["template"]
    for name, gpus in (("h200", 16), ("l4", 4)):
        pool = find(objects, "NodePool", f"demo-{name}")["spec"]
        assert pool["disruption"]["consolidationPolicy"] == "WhenEmpty"
        longest = int(pool["template"]["spec"]["terminationGracePeriod"].rstrip("s"))
        assert longest > pods["spec"]["terminationGracePeriodSeconds"]
        budgets = {it["nodes"]: it for it in pool["disruption"]["budgets"]}
        assert budgets["100%"]["reasons"] == ["Empty"]
        assert budgets["0"]["duration"] == "12h"
        assert pool["limits"] == {"nvidia.com/gpu": gpus}
        made = find(objects, "EC2NodeClass")["metadata"]["name"]
        assert pool["template"]["spec"]["nodeClassRef"]["name"] == made


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["Llama-3.3-70B-Instruct", "--gpu", "h200", "--count", "8", "--nodes", "2"], "NodePool"),
        (["Qwen2.5-0.5B-Instruct", "--gpu", "h100-1g.10gb", "--count", "7"], "ClusterQueue"),
    ],
)
def test_the_planners_nodes_hold_the_planners_model(
    charts: Charts, words: list[str], kind: str, tmp_path: Path
) -> None:
    """What its pods ask for is within the quota that follows from the same plan's nodes."""
    files = {name: tmp_path / f"{name}.yaml" for name in ("helm", "platform")}
    writes = [word for name, path in files.items() for word in ("--write", name, str(path))]
    assert main(["plan", *words, *writes]) == 0
    on = {"karpenter": NODES | {"enabled": True}, "kueue": {"enabled": True}}
    found = charts.rendered("platform", read_values(files["platform"]) | on, VERSION)
    assert kind in kinds(found)
    model = find(charts.rendered("model", read_values(files["helm"]), VERSION), "Deployment")
    limits = model["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    [(resource, count)] = [(key, it) for key, it in limits.items() if "/" in key]
    [group] = find(found, "ClusterQueue")["spec"]["resourceGroups"][1:]
    assert group["coveredResources"] == [resource]
    quota = group["flavors"][0]["resources"][0]["nominalQuota"]
    assert quota >= count * model["spec"]["replicas"]


def test_slices_are_called_what_models_ask_for(charts: Charts) -> None:
    """The resource of a profile is the same in quotas and in a model's pods, and the planner
    knows the profile."""
    values = read_values(EXAMPLES / "queues-values.yaml")
    queue = find(charts.rendered("platform", values, VERSION), "ClusterQueue")["spec"]
    covered = {name for group in queue["resourceGroups"] for name in group["coveredResources"]}
    model = {"model": {"id": "org/name"}, "gpu": {"mode": "mig", "migProfile": "1g.18gb"}}
    pod = find(charts.rendered("model", model, VERSION), "Deployment")["spec"]["template"]
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) - {"memory"} <= covered
    assert planned("h200-1g.18gb").is_slice


def test_the_plugin_is_told_how_each_node_shares(charts: Charts) -> None:
    """Configurations by name, as nodes are labelled; what is cut is told to the MIG manager."""
    objects = charts.rendered("platform", read_values(EXAMPLES / "sharing-values.yaml"), VERSION)
    told = {
        name: yaml.safe_load(text)
        for name, text in find(objects, "ConfigMap", "demo-plugin")["data"].items()
    }
    assert set(told) == {"whole", "h200-sliced", "l4-shared"}
    assert told["h200-sliced"]["flags"] == {"migStrategy": "mixed"}
    shared = told["l4-shared"]["sharing"]["timeSlicing"]
    assert shared["renameByDefault"] is True
    assert shared["resources"] == [{"name": "nvidia.com/gpu", "replicas": 4}]
    cut = yaml.safe_load(find(objects, "ConfigMap", "demo-mig")["data"]["config.yaml"])
    assert cut["mig-configs"]["h200-sliced"] == [
        {"devices": "all", "mig-enabled": True, "mig-devices": {"1g.18gb": 7}}
    ]


def device(product: str, kind: str, **attributes: str) -> dict[str, Any]:
    """As NVIDIA's DRA driver describes one in a ResourceSlice."""
    return {
        "driver": "gpu.nvidia.com",
        "attributes": {"gpu.nvidia.com": {"productName": product, "type": kind} | attributes},
        "capacity": {"gpu.nvidia.com": {"memory": "141Gi"}},
    }


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("demo-h200", device("NVIDIA H200", "gpu"), True),
        ("demo-h200", device("NVIDIA H200 NVL", "gpu"), True),
        ("demo-h200", device("NVIDIA H2000", "gpu"), False),
        ("demo-h200", device("NVIDIA H200", "mig", profile="1g.18gb"), False),
        ("demo-h200", device("NVIDIA H200", "gpu") | {"driver": "other.example.org"}, False),
        ("demo-h200-sliced", device("NVIDIA H200", "mig", profile="1g.18gb"), True),
        ("demo-h200-sliced", device("NVIDIA H200", "mig", profile="2g.35gb"), False),
        ("demo-h200-sliced", device("NVIDIA H200", "gpu"), False),
    ],
)
def test_a_device_class_takes_its_devices(
    charts: Charts, name: str, given: dict[str, Any], taken: bool
) -> None:
    """Its selector, evaluated over devices."""
    objects = charts.rendered("platform", read_values(EXAMPLES / "dra-values.yaml"), VERSION)
    [selector] = find(objects, "DeviceClass", name)["spec"]["selectors"]
    assert evaluated(selector["cel"]["expression"], {"device": given}) is taken


def test_device_classes_need_a_kubernetes_that_knows_them(charts: Charts) -> None:
    values = {"gpus": [WHOLE], "dra": {"enabled": True}}
    with pytest.raises(Refused, match=r"resource.k8s.io/v1 needs Kubernetes 1\.34, not v?1\.29"):
        charts.rendered("platform", values, KUBERNETES[0])


def test_a_route_lets_in_v1_and_cuts_no_stream(charts: Charts) -> None:
    values = read_values(EXAMPLES / "front-values.yaml")
    [rule] = find(charts.rendered("platform", values, VERSION), "HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert [each["path"]["value"] for each in rule["matches"]] == ["/v1"]
    service = find(
        charts.rendered("gateway", {"settings": {"tenants": {"anonymous": True}}}, VERSION),
        "Service", "demo",
    )  # fmt: skip
    assert rule["backendRefs"][0]["port"] == service["spec"]["ports"][0]["port"]


def test_identities_are_of_pods_that_our_charts_make(charts: Charts) -> None:
    """The selectors of both ClusterSPIFFEIDs find the pods of both charts."""
    objects = charts.rendered("platform", read_values(EXAMPLES / "front-values.yaml"), VERSION)
    gateway = charts.rendered("gateway", {"settings": {"tenants": {"anonymous": True}}}, VERSION)
    pod = find(gateway, "Deployment")["spec"]["template"]["metadata"]["labels"]
    wanted = find(objects, "ClusterSPIFFEID", "demo-gateway")["spec"]["podSelector"]["matchLabels"]
    assert wanted["app.kubernetes.io/name"] == pod["app.kubernetes.io/name"]
    [asked] = find(objects, "ClusterSPIFFEID", "demo-models")["spec"]["podSelector"][
        "matchExpressions"
    ]
    model = charts.rendered("model", {"model": {"id": "org/name"}}, VERSION)
    assert asked["key"] in find(model, "Deployment")["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kueue": {"enabled": "yes"}}, "/kueue/enabled"),
        ({"kueu": {}}, "kueu"),
        ({"gpus": [{"name": "h200"}]}, "/gpus/0"),
        ({"gpus": [WHOLE | {"name": "H 200"}]}, "/gpus/0/name"),
        ({"gpus": [WHOLE | {"sharing": {"kind": "mig", "perGpu": 7}}]}, "/gpus/0/sharing"),
        ({"gpus": [SLICED | {"sharing": {"kind": "mig", "profile": "1g"}}]}, "/sharing"),
        ({"gpus": [WHOLE | {"sharing": {"kind": "timeSlicing"}}]}, "/gpus/0/sharing"),
        ({"karpenter": {"enabled": True}}, "/karpenter/nodeClass"),
        (
            {"gpus": [SLICED | {"instance": "h200"}], "karpenter": NODES | {"enabled": True}},
            "Karpenter starts nodes for nvidia.com/gpu, not for nvidia.com/mig-1g.18gb",
        ),
        (
            {"karpenter": NODES | {"freeze": {"schedule": "0 7 * * *"}}},
            "/karpenter/freeze/duration",
        ),
        ({"gatewayApi": {"enabled": True}}, "/gatewayApi/parent/name"),
        ({"runtimeClasses": {"classes": []}}, "/runtimeClasses/classes"),
        ({"spiffe": {"ttl": "soon"}}, "/spiffe/ttl"),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        charts.rendered("platform", values, VERSION)
    assert refused.value.names(said)


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("ScaledObject", {"minReplicaCount": 9, "maxReplicaCount": 4}, "minReplicaCount"),
        ("NodePool", {"template": {"spec": {"requirements": [
            {"key": "karpenter.sh/capacity-type", "operator": "In"}]}}}, "'In' must have a value"),
        ("EC2NodeClass", {"amiSelectorTerms": [{"alias": "arch@v1"}]}, "a family"),
        ("HTTPRoute", {"rules": [{"backendRefs": [{"name": "x"}]}]}, "port"),
    ],
)  # fmt: skip
def test_the_rules_of_custom_kinds_are_held(kind: str, spec: Any, said: str) -> None:
    """What a schema alone would let pass."""
    versions = {
        "ScaledObject": "keda.sh/v1alpha1",
        "NodePool": "karpenter.sh/v1",
        "EC2NodeClass": "karpenter.k8s.aws/v1",
        "HTTPRoute": "gateway.networking.k8s.io/v1",
    }
    if not custom_schemas():
        pytest.skip("no schemas of custom kinds beside this checkout (../shared/crds)")
    each = {"apiVersion": versions[kind], "kind": kind, "spec": spec}
    schema = crd(each)
    assert said in " ".join(broken_rules(schema, defaulted(schema, each)))


def test_quantities_are_read_as_kubernetes_does() -> None:
    assert [quantity(text) for text in ("2", "500m", "2Gi", "1k")] == [2, 0.5, 2**31, 1000]


def switches(values: dict[str, Any]) -> dict[str, Any]:
    """By their place, one or two levels down."""
    found = {}
    for name, each in values.items():
        for key, it in each.items() if isinstance(each, dict) else ():
            if key in ("enabled", "admission", "gatekeeper", "kyverno"):
                found[f"{name}.{key}"] = it
            elif isinstance(it, dict) and "enabled" in it:
                found[f"{name}.{key}.enabled"] = it["enabled"]
    return found


def test_every_switch_has_an_example() -> None:
    """And nothing is on unless said, but for policies, which wait for a judge."""
    known = switches(read_values(CHARTS / "platform/values.yaml"))
    shown: set[str] = set()
    for path in sorted(Path(EXAMPLES).glob("*-values.yaml")):
        shown |= {name for name, it in switches(read_values(path)).items() if it is True}
    off = {name for name, it in known.items() if it is False}
    assert shown == off
    assert {name.split(".")[0] for name in known.keys() - off} == {"policies"}
