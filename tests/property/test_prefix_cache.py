"""A prefix cache is an LRU of blocks, whatever is stored in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.prefix_cache import PrefixCache

chains = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=8), max_size=40)


@given(chains, st.integers(1, 12))
def test_it_holds_the_most_recently_used_blocks_and_no_more(
    stored: list[list[int]], capacity: int
) -> None:
    cache = PrefixCache(capacity)
    used: list[int] = []  # oldest first: the model, by brute force
    for chain in stored:
        cache.store(chain)
        used = [block for block in used if block not in chain] + chain[::-1]
        used = used[max(len(used) - capacity, 0) :]
        assert len(cache) == len(used) <= capacity
        assert [block for block in range(31) if block in cache] == sorted(used)


@given(chains, st.integers(1, 12))
def test_of_one_chain_later_blocks_go_before_earlier_ones(
    stored: list[list[int]], capacity: int
) -> None:
    cache = PrefixCache(capacity)
    for chain in stored:
        cache.store(chain)
        held = [block in cache for block in chain]
        assert held == sorted(held, reverse=True)
