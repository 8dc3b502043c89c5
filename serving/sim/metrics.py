"""The /metrics page of a simulated replica: vLLM 0.32's names, labels and meanings.

Asked to note the instants of each request and to render the page. Times are as the client sees
them: in real seconds, after `--speed`. Source: vLLM 0.32, v1/metrics/loggers.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serving.sim.engine import Engine
from serving.sim.histogram import (
    ITL_BUCKETS_S,
    LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    Histogram,
    render_family,
)


def _latency() -> Histogram:
    return Histogram(LATENCY_BUCKETS_S)


@dataclass(slots=True)
class Timings:
    """Histograms over requests, in seconds."""

    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS_S))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS_S))
    tpot: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS_S))
    e2e: Histogram = field(default_factory=_latency)
    queue: Histogram = field(default_factory=_latency)


def render_metrics(
    engine: Engine, timings: Timings, model: str, config: Mapping[str, str], max_loras: int
) -> str:
    """The whole page, as text of Prometheus's exposition format 0.0.4."""
    labels = {"model_name": model, "engine": "0"}
    families = [
        *_gauges(engine),
        *_counters(engine),
        *((name, "histogram", text, value) for name, text, value in _histograms(timings)),
    ]
    pages = [render_family(name, kind, text, [(labels, v)]) for name, kind, text, v in families]
    successes = [
        ({**labels, "finished_reason": reason}, count)
        for reason, count in engine.totals.finished.items()
    ]
    text = "Count of successfully processed requests."
    pages.append(render_family("vllm:request_success", "counter", text, successes))
    pages.append(
        render_family(
            "vllm:cache_config_info",
            "gauge",
            "Information of the LLMEngine CacheConfig",
            [({**config, "engine": "0"}, 1.0)],
        )
    )
    if max_loras:
        pages.append(_adapters(engine, max_loras))
    return "".join(pages)


_Family = tuple[str, str, str, float | Histogram]


def _gauges(engine: Engine) -> Iterable[_Family]:
    yield (
        "vllm:num_requests_running",
        "gauge",
        "Number of requests in model execution batches.",
        engine.running,
    )
    yield (
        "vllm:num_requests_waiting",
        "gauge",
        "Number of requests waiting to be processed.",
        engine.waiting,
    )
    yield (
        "vllm:kv_cache_usage_perc",
        "gauge",
        "KV-cache usage. 1 means 100 percent usage.",
        engine.pool.usage,
    )


def _counters(engine: Engine) -> Iterable[_Family]:
    totals = engine.totals
    for name, text, value in (
        ("prefix_cache_queries", "Prompt tokens looked up in the cache.", "prefix_queries_tokens"),
        ("prefix_cache_hits", "Prompt tokens found in the cache.", "prefix_hits_tokens"),
        ("num_preemptions", "Cumulative number of preemption from the engine.", "preemptions"),
        ("prompt_tokens", "Number of prefill tokens processed.", "prompt_tokens"),
        ("prompt_tokens_cached", "Number of cached prompt tokens.", "cached_prompt_tokens"),
        ("generation_tokens", "Number of generation tokens processed.", "generated_tokens"),
    ):
        yield f"vllm:{name}", "counter", text, getattr(totals, value)


def _histograms(timings: Timings) -> Iterable[tuple[str, str, Histogram]]:
    for name, histogram in (
        ("time_to_first_token_seconds", timings.ttft),
        ("inter_token_latency_seconds", timings.itl),
        ("request_time_per_output_token_seconds", timings.tpot),
        ("e2e_request_latency_seconds", timings.e2e),
        ("request_queue_time_seconds", timings.queue),
    ):
        yield f"vllm:{name}", f"Histogram of {name.replace('_', ' ')}.", histogram


def _adapters(engine: Engine, max_loras: int) -> str:
    running, waiting = engine.adapters()
    labels = {
        "max_lora": str(max_loras),
        "waiting_lora_adapters": ",".join(waiting),
        "running_lora_adapters": ",".join(running),
    }
    text = "Running stats on lora requests."
    return render_family("vllm:lora_requests_info", "gauge", text, [(labels, 1.0)])
