"""What one engine is asked to do: values only; `engine_command` puts them into its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

import msgspec

MIB: Final = 1024 * 1024

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class EngineKind(StrEnum):
    """The engines a replica can run."""

    VLLM = "vllm"
    """vLLM on an NVIDIA GPU."""
    VLLM_CPU = "vllm-cpu"
    """vLLM's CPU build; Linux on x86-64 only."""
    SGLANG = "sglang"
    """SGLang, where it is installed: we do not install it."""
    SIM = "sim"
    """Our simulator: the same API, no model."""


class Parallelism(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is laid over devices."""

    tensor: AtLeastOne = 1
    pipeline: AtLeastOne = 1
    data: AtLeastOne = 1
    expert: bool = False
    """Experts are spread over the tensor- and data-parallel ranks instead of being cut."""

    @property
    def devices(self) -> int:
        """GPUs (on CPU: groups of cores) of the whole replica, over all its nodes."""
        return self.tensor * self.pipeline * self.data


class PrefixCaching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether KV blocks are kept for later prompts, and under which hashes.

    Replicas whose hashes agree can share a store of blocks, and events of theirs can be compared:
    so the algorithm is one that does not depend on the process, and the seed is fixed.
    """

    enabled: bool | None = None
    """None: where the engine can for this model; told to where it cannot, vLLM does not start."""
    hash: str = "sha256_cbor"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    """PYTHONHASHSEED: the first block's parent is made from it."""


class Lora(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Adapters served beside the model."""

    adapters: Mapping[str, str] = {}
    """Folders or hub names, by served name."""
    most_loaded: AtLeastOne = 4
    most_rank: AtLeastOne = 64
    at_runtime: bool = False
    """Adapters may be loaded and unloaded over HTTP: whoever reaches the port may do so."""


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Number formats, where they are not those of the model's own configuration."""

    weights: str | None = None
    """fp8, awq, gptq, compressed-tensors, ...: the engine's word for it."""
    kv_cache: str | None = None
    """fp8, fp8_e5m2, ..."""
    compute: str | None = None
    """bfloat16, float16, float32."""


@dataclass(frozen=True, slots=True)
class Node:
    """Our place among the nodes of a replica that needs several."""

    rank: int
    """0 leads, and is the only one that answers HTTP."""
    size: int
    leader: str
    """The leader's address."""
    port: int = 29500


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, which the engine takes up anew when they change."""

    certificate: str
    """The private key and the chain that is shown."""
    authorities: str
    """Who signs the certificates of those that may connect: all need one."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One replica's engine."""

    kind: EngineKind
    model: str
    """A folder, or a name the engine looks up itself."""
    served_name: str
    """The name clients write in `model`."""
    port: int
    host: str = "127.0.0.1"
    max_model_len_tokens: int | None = None
    """None: what the model's own configuration says."""
    kv_cache_mib: int | None = None
    """None: the engine decides (on CPU it would take a large part of the memory)."""
    block_size_tokens: int | None = None
    """A multiple of 32 on CPU; None: the engine's default, there 128."""
    cores: tuple[int, ...] = ()
    """CPU cores to compute on; empty: the engine decides."""
    threads: str | None = None
    """The same of several ranks, in vLLM's words: `0-3|4-7`. Wins over `cores`."""
    gpus: tuple[int, ...] = ()
    """Which of the machine's GPUs; empty: those the engine finds."""
    kv_events_ports: tuple[int, int] | None = None
    """Where KV-cache events are published, and where past ones are asked for. None: no events."""
    offline: bool = False
    """The model is on disk in full: ask no hub about it."""
    drain_s: int = 10
    """How long running requests may go on after SIGTERM."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    node: Node | None = None
    prefix_caching: PrefixCaching | None = None
    """None: as the engine does by itself."""
    lora: Lora | None = None
    quantisation: Quantisation = field(default_factory=Quantisation)
    tls: TlsFiles | None = None
    """None: plain HTTP."""
    sleep_mode: bool = False
    """The engine can be told to give its GPU memory back (and whoever reaches it may tell it)."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment, and wins."""
    extra: tuple[str, ...] = ()
    """Arguments passed to the engine as they are, last, so that they win."""

    @property
    def url(self) -> str:
        """Where the replica is reached."""
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}"

    @property
    def answers_http(self) -> bool:
        """Only the leader of several nodes does."""
        return self.node is None or self.node.rank == 0


def events_topic(settings: EngineSettings) -> str:
    """The topic under which a replica's KV events are published."""
    return f"kv@{settings.host}:{settings.port}@{settings.served_name}"
