"""What a simulated replica is told at its start; frozen, complete, checked.

`SimSettings` is the whole of it, for the command line and for tests alike. Limits left at None come
from the profile.
"""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from serving.sim.block_hash import HashAlgorithm
from serving.sim.kv_cache import Adapter
from serving.sim.timing import EngineShape, Profile, parse_profile
from serving.sim.tls import Tls

VERSION = "0.32.0"
"""The vLLM this replica says it is."""


@dataclass(frozen=True, slots=True)
class KvEventSettings:
    """Where KV-cache events are published; nothing is published while `endpoint` is None."""

    endpoint: str | None = None
    """`tcp://127.0.0.1:5557`, or `tcp://127.0.0.1:*` for a port the system picks."""
    replay_endpoint: str | None = None
    topic: str = ""
    buffer_steps: int = 10_000
    """Batches kept for replay."""


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One simulated replica."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 lets the system choose."""
    models: tuple[str, ...] = ("sim",)
    """Served names of one base model; the first is the one answers carry."""
    loras: tuple[str, ...] = ()
    """Adapters, as NAME or NAME=PATH."""
    profile: str = "fast"
    speed: float = 1.0
    """Steps last their modelled time divided by this."""
    seed: int = 0
    mean_output_tokens: int | None = 128
    """Mean length of a reply nothing else ends; None: only limits end it."""
    block_size: int | None = None
    blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    prefix_caching: bool = True
    hash_algorithm: HashAlgorithm = HashAlgorithm.SHA256
    prompt_tokens_details: bool = True
    """Report `cached_tokens`, as with vLLM's --enable-prompt-tokens-details."""
    scale_out: bool = False
    """Serve the render routes, as with vLLM's --enable-scale-out; otherwise they answer 403."""
    keep_alive_s: float = 5.0
    """Idle connections are closed after this: uvicorn's and vLLM's default."""
    shutdown_timeout_s: float = 0.0
    """Requests may go on for so long after SIGTERM, as with vLLM's --shutdown-timeout."""
    load_s: float = 0.0
    """Connections are refused for so long after the start, as while a real engine loads."""
    sleep_mode: bool = False
    """Serve /sleep, /wake_up and /is_sleeping, as with vLLM's --enable-sleep-mode and
    VLLM_SERVER_DEV_MODE=1."""
    wake_s: float = 0.0
    """How long waking takes."""
    tls: Tls | None = None
    """None: plain HTTP."""
    kv_events: KvEventSettings = field(default_factory=KvEventSettings)

    def __post_init__(self) -> None:
        if not self.models or not all(self.models):
            raise ValueError("a replica serves at least one model, and no nameless one")
        if self.speed <= 0:
            raise ValueError(f"speed must be above 0, not {self.speed}")
        if self.kv_events.replay_endpoint and not self.kv_events.endpoint:
            raise ValueError("a replay endpoint needs an endpoint for events")
        names = [*self.models, *(adapter.name for adapter in self.adapters())]
        if len(set(names)) != len(names):
            raise ValueError("a name is served twice")

    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters, numbered from 1 in the order given."""
        named = (lora.partition("=") for lora in self.loras)
        return tuple(
            Adapter(name, path or name, number) for number, (name, _, path) in enumerate(named, 1)
        )


def engine_shape(settings: SimSettings, profile: Profile) -> EngineShape:
    """The profile's limits with the settings' own in their place.

    Where no model length is given, it shrinks to what the cache can hold.
    """
    own = {
        name: getattr(settings, name)
        for name in ("block_size", "blocks", "max_num_seqs", "max_num_batched_tokens")
        if getattr(settings, name) is not None
    }
    shape = EngineShape(**{**_as_dict(profile.engine), **own})
    room = shape.blocks * shape.block_size
    limit = settings.max_model_len or min(shape.max_model_len, room)
    return EngineShape(**{**_as_dict(shape), "max_model_len": limit})


def _as_dict(shape: EngineShape) -> dict[str, int]:
    return {name: getattr(shape, name) for name in shape.__struct_fields__}


def load_profile(name_or_path: str) -> Profile:
    """A shipped profile by name, or a JSON file by path.

    Raises ValueError for an unknown name or a bad file; the message lists the shipped names.
    """
    path = Path(name_or_path)
    if name_or_path in shipped_profiles():
        text = (_folder() / f"{name_or_path}.json").read_bytes()
    elif path.is_file():
        text = path.read_bytes()
    else:
        names = ", ".join(shipped_profiles())
        raise ValueError(f"no profile {name_or_path!r}: shipped are {names}; or name a JSON file")
    return parse_profile(text)


def shipped_profiles() -> list[str]:
    """The names of the profiles that come with the package."""
    found = (Path(item.name) for item in _folder().iterdir())
    return sorted(item.stem for item in found if item.suffix == ".json")


def _folder() -> resources.abc.Traversable:
    return resources.files("serving.sim") / "profiles"
