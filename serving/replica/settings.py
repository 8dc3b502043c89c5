"""What a replica is, in one small YAML file; a chart's template writes the same file.

Pure but for `read_file`. Every key is optional but `model`, and an unknown one is an error: the
text says where. The command line's options win over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml

from serving.engine_args import AtLeastOne, Lora, Parallelism, PrefixCaching, Quantisation

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0)]

DEFAULT_PORT: Final = 9001


class SettingsError(Exception):
    """The settings are wrong; the text is one line for whoever wrote them."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of the file: nothing in it that we do not know."""


class Gpus(_Section, frozen=True):
    """The GPUs the plan counted on, on this node. What is found must be no less."""

    name: str | None = None
    """Part of the name the driver gives it, such as H200."""
    count: AtLeastOne | None = None
    """None: as many as the degrees of parallelism need."""
    memory_gib: Seconds | None = None
    """Of each one, at least."""


class KvEvents(_Section, frozen=True):
    """Where changes of the KV cache are published, and past ones are asked for."""

    port: Port = 5557
    replay_port: Port = 5558


class Cpu(_Section, frozen=True):
    """For engines that compute on the CPU."""

    threads: str | None = None
    """Cores of each rank, as `0-3|4-7`; None: the engine decides."""
    shm_mib: AtLeastOne | None = None
    """What /dev/shm must have: ranks hand tensors to each other through it."""


class Spiffe(_Section, frozen=True):
    """The engine speaks TLS with an X.509-SVID of ours and asks for one of the trust domain."""

    socket: str
    """The Workload API's, as `unix:/spiffe-workload-api/spire-agent.sock`."""
    trust_domain: str
    """Ours, and that of whoever may connect."""
    wait_s: Seconds = 30.0
    """How long to wait for the first SVID before we give up starting."""


class WarmUp(_Section, frozen=True):
    """The request that must be answered before the replica is ready."""

    timeout_s: Seconds = 120.0


class Supervision(_Section, frozen=True):
    """What is done when the engine dies or hangs."""

    restarts: Count = 3
    """In a row; then the replica ends, with the engine's exit code. 0: the first death ends it."""
    pause_s: Seconds = 1.0
    """Before the first restart; twice as long before each further one, up to a minute."""
    stable_s: Seconds = 300.0
    """An engine that lived so long has earned its restarts back."""
    start_s: Seconds = 1800.0
    """An engine that is not ready by then hangs."""
    hang_s: Seconds = 120.0
    """So does one that has not answered, or with requests running has made no token, for so long;
    it is killed. Longer than the longest step."""


class ReplicaSettings(_Section, frozen=True):
    """One replica."""

    model: str
    engine: Literal["auto", "vllm", "vllm-cpu", "sglang", "sim"] = "auto"
    python: str | None = None
    """The interpreter that has the engine; None: ours if it has vLLM, else one we make."""
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: Port = DEFAULT_PORT
    health_port: Port | None = None
    """/live, /ready, /status and /drain are answered there; None: nowhere."""
    parallelism: Parallelism = Parallelism()
    gpus: Gpus = Gpus()
    max_model_len: AtLeastOne | None = None
    kv_cache_mib: AtLeastOne | None = None
    block_size: AtLeastOne | None = None
    prefix_caching: PrefixCaching = PrefixCaching()
    kv_events: KvEvents | None = None
    lora: Lora | None = None
    quantisation: Quantisation = Quantisation()
    sleep_mode: bool = False
    spiffe: Spiffe | None = None
    """None: the engine speaks plain HTTP."""
    cpu: Cpu = Cpu()
    warm_up: WarmUp = WarmUp()
    supervision: Supervision = Supervision()
    drain_s: Count = 30
    """How long what is running may go on once we are asked to stop."""
    settle_s: Seconds = 2.0
    """A draining replica has to be idle for so long: senders learn of it late."""
    log: Literal["json", "plain"] | None = None
    """None: json, unless it goes to a terminal."""
    env: Mapping[str, str] = {}
    args: tuple[str, ...] = ()
    """Arguments for the engine as they are, last, so that they win."""


def read_file(path: str) -> dict[str, Any]:
    """The file's keys. Raises SettingsError."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {_one_line(error)}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: expected keys and values, such as `model: NAME`")
    return document


def parse(keys: Mapping[str, Any]) -> ReplicaSettings:
    """The settings that a file's keys make. Raises SettingsError."""
    try:
        return msgspec.convert(keys, ReplicaSettings)
    except (msgspec.ValidationError, TypeError) as error:
        raise SettingsError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
