"""Grafana dashboards, as data: what charts/gateway/dashboards holds is written from these.

    python -m tests.dashboards      writes the files anew

A panel is a question with its answer in PromQL. `%N` stands for the matchers of the chosen
namespaces, `%M` for those of the chosen namespaces and models, `%T` of namespaces and tenants.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[1] / "charts/gateway/dashboards"
SCHEMA_VERSION: Final = 41  # Grafana 12; older ones from 10 on read it too
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
MATCHERS: Final = {
    "%N": 'namespace=~"$namespace"',
    "%M": 'namespace=~"$namespace",model=~"$model"',
    "%T": 'namespace=~"$namespace",tenant=~"$tenant"',
}
VARIABLES: Final = {
    "namespace": "label_values(gateway_requests_received_total, namespace)",
    "model": 'label_values(gateway_demand_replicas{namespace=~"$namespace"}, model)',
    "tenant": 'label_values(gateway_tenant_requests_total{namespace=~"$namespace"}, tenant)',
}
QUANTILES: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Panel:
    """One picture: what it shows, in which unit, from which queries by their legends."""

    title: str
    text: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A page of panels in rows."""

    name: str
    title: str
    text: str
    variables: tuple[str, ...]
    rows: Mapping[str, tuple[Panel, ...]]


def stat(title: str, text: str, unit: str, query: str) -> Panel:
    """A figure, as it is now."""
    return Panel(title, text, unit, {"": query}, kind="stat", width=4, height=4)


def quantiles(metric: str, matchers: str = "%M") -> dict[str, str]:
    """Of a histogram, by model."""
    rate = f"sum by (model, le) (rate({metric}_bucket{{{matchers}}}[$__rate_interval]))"
    return {
        f"{{{{model}}}} p{each * 100:.0f}": f"histogram_quantile({each}, {rate})"
        for each in QUANTILES
    }


def rate(metric: str, by: str, matchers: str = "%N", **more: str) -> str:
    """A sum of rates."""
    said = ",".join([matchers, *(f"{name}{value}" for name, value in more.items())])
    return f"sum by ({by}) (rate({metric}{{{said}}}[$__rate_interval]))"


def largest(metric: str, by: str, matchers: str = "%M") -> str:
    """What every gateway says of the same thing."""
    return f"max by ({by}) ({metric}{{{matchers}}})"


BAD: Final = (
    'sum(rate(gateway_requests_total{%M,outcome=~"failed|evicted"}[$__rate_interval]) or '
    'rate(gateway_requests_total{%M,outcome="rejected",'
    'reason=~"too_many_requests|queue_full|draining"}[$__rate_interval]))'
)
ALL: Final = "sum(rate(gateway_requests_total{%M}[$__rate_interval]))"
INFLIGHT: Final = "sum by (replica) (gateway_replica_inflight_requests{%N})"
STATES: Final = "max by (namespace, replica, state) (gateway_replica_state{%N})"
HIT_RATIO: Final = (
    f"{rate('gateway_cached_tokens_total', 'model', '%M')} / "
    f"{rate('gateway_prompt_tokens_total', 'model', '%M')}"
)
GATEWAYS: Final = "and on (namespace, instance) gateway_workers{%N}"

