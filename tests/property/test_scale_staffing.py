"""Laws of the demand signal: it rises with work, is never negative, and nothing needs nothing."""

from dataclasses import dataclass, replace
from math import ceil, exp, isfinite, sqrt

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.scale.staffing import Objective, Work, busy, expected, needed, rise, staffed

amounts = st.floats(min_value=0.0, max_value=500.0)
works = st.builds(
    Work,
    fast=amounts,
    slow=amounts,
    requests=amounts,
    lumps=amounts,
    saved=amounts,
    backlog_s=st.floats(min_value=0.0, max_value=10_000.0),
    caches=amounts,
    slots=amounts,
)
objectives = st.builds(
    Objective,
    wait_s=st.floats(min_value=0.05, max_value=60.0),
    ratio=st.floats(min_value=0.51, max_value=0.999),
    cold_start_s=st.floats(min_value=1.0, max_value=1000.0),
    drain_s=st.floats(min_value=1.0, max_value=1000.0),
)
presents = st.integers(min_value=0, max_value=100)
CLOSE = 1e-6


@given(works, objectives, presents)
def test_it_is_a_number_and_never_negative(work: Work, objective: Objective, present: int) -> None:
    replicas = needed(work, objective, present)
    assert isfinite(replicas)
    assert replicas >= 0.0
    assert replicas >= busy(work, objective) - CLOSE


@given(objectives, presents)
def test_no_work_needs_no_replica(objective: Objective, present: int) -> None:
    assert needed(Work(), objective, present) == 0.0


@given(
    works,
    objectives,
    presents,
    st.sampled_from(("backlog_s", "caches", "slots", "saved")),
    st.integers(min_value=0, max_value=1000),
)
def test_it_rises_with_each_kind_of_work(
    work: Work, objective: Objective, present: int, name: str, more: int
) -> None:
    bigger = msgspec.structs.replace(work, **{name: getattr(work, name) + more})
    assert needed(bigger, objective, present) >= needed(work, objective, present) - CLOSE


@given(works, objectives, st.floats(min_value=1.0, max_value=10.0))
def test_it_rises_with_the_number_of_requests(
    work: Work, objective: Objective, times: float
) -> None:
    bigger = Work(
        fast=times * work.fast,
        slow=times * work.slow,
        requests=times * work.requests,
        lumps=times * work.lumps,
        backlog_s=times * work.backlog_s,
    )
    same = msgspec.structs.replace(work, saved=0.0, caches=0.0, slots=0.0)
    assert needed(bigger, objective) >= needed(same, objective) - CLOSE


@given(amounts, amounts, amounts, objectives)
def test_more_load_or_larger_work_needs_more(
    load: float, more: float, mean_s: float, objective: Objective
) -> None:
    assert staffed(load + more, mean_s, objective) >= staffed(load, mean_s, objective) - CLOSE
    assert staffed(load, mean_s + more, objective) >= staffed(load, mean_s, objective) - CLOSE


@given(amounts, amounts, objectives, st.floats(min_value=0.0, max_value=0.4))
def test_a_stricter_objective_needs_more(
    load: float, mean_s: float, objective: Objective, stricter: float
) -> None:
    ratio = min(objective.ratio + stricter, 0.9999)
    strict = msgspec.structs.replace(objective, ratio=ratio)
    assert staffed(load, mean_s, strict) >= staffed(load, mean_s, objective) - CLOSE


@given(works, objectives, presents)
def test_what_caches_spare_keeps_no_more_than_there_is(
    work: Work, objective: Objective, present: int
) -> None:
    dear = msgspec.structs.replace(work, saved=1000.0)
    without = needed(work, objective)
    assert needed(dear, objective, present) <= max(without, present) + CLOSE


@given(works, objectives)
def test_chance_moves_nothing(work: Work, objective: Objective) -> None:
    noise = 1.9 * sqrt(work.lumps / 60.0)
    for fast in (work.slow + noise, work.slow - noise):
        jittered = msgspec.structs.replace(work, fast=fast)
        assert rise(jittered) == 0.0
        assert expected(jittered, objective.cold_start_s) == work.slow


@dataclass(frozen=True)
class Queue:
    """M/M/n, exactly."""

    load: float
    servers: int
    service_s: float

    def late(self, wait_s: float) -> float:
        """P(wait > wait_s), by Erlang's C."""
        blocked = 1.0
        for servers in range(1, self.servers + 1):
            blocked = self.load * blocked / (servers + self.load * blocked)
        delayed = self.servers * blocked / (self.servers - self.load * (1.0 - blocked))
        return delayed * exp(-(self.servers - self.load) * wait_s / self.service_s)


@given(
    st.floats(min_value=1.0, max_value=100.0),
    st.floats(min_value=0.1, max_value=5.0),
    st.floats(min_value=0.5, max_value=10.0),
)
def test_it_staffs_as_erlang_does(load: float, service_s: float, wait_s: float) -> None:
    """To one replica, for exponential work."""
    objective = Objective(wait_s=wait_s, ratio=0.95, cold_start_s=90.0, drain_s=90.0)
    exact = Queue(load, int(load) + 1, service_s)
    while exact.late(wait_s) > 0.05:
        exact = replace(exact, servers=exact.servers + 1)
    assert abs(ceil(staffed(load, service_s, objective)) - exact.servers) <= 1
