"""The arithmetic of the benchmark and the shape of its prompts."""

import orjson
import pytest

from tests.bench.figures import (
    Figure,
    per_chunk_us,
    per_request_us,
    percentile,
    verdicts,
    when_calm,
)
from tests.bench.hotspots import hottest
from tests.bench.prompts import write_book


def test_a_chunk_costs_what_the_per_request_part_leaves() -> None:
    # 4 streams of 101 events in 0.0104 s: 4 requests at 100 us leave 10 000 us for 400 chunks
    assert per_chunk_us(0.0104, streams=4, events=404, unary_us=100.0) == pytest.approx(25.0)


def test_an_empty_window_has_no_cost_rather_than_a_zero_one() -> None:
    with pytest.raises(ValueError, match="no request"):
        per_request_us(1.0, 0)
    with pytest.raises(ValueError, match="no chunk"):
        per_chunk_us(1.0, streams=3, events=3, unary_us=1.0)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_what_is_cheap_when_calm_does_not_move_with_what_a_neighbour_does() -> None:
    alone = [100.0 + step for step in range(20)]
    beside = [150.0 + step for step in range(80)]
    assert when_calm(alone + beside) == 109.0
    assert when_calm(alone + [cost * 3 for cost in beside]) == 109.0


def test_a_ratio_is_against_the_cheaper_peer_and_a_limit_against_nobody() -> None:
    costs = {
        "ours": {Figure.UNARY: 60.0, Figure.CHUNK: 18.0, Figure.LARGE: 260.0},
        "one": {Figure.UNARY: 150.0, Figure.CHUNK: 20.0},
        "two": {Figure.UNARY: 130.0, Figure.CHUNK: 24.0},
    }
    found = verdicts(costs, ours="ours", peers=("one", "two"))
    assert [(each.target.figure, each.peer, each.is_met) for each in found] == [
        (Figure.UNARY, "two", True),
        (Figure.CHUNK, "one", False),
        (Figure.LARGE, None, False),
    ]
    assert [each.allowed_us for each in found] == [65.0, 17.0, 250.0]


def test_without_a_peer_only_the_plain_limit_is_judged() -> None:
    costs = {"ours": dict.fromkeys(Figure, 10.0)}
    found = verdicts(costs, ours="ours", peers=("one", "two"))
    assert [each.target.figure for each in found] == [Figure.LARGE]
    assert verdicts({}, ours="ours", peers=("one",)) == []


@pytest.mark.parametrize("size_bytes", [2048, 20_000])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_body_is_json_of_exactly_the_promised_size(size_bytes: int, is_stream: bool) -> None:
    book = write_book(seed=1, size_bytes=size_bytes, is_stream=is_stream, templates=9)
    for serial in range(20):
        head, body = book.request(serial).split(b"\r\n\r\n", 1)
        assert len(body) == size_bytes
        assert b"content-length: %d" % size_bytes in head
        assert orjson.loads(body).get("stream", False) is is_stream


def test_a_seed_gives_one_book_and_no_two_serials_one_body() -> None:
    books = [write_book(seed=s, size_bytes=2048, is_stream=False, templates=9) for s in (1, 1, 2)]
    assert books[0] == books[1] != books[2]
    assert len({books[0].request(serial) for serial in range(100)}) == 100


def test_conversations_of_one_group_share_a_system_prompt_and_nothing_more() -> None:
    book = write_book(seed=1, size_bytes=2048, is_stream=False, templates=16)
    chats = [orjson.loads(book.request(n).split(b"\r\n\r\n", 1)[1])["messages"] for n in range(16)]
    assert len({chat[0]["content"] for chat in chats}) == 2
    assert len({chat[1]["content"] for chat in chats}) == 16


def test_a_profile_counts_work_and_not_sleep(tmp_path_factory: pytest.TempPathFactory) -> None:
    folded = tmp_path_factory.mktemp("profile") / "stacks.txt"
    folded.write_text(
        "main (a/b/gateway/app.py:3);serve (a/gateway/lane.py:9);write (libc.so.6) 3\n"
        "main (a/b/gateway/app.py:4);serve (a/gateway/lane.py:7) 1\n"
        "drain (a/log.py:1);PyThread_acquire_lock_timed (libpython.so) 40\n"
    )
    told = hottest(folded)
    assert told.startswith("4 samples")
    assert " 75.0%  write (libc.so.6)" in told
    assert "100.0%  serve (gateway/lane.py)" in told
    assert "drain" not in told
