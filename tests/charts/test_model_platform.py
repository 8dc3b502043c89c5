"""The chart of a model among other systems: queues, gangs, claims, KServe, an InferencePool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.__main__ import main
from tests.charts.cel import broken_rules, defaulted, evaluated
from tests.charts.tools import (
    CHARTS,
    KUBERNETES,
    Charts,
    Object,
    Refused,
    crd,
    find,
    kserve_pods,
    read_values,
)

VERSION = KUBERNETES[-1]
EXAMPLES = CHARTS / "model/ci"
ONE = {"model": {"id": "org/name"}}
WIDE = ONE | {"parallelism": {"tensor": 8, "pipeline": 2}, "gpu": {"count": 8}}
INVENTORY = {"nodes": [{"name": "one", "gpus": [{"kind": "l40s", "count": 2}]}]}


def example(charts: Charts, name: str) -> list[Object]:
    return charts.rendered("model", read_values(EXAMPLES / f"{name}-values.yaml"), VERSION)


@pytest.mark.parametrize(
    "words",
    [
        ["Qwen2.5-32B-Instruct", "--gpu", "l40s", "--count", "2", "--ttft", "5", "--tpot", "0.2"],
        ["Llama-3.3-70B-Instruct", "--gpu", "h200", "--count", "4", "--split", "TP4"],
        ["Qwen2.5-0.5B-Instruct", "--gpu", "h100-1g.10gb", "--count", "7"],
        ["Llama-3.3-70B-Instruct", "--gpu", "h100", "--count", "2", "--nodes", "2",
         "--split", "TP2-PP2"],
    ],
    ids=["pcie", "nvlink", "slice", "two nodes"],
)  # fmt: skip
def test_a_claim_is_the_planners(charts: Charts, words: list[str], tmp_path: Path) -> None:
    """What is claimed of the planner's values is what `--write dra` writes, domain and all."""
    values, claim = tmp_path / "values.yaml", tmp_path / "claim.yaml"
    written = ["--write", "helm", str(values), "--write", "dra", str(claim)]
    assert main(["plan", *words, *written]) == 0
    said = read_values(values)
    claimed = said | {"gpu": said["gpu"] | {"mode": "dra"}}
    found = charts.rendered("model", claimed, VERSION)
    assert find(found, "ResourceClaimTemplate")["spec"] == read_values(claim)["spec"]


def test_claimed_gpus_are_not_asked_for_by_limit(charts: Charts) -> None:
    """The pod claims from the template, the container takes the claim, the replica counts them."""
    found = example(charts, "dra")
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    template = find(found, "ResourceClaimTemplate")["metadata"]["name"]
    assert pod["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": template}]
    [container] = pod["containers"]
    assert container["resources"]["claims"] == [{"name": "gpus"}]
    assert set(container["resources"]["limits"]) == {"memory"}
    settings = yaml.safe_load(find(found, "ConfigMap")["data"]["replica.yaml"])
    assert settings["engine"] == "vllm"
    assert settings["gpus"] == {"count": 4, "name": "H200", "memory_gib": 133}


@pytest.mark.parametrize(
    ("product", "memory", "taken"),
    [
        ("NVIDIA H200", "141Gi", True),
        ("NVIDIA H200", "100Gi", False),
        ("NVIDIA H100", "141Gi", False),
    ],
)
def test_a_claim_takes_devices_such_as_were_planned_for(
    charts: Charts, product: str, memory: str, taken: bool
) -> None:
    devices = find(example(charts, "dra"), "ResourceClaimTemplate")["spec"]["spec"]["devices"]
    [selector] = devices["requests"][0]["exactly"]["selectors"]
    device = {
        "attributes": {"gpu.nvidia.com": {"productName": product}},
        "capacity": {"gpu.nvidia.com": {"memory": memory}},
    }
    assert evaluated(selector["cel"]["expression"], {"device": device}) is taken


@pytest.mark.parametrize(
    ("engine", "pods", "argument"),
    [
        ("vllm", 2, "--gpu-memory-utilization=0.45"),
        ("vllm", 4, "--gpu-memory-utilization=0.23"),
        ("sglang", 3, "--mem-fraction-static=0.30"),
    ],
)
def test_engines_that_share_a_gpu_share_its_memory(
    charts: Charts, engine: str, pods: int, argument: str
) -> None:
    """Nothing but the engines' own restraint divides it."""
    shared = {"gpu": {"mode": "timeSlicing", "sharedBy": pods}, "engine": {"kind": engine}}
    found = charts.rendered("model", ONE | shared, VERSION)
    assert argument in yaml.safe_load(find(found, "ConfigMap")["data"]["replica.yaml"])["args"]
    assert float(argument.partition("=")[2]) * pods < 1
    pod = find(found, "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu.shared"] == 1


