"""Token ids stay packed until somebody looks, and are then what was written."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.token_ids import FEW, TokenIds

IDS = st.lists(st.integers(0, 300) | st.integers(-(2**63), 2**64 - 1), max_size=2 * FEW)


def packed(value: object) -> TokenIds:
    return TokenIds(msgspec.Raw(msgspec.msgpack.encode(value)))


@given(IDS, st.integers(-5, 2 * FEW), st.integers(-5, 2 * FEW), st.sampled_from([None, 1, 2, -1]))
def test_they_are_a_list_however_much_is_looked_at(
    ids: list[int], start: int, stop: int, step: int | None
) -> None:
    found = packed(ids)
    assert len(found) == len(ids)
    assert found[:stop] == ids[:stop]
    assert found[start:stop:step] == ids[start:stop:step]
    assert found == ids
    assert found[:stop] == ids[:stop]
    assert list(found) == ids
    assert found == packed(ids)
    assert found != [*ids, 1]


def test_an_array_of_every_length_is_known_by_its_head() -> None:
    for length in (0, 15, 16, 2**16 - 1, 2**16):
        ids = [70_000] * length
        assert len(packed(ids)) == length
        assert packed(ids) == ids


@pytest.mark.parametrize("value", [None, 7, "12", {}])
def test_what_is_no_array_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no array"):
        packed(value)


def test_what_is_no_integer_is_found_out_when_it_is_looked_at() -> None:
    found = packed([1, "2", 3])
    assert len(found) == 3
    assert found[:1] == [1]
    with pytest.raises(ValueError, match="Expected `int`"):
        found[:2]
    with pytest.raises(ValueError, match="Expected `int`"):
        list(found)
