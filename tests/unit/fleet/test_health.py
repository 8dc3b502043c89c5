"""The table of health, row by row, and the counting that feeds it."""

from __future__ import annotations

import pytest

from gateway.fleet.health import TRANSITIONS, Sign, Standing, after, cool_down_s, cooled_down_at
from gateway.settings import FleetSettings
from gateway.vocabulary import Health

LAW = FleetSettings(failures_to_eject=3, cool_down_s=5, cool_down_max_s=60)


def run(signs: str, *, law: FleetSettings = LAW, step_s: float = 0.0) -> Standing:
    """Standing after signs `step_s` apart.

    + - of requests, p f of probes, c cooled, s asleep, d drain.
    """
    words = {
        "+": Sign.SUCCESS,
        "-": Sign.FAILURE,
        "p": Sign.PROBE_SUCCESS,
        "f": Sign.PROBE_FAILURE,
        "c": Sign.COOLED_DOWN,
        "s": Sign.ASLEEP,
        "d": Sign.DRAIN,
    }
    standing, now = Standing(), 100.0
    for letter in signs:
        standing = after(standing, words[letter], now, law)
        now += step_s
    return standing


@pytest.mark.parametrize(
    ("signs", "health"),
    [
        ("", Health.JOINING),
        ("---fff", Health.JOINING),
        ("p", Health.HEALTHY),
        ("+", Health.HEALTHY),
        ("p-", Health.SUSPECT),
        ("pf", Health.SUSPECT),
        ("p-+", Health.HEALTHY),
        ("pfp", Health.HEALTHY),
        ("p--+--", Health.SUSPECT),
        ("p---", Health.EJECTED),
        ("pfff", Health.EJECTED),
        ("p-f-", Health.EJECTED),
        ("p---+p-f", Health.EJECTED),
        ("p---c", Health.PROBING),
        ("p---c-", Health.PROBING),
        ("s", Health.ASLEEP),
        ("ps", Health.ASLEEP),
        ("ps+-", Health.ASLEEP),
        ("psp", Health.HEALTHY),
        ("p-sp", Health.HEALTHY),
        ("psf", Health.EJECTED),
        ("p---s", Health.EJECTED),
        ("p---cs", Health.ASLEEP),
        ("psd", Health.DRAINING),
        ("p---cf", Health.EJECTED),
        ("p---cp", Health.HEALTHY),
        ("p---c+", Health.HEALTHY),
        ("p---cp--", Health.SUSPECT),
        ("pc", Health.HEALTHY),
        ("d", Health.DRAINING),
        ("pd", Health.DRAINING),
        ("p-d", Health.DRAINING),
        ("p---d", Health.DRAINING),
        ("p---cd", Health.DRAINING),
        ("pd+pc-f", Health.DRAINING),
    ],
)
def test_signs_lead_to_the_state_the_law_names(signs: str, health: Health) -> None:
    assert run(signs).health is health


def test_every_state_but_draining_can_be_drained_and_nothing_leaves_draining() -> None:
    assert TRANSITIONS.keys() == set(Health)
    assert not TRANSITIONS[Health.DRAINING]
    for health in set(Health) - {Health.DRAINING}:
        assert TRANSITIONS[health][Sign.DRAIN] is Health.DRAINING


def test_nothing_returns_to_joining_by_a_sign() -> None:
    assert Health.JOINING not in {to for row in TRANSITIONS.values() for to in row.values()}


def test_only_healthy_and_suspect_take_work() -> None:
    taking = {health for health in Health if Standing(health).takes_work}
    assert taking == {Health.HEALTHY, Health.SUSPECT}


def test_one_failure_ejects_where_the_settings_say_one() -> None:
    assert run("p-", law=FleetSettings(failures_to_eject=1)).health is Health.EJECTED


def test_probes_that_succeed_between_failing_requests_do_not_save_a_replica() -> None:
    assert run("p-p-p-").health is Health.EJECTED


def test_a_probe_forgives_a_failed_request_once_it_is_old() -> None:
    assert run("p-p", step_s=59).health is Health.SUSPECT
    assert run("p-p", step_s=60).health is Health.HEALTHY


def test_a_request_that_succeeds_forgives_probes_and_requests_alike() -> None:
    assert run("p-f+") == Standing(Health.HEALTHY, since=100.0)


def test_the_cool_down_doubles_up_to_its_maximum() -> None:
    assert [cool_down_s(n, LAW) for n in range(7)] == [0, 5, 10, 20, 40, 60, 60]
    assert cool_down_s(10_000, LAW) == 60


def test_a_failed_probe_after_the_cool_down_begins_it_again_and_lengthens_nothing() -> None:
    assert cooled_down_at(run("p---"), LAW) == 105
    assert cooled_down_at(run("p---cf"), LAW) == 105
    assert cooled_down_at(run("p---" + "cf" * 9, step_s=5), LAW) == 100 + 21 * 5 + 5


def test_a_replica_that_recovers_only_to_its_probes_is_ejected_for_longer_each_time() -> None:
    assert run("p---cp---cp---").ejections == 3


def test_a_request_served_after_a_recovery_starts_the_cool_down_afresh() -> None:
    assert run("p---cp+---").ejections == 1


def test_staying_healthy_as_long_as_it_was_out_starts_the_cool_down_afresh() -> None:
    assert run("p---cpp", step_s=4.9).ejections == 1
    assert run("p---cpp", step_s=5).ejections == 0


def test_failures_of_requests_sent_before_the_ejection_do_not_prolong_it() -> None:
    ejected = run("p---")
    assert after(ejected, Sign.FAILURE, 104.0, LAW) is ejected
    assert after(ejected, Sign.PROBE_FAILURE, 104.0, LAW) is ejected
    assert after(ejected, Sign.SUCCESS, 104.0, LAW) is ejected


def test_the_common_success_changes_and_allocates_nothing() -> None:
    healthy = run("p")
    assert after(healthy, Sign.SUCCESS, 101.0, LAW) is healthy
    assert after(healthy, Sign.PROBE_SUCCESS, 101.0, LAW) is healthy
