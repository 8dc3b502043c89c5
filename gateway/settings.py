"""Every knob, on one page: frozen sections named after the rooms.

`Settings.load(text, environ)` is pure: YAML text and `GATEWAY__SECTION__KNOB` variables in,
Settings or one `SettingsError` naming every bad key out. Only `gateway.__main__` touches files and
the environment. A part receives its own section, never the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from gateway.section import Section, SettingsError, problems, read_document
from gateway.vocabulary import EventSource, ModelName, ReplicaAddress, ReplicaId, Role


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


def _is_loopback(host: str) -> bool:
    """Is it plain that only this machine can reach it?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class TlsFiles(Section):
    """Who we are, and who may come."""

    certificate: str | None = Field(None, description="PEM file: the chain we present")
    key: str | None = Field(None, description="PEM file: its private key")
    client_ca: str | None = Field(
        None, description="PEM file: who may sign client certificates; set, a client needs one"
    )


class TlsSettings(TlsFiles):
    """TLS for clients; the files are watched, and new ones serve new handshakes."""

    reload_every_s: float = Field(5.0, gt=0, description="how often the files are looked at")


class AcceptSettings(Section):
    """Where we listen and what we take from a client."""

    host: str = Field("127.0.0.1", description="loopback unless you say otherwise")
    port: int = Field(8000, ge=0, le=65535, description="0 lets the system choose")
    max_body_bytes: int = Field(
        16 * 1024 * 1024, gt=0, description="a million tokens of text is about 4 MB"
    )
    max_upload_bytes: int = Field(64 * 1024 * 1024, gt=0, description="the same, for audio")
    max_header_bytes: int = Field(
        32 * 1024, gt=0, description="url and headers together, before 431"
    )
    header_timeout_s: float = Field(10.0, gt=0, description="from the first byte to the last")
    body_timeout_s: float = Field(
        30.0, gt=0, description="a body slower than this and than min_body_rate is cut with 408"
    )
    min_body_bytes_per_s: int = Field(1024, gt=0, description="adds to body_timeout_s by size")
    keep_alive_s: float = Field(
        75.0, gt=0, description="idle client connections; above the 60 s of common load balancers"
    )
    client_stall_s: float = Field(
        60.0, gt=0, description="a client that reads nothing for so long is let go"
    )
    backlog: int = Field(2048, gt=0, description="connections the kernel may hold for us")
    tls: TlsSettings = Field(default_factory=TlsSettings)


class AdmitSettings(Section):
    """How much may be open at once, and how we leave."""

    max_open_requests: int = Field(
        10_000, gt=0, description="beyond it: 503; bounds memory at this times max_body_bytes"
    )
    drain_grace_s: float = Field(
        30.0, ge=0, description="after SIGTERM: how long running streams may take to finish"
    )
    retry_after_s: float = Field(
        2.0, gt=0, description="what a refused client is told while we drain or are full"
    )


class TenantsSettings(Section):
    """Who may ask; unset, everybody who reaches us, and then that should be nobody from outside."""

    path: str | None = Field(
        None,
        description="YAML or JSON file, or a folder of such files (a mounted Secret): tenants and "
        "their hashed keys, as docs/tenants.md has it; watched",
    )
    anonymous: bool = Field(
        False, description="serve on other addresses than loopback though nobody needs a key"
    )
    reload_every_s: float = Field(1.0, gt=0, description="how often the path is looked at")
    forward_authorization: bool = Field(
        False, description="send clients' keys on to replicas, where path is set"
    )
    assumed_output_tokens: int = Field(
        512, ge=0, description="reserved for a request that sets no bound on what it generates"
    )

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.anonymous and self.path is not None:
            raise ValueError("`anonymous` and `path` exclude each other: with keys, all need one")
        return self


class CrowdSettings(Section):
    """How much may wait."""

    requests: int = Field(gt=0, description="how many")
    tokens: int = Field(gt=0, description="prompt tokens that their replicas do not hold")
    size_bytes: int = Field(gt=0, description="bodies, which are kept in memory")


