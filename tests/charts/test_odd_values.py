"""Values that are legal and rare: each still is what was said, or is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from serving.jobs import spark_main
from tests.charts.tools import (
    CHARTS,
    KUBERNETES,
    Charts,
    Object,
    Refused,
    examples,
    find,
    read_values,
    versions,
)

VERSION = KUBERNETES[-1]
OPEN: dict[str, Any] = {"settings": {"tenants": {"anonymous": True}}}
GPU: dict[str, Any] = {"model": {"id": "org/name"}}
SAID = 'Answer: in "one" word #1,\nplease'


def replica(objects: list[Object]) -> Any:
    return yaml.safe_load(find(objects, "ConfigMap")["data"]["replica.yaml"])


def merged(values: Any, more: Any) -> Any:
    """As helm lays a file over a chart's own values."""
    if not isinstance(values, dict) or not isinstance(more, dict):
        return more
    return values | {key: merged(values.get(key), each) for key, each in more.items()}


def named(values: Any, schema: Any, name: str) -> Any:
    """The values, with every name of an object of Kubernetes' that is said in them replaced."""
    if isinstance(values, dict):
        known = schema.get("properties", {})
        return {key: named(each, known.get(key, {}), name) for key, each in values.items()}
    if isinstance(values, list):
        return [named(each, schema.get("items", {}), name) for each in values]
    is_name = schema.get("pattern", "").startswith("^([a-z0-9]([-a-z0-9.]*")
    return name if is_name and values else values


def shape(found: Any) -> Any:
    """Of what types it is made."""
    if isinstance(found, dict):
        return {str(key): shape(each) for key, each in found.items()}
    if isinstance(found, list):
        return [shape(each) for each in found]
    return type(found)


@pytest.mark.parametrize(
    ("chart", "path"), examples(), ids=[f"{chart}-{path.stem}" for chart, path in examples()]
)
@pytest.mark.parametrize("name", ["123", "on"])
def test_a_name_is_a_string_whatever_yaml_takes_it_for(
    charts: Charts, chart: str, path: Path, name: str, tmp_path: Path
) -> None:
    """Namespaces, Secrets and queues may be called so, the release's own namespace too."""
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text(encoding="utf-8"))
    values = merged(read_values(CHARTS / chart / "values.yaml"), read_values(path))
    shapes = []
    for each in ("x", name):
        file = tmp_path / f"{each}.json"
        file.write_text(json.dumps(named(values, schema, each)), encoding="utf-8")
        words = ["-n", each, "-f", str(file), "--kube-version", versions(path)[-1]]
        shapes.append(shape(charts.template("demo", chart, words)))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("chart", Charts.names())
@pytest.mark.parametrize("release", ["123", "true", "a.b", "null"])
def test_a_release_is_called_what_a_service_may_be(
    charts: Charts, chart: str, release: str, tmp_path: Path
) -> None:
    path = next(path for each, path in examples() if each == chart)
    file = tmp_path / "values.yaml"
    file.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    words = ["-n", "models", "-f", str(file), "--kube-version", VERSION]
    with pytest.raises(Refused, match=f"the release's name, {release}"):
        charts.template(release, chart, words)


def test_a_group_has_room_for_its_pods_names(charts: Charts, tmp_path: Path) -> None:
    """What StatefulSets add to a name must still make a label."""
    file = tmp_path / "values.json"
    file.write_text(json.dumps(GPU | {"parallelism": {"tensor": 2}, "gpu": {"count": 1}}))
    words = ["-n", "models", "-f", str(file), "--kube-version", VERSION]
    charts.template("a" * 48, "model", words)
    with pytest.raises(Refused, match="49 letters are too many"):
        charts.template("a" * 49, "model", words)


def test_a_set_of_jobs_has_room_for_its_pods_names(charts: Charts, tmp_path: Path) -> None:
    """A pod is called after set, job and two indices, and has five letters of its own."""
    file = tmp_path / "values.json"
    longest = {"name": "b" * 30, "input": "/in", "output": "/out"}
    file.write_text(json.dumps({"kind": "JobSet", "files": [longest]}))
    names = set()
    for last in "xy":
        words = ["-n", "models", "-f", str(file), "--kube-version", VERSION]
        made = find(charts.template("a" * 52 + last, "batch", words), "JobSet")
        names.add(made["metadata"]["name"])
        pod = f"{made['metadata']['name']}-{made['spec']['replicatedJobs'][0]['name']}-0-0-abcde"
        assert len(pod) <= 63
    assert len(names) == 2


def test_large_numbers_are_written_out(charts: Charts) -> None:
    """A terabyte of memory is no 1.0e+06Mi, and neither is a number of tokens."""
    values = GPU | {
        "resources": {"cpu": "4", "memoryGib": 1024},
        "shm": {"mibPerDevice": 2_000_000},
        "cache": {"sizeGib": 1_000_000},
        "engine": {"args": {"max-num-batched-tokens": 1_000_000, "gpu-memory-utilization": 0.85}},
    }
    found = charts.rendered("model", values, VERSION)
    spec = find(found, "Deployment")["spec"]["template"]["spec"]
    memory = f"{1024 * 1024 + 2_000_000}Mi"
    assert spec["containers"][0]["resources"]["limits"]["memory"] == memory
    sizes = {each["name"]: each["emptyDir"].get("sizeLimit") for each in spec["volumes"][1:]}
    assert (sizes["shm"], sizes["models"]) == ("2000000Mi", "1000000Gi")
    assert replica(found)["args"] == [
        "--gpu-memory-utilization=0.85",
        "--max-num-batched-tokens=1000000",
    ]


