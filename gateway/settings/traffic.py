"""What becomes of a request: where it waits, which replica it goes to, how that is spoken to."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt

from gateway.section import Section, knob
from gateway.vocabulary import ReplicaId


class CrowdSettings(Section):
    """How much may wait."""

    requests: int = knob(gt=0, description="how many")
    tokens: int = knob(gt=0, description="prompt tokens that their replicas do not hold")
    size_bytes: int = knob(gt=0, description="bodies, which are kept in memory")


class HoldSettings(Section):
    """How much replicas are given at once, and who may wait for them."""

    commit_tokens: int | None = knob(
        16_384,
        gt=0,
        description="prompt tokens sent to a replica that it has not begun to read: one to two of "
        "its engine's max_num_batched_tokens; null sends everything at once",
    )
    commit_s: float | None = knob(
        0.5,
        gt=0,
        description="the same in seconds of what the replica has shown to read, where that is less "
        "(but 2048 tokens): what waits here can still be overtaken, and sent elsewhere; null: only "
        "commit_tokens counts",
    )
    max_sequences: int | None = knob(
        1024, gt=0, description="requests sent to a replica: its engine's max_num_seqs"
    )
    in_all: CrowdSettings = knob(
        CrowdSettings(requests=8_000, tokens=32_000_000, size_bytes=512 * 1024 * 1024),
        description="who may wait; beyond it, lower classes make room, then whoever has the most "
        "of it, or it is 503",
    )
    per_tenant: CrowdSettings = knob(
        CrowdSettings(requests=4_000, tokens=16_000_000, size_bytes=256 * 1024 * 1024),
        description="the same, of one tenant; beyond it: 429",
    )
    max_wait_s: float = knob(
        120.0, gt=0, description="batches excepted: who has waited so long is sent away with 503"
    )
    default_floor: float = knob(
        0.1, ge=0, le=0.5, description="share of service the default class has in any case"
    )
    batch_floor: float = knob(
        0.02, ge=0, le=0.5, description="share of service the batch class has in any case"
    )
    alike_in_a_row: int = knob(
        8, ge=1, description="how many waiting requests that begin alike may go one after another"
    )
    comment_every_s: float = knob(
        15.0, gt=0, description="how often a stream that waits is sent an SSE comment"
    )
    cold_start_s: float = knob(
        120.0,
        gt=0,
        description="how long a model is believed to take from nothing to its first replica, until "
        "it has been seen; becomes Retry-After when too much waits for it",
    )


class ChooseSettings(Section):
    """Which replica."""

    policy: str = knob("cache-aware", description="`headrace gateway --help` lists them")
    shadow: str | None = knob(
        None,
        description="a second policy that is asked about every request, without effect; metrics "
        "compare what it would have found cached and how long prompts would have waited",
    )
    cache_tokens: int = knob(
        1_000_000,
        gt=0,
        description="cache-aware: prompt tokens a replica's KV cache is said to hold; too small "
        "costs far more than too large (docs/benchmarks, routing)",
    )
    load_tokens_per_s: float = knob(
        100_000.0,
        gt=0,
        description="cache-aware: how fast a replica brings offloaded KV cache back into its GPU, "
        "in tokens per second",
    )
    read_every_prompt: bool = knob(
        False,
        description="cache-aware: read every prompt as tokens after dispatch, and so audit every "
        "response; else one in 16 to 64, and all while hits are not foreseen without",
    )
    request_overhead_tokens: int = knob(
        256,
        ge=0,
        description="least-work: what one running request costs others, in prompt tokens; "
        "cache-aware: how many tokens it is expected to generate",
    )
    attention_tokens: int = knob(
        50_000,
        gt=0,
        description="cache-aware: the context at which attention costs as much as all the rest of "
        "a layer; about 50 000 for dense models, far more where most layers see a window",
    )
    prior_rate_per_s: float = knob(
        8_000.0,
        gt=0,
        description="cache-aware: prompt tokens a second that a GPU of a replica is believed to do "
        "until it has been seen to; `headrace gateway --profile` takes it from a calibration",
    )
    prefill_rates: dict[ReplicaId, Annotated[float, Gt(0)]] = knob(
        {},
        description="cache-aware: prompt tokens a second, by replica (host:port), where it is not "
        "to be learnt",
    )
    sticky_sessions: bool = knob(
        False,
        description="a session (X-Session-ID, prompt_cache_key) stays on its replica while that is "
        "healthy and not overloaded, whatever the policy",
    )
    bound: float = knob(
        1.25,
        ge=1,
        description="consistent-hash and sticky_sessions: a replica with more than so many times "
        "the mean of requests in flight is overloaded",
    )
    tokenise_first_s: float = knob(
        0.02,
        ge=0,
        description="cache-aware: how long a long prompt that is new to us may wait to be read as "
        "tokens before the choice, where a replica may hold it from elsewhere; 0: never",
    )
    hash_prefix_bytes: int = knob(
        4096, gt=0, description="consistent-hash, without a session: so much of the prompt is key"
    )


class MergeSettings(Section):
    """Small calls that are only read, put together."""

    enabled: bool = knob(True, description="embeddings, scores, ranks and classes share calls")
    max_tokens: int = knob(8192, gt=0, description="in one upstream call, as estimated")
    max_items: int = knob(
        64, gt=0, description="in one upstream call; a longer list is split between replicas"
    )


class RelaySettings(Section):
    """How we talk to replicas."""

    replica_ca: str | None = knob(
        None, description="PEM file: who signs the certificates of https replicas"
    )
    connect_timeout_s: float = knob(2.0, gt=0, description="TCP and TLS; a replica is near")
    first_byte_timeout_s: float = knob(
        300.0, gt=0, description="streams: from dispatch to the first byte, prefill and all"
    )
    unary_timeout_s: float = knob(
        900.0, gt=0, description="unary: an engine sends nothing until it has finished"
    )
    stall_timeout_s: float = knob(120.0, gt=0, description="between two chunks of a response")
    idle_connection_s: float = knob(
        4.0, gt=0, description="engines on uvicorn close idle connections after 5 s: we are first"
    )
    max_idle_per_replica: int = knob(256, ge=0, description="idle connections kept")
    max_attempts: int = knob(3, ge=1, description="tries per request, the first included")
    retry_budget_ratio: float = knob(
        0.2, ge=0, le=1, description="retries per request over time, so a storm cannot double load"
    )
    retry_budget_min_per_s: float = knob(10.0, ge=0, description="and always at least so many")


class TokensSettings(Section):
    """Which tokens engines will see; read off the critical path."""

    folder: str | None = knob(
        None, description="a model's folder, with its tokenizer.json; for every model"
    )
    folders: dict[str, str] = knob(
        {},
        description="the same by model; without, where the replica says its model is, else the "
        "replica is asked",
    )
    cache_bytes: int = knob(
        64 * 1024 * 1024, gt=0, description="tokens of recent messages, per model"
    )
    queue_bytes: int = knob(
        32 * 1024 * 1024, gt=0, description="prompts that may wait to be read; others are left out"
    )
    ask_timeout_s: float = knob(2.0, gt=0, description="a replica's POST /tokenize")
