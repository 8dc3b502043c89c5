"""Whatever an engine, or something else on its ports, sends: it is read, or refused in one way."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.exposition import read_facts, read_fingerprint
from gateway.fleet.kv_sources import read_sources
from gateway.fleet.kv_wire import read_batch, read_message
from gateway.kv_cache import BlocksCleared, BlocksRemoved, BlocksStored

HASHES = st.integers(-(2**63), 2**64 - 1) | st.binary(min_size=8, max_size=32)
SCALARS = st.none() | st.booleans() | HASHES | st.floats(allow_nan=False) | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=3)
)
KINDS = st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared", "Later"])
NAMES = ["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"]
NAMES += ["lora_name", "extra_keys", "group_idx", "session_id", "kv_cache_spec_kind"]
NEARLY = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    KINDS,
    st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=9),
) | st.builds(lambda kind, fields: [kind, *fields], KINDS, st.lists(ANYTHING, max_size=10))
LISTS = st.lists(HASHES, max_size=5)


@st.composite
def stored(draw: st.DrawFn) -> dict[str, Any]:
    hashes = draw(LISTS)
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": draw(st.none() | HASHES),
        "token_ids": draw(st.lists(st.integers(0, 2**31), max_size=9)),
        "block_size": draw(st.integers(1, 512)),
        "extra_keys": draw(st.none() | st.just([None] * len(hashes)) | ANYTHING),
        "medium": draw(st.none() | st.sampled_from(["GPU", "CPU"])),
    }


@given(st.lists(st.binary(max_size=12), max_size=5), st.binary(max_size=80))
def test_any_bytes_are_read_or_a_value_error(frames: list[bytes], payload: bytes) -> None:
    with suppress(ValueError):
        read_message(frames)
    with suppress(ValueError):
        read_batch(payload)


@given(st.lists(NEARLY | stored() | ANYTHING, max_size=4), st.integers(0, 30))
def test_any_events_are_read_or_a_value_error(events: list[Any], cut: int) -> None:
    payload = msgspec.msgpack.encode([0.0, events, 0])
    for body in (payload, payload[:-cut]):
        with suppress(ValueError):
            for event in read_batch(body):
                assert isinstance(event, BlocksStored | BlocksRemoved | BlocksCleared)


@given(stored())
def test_hashes_meet_in_64_bits_however_they_are_written(event: dict[str, Any]) -> None:
    def low(value: int | bytes) -> int:
        number = value if isinstance(value, int) else int.from_bytes(value, "big")
        return number % 2**64

    if not isinstance(event["extra_keys"], list):
        event["extra_keys"] = None
    (read,) = read_batch(msgspec.msgpack.encode([0.0, [event], 0]))
    assert isinstance(read, BlocksStored)
    assert read.hashes == [low(each) for each in event["block_hashes"]]
    parent = event["parent_block_hash"]
    assert read.parent == (None if parent is None else low(parent))
    assert read.tokens == event["token_ids"]
    if read.extra_keys is not None:
        assert len(read.extra_keys) == len(read.hashes)
        assert any(event["extra_keys"])


WORDS = """vllm:cache_config_info { } block_size =" 16 " num_gpu_blocks \\ , 1.0 "0" endpoint : tcp://
tcp://*:1 "tcp://*:1" enable_kv_cache_events true null vllm- -tp 2 -ep -0a1b2c3d"""
PIECES = st.lists(st.sampled_from([*WORDS.split(), "\n", " "]), max_size=20).map("".join)


@given(st.binary(max_size=200) | PIECES.map(str.encode), PIECES)
def test_any_page_gives_facts(page: bytes, fingerprint: str) -> None:
    read_facts(page)
    read_fingerprint(fingerprint)
    with suppress(ValueError):
        read_sources(page, "http://[::1]:8000")
