"""The chart of work that may wait: what its pods run, whom they may reach, and who tries again."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from serving.jobs import spark_main
from serving.jobs.command import BatchCommand
from tests.builders import MODEL
from tests.charts.tools import CHARTS, KUBERNETES, Charts, Object, Refused, find, read_values
from tests.house import a_sim, run, running_house

VERSION = KUBERNETES[-1]
EXAMPLES = sorted((CHARTS / "batch/ci").glob("*-values.yaml"))
FILE: dict[str, Any] = {"files": [{"name": "a", "input": "/in", "output": "/out"}]}
SPARK: dict[str, Any] = {
    "kind": "SparkApplication",
    "spark": {"input": "/in", "output": "/out", "model": "m"},
}


def rendered(charts: Charts, name: str) -> list[Object]:
    return charts.rendered("batch", read_values(CHARTS / f"batch/ci/{name}-values.yaml"), VERSION)


def commands(objects: list[Object]) -> list[list[str]]:
    """What containers run, in whatever kind they are."""
    found = []
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Job":
            found += spec["template"]["spec"]["containers"]
        if each["kind"] == "JobSet":
            for job in spec["replicatedJobs"]:
                found += job["template"]["spec"]["template"]["spec"]["containers"]
        if each["kind"] == "WorkflowTemplate":
            found += [each["container"] for each in spec["templates"] if "container" in each]
    return [[*each["command"], *each["args"]] for each in found]


def read_by_the_command(words: list[str]) -> argparse.Namespace:
    """As `headrace batch` reads them."""
    assert words[:2] == ["headrace", "batch"]
    parser = argparse.ArgumentParser()
    BatchCommand().add_arguments(parser)
    return parser.parse_args(words[2:])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_pods_run_is_what_the_command_reads(charts: Charts, path: Path) -> None:
    values = read_values(path)
    found = charts.rendered("batch", values, VERSION)
    namespace = values.get("gateway", {}).get("namespace", "models")
    told: list[Any] = [read_by_the_command(each) for each in commands(found)]
    if values.get("kind") == "SparkApplication":
        (application,) = [each for each in found if each["kind"] == "SparkApplication"]
        told = [spark_main.arguments().parse_args(application["spec"]["arguments"])]
        assert json.loads(told[0].parameters) == values["spark"]["parameters"]
    assert told
    for each in told:
        assert each.endpoint == f"http://headrace.{namespace}.svc:8000"
        has_key = "apiKeySecret" in values
        assert each.api_key_file == ("/etc/headrace/key/api-key" if has_key else None)


def test_pods_reach_the_gateway_that_charts_gateway_makes_and_nothing_else(charts: Charts) -> None:
    gateway = charts.rendered("gateway", {"settings": {"tenants": {"anonymous": True}}}, VERSION)
    pods = find(gateway, "Deployment")["spec"]["template"]
    values = FILE | {"gateway": {"release": "demo"}}
    found = charts.rendered("batch", values, VERSION)
    policy = find(found, "NetworkPolicy")["spec"]
    assert "ingress" not in policy
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    dns, rule = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    (peer,) = rule["to"]
    assert peer["podSelector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    ports = [each["containerPort"] for each in pods["spec"]["containers"][0]["ports"]]
    assert rule["ports"][0]["port"] in ports
    (words,) = commands(found)
    url = urlsplit(read_by_the_command(words).endpoint)
    service = find(gateway, "Service", "demo")
    assert (url.hostname or "").split(".") == [service["metadata"]["name"], "models", "svc"]
    assert url.port in [each["port"] for each in service["spec"]["ports"]]


def test_a_job_answers_its_file(charts: Charts, tmp_path: Path) -> None:
    """The very words of the rendered container, before a real gateway."""
    (words,) = commands(rendered(charts, "volume"))
    body = {"model": MODEL, "prompt": "Hello!", "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line))

    async def law() -> None:
        async with running_house({"batch": {"folder": f"{tmp_path}/kept"}}, [a_sim()]) as house:
            here = [word.replace("/data", str(tmp_path)) for word in words[1:]]
            here = [word.replace("http://headrace.models.svc:8000", house.url) for word in here]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", *here, stderr=subprocess.PIPE
            )
            _, err = await process.communicate()
            assert process.returncode == 0, err

    run(law())
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 1


def test_what_cannot_be_helped_is_not_tried_again(charts: Charts) -> None:
    """1 and 2 are the command's codes for that; evictions do not count."""
    job = rendered(charts, "files")
    rules = next(each for each in job if each["kind"] == "Job")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["action"] == "FailJob"
    assert rules[0]["onExitCodes"]["values"] == [1, 2]
    assert rules[1]["action"] == "Ignore"
    workflow = find(rendered(charts, "argo"), "WorkflowTemplate")["spec"]
    retry = workflow["templates"][1]["retryStrategy"]
    assert retry["expression"] == "!(lastRetry.exitCode in ['1', '2'])"


