"""Which replicas there are, how they are found, and when one is believed healthy."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from gateway.section import Section
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
    StringConstraints(strip_whitespace=True, pattern=r"^https?://[^/\s?#@]+:[0-9]{1,5}/?$"),
    AfterValidator(_canonical),
]

_RANKS = "ranks behind one URL, each a replica of its own; as the engine's --data-parallel-size"

ZmqEndpoint = Annotated[str, StringConstraints(pattern=r"^tcp://[^/\s?#@]+:[0-9]{1,5}$")]


class EventSourceSettings(Section):
    """Where one replica publishes KV events, for one that cannot be asked."""

    endpoint: ZmqEndpoint
    replay_endpoint: ZmqEndpoint | None = None
    topic: str = ""


class ReplicaSettings(Section):
    """A replica with what is known of it; a bare URL will do."""

    url: ReplicaUrl
    models: tuple[str, ...] = Field((), description="pinned; empty asks the replica")
    role: Role = Role.BOTH
    kv_events: EventSourceSettings | None = Field(
        None, description="where its KV events are; empty asks the replica"
    )
    data_parallel_size: int = Field(1, ge=1, le=1024, description=_RANKS)

    @model_validator(mode="before")
    @classmethod
    def _bare_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    def addresses(self) -> tuple[ReplicaAddress, ...]:
        """The same as values of the vocabulary: one, or one for each rank."""
        events = self.kv_events
        address = ReplicaAddress(
            self.url.rstrip("/"),
            tuple(ModelName(name) for name in self.models),
            self.role,
            EventSource(**events.model_dump()) if events else None,
        )
        return address.ranks(self.data_parallel_size)


class DnsSettings(Section):
    """Every address behind a name is a replica (a headless Service, say)."""

    name: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False
    models: tuple[str, ...] = ()
    role: Role = Role.BOTH
    data_parallel_size: int = Field(1, ge=1, le=1024, description=_RANKS)


class KvEventSettings(Section):
    """Whether and where we listen to what engines tell of their KV caches."""

    listen: Literal["auto", "off"] = Field(
        "auto", description="auto: to every replica that publishes, if the policy wants to know"
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="of replicas that have no GET /kv_event_sources"
    )
    replay_port: int | None = Field(None, ge=1, le=65535, description="the same, to ask again")


class ModelSettings(Section):
    """A model that is known though no replica may serve it; its name alone will do."""

    name: ModelName = Field(min_length=1)
    held: CrowdSettings = Field(
        CrowdSettings(requests=1_000, tokens=8_000_000, size_bytes=128 * 1024 * 1024),
        description="who may wait for its first replica; beyond it, lower classes make room, then "
        "whoever has the most of it, or it is 503",
    )
    max_hold_s: float = Field(
        600.0, gt=0, description="who has waited for it so long is sent away with 503"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class KubernetesSettings(Section):
    """Replicas that are pods, found by their labels or behind Services (docs/kubernetes.md)."""

    enabled: bool = Field(False, description="ask the Kubernetes API which replicas there are")
    namespaces: tuple[Namespace, ...] = Field(
        (), description="where to look; empty: where the gateway runs, or the kubeconfig's context"
    )
    find: Literal["pods", "endpointslices", "both"] = Field(
        "pods", description="replicas are the pods with these labels, what is behind such Services"
    )
    selector: str = Field(
        "headrace.io/model",
        min_length=1,
        description="labels of pods, Services, Deployments and LeaderWorkerSets that are ours",
    )
    port_name: str = Field("http", description="the engine's port, where a pod does not say it")
    port: int = Field(8000, ge=1, le=65535, description="the same, where none has that name")
    kubeconfig: str | None = Field(
        None, description="how to reach the API; null: the pod's service account, else as kubectl"
    )
    resync_s: float = Field(
        300.0, gt=0, description="everything is listed anew so often, ± a quarter"
    )
    deletion_cost: bool = Field(
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

    @model_validator(mode="after")
    def _pods_to_price(self) -> Self:
        if self.deletion_cost and not self.follows_pods:
            raise ValueError("`deletion_cost` needs `find: pods` or `both`")
        return self


class FleetSettings(Section):
    """Which replicas there are and when one is believed healthy."""

    models: tuple[ModelSettings, ...] = Field(
        (),
        description="models that are listed, and waited for, though no replica serves them now: "
        "names, or {name, held, max_hold_s}",
    )

    replicas: tuple[ReplicaSettings, ...] = Field(
        (), description="a fixed list: URLs, or {url, models, role, ...}"
    )
    dns: tuple[DnsSettings, ...] = Field((), description="names whose addresses are replicas")
    file: str | None = Field(
        None, description="a YAML or JSON file holding {replicas: [...]}; watched"
    )
    watch_every_s: float = Field(1.0, gt=0, description="how often file and DNS are looked at")
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)
    probe_every_s: float = Field(2.0, gt=0, description="active probe of each replica, ± jitter")
    probe_jitter_ratio: float = Field(0.2, ge=0, lt=1, description="so probes do not march in step")
    probe_timeout_s: float = Field(2.0, gt=0, description="a probe slower than this has failed")
    sleep_mode: bool = Field(
        False,
        description="ask replicas whether their engine sleeps, and wake it when it is wanted: "
        "vLLM's --enable-sleep-mode with VLLM_SERVER_DEV_MODE=1",
    )
    failures_to_eject: int = Field(3, ge=1, description="signs of failure in a row")
    cool_down_s: float = Field(5.0, gt=0, description="out, before it is probed again")
    cool_down_max_s: float = Field(
        60.0, gt=0, description="doubles up to this for one that comes back and fails again"
    )
    kv_events: KvEventSettings = Field(default_factory=KvEventSettings)
