"""One run: the load, the watch on the generator, the servers' own figures, what it all comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import gevent
import msgspec

from loadtest.drive import Driver
from loadtest.figures import Distribution, by_label, figures_of, over_time, percentile_sorted
from loadtest.machine import machine
from loadtest.overhead import LATE_SHARE, Overhead, Watch, bottleneck
from loadtest.record import Curves, GeneratorFigures, Run
from loadtest.replies import Reply
from loadtest.samples import Sample
from loadtest.scenario import Plan, Scenario
from loadtest.servers import Servers
from loadtest.stream import Client, Endpoint

_STRETCHES: Final = 60
"""About so many points are drawn over time."""
TICK_S: Final = 0.5
KEY_VARIABLE: Final = "OPENAI_API_KEY"
"""Where the key is looked for, unless said otherwise."""


class EndpointError(Exception):
    """The endpoint does not answer as one of its kind does; the message is for the user."""


@dataclass(slots=True)
class Target:
    """Where a run goes, and under which names it is kept."""

    endpoint: Endpoint
    model: str
    label: str
    scenario_name: str


@dataclass(slots=True)
class Live:
    """What can be seen of a run while it goes."""

    samples: list[Sample]
    driver: Driver
    watch: Watch


class Outcome(msgspec.Struct, frozen=True):
    """What generators bring home."""

    samples: list[Sample]
    overheads: list[Overhead]


def models_of(endpoint: Endpoint) -> list[str]:
    """Names at `/v1/models`, one at the least. Raises EndpointError."""
    client = Client(endpoint, timeout_s=10.0)
    reply = client.get("/v1/models")
    client.close()
    if reply.error is not None:
        raise EndpointError(_refusal(endpoint, reply))
    try:
        listing: Any = msgspec.json.decode(reply.body)
        models = [model["id"] for model in listing["data"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise EndpointError(f"{endpoint.url}/v1/models is no list of models") from error
    if not models:
        raise EndpointError(f"{endpoint.url} serves no model")
    return models


def _refusal(endpoint: Endpoint, reply: Reply) -> str:
    if reply.error == "connect":
        return f"cannot connect to {endpoint.url}: {reply.cause}"
    if reply.status in (401, 403):
        if endpoint.headers:
            return f"{endpoint.url}: the key is refused ({reply.status})"
        return f"{endpoint.url} wants a key: put one into {KEY_VARIABLE}, in the environment"
    return f"{endpoint.url}/v1/models: {reply.error}: is it an OpenAI-compatible endpoint?"


def run(plan: Plan, target: Target, on_tick: Callable[[Live], None] = lambda _: None) -> Run:
    """Generate the whole load from this process and say what came of it."""
    servers = Servers(target.endpoint)
    client = Client(target.endpoint)
    watch, samples, events = Watch(), [], 0

    def take(sample: Sample) -> None:
        nonlocal events
        samples.append(sample)
        events += len(sample.gaps_s) + 1

    driver = Driver(plan, client, target.model, take)
    started_at = datetime.now(UTC)
    live = Live(samples, driver, watch)
    servers.start()
    watch.start()
    ticker = gevent.spawn(_tick, on_tick, live)
    try:
        driver.run()
    finally:
        ticker.kill()
        overhead = watch.stop(events)
        servers.stop()
        client.close()
    on_tick(live)
    return run_of(plan.scenario, target, started_at, Outcome(samples, [overhead]), servers)


def run_of(
    scenario: Scenario,
    target: Target,
    started_at: datetime,
    outcome: Outcome,
    servers: Servers | None = None,
) -> Run:
    """A run from what its generators brought home."""
    samples, objectives = outcome.samples, scenario.objectives
    window = (scenario.warm_up_s, scenario.duration_s)
    inside = [each for each in samples if window[0] <= each.intended_s < window[1]]
    figures = figures_of(samples, objectives, *window)
    last_s = max((each.ended_s for each in samples), default=0.0)
    labels = by_label(samples)
    return Run(
        label=target.label,
        scenario_name=target.scenario_name,
        scenario=scenario,
        target=target.endpoint.url,
        model=target.model,
        started_at=started_at.isoformat(timespec="seconds"),
        figures=figures,
        everything=figures_of(samples, objectives, 0.0, max(scenario.duration_s, last_s) + 1e-6),
        by_label={name: figures_of(own, objectives, *window) for name, own in labels.items()},
        curves=_curves(inside),
        over_time=over_time(
            samples, objectives, scenario.duration_s, stretch_s(scenario.duration_s)
        ),
        replicas=[] if servers is None else servers.replicas(),
        gateway=None if servers is None else servers.gateway(),
        generator=_generator(outcome, inside, allowed_late_s(scenario, figures.ttft_s)),
        machine=machine(),
    )


def stretch_s(duration_s: float) -> float:
    """A round number of seconds that cuts a run into some sixty stretches."""
    rounds = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
    return next((each for each in rounds if duration_s / each <= _STRETCHES), 1800.0)


def allowed_late_s(scenario: Scenario, ttft_s: Distribution | None) -> float:
    """How late (p99) the generator may be and still have measured something else."""
    return max(scenario.allowed_late_s, LATE_SHARE * (0.0 if ttft_s is None else ttft_s.p50))


def _generator(outcome: Outcome, inside: Sequence[Sample], allowed_s: float) -> GeneratorFigures:
    overheads = outcome.overheads
    lags_s = [each.lag_s for each in inside]
    events = sum(each.events for each in overheads)
    return GeneratorFigures(
        processes=len(overheads),
        cpu_share=max((each.cpu_s / each.wall_s for each in overheads), default=0.0),
        cpu_us_per_event=1e6 * sum(each.cpu_s for each in overheads) / max(1, events),
        late_s=Distribution.of(late for each in overheads for late in each.naps_late_s),
        lag_s=Distribution.of(lags_s),
        bottleneck=bottleneck(overheads, lags_s, allowed_s),
    )


def _curves(samples: Sequence[Sample]) -> Curves:
    whole = [each for each in samples if each.error is None]
    return Curves(
        ttft_s=_curve([each.ttft_s for each in whole if each.ttft_s is not None]),
        itl_s=_curve([gap for each in whole for gap in each.gaps_s]),
        tpot_s=_curve([each.tpot_s for each in whole if each.tpot_s is not None]),
        e2e_s=_curve([each.e2e_s for each in whole]),
    )


def _curve(values: list[float]) -> list[float]:
    values.sort()
    return [percentile_sorted(values, share / 100) for share in range(101)] if values else []


def _tick(on_tick: Callable[[Live], None], live: Live) -> None:
    while True:
        on_tick(live)
        gevent.sleep(TICK_S)