FLEET: Final = Dashboard(
    "fleet",
    "Headrace / Fleet",
    "Gateways and replicas: what comes, how it ends, what is in the way.",
    ("namespace", "model"),
    {
        "Now": (
            stat("Requests", "Requests that end, of the chosen models.", "reqps", ALL),
            stat(
                "Failed",
                "The part that failed through us or a replica: failed, evicted, or refused for "
                "want of room. What the alerts on errors go by.",
                "percentunit",
                f"({BAD} or vector(0)) / {ALL}",
            ),
            stat("Open", "Requests not yet ended.", "short", "sum(gateway_requests_open{%N})"),
            stat(
                "Waiting",
                "Requests that wait for their turn, or for a model that has no replica.",
                "short",
                "sum(gateway_requests_waiting{%N}) + sum(gateway_held_requests{%N})",
            ),
            stat(
                "Healthy replicas",
                "Replicas that some gateway believes healthy.",
                "short",
                'sum(max by (namespace, replica) (gateway_replica_state{%N,state="healthy"}))',
            ),
            stat(
                "Gateways",
                "Gateways that are scraped.",
                "short",
                "count(gateway_requests_received_total{%N})",
            ),
        ),
        "Requests": (
            Panel(
                "How requests end",
                "Each ends in exactly one outcome.",
                "reqps",
                {"{{outcome}}": rate("gateway_requests_total", "outcome", "%M")},
                stacked=True,
            ),
            Panel(
                "Ends that are not good",
                "By reason, the same word as in the access log and in the API's error.code.",
                "reqps",
                {
                    "{{outcome}}: {{reason}}": rate(
                        "gateway_requests_total", "outcome, reason", "%M", outcome='!="finished"'
                    )
                },
            ),
            Panel(
                "By route",
                "Requests that end, by the path that was asked.",
                "reqps",
                {"{{route}}": rate("gateway_requests_total", "route", "%M")},
                stacked=True,
            ),
            Panel(
                "Waiting for their turn",
                "By class: interactive goes first. A queue that stays: too few replicas.",
                "short",
                {"{{class}}": "sum by (class) (gateway_requests_waiting{%N})"},
                stacked=True,
            ),
            Panel(
                "Small calls that share upstream calls",
                "Embedding and rerank calls that were answered out of a shared call, and the "
                "shared calls that were made.",
                "reqps",
                {
                    "calls": "sum(rate(gateway_merged_calls_total{%N}[$__rate_interval]))",
                    "shared": "sum(rate(gateway_shared_upstream_calls_total{%N}"
                    "[$__rate_interval]))",
                },
            ),
            Panel(
                "What was no request",
                "Bytes from clients that were refused before they were a request.",
                "reqps",
                {"{{instance}}": rate("gateway_malformed_requests_total", "instance")},
            ),
        ),
        "Replicas": (
            Panel(
                "Replicas by state",
                "As gateways believe; where they differ, a replica is counted in both states.",
                "short",
                {"{{state}}": f"sum by (state) ({STATES})"},
                stacked=True,
            ),
            Panel(
                "In flight, by replica",
                "Requests bound for a replica that have not ended, sent or waiting for their turn.",
                "short",
                {"{{replica}}": INFLIGHT},
            ),
            Panel(
                "Attempts that failed",
                "By replica and reason.",
                "reqps",
                {
                    "{{replica}}: {{result}}": rate(
                        "gateway_attempts_total", "replica, result", result='!="ok"'
                    )
                },
            ),
            Panel(
                "Tried again",
                "Attempts after another one, by what ended that one.",
                "reqps",
                {"{{reason}}": rate("gateway_retries_total", "reason")},
            ),
        ),
        "Batches": (
            Panel(
                "Batches",
                "In the store that gateways share, by where they stand.",
                "short",
                {"{{status}}": "max by (status) (gateway_batches{%N})"},
                stacked=True,
            ),
            Panel(
                "Lines of batches",
                "What became of them: completed and failed are ends, the others are sent again.",
                "short",
                {"{{outcome}}": rate("gateway_batch_lines_total", "outcome")},
            ),
            Panel(
                "Lines in flight",
                "Sent and not yet ended.",
                "short",
                {"{{instance}}": "sum by (instance) (gateway_batch_lines_inflight{%N})"},
            ),
            Panel(
                "Failures of the store",
                "Reads and writes of the database of batches that failed.",
                "short",
                {"{{instance}}": rate("gateway_batch_store_failures_total", "instance")},
            ),
        ),
        "Gateways": (
            Panel(
                "CPU",
                "Cores in use. An event loop can use one for each worker.",
                "short",
                {
                    "{{instance}}": "sum by (instance) (rate(process_cpu_seconds_total{%N}"
                    f"[$__rate_interval]) {GATEWAYS})"
                },
            ),
            Panel(
                "Near a limit",
                "What may wait, may be open as a file, and may be used as memory: 1 is full. "
                "Memory is shown where the container has a limit.",
                "percentunit",
                {
                    "{{instance}} waiting": largest("gateway_waiting_fill_ratio", "instance", "%N"),
                    "{{instance}} files": "max by (instance) (process_open_fds{%N} / "
                    f"process_max_fds{{%N}} {GATEWAYS})",
                    "{{instance}} memory": "max by (instance) (process_resident_memory_bytes{%N} / "
                    "on (namespace, instance) gateway_memory_limit_bytes{%N})",
                },
            ),
            Panel(
                "Connections",
                "Of clients, and to replicas that carry a request.",
                "short",
                {
                    "{{instance}} clients": "sum by (instance) (gateway_connections_open{%N})",
                    "{{instance}} replicas": "sum by (instance) "
                    "(gateway_replica_connections_busy{%N})",
                },
            ),
            Panel(
                "Spans of traces",
                "Where account.traces are on: exported; failed, because nobody took them; dropped, "
                "because there were too many.",
                "short",
                {"{{result}}": rate("gateway_trace_spans_total", "result")},
            ),
            Panel(
                "Others heard",
                "Other gateways and workers that each hears; all of them, if all is well.",
                "short",
                {"{{instance}}": largest("gateway_peers_heard", "instance", "%N")},
            ),
            Panel(
                "Datagrams between gateways",
                "Sent and heard; not delivered, from strangers, unreadable.",
                "short",
                {"{{result}}": rate("gateway_peer_datagrams_total", "result")},
            ),
        ),
        "Identity and policy, where trust is on": (
            Panel(
                "SVID expires in",
                "What is left of the certificate that we show to replicas; it is renewed at about "
                "half its time.",
                "s",
                {
                    "{{instance}}": "min by (instance) (gateway_svid_expiry_timestamp_seconds{%N} "
                    "> 0) - time()"
                },
            ),
            Panel(
                "Workload API",
                "1 while it is there.",
                "short",
                {"{{instance}}": "min by (instance) (gateway_workload_api_up{%N})"},
            ),
            Panel(
                "Renewals",
                "What the Workload API has told: SVIDs and authorities.",
                "short",
                {
                    "{{instance}}": "sum by (instance) "
                    "(increase(gateway_svid_updates_total{%N}[$__rate_interval]))"
                },
            ),
            Panel(
                "Handshakes refused",
                "With replicas, for want of trust: theirs in us or ours in them.",
                "short",
                {"{{reason}}": rate("gateway_svid_refused_handshakes_total", "reason")},
            ),
            Panel(
                "What the policy says",
                "Of requests, by trust.opa; undecided ones were refused for want of an answer.",
                "reqps",
                {"{{decision}}": rate("gateway_policy_decisions_total", "decision")},
            ),
            Panel(
                "How long it is waited for",
                "In the mean of the questions that were asked; answers that are good are kept.",
                "s",
                {
                    "{{instance}}": rate("gateway_policy_question_seconds_total", "instance")
                    + " / "
                    + rate("gateway_policy_questions_total", "instance")
                },
            ),
        ),
    },
)