def test_a_shared_gpu_is_called_as_the_platform_does(charts: Charts) -> None:
    """The quota of a kind that is shared is of the resource that the pods ask for."""
    kind = {"name": "l4", "perNode": 1, "nodes": 2, "sharing": {"kind": "timeSlicing", "perGpu": 4}}
    values = {"gpus": [kind], "kueue": {"enabled": True}}
    queue = find(charts.rendered("platform", values, VERSION), "ClusterQueue")
    [group] = queue["spec"]["resourceGroups"][1:]
    assert group["coveredResources"] == ["nvidia.com/gpu.shared"]
    assert group["flavors"][0]["resources"][0]["nominalQuota"] == 8


def test_a_queue_is_one_that_the_platform_has(charts: Charts) -> None:
    """The names of queue and priority are those that charts/platform makes."""
    platform = read_values(CHARTS / "platform/ci/queues-values.yaml")
    made = charts.rendered("platform", platform, VERSION)
    found = find(example(charts, "queued"), "LeaderWorkerSet")
    labels = found["metadata"]["labels"]
    queues = {each["metadata"]["name"] for each in made if each["kind"] == "LocalQueue"}
    assert labels["kueue.x-k8s.io/queue-name"] in queues
    priority = labels["kueue.x-k8s.io/priority-class"].removeprefix("platform-")
    find(made, "WorkloadPriorityClass", f"demo-{priority}")
    for side in ("leaderTemplate", "workerTemplate"):
        said = found["spec"]["leaderWorkerTemplate"][side]["metadata"]["annotations"]
        assert said["kueue.x-k8s.io/podset-group-name"] == "demo"
        assert said["kueue.x-k8s.io/podset-required-topology"].endswith("topology-block")