def test_jobs_that_cannot_be_changed_have_other_names_when_they_would_be(charts: Charts) -> None:
    def names(**more: Any) -> set[str]:
        found = charts.rendered("batch", FILE | more, VERSION)
        return {each["metadata"]["name"] for each in found if each["kind"] in ("Job", "JobSet")}

    assert names() == names()
    assert len(names() | names(pollSeconds=9) | names(run="b") | names(kind="JobSet")) == 4
    (words,) = commands(charts.rendered("batch", FILE | {"pollSeconds": 9}, VERSION))
    (again,) = commands(charts.rendered("batch", FILE | {"run": "b"}, VERSION))
    told = [read_by_the_command(each).name for each in (words, again)]
    assert told == ["demo/a", "demo/a/b"]  # the same batch, unless another run is asked for


@pytest.mark.parametrize("name", ["files", "jobset", "argo", "spark"])
def test_kueue_decides_when_they_start(charts: Charts, name: str) -> None:
    kinds = ("Job", "JobSet", "SparkApplication")
    for each in rendered(charts, name):
        labels = each["metadata"]["labels"]
        if each["kind"] == "WorkflowTemplate":
            labels = each["spec"]["podMetadata"]["labels"]
        elif each["kind"] not in kinds:
            continue
        assert labels["kueue.x-k8s.io/queue-name"] == "batch"


def test_tokens_are_for_those_who_need_them(charts: Charts) -> None:
    """Argo's executor and Spark's driver; what runs the work has none."""
    workflow = find(rendered(charts, "argo"), "WorkflowTemplate")["spec"]
    assert workflow["automountServiceAccountToken"] is False
    assert workflow["executor"]["serviceAccountName"] == "demo"
    assert "enableServiceLinks: false" in workflow["podSpecPatch"]
    yaml.safe_load(workflow["podSpecPatch"])
    spark = find(rendered(charts, "spark"), "SparkApplication")["spec"]
    for role, has_token in (("driver", True), ("executor", False)):
        pod = spark[role]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is has_token
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for name in ("files", "jobset", "volume"):
        assert not [each for each in rendered(charts, name) if each["kind"] == "Role"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "/files"),
        (FILE | {"kind": "CronJob"}, "/kind"),
        (FILE | {"fils": []}, "fils"),
        ({"files": [{"name": "A b", "input": "/in", "output": "/out"}]}, "/files/0/name"),
        ({"files": [{"name": "a", "input": "/in"}]}, "output"),
        ({"files": FILE["files"] * 2}, "files: two are called a"),
        (FILE | {"completionWindow": "soon"}, "/completionWindow"),
        (FILE | {"spark": {"input": "/in"}}, "/spark/input"),
        (FILE | {"gateway": {"scheme": "ftp"}}, "/gateway/scheme"),
        (FILE | {"extraVolumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "/extraVolumes/0"),
        ({"kind": "SparkApplication"}, "/spark"),
        ({"kind": "SparkApplication", "spark": {"input": "/i", "output": "/o"}}, "/spark/model"),
        (SPARK | FILE, "/files"),
        (SPARK | {"spark": SPARK["spark"] | {"task": "poems"}}, "/spark/task"),
        (SPARK | {"spark": SPARK["spark"] | {"parameters": {"stream": True}}}, "/spark/parameters"),
        (SPARK | {"spark": SPARK["spark"] | {"driver": {"memory": "1Gi"}}}, "/spark/driver/memory"),
        (FILE | {"apiKeySecret": {"value": "sk-1"}}, "value"),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    """By the schema, or where it takes a comparison, by the templates."""
    with pytest.raises(Refused) as refused:
        charts.rendered("batch", values, VERSION)
    assert refused.value.names(said)
