"""Everything the planner reads from outside: files, this machine's driver, a cluster's API."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import yaml

from loadtest import traces
from loadtest.traces import Replayed
from serving.planner.config import read_config
from serving.planner.hardware import MIB, Inventory, canonical
from serving.planner.inventory import Seen, from_document, from_driver, from_nodes
from serving.planner.legal import read_split
from serving.planner.model import Model, PlanError
from serving.sim.timing import StepTiming, parse_profile


def read_model(name: str) -> Model:
    """By a folder or file that holds a config.json, or by a name we ship. Raises PlanError."""
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if path.suffix == ".json":
        return read_config(name, _document(path, json.loads))
    known = catalogue()
    wanted = {each.lower(): each for each in known} | {
        each.split("/")[-1].lower(): each for each in known
    }
    found = wanted.get(name.lower())
    if found is None:
        raise PlanError(
            f"{name}: no folder with a config.json, and no model we know; give its folder, or one "
            f"of {', '.join(sorted(known)[:3])} ... (headrace plan --list-models)"
        )
    return read_config(found, known[found])


@cache
def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """The config.json, as far as it matters, of well-known models, by name."""
    text = files("serving.planner").joinpath("data/models.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, dict[str, Any]])


def read_inventory(path: str, prices: Mapping[str, float]) -> Inventory:
    """An inventory file, YAML. Raises PlanError."""
    return from_document(_document(Path(path), yaml.safe_load), prices)


def _document(path: Path, parse: Callable[[str], object]) -> object:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: {' '.join(str(error).split())}") from error


def read_trace(path: str) -> list[Replayed]:
    """The requests of a recorded trace, in any format that can be replayed. Raises PlanError."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return traces.read_trace(file)
    except (OSError, UnicodeDecodeError, traces.TraceError) as error:
        raise PlanError(f"{path}: {error}") from error


def read_rates(said: Sequence[str]) -> dict[tuple[str, str], float]:
    """`h200/TP2=41000`: prompt tokens a second that such a replica prefills."""
    found: dict[tuple[str, str], float] = {}
    for each in said:
        where, text = _of_split("--prefill-rate", each)
        if not text.replace(".", "", 1).isdecimal() or float(text) <= 0:
            raise PlanError(f"--prefill-rate {each}: {text!r} is not tokens a second")
        found[where] = float(text)
    return found


def _of_split(option: str, said: str) -> tuple[tuple[str, str], str]:
    """`GPU/SPLIT=VALUE`, taken apart."""
    where, equals, value = said.partition("=")
    name, slash, split = where.partition("/")
    if not (equals and slash and value):
        raise PlanError(f"{option} {said}: expected GPU/SPLIT=VALUE, such as h200/TP2=...")
    return (canonical(name), str(read_split(split))), value


def read_profiles(said: Sequence[str]) -> dict[tuple[str, str], StepTiming]:
    """`h200/TP2=FILE`: the measured profile of that split on that kind of GPU."""
    found: dict[tuple[str, str], StepTiming] = {}
    for each in said:
        where, path = _of_split("--profile", each)
        try:
            found[where] = parse_profile(Path(path).read_bytes()).timing
        except (OSError, ValueError) as error:
            raise PlanError(f"{path} is no profile: {error}") from error
    return found


def this_machine(prices: Mapping[str, float]) -> Inventory:
    """The GPUs of this machine, asked of NVML, else of torch. Raises PlanError."""
    nvml = _module("pynvml")
    if nvml is not None:
        return from_driver(seen_by_nvml(nvml), prices)
    torch = _module("torch")
    return from_driver([] if torch is None else seen_by_torch(torch), prices)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def seen_by_torch(torch: Any) -> list[Seen]:
    """Names and memory; torch does not tell how GPUs are joined."""
    return [
        Seen(it.name, it.total_memory // MIB)
        for it in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]


def seen_by_nvml(nvml: Any) -> list[Seen]:
    """GPUs and MIG slices with their topology. None where there is no driver."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [one for i in range(len(handles)) for one in _nvml_gpu(nvml, handles, i)]
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, handles: list[Any], index: int) -> Iterator[Seen]:
    handle = handles[index]
    name = _text(nvml.nvmlDeviceGetName(handle))
    slices = list(_slices(nvml, handle))
    if slices:
        for profile, memory in slices:
            yield Seen(name, memory, profile=profile)
        return
    others = [(j, other) for j, other in enumerate(handles) if j != index]
    near = {
        level: min([index, *(j for j, other in others if _ancestor(nvml, handle, other) <= level)])
        for level in (nvml.NVML_TOPOLOGY_MULTIPLE, nvml.NVML_TOPOLOGY_NODE)
    }
    yield Seen(
        product=name,
        memory_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
        numa=str(near[nvml.NVML_TOPOLOGY_NODE]),
        pcie=str(near[nvml.NVML_TOPOLOGY_MULTIPLE]),
        nvlink_peers=frozenset(j for j, other in others if _has_nvlink(nvml, handle, other)),
    )


def _slices(nvml: Any, handle: Any) -> Iterator[tuple[str, int]]:
    """Profile and memory of each MIG slice; none where MIG is off or unknown."""
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return
    for number in range(most):
        try:
            one = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:
            continue
        name = _text(nvml.nvmlDeviceGetName(one))
        yield name.rpartition("MIG ")[2], nvml.nvmlDeviceGetMemoryInfo(one).total // MIB


def _ancestor(nvml: Any, one: Any, other: Any) -> int:
    return int(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other))


def _has_nvlink(nvml: Any, one: Any, other: Any) -> bool:
    try:
        found = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError:
        return False
    return bool(found == nvml.NVML_P2P_STATUS_OK)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cluster(kubeconfig: str | None, prices: Mapping[str, float]) -> Inventory:
    """A cluster's nodes, through its API: as a kubeconfig says, or as a pod may. Raises PlanError.

    Needs the official client (`pip install 'headrace[kubernetes]'`).
    """
    client, config = _module("kubernetes.client"), _module("kubernetes.config")
    if client is None or config is None:
        raise PlanError("--cluster needs the Kubernetes client: pip install 'headrace[kubernetes]'")
    failures = (config.ConfigException, client.ApiException, OSError, _module_error())
    try:
        config.load_config(**({"config_file": kubeconfig} if kubeconfig else {}))
        api = client.CoreV1Api()
        items = api.api_client.sanitize_for_serialization(api.list_node(_request_timeout=10)).get(
            "items", []
        )
    except failures as error:
        raise PlanError(f"the cluster's nodes cannot be listed: {_first_line(error)}") from error
    return from_nodes(items, prices)


def _module_error() -> type[Exception]:
    """What the client's HTTP library raises where nobody answers."""
    found: type[Exception] = importlib.import_module("urllib3.exceptions").HTTPError
    return found


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
