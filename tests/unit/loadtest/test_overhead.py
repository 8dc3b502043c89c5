"""When a run is refused because the generator measured itself."""

from __future__ import annotations

from loadtest.figures import Distribution
from loadtest.overhead import Overhead, bottleneck
from loadtest.run import allowed_late_s
from loadtest.scenario import Scenario


def an_overhead(
    *, naps_late_s: list[float] | None = None, cpu: list[float] | None = None
) -> Overhead:
    return Overhead(10.0, 1.0, 1000, naps_late_s or [0.001] * 100, cpu or [0.2] * 10)


def test_a_generator_with_time_to_spare_is_believed() -> None:
    assert bottleneck([an_overhead()], [0.001] * 100, 0.01) is None
    assert bottleneck([], [], 0.01) is None


def test_a_full_core_is_refused_but_a_full_moment_is_not() -> None:
    assert "core" in (bottleneck([an_overhead(cpu=[0.2] * 8 + [0.95] * 2)], [], 0.01) or "")
    assert bottleneck([an_overhead(cpu=[0.2] * 9 + [0.95])], [], 0.01) is None


def test_one_late_process_of_several_is_enough() -> None:
    late = an_overhead(naps_late_s=[0.0] * 95 + [0.02] * 5)
    assert "20.0 ms late" in (bottleneck([an_overhead(), late], [], 0.01) or "")
    assert bottleneck([late], [], 0.03) is None


def test_requests_that_left_late_are_refused() -> None:
    assert "after their instant" in (
        bottleneck([an_overhead()], [0.0] * 90 + [0.1] * 10, 0.01) or ""
    )


def test_long_waits_forgive_more_lateness() -> None:
    scenario = Scenario(question="?", allowed_late_s=0.01)
    assert allowed_late_s(scenario, None) == 0.01
    assert allowed_late_s(scenario, Distribution.of([0.1])) == 0.01
    assert allowed_late_s(scenario, Distribution.of([2.0])) == 0.1
