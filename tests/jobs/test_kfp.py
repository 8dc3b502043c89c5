"""The component of Kubeflow Pipelines: compiled by the real kfp, and its command run for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import MODEL
from tests.house import RunningHouse

COMMITTED = Path(__file__).parents[2] / "charts/batch/kfp/batch-inference.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Both documents, as kfp writes them now."""
    pytest.importorskip("kfp", reason="`make jobs` installs it")
    path = tmp_path_factory.mktemp("kfp") / "pipeline.yaml"
    words = [sys.executable, "-W", "ignore", "-m", "serving.jobs.kfp_component", str(path)]
    subprocess.run(words, check=True)
    if os.environ.get("GOLDEN") == "write":
        COMMITTED.write_bytes(path.read_bytes())
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_what_is_shipped_is_what_kfp_makes_of_it(compiled: list[Any]) -> None:
    shipped = list(yaml.safe_load_all(COMMITTED.read_text(encoding="utf-8")))
    for document in (*compiled, *shipped):
        document.pop("sdkVersion", None)
    assert shipped == compiled


def test_kfp_reads_it_back(compiled: list[Any]) -> None:
    """By its own reader, which holds it against the pipeline's schema."""
    components = pytest.importorskip("kfp.components")
    read = components.load_component_from_file(str(COMMITTED))
    assert set(read.component_spec.inputs) == {
        "requests", "answers", "endpoint", "completion_window",
    }  # fmt: skip


def test_its_command_answers_a_file(
    compiled: list[Any], house: RunningHouse, tmp_path: Path
) -> None:
    """The words of the container, with what kfp's launcher puts in place of its placeholders.

    kfp's own local runner takes Docker for a container.
    """
    (step,) = compiled[0]["deploymentSpec"]["executors"].values()
    body = {"model": MODEL, "prompt": "Hello!", "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    (tmp_path / "api-key").write_text("none")
    values = {
        "requests": f"{tmp_path}/in.jsonl", "answers": f"{tmp_path}/out.jsonl",
        "endpoint": house.url, "completion_window": "24h", "run": "run-7",
    }  # fmt: skip
    pattern = r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}"
    words = [*step["container"]["command"], *step["container"]["args"]]
    assert words.pop(0) == "headrace"
    words = [re.sub(pattern, lambda found: values[found[1]], each) for each in words]
    words = [each.replace("/etc/headrace/key", str(tmp_path)) for each in words]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (answer,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(answer)["custom_id"] == "a"


def test_a_step_that_is_tried_again_has_the_same_name_and_asks_no_cache(
    compiled: list[Any],
) -> None:
    (task,) = compiled[0]["root"]["dag"]["tasks"].values()
    assert task["inputs"]["parameters"]["run"]["runtimeValue"]["constant"] == (
        "{{$.pipeline_job_uuid}}"
    )
    assert task["cachingOptions"] == {}
    assert task["retryPolicy"]["maxRetryCount"] == 3
    (platform,) = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert platform["secretAsVolume"][0]["mountPath"] == "/etc/headrace/key"
