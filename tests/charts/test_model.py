"""The chart of a model: one shape, from which all that depends on it follows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.__main__ import main
from gateway.scale.trigger import read_trigger
from serving.replica.settings import ReplicaSettings, parse
from tests.charts.tools import (
    CHARTS,
    KUBERNETES,
    Charts,
    Object,
    Refused,
    find,
    kserve_pods,
    read_values,
)

VERSION = KUBERNETES[-1]
SCHEMA = CHARTS / "model/values.schema.json"
EXAMPLES = sorted((CHARTS / "model/ci").glob("*-values.yaml"))
GPU = {"model": {"id": "org/name"}}


SAID_AS_IT_IS = (
    "block_size", "kv_cache_mib", "lora", "prefix_caching", "quantisation", "sleep_mode", "warm_up",
)  # fmt: skip


def expected_schema() -> tuple[Any, Any]:
    """Of engine.settings, and what it refers to: made from the replica's own settings."""
    _, kinds = msgspec.json.schema_components([ReplicaSettings], ref_template="#/$defs/{name}")
    whole = kinds["ReplicaSettings"]["properties"]
    properties = {name: whole[name] for name in SAID_AS_IT_IS}
    made = {"type": "object", "additionalProperties": False, "properties": properties}
    names = ("Lora", "PrefixCaching", "Quantisation", "WarmUp")
    return made, {name: kinds[name] for name in names}


