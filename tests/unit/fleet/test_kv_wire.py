"""Batches as engines of several ages write them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.fleet.kv_wire import read_batch, read_message, replay_request
from gateway.kv_cache import BlocksCleared, BlocksRemoved, BlocksStored

DIGEST = bytes(range(32))
LOW = int.from_bytes(DIGEST[-8:], "big")


def batch(*events: object, rank: tuple[object, ...] = (0,)) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), *rank])


def stored(**fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": [7, 8],
        "parent_block_hash": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **fields,
    }


PLAIN = BlocksStored([7, 8], None, [1, 2, 3, 4], 2)


@pytest.mark.parametrize(
    ("event", "meant"),
    [
        (stored(), PLAIN),
        (stored(medium=None, extra_keys=[None, None], locality="LOCAL", news={"a": 1}), PLAIN),
        (stored(parent_block_hash=2**64 - 1), BlocksStored([7, 8], 2**64 - 1, [1, 2, 3, 4], 2)),
        (
            stored(block_hashes=[DIGEST], parent_block_hash=DIGEST, token_ids=[]),
            BlocksStored([LOW], LOW, [], 2),
        ),
        (stored(block_hashes=[-1, 8]), BlocksStored([2**64 - 1, 8], None, [1, 2, 3, 4], 2)),
        (
            stored(lora_id=3, lora_name="sql", extra_keys=[["sql", "salt"], ["sql"]]),
            BlocksStored(
                [7, 8],
                None,
                [1, 2, 3, 4],
                2,
                adapter="sql",
                extra_keys=[["sql", "salt"], ["sql"]],
            ),
        ),
        (stored(lora_id=3), BlocksStored([7, 8], None, [1, 2, 3, 4], 2, adapter="3")),
        (
            stored(medium="CPU", group_idx=2, session_id="s"),
            BlocksStored([7, 8], None, [1, 2, 3, 4], 2, "CPU", 2, session="s"),
        ),
        (
            stored(extra_keys=[["salt"]]),  # one entry for two blocks: which is it for?
            BlocksStored([7, 8], None, [1, 2, 3, 4], 2, extra_keys=[[[["salt"]]]] * 2),
        ),
        ({"type": "BlockRemoved", "block_hashes": [7], "medium": None}, BlocksRemoved([7])),
        (
            {"type": "BlockRemoved", "block_hashes": [DIGEST], "medium": "CPU", "group_idx": 1},
            BlocksRemoved([LOW], "CPU", 1),
        ),
        ({"type": "AllBlocksCleared"}, BlocksCleared()),
    ],
)
def test_maps(event: dict[str, Any], meant: object) -> None:
    assert read_batch(batch(event)) == [meant]


@pytest.mark.parametrize(
    ("event", "meant"),
    [
        (["BlockStored", [7, 8], None, [1, 2, 3, 4], 2, None], PLAIN),
        (
            ["BlockStored", [7, 8], 6, [1, 2, 3, 4], 2, None, "CPU"],
            BlocksStored([7, 8], 6, [1, 2, 3, 4], 2, "CPU"),
        ),
        (
            ["BlockStored", [7], None, [1, 2], 2, 1, "GPU", "sql", [["sql"]], "more"],
            BlocksStored([7], None, [1, 2], 2, adapter="sql", extra_keys=[["sql"]]),
        ),
        (
            ["BlockStored", [7], None, [1, 2], 2, None, "GPU", {"cache_salt": "s"}],
            BlocksStored([7], None, [1, 2], 2, extra_keys=[[{"cache_salt": "s"}]]),
        ),
        (["BlockRemoved", [7, DIGEST]], BlocksRemoved([7, LOW])),
        (["AllBlocksCleared"], BlocksCleared()),
    ],
)
def test_lists(event: list[object], meant: object) -> None:
    assert read_batch(batch(event)) == [meant]


def test_what_is_not_known_is_passed_over_and_a_rank_may_be_missing() -> None:
    events = [{"type": "BlockMoved", "block_hashes": "?"}, ["Later", 1], stored(), ["Later"]]
    assert read_batch(batch(*events, rank=())) == [PLAIN]
    assert read_batch(batch(rank=(0, "more"))) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"events": []}),
        msgspec.msgpack.encode([1.0]),
        batch(stored(block_hashes=["7"])),
        batch(stored(block_size=0)),
        batch(stored(token_ids=None)),
        batch(["BlockStored", [7]]),
        batch([]),
        batch([7]),
        batch({}),
        batch(7),
        batch(stored())[:-3],
    ],
)
def test_what_cannot_be_read_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a batch of events"):
        read_batch(payload)


def removed(*hashes: int, **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **fields}


def test_removals_in_a_row_of_one_medium_and_group_are_told_as_one() -> None:
    told = [removed(1), removed(2, 2), removed(3, medium="CPU"), removed(4, medium="CPU")]
    told += [
        stored(),
        removed(5),
        removed(6, group_idx=1),
        removed(7),
        {"type": "AllBlocksCleared"},
    ]
    meant = [
        BlocksRemoved([1, 2, 2]),
        BlocksRemoved([3, 4], "CPU"),
        PLAIN,
        BlocksRemoved([5]),
        BlocksRemoved([6], group=1),
        BlocksRemoved([7]),
        BlocksCleared(),
    ]
    assert read_batch(batch(*told)) == meant


def test_one_event_that_is_not_plain_changes_nothing_of_the_others() -> None:
    told = [removed(1), removed(2), stored(token_ids=[1, 70_000, 3, 4])]
    one = {"type": "BlockRemoved", "block_hashes": [DIGEST]}
    meant = [*read_batch(batch(*told)), BlocksRemoved([LOW])]
    counted = [each for each in read_batch(batch(*told, one)) if isinstance(each, BlocksRemoved)]
    assert [name for each in counted for name in each.hashes] == [1, 2, LOW]
    assert read_batch(batch(*told, one))[-2:] == meant[-2:]


def test_messages_live_and_replayed_with_and_without_a_topic() -> None:
    number = (5).to_bytes(8, "big")
    for frames in ([b"kv@", number, b"p"], [b"", b"kv@", number, b"p"], [b"", number, b"p"]):
        message = read_message(frames)
        assert (message.number, message.payload, message.is_end) == (5, b"p", False)
    assert read_message([b"", b"", b"\xff" * 8, b""]).is_end
    assert read_message([b"", (-1).to_bytes(8, "big", signed=True), b""]).is_end
    assert replay_request(5) == (b"", number)
    for wrong in ([], [b"p"], [b"", b"1234567", b"p"]):
        with pytest.raises(ValueError, match="of"):
            read_message(wrong)