MODEL: Final = Dashboard(
    "model",
    "Headrace / Model",
    "One model as its users feel it, and what it costs.",
    ("namespace", "model"),
    {
        "Now": (
            stat("Requests", "Requests that end.", "reqps", ALL),
            stat(
                "Failed",
                "The part that failed through us or a replica.",
                "percentunit",
                f"({BAD} or vector(0)) / {ALL}",
            ),
            stat(
                "Time to first token, p99",
                "Of streams, over five minutes.",
                "s",
                "histogram_quantile(0.99, sum by (le) "
                "(rate(gateway_time_to_first_token_seconds_bucket{%M}[5m])))",
            ),
            stat(
                "Generated",
                "Tokens, as replicas counted them.",
                "short",
                "sum(rate(gateway_output_tokens_total{%M}[$__rate_interval]))",
            ),
            stat(
                "Replicas",
                "Those that take work for the model.",
                "short",
                f"sum({largest('gateway_demand_replicas_ready', 'namespace, model')})",
            ),
            stat(
                "Hit ratio",
                "Prompt tokens that were found in a cache.",
                "percentunit",
                "sum(rate(gateway_cached_tokens_total{%M}[$__rate_interval])) / "
                "sum(rate(gateway_prompt_tokens_total{%M}[$__rate_interval]))",
            ),
        ),
        "Latency": (
            Panel(
                "Time to first token",
                "Streams: from received to the first chunk sent on, waiting included; beside the "
                "objective.",
                "s",
                {
                    **quantiles("gateway_time_to_first_token_seconds"),
                    "objective": largest("gateway_ttft_objective_seconds", "namespace", "%N"),
                },
            ),
            Panel(
                "Time in the queue",
                "From received to first sent to a replica.",
                "s",
                quantiles("gateway_queue_time_seconds"),
            ),
            Panel(
                "Between chunks",
                "Streams: between successive chunks of a response, what a reader sees.",
                "s",
                quantiles("gateway_inter_token_latency_seconds"),
            ),
            Panel(
                "Per output token",
                "Streams: (end to end - time to first token) / (output tokens - 1).",
                "s",
                quantiles("gateway_time_per_output_token_seconds"),
            ),
            Panel(
                "Whole requests",
                "From received to the last byte sent on.",
                "s",
                quantiles("gateway_request_duration_seconds"),
            ),
            Panel(
                "Times to first token, all of them",
                "How many streams fell where.",
                "s",
                {
                    "{{le}}": "sum by (le) (increase(gateway_time_to_first_token_seconds_bucket"
                    "{%M}[$__rate_interval]))"
                },
                kind="heatmap",
            ),
        ),
        "Work": (
            Panel(
                "Tokens a second",
                "As replicas counted them; cached ones are part of the prompt.",
                "short",
                {
                    "{{model}} prompt": rate("gateway_prompt_tokens_total", "model", "%M"),
                    "{{model}} cached": rate("gateway_cached_tokens_total", "model", "%M"),
                    "{{model}} generated": rate("gateway_output_tokens_total", "model", "%M"),
                },
            ),
            Panel(
                "How requests end",
                "By model and outcome.",
                "reqps",
                {"{{model}}: {{outcome}}": rate("gateway_requests_total", "model, outcome", "%M")},
                stacked=True,
            ),
        ),
    },
)