def test_a_switch_of_the_engine_has_no_value(charts: Charts) -> None:
    """vLLM refuses --enable-lora=true."""
    values = GPU | {"engine": {"args": {"enable-lora": True, "enable-chunked-prefill": False}}}
    found = charts.rendered("model", values, VERSION)
    assert replica(found)["args"] == ["--no-enable-chunked-prefill", "--enable-lora"]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"args": {"served-model-name": "other"}}, "served-model-name follows"),
        ({"extraArgs": ["--tensor_parallel_size=2"]}, "tensor-parallel-size follows"),
        ({"extraArgs": ["-tp", "2"]}, "tp follows"),
        ({"kind": "sglang", "args": {"tp-size": "2"}}, "tp-size follows"),
        ({"kind": "sglang", "extraArgs": ["--context-length=9"]}, "context-length follows"),
    ],
)
def test_what_is_derived_is_not_said_twice(
    charts: Charts, engine: dict[str, Any], said: str
) -> None:
    """By whatever name the engines know it."""
    with pytest.raises(Refused, match=said):
        charts.rendered("model", GPU | {"engine": engine}, VERSION)


def test_a_models_name_may_have_any_letters(charts: Charts) -> None:
    """In the trigger's URL they are quoted, but for the slash that the gateway's path has."""
    name = 'org/my "model": 100% #1'
    values = {
        "model": {"id": "org/name", "servedName": name},
        "scaling": {"enabled": True, "trigger": "metrics-api"},
    }
    found = charts.rendered("model", values, VERSION)
    url = urlsplit(find(found, "ScaledObject")["spec"]["triggers"][0]["metadata"]["url"])
    assert unquote(url.path) == f"/scale/{name}"
    assert url.path.startswith("/scale/org/my%20")
    assert find(found, "Deployment")["metadata"]["annotations"]["headrace.io/model"] == name


def test_words_for_spark_are_what_was_said(charts: Charts) -> None:
    spark = {
        "input": "/in: 1", "output": "/out: 1", "model": "m", "column": "my: column",
        "system": SAID, "parameters": {"stop": ["a: b #c"]},
    }  # fmt: skip
    found = charts.rendered("batch", {"kind": "SparkApplication", "spark": spark}, VERSION)
    words = find(found, "SparkApplication")["spec"]["arguments"]
    told = spark_main.arguments().parse_args(words)
    assert (told.input, told.output, told.column) == ("/in: 1", "/out: 1", "my: column")
    assert (told.system, json.loads(told.parameters)) == (SAID, spark["parameters"])


@pytest.mark.parametrize("kind", ["Job", "JobSet", "WorkflowTemplate"])
def test_files_may_be_called_anything(charts: Charts, kind: str) -> None:
    """`on` is a name, and paths may have what YAML has a meaning for."""
    files = [{"name": "on", "input": "/in: 1 #2", "output": "/out: 1 #2"}]
    found = find(charts.rendered("batch", {"kind": kind, "files": files}, VERSION), kind)
    if kind == "WorkflowTemplate":
        (step,) = found["spec"]["templates"][0]["steps"][0]
        told = {each["name"]: each["value"] for each in step["arguments"]["parameters"]}
        assert (step["name"], told) == (
            "on", {"file": "on", "input": "/in: 1 #2", "output": "/out: 1 #2"}
        )  # fmt: skip
        return
    job = found if kind == "Job" else found["spec"]["replicatedJobs"][0]["template"]
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[:3] == ["/in: 1 #2", "--output=/out: 1 #2", "--name=demo/on"]


def test_an_autoscaler_has_room_to_scale(charts: Charts) -> None:
    values = OPEN | {"autoscaling": {"enabled": True, "min": 9, "max": 2}}
    with pytest.raises(Refused, match=r"autoscaling.min: 9 is more than autoscaling.max, 2"):
        charts.rendered("gateway", values, VERSION)


def test_dashboards_need_no_label(charts: Charts) -> None:
    dashboards = {"enabled": True, "labels": {"grafana_dashboard": None}}
    values = OPEN | {"monitoring": {"dashboards": dashboards}}
    found = charts.rendered("gateway", values, VERSION)
    assert "grafana_dashboard" not in find(found, "ConfigMap", "demo-fleet")["metadata"]["labels"]


def test_a_download_that_would_be_changed_is_another(charts: Charts) -> None:
    """A Job's pods cannot be changed, so an upgrade would fail."""
    fetched = GPU | {"cache": {"kind": "pvc", "download": True}}

    def job(**more: Any) -> Any:
        return find(charts.rendered("model", fetched | more, VERSION), "Job")

    jobs = [
        job(),
        job(engine={"image": {"tag": "0.2.0"}}),
        job(tolerations=[{"operator": "Exists"}]),
        job(runAsUser=10002),
    ]
    assert len({each["metadata"]["name"] for each in jobs}) == len(jobs)
    same = job(scaling={"enabled": True})
    assert same == jobs[0]