class HoldSettings(Section):
    """How much replicas are given at once, and who may wait for them."""

    commit_tokens: int | None = Field(
        16_384,
        gt=0,
        description="prompt tokens sent to a replica that it has not begun to read: one to two of "
        "its engine's max_num_batched_tokens; null sends everything at once",
    )
    commit_s: float | None = Field(
        0.5,
        gt=0,
        description="the same in seconds of what the replica has shown to read, where that is less "
        "(but 2048 tokens): what waits here can still be overtaken, and sent elsewhere; null: only "
        "commit_tokens counts",
    )
    max_sequences: int | None = Field(
        1024, gt=0, description="requests sent to a replica: its engine's max_num_seqs"
    )
    in_all: CrowdSettings = Field(
        CrowdSettings(requests=8_000, tokens=32_000_000, size_bytes=512 * 1024 * 1024),
        description="who may wait; beyond it, lower classes make room, then whoever has the most "
        "of it, or it is 503",
    )
    per_tenant: CrowdSettings = Field(
        CrowdSettings(requests=4_000, tokens=16_000_000, size_bytes=256 * 1024 * 1024),
        description="the same, of one tenant; beyond it: 429",
    )
    max_wait_s: float = Field(
        120.0, gt=0, description="batches excepted: who has waited so long is sent away with 503"
    )
    default_floor: float = Field(
        0.1, ge=0, le=0.5, description="share of service the default class has in any case"
    )
    batch_floor: float = Field(
        0.02, ge=0, le=0.5, description="share of service the batch class has in any case"
    )
    alike_in_a_row: int = Field(
        8, ge=1, description="how many waiting requests that begin alike may go one after another"
    )
    comment_every_s: float = Field(
        15.0, gt=0, description="how often a stream that waits is sent an SSE comment"
    )
    cold_start_s: float = Field(
        120.0,
        gt=0,
        description="how long a model is believed to take from nothing to its first replica, until "
        "it has been seen; becomes Retry-After when too much waits for it",
    )


class ChooseSettings(Section):
    """Which replica."""

    policy: str = Field("cache-aware", description="`headrace gateway --help` lists them")
    shadow: str | None = Field(
        None,
        description="a second policy that is asked about every request, without effect; metrics "
        "compare what it would have found cached and how long prompts would have waited",
    )
    cache_tokens: int = Field(
        1_000_000,
        gt=0,
        description="cache-aware: prompt tokens a replica's KV cache is said to hold; too small "
        "costs far more than too large (docs/benchmarks, routing)",
    )
    load_tokens_per_s: float = Field(
        100_000.0,
        gt=0,
        description="cache-aware: how fast a replica brings offloaded KV cache back into its GPU, "
        "in tokens per second",
    )
    read_every_prompt: bool = Field(
        False,
        description="cache-aware: read every prompt as tokens after dispatch, and so audit every "
        "response; else one in sixteen, and all while hits are not foreseen without",
    )
    request_overhead_tokens: int = Field(
        256,
        ge=0,
        description="least-work: what one running request costs others, in prompt tokens; "
        "cache-aware: how many tokens it is expected to generate",
    )
    attention_tokens: int = Field(
        50_000,
        gt=0,
        description="cache-aware: the context at which attention costs as much as all the rest of "
        "a layer; about 50 000 for dense models, far more where most layers see a window",
    )
    prior_rate_per_s: float = Field(
        8_000.0,
        gt=0,
        description="cache-aware: prompt tokens a second that a GPU of a replica is believed to do "
        "until it has been seen to; `headrace gateway --profile` takes it from a calibration",
    )
    prefill_rates: dict[ReplicaId, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="cache-aware: prompt tokens a second, by replica (host:port), where it is not "
        "to be learnt",
    )
    sticky_sessions: bool = Field(
        False,
        description="a session (X-Session-ID, prompt_cache_key) stays on its replica while that is "
        "healthy and not overloaded, whatever the policy",
    )
    bound: float = Field(
        1.25,
        ge=1,
        description="consistent-hash and sticky_sessions: a replica with more than so many times "
        "the mean of requests in flight is overloaded",
    )
    tokenise_first_s: float = Field(
        0.02,
        ge=0,
        description="cache-aware: how long a long prompt that is new to us may wait to be read as "
        "tokens before the choice, where a replica may hold it from elsewhere; 0: never",
    )
    hash_prefix_bytes: int = Field(
        4096, gt=0, description="consistent-hash, without a session: so much of the prompt is key"
    )