TENANT: Final = Dashboard(
    "tenant",
    "Headrace / Tenants",
    "Who asks, for how much, and who is told to wait.",
    ("namespace", "tenant"),
    {
        "Use": (
            Panel(
                "Requests",
                "Within the tenant's limits.",
                "reqps",
                {"{{tenant}}": rate("gateway_tenant_requests_total", "tenant", "%T")},
                stacked=True,
            ),
            Panel(
                "Tokens a second",
                "Charged to a tenant, prompt and generated.",
                "short",
                {"{{tenant}}": rate("gateway_tenant_tokens_total", "tenant", "%T")},
                stacked=True,
            ),
            Panel(
                "Open",
                "Requests not yet ended.",
                "short",
                {"{{tenant}}": "sum by (tenant) (gateway_tenant_requests_open{%T})"},
                stacked=True,
            ),
            Panel(
                "Share of tokens",
                "Over the time shown.",
                "percentunit",
                {
                    "{{tenant}}": "sum by (tenant) (increase(gateway_tenant_tokens_total{%T}"
                    "[$__range])) / on () group_left () "
                    "sum(increase(gateway_tenant_tokens_total{%T}[$__range]))"
                },
                kind="bargauge",
            ),
        ),
        "Refused": (
            Panel(
                "Beyond a limit",
                "By which, as the client is told it.",
                "reqps",
                {
                    "{{tenant}}: {{reason}}": rate(
                        "gateway_tenant_refusals_total", "tenant, reason", "%T"
                    )
                },
            ),
            Panel(
                "Part that is refused",
                "Of what a tenant asks.",
                "percentunit",
                {
                    "{{tenant}}": f"{rate('gateway_tenant_refusals_total', 'tenant', '%T')} / "
                    "(sum by (tenant) (rate(gateway_tenant_requests_total{%T}[$__rate_interval])) "
                    "+ sum by (tenant) (rate(gateway_tenant_refusals_total{%T}[$__rate_interval])))"
                },
            ),
            Panel(
                "Waiting for their turn",
                "Of all tenants, by class.",
                "short",
                {"{{class}}": "sum by (class) (gateway_requests_waiting{%N})"},
                stacked=True,
            ),
            Panel(
                "Files of tenants that were refused",
                "Each is a change of keys or limits that has no effect.",
                "short",
                {
                    "{{instance}}": "sum by (instance) "
                    "(increase(gateway_tenant_reload_failures_total{%N}[$__rate_interval]))"
                },
            ),
        ),
    },
)

