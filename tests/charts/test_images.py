"""The Dockerfile: linted, and of one version with the code and the charts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway import __version__
from tests.charts.tools import CHARTS, ROOT, read_values

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_is_linted() -> None:
    """By hadolint, every rule on."""
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: `make charts` installs it")
    done = subprocess.run(
        [hadolint, "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_shell_and_no_root() -> None:
    """What runs is said word by word, and what is shipped runs as nobody in particular."""
    for instruction in re.findall(r"^(?:RUN|CMD|ENTRYPOINT)\b.*", DOCKERFILE, re.MULTILINE):
        assert instruction.partition(" ")[2].startswith("["), instruction
    for target in ("gateway", "replica", "spark"):
        stage = DOCKERFILE.partition(f"AS {target}\n")[2].partition("\nFROM ")[0]
        assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)


def test_they_carry_the_licence() -> None:
    """In the wheel, which is built of what the builder is sent, or as a file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (name,) = project["license-files"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / name).read_text()
    assert f"!{name}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    spark = DOCKERFILE.partition("AS spark\n")[2].partition("\nFROM ")[0]
    assert f"COPY {name} /opt/headrace/{name}" in spark


def test_spark_is_what_the_chart_says() -> None:
    """And its application is where the chart looks for it."""
    spark = read_values(CHARTS / "batch/values.yaml")["spark"]["version"]
    assert f"ARG SPARK_IMAGE=apache/spark:{spark}-" in DOCKERFILE
    template = (CHARTS / "batch/templates/sparkapplication.yaml").read_text(encoding="utf-8")
    (path,) = re.findall(r"local:///opt/headrace/(\S+)", template)
    assert (ROOT / path).exists()


def test_versions_agree() -> None:
    """Images, charts and code."""
    assert set(re.findall(r"headrace(?:\[.*?\])?==([\d.]+)", DOCKERFILE)) == {__version__}
    for chart, image in (
        ("gateway", ("image",)),
        ("model", ("engine", "image")),
        ("batch", ("image",)),
    ):
        values = read_values(CHARTS / chart / "values.yaml")
        for key in image:
            values = values[key]
        assert values["tag"] == __version__
        assert read_values(CHARTS / chart / "Chart.yaml")["appVersion"] == __version__
        assert read_values(CHARTS / chart / "values.yaml")["runAsUser"] == 10001