class MergeSettings(Section):
    """Small calls that are only read, put together."""

    enabled: bool = Field(True, description="embeddings, scores, ranks and classes share calls")
    max_tokens: int = Field(8192, gt=0, description="in one upstream call, as estimated")
    max_items: int = Field(
        64, gt=0, description="in one upstream call; a longer list is split between replicas"
    )


class RelaySettings(Section):
    """How we talk to replicas."""

    replica_ca: str | None = Field(
        None, description="PEM file: who signs the certificates of https replicas"
    )
    connect_timeout_s: float = Field(2.0, gt=0, description="TCP and TLS; a replica is near")
    first_byte_timeout_s: float = Field(
        300.0, gt=0, description="streams: from dispatch to the first byte, prefill and all"
    )
    unary_timeout_s: float = Field(
        900.0, gt=0, description="unary: an engine sends nothing until it has finished"
    )
    stall_timeout_s: float = Field(120.0, gt=0, description="between two chunks of a response")
    idle_connection_s: float = Field(
        4.0, gt=0, description="engines on uvicorn close idle connections after 5 s: we are first"
    )
    max_idle_per_replica: int = Field(256, ge=0, description="idle connections kept")
    max_attempts: int = Field(3, ge=1, description="tries per request, the first included")
    retry_budget_ratio: float = Field(
        0.2, ge=0, le=1, description="retries per request over time, so a storm cannot double load"
    )
    retry_budget_min_per_s: float = Field(10.0, ge=0, description="and always at least so many")


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


class BatchSettings(Section):
    """Files and batches: work that waits for spare capacity. Off until told where to keep them."""

    folder: str | None = Field(
        None, description="where files and the database are; set, the Batch API is on"
    )
    store: str | None = Field(
        None,
        description="the database, instead of one in the folder: postgresql://user@host/name "
        "(needs headrace[postgres]) or sqlite:///path; several gateways may share it",
    )
    files: str | None = Field(
        None,
        description="where the files are, instead of the folder: s3://bucket/path (needs "
        "headrace[s3]) or what else fsspec knows; gateways that share a store share this",
    )
    max_file_bytes: int = Field(200 * 1024 * 1024, gt=0, description="of an uploaded file")
    max_lines: int = Field(50_000, gt=0, description="of a batch")
    max_line_bytes: int = Field(1024 * 1024, gt=0, description="of one request in a batch")
    lines_per_replica: int = Field(
        32, gt=0, description="in flight on a replica that interactive requests leave over"
    )
    lines_beside_others: int = Field(
        1, ge=0, description="in flight in all, where they leave none over; 0 lets batches starve"
    )
    max_attempts: int = Field(3, ge=1, description="of a line that replicas fail on")
    running: int = Field(4, ge=1, description="batches that one gateway works on at a time")
    lease_s: float = Field(
        30.0, gt=0, description="a gateway silent for so long has lost its batches to others"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.folder is None and (self.store is None) != (self.files is None):
            raise ValueError("set `folder`, or both of `store` and `files`")
        return self

    @property
    def is_on(self) -> bool:
        """There is a place to keep batches."""
        return self.folder is not None or self.store is not None

    @property
    def store_url(self) -> str:
        """The database, once it is on."""
        return self.store or f"sqlite:///{self.folder}/batches.db"

    @property
    def files_url(self) -> str:
        """Where the files are, once it is on."""
        return self.files or f"{self.folder}/files"


PeerAddress = Annotated[str, StringConstraints(pattern=r"^[^/\s?#@]+:[0-9]{1,5}$")]


class PeersSettings(Section):
    """Other gateways before the same replicas: each counts what all have sent. Off until it is said
    where they are; the workers of one gateway know each other without."""

    workers: int = Field(
        1, ge=1, le=64, description="processes that share the port, each with a core to itself"
    )
    dns: str | None = Field(
        None, description="a name whose addresses are gateways (a headless Service, say)"
    )
    addresses: tuple[PeerAddress, ...] = Field((), description="the same by host:port, one by one")
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="UDP, the first worker's; the next ones have those that follow; with dns, the "
        "others' too; unset, the system chooses, which is enough for workers",
    )
    host: str | None = Field(
        None, description="where to listen; unset: 0.0.0.0 if there are others, else 127.0.0.1"
    )
    secret: str | None = Field(
        None,
        description="a file with a secret that all gateways share: others are not listened to; "
        "unset, those at other addresses than the above are not",
    )
    tell_every_s: float = Field(0.02, gt=0, description="how often changes are told")
    whole_every_s: float = Field(1.0, gt=0, description="how often everything is")
    silent_s: float = Field(
        3.0, gt=0, description="who is not heard for so long has nothing any more"
    )
    find_every_s: float = Field(5.0, gt=0, description="how often dns is looked up")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.dns is not None and self.port is None:
            raise ValueError("`dns` needs a `port`: the one all gateways listen on")
        return self

    @property
    def are_elsewhere(self) -> bool:
        """There are others than our own workers."""
        return self.dns is not None or bool(self.addresses)

    @property
    def is_on(self) -> bool:
        """There is anybody to speak to."""
        return self.are_elsewhere or self.workers > 1

    @property
    def listen_host(self) -> str:
        """Where we listen."""
        return self.host or ("0.0.0.0" if self.are_elsewhere else "127.0.0.1")