CACHE: Final = Dashboard(
    "kv-cache-and-routing",
    "Headrace / KV cache and routing",
    "What caches hold, whether it was foreseen, and what another policy would have done.",
    ("namespace", "model"),
    {
        "Hits": (
            Panel(
                "Hit ratio",
                "Prompt tokens that replicas found in their caches.",
                "percentunit",
                {"{{model}}": HIT_RATIO},
            ),
            Panel(
                "Was it foreseen?",
                "Responses that told their cached tokens, by whether as many had been predicted "
                "when the replica was chosen: over is less than was believed.",
                "percentunit",
                {
                    "{{verdict}}": rate(
                        "gateway_cache_audits_total", "verdict", prediction='="chosen"'
                    )
                    + " / on () group_left () sum(rate(gateway_cache_audits_total"
                    '{%N,prediction="chosen"}[$__rate_interval]))'
                },
                stacked=True,
            ),
            Panel(
                "Do events tell the truth?",
                "The same, against what the replica's own events say. Much that is not exact: see "
                "the runbook cache-disagrees.",
                "percentunit",
                {
                    "{{replica}}": rate(
                        "gateway_cache_audits_total",
                        "replica",
                        prediction='="events"',
                        verdict='="exact"',
                    )
                    + " / "
                    + rate("gateway_cache_audits_total", "replica", prediction='="events"')
                },
            ),
            Panel(
                "Tokens foreseen wrongly",
                "Predicted and not found, or found and not predicted.",
                "short",
                {
                    "{{replica}} by {{prediction}}": rate(
                        "gateway_cache_audit_error_tokens_total", "replica, prediction"
                    )
                },
            ),
        ),
        "What is known": (
            Panel(
                "Blocks held",
                "By the replica's events.",
                "short",
                {"{{replica}}": largest("gateway_cache_blocks", "replica", "%N")},
            ),
            Panel(
                "How caches are known",
                "Exact by events, partly, or only believed from what was sent there.",
                "short",
                {
                    "{{grade}}": "sum by (grade) (max by (namespace, replica, grade) "
                    "(gateway_cache_grade{%N}))"
                },
                stacked=True,
            ),
            Panel(
                "Events heard",
                "Batches of KV-cache events a replica tells.",
                "short",
                {"{{replica}}": rate("gateway_kv_event_batches_total", "replica")},
            ),
            Panel(
                "Blocks told of as stored",
                "A rate near what prompts bring is as it should be.",
                "short",
                {"{{replica}}": rate("gateway_kv_event_blocks_total", "replica")},
            ),
            Panel(
                "Events missed",
                "Gaps in the numbers of batches, and how often a replica was asked to tell again.",
                "short",
                {
                    "{{replica}} gaps": rate("gateway_kv_event_gaps_total", "replica"),
                    "{{replica}} replays": rate("gateway_kv_event_replays_total", "replica"),
                },
            ),
            Panel(
                "How far events can be trusted",
                "Replicas by certainty.",
                "short",
                {
                    "{{certainty}}": "sum by (certainty) (max by (namespace, replica, certainty) "
                    "(gateway_kv_certainty{%N}))"
                },
                stacked=True,
            ),
        ),
        "Routing": (
            Panel(
                "Prompt tokens in flight",
                "Those whose first byte has not come, by replica.",
                "short",
                {"{{replica}}": "sum by (replica) (gateway_replica_inflight_prompt_tokens{%N})"},
            ),
            Panel(
                "Imbalance",
                "The busiest replica's requests in flight over the mean: 1 is even.",
                "short",
                {"busiest / mean": f"max({INFLIGHT}) / (avg({INFLIGHT}) > 0 or vector(1))"},
            ),
            Panel(
                "Read before the choice",
                "Prompts that were read as tokens first, because the choice could depend on it.",
                "reqps",
                {"{{result}}": rate("gateway_prompts_read_first_total", "result")},
            ),
            Panel(
                "Attempts",
                "By replica.",
                "reqps",
                {"{{replica}}": rate("gateway_attempts_total", "replica")},
                stacked=True,
            ),
        ),
        "Another policy in the shadow (choose.shadow)": (
            Panel(
                "Agreement",
                "Requests that both would have sent to the same replica.",
                "percentunit",
                {
                    "same": "sum(rate(gateway_shadow_agreements_total{%N}[$__rate_interval])) / "
                    "sum(rate(gateway_shadow_decisions_total{%N}[$__rate_interval]))"
                },
            ),
            Panel(
                "Cached tokens",
                "What each policy's own placements are believed to have cached.",
                "short",
                {"{{side}}": rate("gateway_shadow_hit_tokens_total", "side")},
            ),
            Panel(
                "Predicted seconds",
                "Waiting and prefill of each policy's choices.",
                "short",
                {"{{side}}": rate("gateway_shadow_predicted_seconds_total", "side")},
            ),
            Panel(
                "Busiest replica",
                "Requests in flight there, had each policy had its way.",
                "short",
                {"{{side}}": largest("gateway_shadow_busiest_inflight_requests", "side", "%N")},
            ),
        ),
    },
)