def test_a_gang_is_a_replica(charts: Charts) -> None:
    """As many pods as LeaderWorkerSet puts into a group, told apart by the group's index."""
    found = example(charts, "gang")
    group = find(found, "PodGroup")
    size = find(found, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["size"]
    [sub] = group["spec"]["subGroupPolicy"]
    assert group["spec"]["minMember"] == sub["subGroupSize"] == size == 2
    assert sub["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/group-index"]
    for side in ("leaderTemplate", "workerTemplate"):
        pod = find(found, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"][side]
        assert pod["spec"]["schedulerName"] == "volcano"
        name = pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"]
        assert name == group["metadata"]["name"]
        assert sub["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_one_pod_needs_no_gang(charts: Charts) -> None:
    """Volcano makes its PodGroup itself, and is told the queue."""
    found = charts.rendered("model", ONE | {"volcano": {"enabled": True}}, VERSION)
    assert "PodGroup" not in {each["kind"] for each in found}
    pod = find(found, "Deployment")["spec"]["template"]
    assert pod["spec"]["schedulerName"] == "volcano"
    assert pod["metadata"]["annotations"]["scheduling.volcano.sh/queue-name"] == "headrace"


@pytest.mark.parametrize(
    ("values", "kind", "known"),
    [
        (WIDE | {"volcano": {"enabled": "auto"}}, "PodGroup", "scheduling.volcano.sh/v1beta1"),
        (
            ONE | {"inferencePool": {"enabled": "auto", "picker": {"name": "picker"}}},
            "InferencePool",
            "inference.networking.k8s.io/v1",
        ),
    ],
)
def test_auto_asks_the_cluster(
    charts: Charts, values: dict[str, Any], kind: str, known: str
) -> None:
    without = {each["kind"] for each in charts.rendered("model", values, VERSION)}
    found = charts.rendered("model", values, VERSION, [f"{known}/{kind}"])
    assert {each["kind"] for each in found} - without == {kind}


@pytest.mark.parametrize("name", ["kserve", "kserve-llm"])
def test_kserve_runs_the_same_pod(charts: Charts, name: str) -> None:
    """But for names: the pod that a Deployment would have, with our mark for the gateway."""
    values = read_values(EXAMPLES / f"{name}-values.yaml")
    [pod] = kserve_pods(charts.rendered("model", values, VERSION))
    ours = values | {"workload": {"kind": "deployment"}, "inferencePool": {}}
    template = find(charts.rendered("model", ours, VERSION), "Deployment")["spec"]["template"]
    assert pod["metadata"] == template["metadata"]
    [container], [expected] = pod["spec"].pop("containers"), template["spec"].pop("containers")
    assert container.pop("name") in ("kserve-container", "main")
    assert container == {key: it for key, it in expected.items() if key != "name"}
    for spec in (pod["spec"], template["spec"]):
        for each in spec["topologySpreadConstraints"]:
            del each["labelSelector"]
    assert pod["spec"] == template["spec"]


@pytest.mark.parametrize("name", ["kserve", "kserve-llm"])
def test_what_selects_pods_finds_those_of_kserve(charts: Charts, name: str) -> None:
    """By our mark: the names in Kubernetes' own labels are KServe's there."""
    found = example(charts, name)
    [pod] = kserve_pods(found)
    kept = {"headrace.io/model": pod["metadata"]["labels"]["headrace.io/model"]}
    spec = find(found, "NetworkPolicy")["spec"]
    assert spec["podSelector"]["matchLabels"] == kept
    services = [each for each in found if each["kind"] == "Service"]
    assert [each["spec"]["selector"] for each in services] == [kept] * (name == "kserve-llm")


def test_kserves_deployments_are_scaled_as_the_gateway_says(charts: Charts) -> None:
    """KServe leaves an InferenceService's to others; an LLMInferenceService's it hands to KEDA."""
    found = example(charts, "kserve")
    scaled = find(found, "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "demo-predictor"
    service = find(found, "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert "minReplicas" not in service["spec"]["predictor"]
    values = read_values(EXAMPLES / "kserve-llm-values.yaml") | {"scaling": {"enabled": True}}
    found = charts.rendered("model", values, VERSION)
    assert "ScaledObject" not in {each["kind"] for each in found}
    spec = find(found, "LLMInferenceService")["spec"]
    assert "replicas" not in spec
    told = spec["scaling"]
    assert (told["minReplicas"], told["keda"]["idleReplicaCount"]) == (1, 0)
    assert told["keda"]["triggers"] == scaled["triggers"]
    if schema := crd(find(found, "LLMInferenceService")):
        each = defaulted(schema, find(found, "LLMInferenceService"))
        assert not list(broken_rules(schema, each))


def test_a_pool_selects_those_who_answer(charts: Charts) -> None:
    """Of a group only the leader does."""
    on = {"inferencePool": {"enabled": True, "picker": {"name": "picker"}}}
    found = charts.rendered("model", WIDE | on, VERSION)
    selector = find(found, "InferencePool")["spec"]["selector"]["matchLabels"]
    assert selector["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert selector == find(found, "Service")["spec"]["selector"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            WIDE | {"workload": {"kind": "inferenceservice"}},
            "a replica of 2 pods (16 GPUs, 8 to a pod) is a leaderworkerset",
        ),
        (ONE | {"kueue": {"topology": "example.org/rack"}}, "/kueue/topology"),
        (ONE | {"kueue": {"queue": "a"}, "volcano": {"enabled": True}}, "/volcano/enabled"),
        (ONE | {"volcano": {"queue": ""}}, "/volcano/queue"),
        (ONE | {"inferencePool": {"enabled": True}}, "/inferencePool/picker/name"),
        (ONE | {"gpu": {"mode": "dra", "matchAttributes": ["pcieRoot"]}}, "/gpu/matchAttributes/0"),
        (ONE | {"gpu": {"mode": "timeSlicing"}}, "/gpu/sharedBy"),
        (ONE | {"gpu": {"sharedBy": 2}}, "/gpu/sharedBy"),
        (
            ONE
            | {
                "gpu": {"mode": "timeSlicing", "sharedBy": 2},
                "engine": {"args": {"gpu-memory-utilization": "0.9"}},
            },
            "0.9 of the memory for each of 2 is more than there is",
        ),
        (
            ONE | {"gpu": {"mode": "timeSlicing", "sharedBy": 2}, "parallelism": {"tensor": 2}},
            "/parallelism/tensor",
        ),
        (
            ONE | {"gpu": {"mode": "dra", "migProfile": "1g.10gb"}, "parallelism": {"tensor": 2}},
            "/parallelism/tensor",
        ),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        charts.rendered("model", values, VERSION)
    assert refused.value.names(said)


def test_claims_need_a_kubernetes_that_knows_them(charts: Charts) -> None:
    with pytest.raises(Refused, match=r"dra needs Kubernetes 1\.34, not v?1\.29"):
        charts.rendered("model", ONE | {"gpu": {"mode": "dra"}}, KUBERNETES[0])
