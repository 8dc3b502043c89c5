"""Which replicas there are, how they are found, and when one is believed healthy."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from gateway.section import Becoming, Matching, Section, knob
from gateway.settings.traffic import CrowdSettings
from gateway.vocabulary import EventSource, ModelName, ReplicaAddress, Role


def _canonical(url: str) -> str:
    """One spelling for one replica: lower case, no trailing slash, no leading zeros in the port."""
    parts = urlsplit(url)  # raises ValueError for brackets that hold no IPv6 address
    host, colon, port = parts.netloc.rpartition(":")
    if not 0 < int(port) <= 65535:
        raise ValueError("the port must be from 1 to 65535")
    if ":" in host and not host.startswith("["):
        raise ValueError("write an IPv6 address in brackets, as in http://[::1]:8000")
    return f"{parts.scheme}://{host.lower()}{colon}{int(port)}"


ReplicaUrl = Annotated[
    str,
    Matching(r"^https?://[^/\s?#@]+:[0-9]{1,5}/?$", is_stripped=True),
    Becoming(_canonical),
]

_RANKS = "ranks behind one URL, each a replica of its own; as the engine's --data-parallel-size"

ZmqEndpoint = Annotated[str, Matching(r"^tcp://[^/\s?#@]+:[0-9]{1,5}$")]


class EventSourceSettings(Section):
    """Where one replica publishes KV events, for one that cannot be asked."""

    endpoint: ZmqEndpoint
    replay_endpoint: ZmqEndpoint | None = None
    topic: str = ""


class ReplicaSettings(Section):
    """A replica with what is known of it; a bare URL will do."""

    BARE = "url"

    url: ReplicaUrl
    models: tuple[str, ...] = knob((), description="pinned; empty asks the replica")
    role: Role = Role.BOTH
    kv_events: EventSourceSettings | None = knob(
        None, description="where its KV events are; empty asks the replica"
    )
    data_parallel_size: int = knob(1, ge=1, le=1024, description=_RANKS)

    def addresses(self) -> tuple[ReplicaAddress, ...]:
        """The same as values of the vocabulary: one, or one for each rank."""
        events = self.kv_events
        address = ReplicaAddress(
            self.url.rstrip("/"),
            tuple(ModelName(name) for name in self.models),
            self.role,
            EventSource(**asdict(events)) if events else None,
        )
        return address.ranks(self.data_parallel_size)


class DnsSettings(Section):
    """Every address behind a name is a replica (a headless Service, say)."""

    name: str = knob(min_length=1, description="whose addresses they are")
    port: int = knob(ge=1, le=65535, description="of all of them")
    tls: bool = False
    models: tuple[str, ...] = ()
    role: Role = Role.BOTH
    data_parallel_size: int = knob(1, ge=1, le=1024, description=_RANKS)


class KvEventSettings(Section):
    """Whether and where we listen to what engines tell of their KV caches."""

    listen: Literal["auto", "off"] = knob(
        "auto", description="auto: to every replica that publishes, if the policy wants to know"
    )
    port: int | None = knob(
        None, ge=1, le=65535, description="of replicas that have no GET /kv_event_sources"
    )
    replay_port: int | None = knob(None, ge=1, le=65535, description="the same, to ask again")


class ModelSettings(Section):
    """A model that is known though no replica may serve it; its name alone will do."""

    BARE = "name"

    name: ModelName = knob(min_length=1, description="as clients ask for it")
    held: CrowdSettings = knob(
        CrowdSettings(requests=1_000, tokens=8_000_000, size_bytes=128 * 1024 * 1024),
        description="who may wait for its first replica; beyond it, lower classes make room, then "
        "whoever has the most of it, or it is 503",
    )
    max_hold_s: float = knob(
        600.0, gt=0, description="who has waited for it so long is sent away with 503"
    )


Namespace = Annotated[str, Matching(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class KubernetesSettings(Section):
    """Replicas that are pods, found by their labels or behind Services (docs/kubernetes.md)."""

    enabled: bool = knob(False, description="ask the Kubernetes API which replicas there are")
    namespaces: tuple[Namespace, ...] = knob(
        (), description="where to look; empty: where the gateway runs, or the kubeconfig's context"
    )
    find: Literal["pods", "endpointslices", "both"] = knob(
        "pods", description="replicas are the pods with these labels, what is behind such Services"
    )
    selector: str = knob(
        "headrace.io/model",
        min_length=1,
        description="labels of pods, Services, Deployments and LeaderWorkerSets that are ours",
    )
    port_name: str = knob("http", description="the engine's port, where a pod does not say it")
    port: int = knob(8000, ge=1, le=65535, description="the same, where none has that name")
    kubeconfig: str | None = knob(
        None, description="how to reach the API; null: the pod's service account, else as kubectl"
    )
    resync_s: float = knob(
        300.0, gt=0, description="everything is listed anew so often, ± a quarter"
    )
    deletion_cost: bool = knob(
        False,
        description="tell Kubernetes which pods to delete first when it scales down: those whose "
        "cache and load are worth least (needs the right to patch pods)",
    )

    @property
    def follows_pods(self) -> bool:
        """Pods are watched."""
        return self.find != "endpointslices"

    @property
    def follows_slices(self) -> bool:
        """Endpoint slices are."""
        return self.find != "pods"

    def __post_init__(self) -> None:
        if self.deletion_cost and not self.follows_pods:
            raise ValueError("`deletion_cost` needs `find: pods` or `both`")


class FleetSettings(Section):
    """Which replicas there are and when one is believed healthy."""

    models: tuple[ModelSettings, ...] = knob(
        (),
        description="models that are listed, and waited for, though no replica serves them now: "
        "names, or {name, held, max_hold_s}",
    )

    replicas: tuple[ReplicaSettings, ...] = knob(
        (), description="a fixed list: URLs, or {url, models, role, ...}"
    )
    dns: tuple[DnsSettings, ...] = knob((), description="names whose addresses are replicas")
    file: str | None = knob(
        None, description="a YAML or JSON file holding {replicas: [...]}; watched"
    )
    watch_every_s: float = knob(1.0, gt=0, description="how often file and DNS are looked at")
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    probe_every_s: float = knob(2.0, gt=0, description="active probe of each replica, ± jitter")
    probe_jitter_ratio: float = knob(0.2, ge=0, lt=1, description="so probes do not march in step")
    probe_timeout_s: float = knob(2.0, gt=0, description="a probe slower than this has failed")
    sleep_mode: bool = knob(
        False,
        description="ask replicas whether their engine sleeps, and wake it when it is wanted: "
        "vLLM's --enable-sleep-mode with VLLM_SERVER_DEV_MODE=1",
    )
    failures_to_eject: int = knob(3, ge=1, description="signs of failure in a row")
    cool_down_s: float = knob(5.0, gt=0, description="out, before it is probed again")
    cool_down_max_s: float = knob(
        60.0, gt=0, description="doubles up to this for one that comes back and fails again"
    )
    kv_events: KvEventSettings = field(default_factory=KvEventSettings)