BY_MODEL: Final = "namespace, model"
AUTOSCALING: Final = Dashboard(
    "autoscaling",
    "Headrace / Autoscaling",
    "How many replicas each model needs, has, and waits for. Every gateway says the same.",
    ("namespace", "model"),
    {
        "Replicas": (
            Panel(
                "Needed and there",
                "What whoever scales is told, what takes work, and what loads.",
                "short",
                {
                    "{{model}} needed": largest("gateway_demand_replicas", BY_MODEL),
                    "{{model}} ready": largest("gateway_demand_replicas_ready", BY_MODEL),
                    "{{model}} loading": largest("gateway_demand_replicas_loading", BY_MODEL),
                },
            ),
            Panel(
                "Saturation",
                "Work that arrives or is owed over what ready replicas do: 1 is all they can.",
                "percentunit",
                {"{{model}}": largest("gateway_demand_saturation_ratio", BY_MODEL)},
            ),
            Panel(
                "Active",
                "1 while requests wait or run, or a replica loads: not to be scaled to zero.",
                "short",
                {"{{model}}": largest("gateway_demand_active", BY_MODEL)},
            ),
            Panel(
                "Missing",
                "Needed less ready, where positive.",
                "short",
                {
                    "{{model}}": f"clamp_min({largest('gateway_demand_replicas', BY_MODEL)} - "
                    f"{largest('gateway_demand_replicas_ready', BY_MODEL)}, 0)"
                },
            ),
        ),
        "Demand": (
            Panel(
                "Requests",
                "Queued, and sent to replicas and not ended.",
                "short",
                {
                    "{{model}} queued": largest("gateway_demand_queued_requests", BY_MODEL),
                    "{{model}} in flight": largest("gateway_demand_inflight_requests", BY_MODEL),
                },
            ),
            Panel(
                "Tokens",
                "Estimated: of prompts that wait; of those in flight, with their answers.",
                "short",
                {
                    "{{model}} queued": largest("gateway_demand_queued_tokens", BY_MODEL),
                    "{{model}} in flight": largest("gateway_demand_inflight_tokens", BY_MODEL),
                },
            ),
            Panel(
                "Oldest wait",
                "How long the one that has waited longest has waited.",
                "s",
                {"{{model}}": largest("gateway_demand_oldest_wait_seconds", BY_MODEL)},
            ),
        ),
        "From zero": (
            Panel(
                "Held",
                "Requests that wait for a model that has no replica.",
                "short",
                {"{{model}}": "sum by (namespace, model) (gateway_held_requests{%M})"},
            ),
            Panel(
                "How full that hold is",
                "By the fullest of its bounds: 1 is full.",
                "percentunit",
                {"{{model}}": largest("gateway_held_fill_ratio", BY_MODEL)},
            ),
            Panel(
                "Cold starts",
                "Models that came up while somebody waited, over the time shown.",
                "short",
                {"{{model}}": "sum by (model) (increase(gateway_cold_starts_total{%M}[$__range]))"},
                kind="bargauge",
            ),
            Panel(
                "How long a cold start takes",
                "From the first request on, in the mean since the gateway began.",
                "s",
                {
                    "{{model}}": "sum by (model) (gateway_cold_start_seconds_total{%M}) / "
                    "(sum by (model) (gateway_cold_starts_total{%M}) > 0)"
                },
            ),
        ),
    },
)

