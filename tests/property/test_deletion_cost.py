"""Which pods may go first: laws of the costs that are written."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.deletion_cost import AT_LEAST_TOKENS, NEARLY, Priced, cost, to_be_written
from gateway.fleet.watching import Key

WORTH = st.one_of(st.integers(0, 20_000), st.integers(0, 3_000_000))
PODS = st.lists(
    st.builds(
        Priced,
        st.builds(Key, st.just("n"), st.text("abcdefgh", min_size=1, max_size=3)),
        st.sampled_from(["rs1", "rs2"]),
        st.integers(-3, 40),
        WORTH,
    ),
    max_size=12,
    unique_by=lambda each: each.pod,
)


def clearly_more(one: int, other: int) -> bool:
    return one > NEARLY * other + AT_LEAST_TOKENS


def wrong(pods: list[Priced]) -> bool:
    """Would a pod go before, or as easily as, another that is worth clearly less?"""
    return any(
        one.controller == other.controller
        and one.cost <= other.cost
        and clearly_more(one.worth, other.worth)
        for one in pods
        for other in pods
    )


def written(pods: list[Priced]) -> list[Priced]:
    costs = to_be_written(pods)
    return [msgspec.structs.replace(each, cost=costs.get(each.pod, each.cost)) for each in pods]


@given(PODS)
def test_something_is_written_only_where_the_order_is_wrong(pods: list[Priced]) -> None:
    if not wrong(pods):
        assert not to_be_written(pods)


@given(PODS)
def test_once_written_the_order_is_right_and_nothing_more_is_to_be_written(
    pods: list[Priced],
) -> None:
    after = written(pods)
    assert not wrong(after)
    assert not to_be_written(after)


@given(PODS, st.floats(0.95, 1.05))
def test_another_gateway_that_sees_nearly_the_same_writes_nothing(
    pods: list[Priced], factor: float
) -> None:
    if all(clearly_more(one.worth, other.worth) or one.worth == other.worth
           or clearly_more(other.worth, one.worth) for one in pods for other in pods):  # fmt: skip
        after = written(pods)
        seen = [msgspec.structs.replace(each, worth=int(each.worth * factor)) for each in after]
        assert not to_be_written(seen)


@given(WORTH, WORTH)
def test_a_pod_worth_clearly_more_costs_more(one: int, other: int) -> None:
    if clearly_more(one, other):
        assert cost(one) > cost(other)
    assert 0 <= cost(one) < 2**31