class TokensSettings(Section):
    """Which tokens engines will see; read off the critical path."""

    folder: str | None = Field(
        None, description="a model's folder, with its tokenizer.json; for every model"
    )
    folders: dict[str, str] = Field(
        default_factory=dict,
        description="the same by model; without, where the replica says its model is, else the "
        "replica is asked",
    )
    cache_bytes: int = Field(
        64 * 1024 * 1024, gt=0, description="tokens of recent messages, per model"
    )
    queue_bytes: int = Field(
        32 * 1024 * 1024, gt=0, description="prompts that may wait to be read; others are left out"
    )
    ask_timeout_s: float = Field(2.0, gt=0, description="a replica's POST /tokenize")


class TraceSettings(Section):
    """Traces by OpenTelemetry (needs headrace[otel]). Off until it is said where they go."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="a receiver of OTLP by HTTP, as http://collector:4318/v1/traces; headers and "
        "certificates are OpenTelemetry's own variables' (OTEL_EXPORTER_OTLP_HEADERS, ...)",
    )
    ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="the part that is traced of requests that come without a trace; those with one "
        "are, if it is written down where it began",
    )
    service: str = Field("headrace", min_length=1, description="service.name of our spans")
    timeout_s: float = Field(
        5.0, gt=0, description="of an export, with all its attempts; spans are dropped after it"
    )


class AccountSettings(Section):
    """What we write down."""

    access_log: Literal["stdout", "off"] | str = Field(
        "stdout", description="stdout, off, or a file: one JSON line per request"
    )
    recording: str | None = Field(
        None,
        description="a file, written anew: lengths, times and keyed hashes of each request, no "
        "text; for load tests to play again",
    )
    traces: TraceSettings = Field(default_factory=TraceSettings)


class KedaSettings(Section):
    """KEDA's external scaler, over gRPC (needs headrace[keda]). Off until it has a port."""

    port: int | None = Field(None, ge=0, le=65535, description="0 lets the system choose")
    host: str = Field("127.0.0.1", description="loopback unless you say otherwise")
    tls: TlsFiles = Field(default_factory=TlsFiles)


class ScaleSettings(Section):
    """How many replicas each model needs: what whoever scales them is told."""

    ttft_objective_s: float = Field(
        2.0, gt=0, description="so long a request may wait for the prompts before it"
    )
    objective_ratio: float = Field(
        0.99, gt=0.5, lt=1, description="the part of requests for which that is to hold"
    )
    load_deadline_s: float = Field(
        1800.0, gt=0, description="a replica that has been loading for longer will not come"
    )
    linger_s: float = Field(
        30.0, ge=0, description="a model is active for so long after its last request: polls see it"
    )
    keda: KedaSettings = Field(default_factory=KedaSettings)


class ConsoleSettings(Section):
    """The page at /console. Nobody looks, nothing is computed."""

    enabled: bool = Field(True, description="off: there is no such page")
    admin_key_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        repr=False,
        description="of the key that shows everything, in hexadecimal; tenants' keys show all but "
        "tenants' names, and where there are no tenants only this one opens the page",
    )
    max_watchers: int = Field(16, gt=0, description="pages that are open at once")
    every_s: float = Field(1.0, ge=0.05, description="how often they are told")


SpiffePattern = Annotated[
    str,
    StringConstraints(
        pattern=r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*/([A-Za-z0-9._-]+|\*)$"
    ),
]