DASHBOARDS: Final = (FLEET, MODEL, TENANT, CACHE, AUTOSCALING)


def queries(dashboard: Dashboard) -> Iterable[tuple[str, str]]:
    """The title of a panel and what it asks, with Grafana's variables still in it."""
    for panels in dashboard.rows.values():
        for panel in panels:
            for query in panel.queries.values():
                yield panel.title, _with_matchers(query)


def document(dashboard: Dashboard) -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": f"headrace-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.text,
        "tags": ["headrace"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [_LINKS],
        "templating": {"list": [_DATASOURCE, *map(_variable, dashboard.variables)]},
        "panels": _panels(dashboard),
    }


_LINKS: Final = {
    "type": "dashboards",
    "title": "Headrace",
    "tags": ["headrace"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
}
_DATASOURCE: Final = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
}


def _variable(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": VARIABLES[name],
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """One below the other, row by row."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in dashboard.rows.items():
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            made.append({"id": len(made) + 1, "gridPos": place, **_panel(panel)})
            x, height = x + panel.width, panel.height
        y += height
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        mode = "normal" if panel.stacked else "none"
        fill = 20 if panel.stacked else 0
        defaults["custom"] = {
            "lineWidth": 1, "fillOpacity": fill, "showPoints": "never",
            "stacking": {"mode": mode, "group": "A"},
        }  # fmt: skip
        options["tooltip"] = {"mode": "multi", "sort": "desc"}
        options["legend"] = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    elif panel.kind == "heatmap":
        options["calculate"] = False
        options["yAxis"] = {"unit": panel.unit}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            _target(panel, letter, legend, query)
            for letter, (legend, query) in zip("ABCDEFGH", panel.queries.items(), strict=False)
        ],
    }


def _target(panel: Panel, letter: str, legend: str, query: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": _with_matchers(query),
        "legendFormat": legend,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        "instant": panel.kind in ("stat", "bargauge"),
        "range": panel.kind not in ("stat", "bargauge"),
    }


def _with_matchers(query: str) -> str:
    for short, matchers in MATCHERS.items():
        query = query.replace(short, matchers)
    return query


def text(dashboard: Dashboard) -> str:
    """What is written."""
    return json.dumps(document(dashboard), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        (FOLDER / f"{each.name}.json").write_text(text(each), encoding="utf-8")
