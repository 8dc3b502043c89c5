"""What docs/one-model-on-your-cluster.md has people type, rendered: each install, and what later
commands name."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Final

import pytest
import yaml

from serving.replica.settings import parse
from tests.charts.tools import KUBERNETES, ROOT, Charts, Object, find

PAGE: Final = (ROOT / "docs/one-model-on-your-cluster.md").read_text(encoding="utf-8")
COMMANDS: Final = [shlex.split(line) for line in re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)]
OURS: Final = [words for words in COMMANDS if any(word.startswith("charts/") for word in words)]
RELEASES: Final = [words for words in OURS if words[:2] == ["helm", "install"]]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The values files of the page."""
    for name, text in re.findall(r"```yaml (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def rendered(charts: Charts, words: list[str], files: Path) -> list[Object]:
    """What an install would send."""
    _, _, name, chart, *options = words
    said = [str(files / word) if word.endswith(".yaml") else word for word in options]
    return charts.template(name, chart.removeprefix("charts/"), said)


def test_each_install_renders(charts: Charts, files: Path) -> None:
    """For the oldest Kubernetes too, which the page promises."""
    assert [words[2] for words in RELEASES] == ["headrace", "qwen"]
    for words in RELEASES:
        assert ["helm", "dependency", "build", words[3]] in OURS
        assert OURS.index(["helm", "dependency", "build", words[3]]) < OURS.index(words)
        for word in filter(lambda word: word.endswith(".yaml"), words):
            charts.lint(words[3].removeprefix("charts/"), files / word)
        found = rendered(charts, words, files)
        assert found == rendered(charts, [*words, "--kube-version", KUBERNETES[0]], files)


def test_without_a_gpu_it_is_the_simulator(charts: Charts, files: Path) -> None:
    """As the page says it, and the replica's settings are such as `headrace replica` takes."""
    instead = re.findall(r"`(\w+: \{\w+: (?:sim|none)\})`", PAGE)
    assert len(instead) == 2
    (files / "instead.yaml").write_text("\n".join(instead), encoding="utf-8")
    found = rendered(charts, [*RELEASES[1], "-f", "instead.yaml"], files)
    told = parse(yaml.safe_load(find(found, "ConfigMap", "qwen")["data"]["replica.yaml"]))
    assert told.engine == "sim"
    [container] = find(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert set(container["resources"]["limits"]) == {"memory"}


def test_what_is_named_is_there(charts: Charts, files: Path) -> None:
    """Services, Deployments and labels of later commands are those of the releases."""
    made = [each for words in RELEASES for each in rendered(charts, words, files)]
    service = find(made, "Service", "headrace")
    assert "svc/headrace" in PAGE
    assert service["spec"]["ports"][0]["port"] == 8000
    find(made, "Deployment", "qwen")
    find(made, "ScaledObject", "qwen")
    pod = find(made, "Deployment", "qwen")["spec"]["template"]["metadata"]
    [selector] = {word for words in COMMANDS for word in words if word.startswith("app.kub")}
    key, _, value = selector.partition("=")
    assert pod["labels"][key] == value
    tested = {words[2] for words in COMMANDS if words[:2] == ["helm", "test"]}
    hooked = {
        each["metadata"]["labels"]["app.kubernetes.io/instance"]
        for each in made
        if each["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    }
    assert tested
    assert tested <= hooked


def test_the_model_and_the_gateway_know_each_other(charts: Charts, files: Path) -> None:
    """The scaler's address is the gateway's Service, and requests name what is served."""
    gateway, model = (rendered(charts, words, files) for words in RELEASES)
    [trigger] = find(model, "ScaledObject")["spec"]["triggers"]
    host, _, port = trigger["metadata"]["scalerAddress"].partition(":")
    name, namespace, _ = host.split(".")
    scaler = find(gateway, "Service", name)
    assert (namespace, int(port)) == ("models", scaler["spec"]["ports"][0]["port"])
    bodies = [word for words in COMMANDS if words[0] == "curl" for word in words if word[0] == "{"]
    assert bodies
    for body in bodies:
        assert json.loads(body)["model"] == trigger["metadata"]["model"] == "qwen"
    scaled = find(model, "ScaledObject")["spec"]
    assert (scaled["cooldownPeriod"], scaled["initialCooldownPeriod"]) == (120, 600)
    assert scaled["minReplicaCount"] == 0
