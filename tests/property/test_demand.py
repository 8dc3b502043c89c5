"""Shares of demand add up."""

from functools import reduce
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.demand import Share

counts = st.integers(min_value=0, max_value=10**6)
amounts = counts.map(lambda count: count / 4)  # adds up exactly
shares = st.builds(
    Share,
    queued_requests=counts,
    queued_tokens=counts,
    inflight_requests=counts,
    inflight_tokens=counts,
    oldest_wait_s=amounts,
    arriving=st.tuples(amounts, amounts),
    requests=amounts,
    lumps=amounts,
    saved=amounts,
    backlog_s=amounts,
    held_tokens=counts,
    is_awake=st.booleans(),
)


@given(st.lists(shares), st.randoms(use_true_random=False))
def test_shares_add_up_in_any_order(some: list[Share], random: Random) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    total = reduce(Share.plus, some, Share())
    assert reduce(Share.plus, shuffled, Share()) == total
    assert total.queued_requests == sum(each.queued_requests for each in some)
    assert total.held_tokens == sum(each.held_tokens for each in some)
    assert total.is_awake == any(each.is_awake for each in some)
    assert total.oldest_wait_s == max((each.oldest_wait_s for each in some), default=0.0)