def test_schema_has_the_replicas_settings() -> None:
    """`GOLDEN=write make charts` brings it up to date."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    made, kinds = expected_schema()
    if os.environ.get("GOLDEN") == "write":
        schema["properties"]["engine"]["properties"]["settings"], schema["$defs"] = made, kinds
        SCHEMA.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    assert schema["properties"]["engine"]["properties"]["settings"] == made
    assert schema["$defs"] == kinds


def test_what_the_replica_can_do_can_be_said(charts: Charts) -> None:
    """In its own words, and what it would refuse is refused by helm."""
    said = {
        "lora": {"adapters": {"support": "/models/support"}},
        "quantisation": {"weights": "fp8"},
        "sleep_mode": True,
        "kv_cache_mib": 1_000_000,
    }
    rules = replica(charts.rendered("model", GPU | {"engine": {"settings": said}}, VERSION))
    assert rules.lora is not None
    assert rules.lora.adapters == {"support": "/models/support"}
    assert (rules.quantisation.weights, rules.sleep_mode) == ("fp8", True)
    assert rules.kv_cache_mib == 1_000_000
    refusals: list[Any] = [{"port": 1}, {"lora": {"adapter": {}}}, {"sleep_mode": "yes"}]
    for wrong in refusals:
        with pytest.raises(Refused) as refused:
            charts.rendered("model", GPU | {"engine": {"settings": wrong}}, VERSION)
        assert refused.value.names("/engine/settings")


def replica(objects: list[Object]) -> ReplicaSettings:
    """Its settings, read as `headrace replica` reads them."""
    return parse(yaml.safe_load(find(objects, "ConfigMap")["data"]["replica.yaml"]))


def templates(objects: list[Object]) -> list[Any]:
    """Of its pods, the leader's first."""
    for each in objects:
        if each["kind"] == "Deployment":
            return [each["spec"]["template"]]
        if each["kind"] == "LeaderWorkerSet":
            group = each["spec"]["leaderWorkerTemplate"]
            return [group["leaderTemplate"], group["workerTemplate"]]
    pods = kserve_pods(objects)
    assert pods, "no workload"
    return pods


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_pod_outlives_its_streams(charts: Charts, path: Path) -> None:
    """Kubernetes waits for longer than preStop and the engine's own end may take together."""
    found = charts.rendered("model", read_values(path), VERSION)
    rules = replica(found)
    for template in templates(found):
        spec = template["spec"]
        assert spec["terminationGracePeriodSeconds"] > 2 * rules.drain_s + rules.settle_s
        assert spec["automountServiceAccountToken"] is False
        probe = spec["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= rules.supervision.start_s


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.integers(1, 4),
    data=st.integers(1, 4),
    count=st.sampled_from([None, 1, 2, 4, 8]),
)
def test_nothing_disagrees(
    charts: Charts, tensor: int, pipeline: int, data: int, count: int | None
) -> None:
    """GPUs of all pods are the devices of the replica, and KEDA's step is its ranks."""
    values = GPU | {
        "parallelism": {"tensor": tensor, "pipeline": pipeline, "data": data},
        "gpu": {"count": count},
        "scaling": {"enabled": True},
    }
    devices = tensor * pipeline * data
    if count is not None and devices % count:
        with pytest.raises(Refused, match="do not divide"):
            charts.rendered("model", values, VERSION)
        return
    found = charts.rendered("model", values, VERSION)
    rules, pods = replica(found), templates(found)
    size = 1
    if len(pods) == 2:
        size = find(found, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["size"]
    limits = [pod["spec"]["containers"][0]["resources"]["limits"] for pod in pods]
    assert {each["nvidia.com/gpu"] * size for each in limits} == {devices}
    assert rules.parallelism.devices == devices
    assert rules.gpus.count == devices // size
    metadata = find(found, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert read_trigger(metadata).target == data
    told = pods[0]["metadata"]["annotations"]
    assert told.get("headrace.io/data-parallel-size", "1") == str(data)
    assert rules.kv_events is not None
    assert rules.kv_events.replay_port - rules.kv_events.port == data


@pytest.mark.parametrize(
    ("words", "kind", "devices"),
    [
        (["--gpu", "h200", "--count", "8"], "Deployment", None),
        (
            ["--gpu", "h100", "--count", "2", "--nodes", "2", "--split", "TP2-PP2"],
            "LeaderWorkerSet",
            4,
        ),
        (["--gpu", "h200", "--count", "4", "--split", "TP4"], "Deployment", 4),
    ],
)
def test_takes_what_the_planner_writes(
    charts: Charts, words: list[str], kind: str, devices: int | None, tmp_path: Path
) -> None:
    """And the replica is given the arguments that the plan counted on."""
    file = tmp_path / "values.yaml"
    plan = ["plan", "Llama-3.3-70B-Instruct", "--prompt-tokens", "1000", "--output-tokens", "100"]
    assert main([*plan, "--rate", "0.5", *words, "--write", "helm", str(file)]) == 0
    values = read_values(file)
    found = charts.rendered("model", values, VERSION)
    find(found, kind)
    rules = replica(found)
    assert rules.parallelism.devices == (devices or rules.parallelism.devices)
    assert rules.max_model_len == values["model"]["contextLength"]
    assert f"--max-num-seqs={values['engine']['args']['max-num-seqs']}" in rules.args


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "/model/id"),
        ({"model": {"id": ""}}, "/model/id"),
        (GPU | {"modle": {}}, "modle"),
        (GPU | {"gpu": {"mode": "gpu"}}, "/gpu/mode"),
        (GPU | {"gpu": {"mode": "mig"}}, "/gpu/migProfile"),
        (GPU | {"gpu": {"migProfile": "1g.10gb"}}, "/gpu/migProfile"),
        (
            GPU | {"gpu": {"mode": "mig", "migProfile": "1g.10gb"}, "parallelism": {"tensor": 2}},
            "/parallelism/tensor",
        ),
        (
            GPU | {"gpu": {"mode": "mig", "migProfile": "1g.10gb", "resourceName": "x/mig-2g"}},
            "gpu.resourceName: x/mig-2g is not what slices of profile 1g.10gb are called",
        ),
        (GPU | {"engine": {"args": {"host": "::"}}}, "host follows from model"),
        (
            GPU | {"engine": {"extraArgs": ["--tensor-parallel-size=2"]}},
            "tensor-parallel-size follows from model, parallelism",
        ),
        (
            GPU
            | {
                "parallelism": {"tensor": 4},
                "gpu": {"count": 2},
                "workload": {"kind": "deployment"},
            },
            "a replica of 2 pods (4 GPUs, 2 to a pod) is a leaderworkerset, not a deployment",
        ),
        (GPU | {"scaling": {"enabled": True, "min": 5}}, "scaling.min: 5 is more than scaling.max"),
        (GPU | {"cache": {"kind": "hostPath"}}, "/cache/path"),
        (GPU | {"cache": {"kind": "image"}}, "/cache/image"),
        (GPU | {"cache": {"download": True}}, "cache.download: only a claim"),
        (GPU | {"scaling": {"fallbackReplicas": 0}}, "/scaling/fallbackReplicas"),
        (GPU | {"engine": {"image": {"digest": "latest"}}}, "/engine/image/digest"),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    """By the schema, or where it takes arithmetic, by the templates."""
    with pytest.raises(Refused) as refused:
        charts.rendered("model", values, VERSION)
    assert refused.value.names(said)


def test_weights_from_an_image_need_a_kubernetes_that_mounts_them(charts: Charts) -> None:
    """Older API servers would drop the volume, and the engine find an empty folder."""
    values = GPU | {"cache": {"kind": "image", "image": "m:1"}}
    with pytest.raises(Refused, match="image volumes need Kubernetes"):
        charts.rendered("model", values, "1.30.0")
    found = charts.rendered("model", values, "1.31.0")
    volumes = templates(found)[0]["spec"]["volumes"]
    assert volumes[-1]["image"]["reference"] == "m:1"


def test_a_new_model_is_a_new_download(charts: Charts) -> None:
    """Jobs cannot be changed; and nobody takes the pods of one for replicas."""
    names = set()
    for model in ("org/one", "org/two"):
        values = {"model": {"id": model}, "cache": {"kind": "pvc", "download": True}}
        found = charts.rendered("model", values, VERSION)
        job = find(found, "Job")
        names.add(job["metadata"]["name"])
        wanted = find(found, "Service")["spec"]["selector"]
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert not wanted.items() <= labels.items()
        assert "headrace.io/model" not in labels
    assert len(names) == 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_known_traps_are_avoided(charts: Charts, path: Path) -> None:
    """What has stopped engines in clusters before."""
    found = charts.rendered("model", read_values(path), VERSION)
    rules = replica(found)
    for template in templates(found):
        spec = template["spec"]
        (engine,) = spec["containers"]
        environment = {each["name"]: each.get("value") for each in engine["env"]}
        writable = [each["mountPath"] for each in engine["volumeMounts"] if "readOnly" not in each]
        # Nobody in particular has no home, and caches of compiled code go there and to /tmp.
        assert environment["HOME"] in writable
        assert environment["USER"]
        assert "/tmp" in writable
        assert any((environment["HF_HOME"] or "").startswith(each) for each in writable)
        # A Service called vllm would become VLLM_PORT=tcp://...
        assert spec["enableServiceLinks"] is False
        # Ranks' shared memory counts against the memory limit.
        shm = next(each["emptyDir"] for each in spec["volumes"] if each["name"] == "shm")
        limit = int(engine["resources"]["limits"]["memory"].removesuffix("Mi"))
        assert limit > int(shm["sizeLimit"].removesuffix("Mi"))
        # Nothing asks whether it is alive before it has started.
        assert "startupProbe" in engine
        assert "initialDelaySeconds" not in engine["livenessProbe"]
    for each in found:
        if each["kind"] == "Deployment":
            assert each["spec"]["progressDeadlineSeconds"] > rules.supervision.start_s
        if each["kind"] == "PodDisruptionBudget":  # or nodes could never be drained
            values = read_values(path)
            scaling, workload = values.get("scaling", {}), values.get("workload", {})
            least = scaling.get("min", 0) if scaling.get("enabled") else workload["replicas"]
            assert least > 1


def test_labels_select_and_annotations_name(charts: Charts) -> None:
    """A label cannot hold a slash, so the name itself is an annotation; both are where we look."""
    found = charts.rendered("model", GPU, VERSION)
    for each in (find(found, "Deployment"), find(found, "Service"), *templates(found)):
        assert each["metadata"]["labels"]["headrace.io/model"] == "demo"
        assert each["metadata"]["annotations"]["headrace.io/model"] == "org/name"
