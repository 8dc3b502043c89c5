"""Any bytes at all are read, or refused with the one error that says so."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.cards import read_cards
from gateway.fleet.listing import read_listing
from gateway.section import SettingsError

WORDS = """{ } [ ] "data" "id" "m" : , null 3 1e999 replicas http://a:1 &a *a 2001-99-99 ? << |
!!int !!bool !!timestamp !!binary !!set !!python/name x 0o9"""
PIECES = st.lists(st.sampled_from([*WORDS.split(), "- ", " ", "\n", "\t", ": "]), max_size=20).map(
    lambda pieces: "".join(pieces).encode()
)


@given(st.binary(max_size=200) | PIECES)
def test_any_bytes_are_a_model_list_or_a_value_error(body: bytes) -> None:
    with suppress(ValueError):
        read_cards(body)


@given(st.binary(max_size=200) | PIECES)
def test_any_bytes_are_a_list_of_replicas_or_a_settings_error(content: bytes) -> None:
    with suppress(SettingsError):
        read_listing(content)


@pytest.mark.parametrize("content", [b"!!bool x", b"!!int", b"!!timestamp x", b"a: !!float x"])
def test_what_pyyaml_stumbles_over_is_a_settings_error(content: bytes) -> None:
    with pytest.raises(SettingsError):
        read_listing(content)