class SpiffeSettings(Section):
    """TLS with https replicas in which both show X.509-SVIDs (docs/trust.md; needs
    headrace[spiffe]). Off until it has a socket."""

    socket: str | None = Field(
        None,
        pattern=r"^unix:/",
        description="the Workload API's, as unix:/run/spire/agent-sockets/spire-agent.sock",
    )
    replicas: tuple[SpiffePattern, ...] = Field(
        (),
        description="SPIFFE IDs that replicas may have, all of one trust domain; /* at the end "
        "stands for all below, as in spiffe://example.org/ns/models/*",
    )
    wait_s: float = Field(
        30.0, gt=0, description="how long to wait for the first SVID before we give up starting"
    )

    @model_validator(mode="after")
    def _whom(self) -> Self:
        domains = {pattern.split("/")[2] for pattern in self.replicas}
        if self.socket is not None and len(domains) != 1:
            raise ValueError("`replicas` must name SPIFFE IDs, of one trust domain")
        return self


class OpaSettings(Section):
    """A policy is asked whether a tenant may call a model and bring the tools it names
    (docs/trust.md). Off until it has a url; then who gets no answer may not."""

    url: str | None = Field(
        None,
        pattern=r"^http://[^/\s?#@]+:[0-9]{1,5}/v1/data(/[A-Za-z0-9_-]+)+$",
        description="the decision in OPA's REST API, as http://127.0.0.1:8181/v1/data/headrace/decision",
    )
    timeout_s: float = Field(0.5, gt=0, description="from the question to its answer")
    cache_s: float = Field(5.0, ge=0, description="how long an answer is good; 0: for once")
    cache_entries: int = Field(10_000, gt=0, description="answers kept")
    max_asking: int = Field(
        64, gt=0, description="questions at a time; others wait their timeout_s"
    )


class TrustSettings(Section):
    """Whom we speak to, and who may ask for what."""

    spiffe: SpiffeSettings = Field(default_factory=SpiffeSettings)
    opa: OpaSettings = Field(default_factory=OpaSettings)


class Settings(Section):
    """The whole house, a section per room."""

    accept: AcceptSettings = Field(default_factory=AcceptSettings)
    tenants: TenantsSettings = Field(default_factory=TenantsSettings)
    admit: AdmitSettings = Field(default_factory=AdmitSettings)
    hold: HoldSettings = Field(default_factory=HoldSettings)
    choose: ChooseSettings = Field(default_factory=ChooseSettings)
    merge: MergeSettings = Field(default_factory=MergeSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
    fleet: FleetSettings = Field(default_factory=FleetSettings)
    peers: PeersSettings = Field(default_factory=PeersSettings)
    batch: BatchSettings = Field(default_factory=BatchSettings)
    tokens: TokensSettings = Field(default_factory=TokensSettings)
    account: AccountSettings = Field(default_factory=AccountSettings)
    scale: ScaleSettings = Field(default_factory=ScaleSettings)
    console: ConsoleSettings = Field(default_factory=ConsoleSettings)
    trust: TrustSettings = Field(default_factory=TrustSettings)

    @model_validator(mode="after")
    def _one_authority(self) -> Self:
        if self.trust.spiffe.socket is not None and self.relay.replica_ca is not None:
            raise ValueError("`relay.replica_ca` and `trust.spiffe` exclude each other")
        return self

    @model_validator(mode="after")
    def _one_recorder(self) -> Self:
        if self.account.recording is not None and self.peers.workers > 1:
            raise ValueError("`account.recording` is written by one process: set peers.workers: 1")
        return self

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not (self.tenants.path or self.tenants.anonymous or _is_loopback(self.accept.host)):
            raise ValueError(
                f"listening on {self.accept.host} lets anybody in: set tenants.path to a file of "
                "API keys (`headrace keys create`), or say `tenants: {anonymous: true}`"
            )
        return self

    @classmethod
    def load(cls, text: str, environ: Mapping[str, str]) -> Self:
        """Settings from YAML text, overridden by GATEWAY__SECTION__KNOB variables.

        Raises SettingsError naming every key that is unknown or out of bounds.
        """
        return cls.of(read_document(text, environ))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Settings from a mapping of sections. Raises SettingsError as `load` does."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            lines = [f"  {each}" for each in problems(error)]
            raise SettingsError("\n".join(["the settings cannot be used:", *lines])) from None
