"""KEDA's side of the external scaler: stubs that protoc makes of the `.proto` we publish."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[1] / "gateway/scale/externalscaler.proto"
NAMES = ("externalscaler_pb2", "externalscaler_pb2_grpc")


@functools.cache
def stubs() -> tuple[Any, Any]:
    """The messages and the service, as modules."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"-I{PROTO.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        assert protoc.main(["protoc", *options, PROTO.name]) == 0
        messages, service = (_load(name, Path(folder) / f"{name}.py") for name in NAMES)
    return messages, service


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the second imports the first by its name
    spec.loader.exec_module(module)
    return module


def a_ref(**metadata: str) -> Any:
    """What KEDA sends of a ScaledObject."""
    ref = stubs()[0].ScaledObjectRef(name="vllm", namespace="models")
    ref.scalerMetadata.update(metadata)
    return ref
