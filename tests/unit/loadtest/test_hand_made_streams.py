"""TTFT, ITL and TPOT of streams made by hand: what bytes came when, and what that comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.deltas import reader_of
from loadtest.replies import Reading, Reply
from loadtest.samples import Marks, Sample, sample_of

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(**members: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": members}]})


def usage(prompt: int, output: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": output}
    return event({"choices": [], "usage": counts})


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def streamed(*reads: tuple[float, bytes], path: str = CHAT) -> tuple[Sample, Reply]:
    """A request intended at 100 s whose stream came in these reads; instants count from there."""
    reply = Reply(Marks(100.0))
    reply.marks.sent_s = 100.002
    reading = Reading(reader_of(path), reply)
    reading.feed(HEAD, 100.01)
    for at_s, data in reads:
        reading.feed(http_chunk(data), 100 + at_s)
    reading.feed(b"0\r\n\r\n", 100 + reads[-1][0])
    assert reading.is_done
    return sample_of(reply.marks, "x", error=reply.error), reply


def close(found: list[float], *expected: float) -> bool:
    return found == pytest.approx(list(expected))


def test_one_token_an_event() -> None:
    sample, reply = streamed(
        (0.2, delta(role="assistant", content="")),
        (0.5, delta(content="a")),
        (0.6, delta(content=" b")),
        (0.8, delta(content=" c")),
        (0.8, FINISH + usage(7, 3) + DONE),
    )
    assert sample.ttft_s == pytest.approx(0.5)
    assert close(sample.gaps_s, 0.1, 0.2)
    assert sample.tpot_s == pytest.approx(0.15)
    assert sample.e2e_s == pytest.approx(0.8)
    assert sample.lag_s == pytest.approx(0.002)
    assert (sample.prompt_tokens, sample.output_tokens) == (7, 3)
    assert reply.text == "a b c"


def test_many_tokens_in_one_chunk() -> None:
    """TPOT goes by tokens, ITL by what a reader sees; uncounted tokens are said to be so."""
    reads = ((0.5, delta(content="a b c d")), (0.9, delta(content=" e f g h")))
    sample, _ = streamed(*reads, (0.9, usage(7, 8)))
    assert close(sample.gaps_s, 0.4)
    assert sample.tpot_s == pytest.approx(0.4 / 7)
    assert not sample.are_tokens_counted
    uncounted, _ = streamed(*reads)
    assert uncounted.output_tokens == 2
    assert uncounted.are_tokens_counted


def test_one_token_in_many_chunks() -> None:
    """A letter's bytes may come in several events: no more tokens for that."""
    sample, _ = streamed(
        (0.5, delta(content="n")), (0.5, delta(content="a")), (0.52, delta(content="ï")),
        (0.7, delta(content="ve")), (0.7, usage(7, 2)),
    )  # fmt: skip
    assert close(sample.gaps_s, 0.0, 0.02, 0.18)
    assert sample.tpot_s == pytest.approx(0.2)


def test_several_events_in_one_read_and_one_event_in_several_reads() -> None:
    first, second = delta(content="a"), delta(content="b")
    sample, reply = streamed((0.5, first + second[:9]), (0.6, second[9:-1]), (0.75, second[-1:]))
    assert sample.ttft_s == pytest.approx(0.5)
    assert close(sample.gaps_s, 0.25)
    together, _ = streamed((0.5, first + second))
    assert close(together.gaps_s, 0.0)
    assert reply.text == "ab"


@pytest.mark.parametrize(
    "empty",
    [
        delta(role="assistant"),
        delta(role="assistant", content=""),
        delta(content=None),
        delta(tool_calls=[]),
        event({"choices": []}),
        b": a comment\n\n",
    ],
)
def test_an_empty_first_chunk_is_no_output(empty: bytes) -> None:
    sample, _ = streamed((0.1, empty), (0.5, delta(content="a")))
    assert sample.ttft_s == pytest.approx(0.5)
    assert sample.gaps_s == []
    assert sample.tpot_s is None


def test_a_usage_only_tail_costs_nothing_but_time_to_the_end() -> None:
    sample, _ = streamed(
        (0.5, delta(content="a")), (0.6, delta(content="b")), (0.6, FINISH),
        (1.6, usage(7, 2)), (1.7, DONE),
    )  # fmt: skip
    assert close(sample.gaps_s, 0.1)
    assert sample.tpot_s == pytest.approx(0.1)
    assert sample.e2e_s == pytest.approx(1.7)


@pytest.mark.parametrize("member", ["reasoning", "reasoning_content"])
def test_reasoning_is_output_but_not_what_a_next_turn_repeats(member: str) -> None:
    sample, reply = streamed(
        (0.3, delta(**{member: "hm"})), (0.4, delta(**{member: " so"})), (0.9, delta(content="a"))
    )
    assert sample.ttft_s == pytest.approx(0.3)
    assert close(sample.gaps_s, 0.1, 0.5)
    assert reply.text == "a"


def test_tool_calls_are_output() -> None:
    def call(**function: object) -> bytes:
        return delta(tool_calls=[{"index": 0, "function": function}])

    sample, reply = streamed(
        (0.2, delta(role="assistant", content=None)),
        (0.4, call(name="look", arguments="")),
        (0.5, call(arguments='{"at"')),
        (0.7, call(arguments=": 3}")),
        (0.7, call(arguments="")),
    )
    assert sample.ttft_s == pytest.approx(0.4)
    assert close(sample.gaps_s, 0.1, 0.2)
    assert reply.text == ""


def test_text_completions() -> None:
    def text(piece: str) -> bytes:
        return event({"choices": [{"index": 0, "text": piece}]})

    sample, reply = streamed(
        (0.2, text("")), (0.3, text("a")), (0.5, text("b")), path="/v1/completions"
    )
    assert sample.ttft_s == pytest.approx(0.3)
    assert close(sample.gaps_s, 0.2)
    assert reply.text == "ab"


def test_responses() -> None:
    def typed(kind: str, **members: Any) -> bytes:
        return f"event: {kind}\n".encode() + event({"type": kind, **members})

    counts = {"input_tokens": 9, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}
    sample, reply = streamed(
        (0.1, typed("response.created", response={"status": "in_progress", "output": []})),
        (0.2, typed("response.reasoning_text.delta", delta="hm")),
        (0.4, typed("response.output_text.delta", delta="a")),
        (0.5, typed("response.function_call_arguments.delta", delta="{")),
        (0.5, typed("response.output_text.done", text="a")),
        (0.6, typed("response.completed", response={"usage": counts})),
        path="/v1/responses",
    )
    assert sample.ttft_s == pytest.approx(0.2)
    assert close(sample.gaps_s, 0.2, 0.1)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.output_tokens) == (9, 4, 3)
    assert reply.text == "a"


def test_an_error_in_a_stream_that_had_begun() -> None:
    sample, reply = streamed((0.2, delta(content="a")), (0.3, event({"error": {"code": 500}})))
    assert sample.error == reply.error == "error_event"
    failed, _ = streamed((0.2, event({"type": "response.failed"})), path="/v1/responses")
    assert failed.error == "error_event"


def test_a_connection_that_ended_too_soon() -> None:
    reply = Reply(Marks(0.0))
    reading = Reading(reader_of(CHAT), reply)
    reading.feed(HEAD + http_chunk(delta(content="a")), 0.4)
    reading.cut_off(0.7)
    sample = sample_of(reply.marks, "x", error=reply.error)
    assert reading.is_done
    assert sample.error == "truncated"
    assert sample.e2e_s == pytest.approx(0.7)


def unary(status: str, body: bytes) -> tuple[Sample, Reply]:
    reply = Reply(Marks(0.0))
    reading = Reading(reader_of(CHAT), reply)
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
    reading.feed(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body, 0.3)
    assert reading.is_done
    return sample_of(reply.marks, "x", error=reply.error), reply


def test_a_reply_that_is_no_stream_has_an_end_and_usage_but_no_ttft() -> None:
    body = {
        "choices": [{"message": {"role": "assistant", "content": "a b"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    sample, reply = unary("200 OK", json.dumps(body).encode())
    assert (sample.ttft_s, sample.tpot_s, sample.gaps_s) == (None, None, [])
    assert sample.e2e_s == pytest.approx(0.3)
    assert sample.output_tokens == 2
    assert not sample.are_tokens_counted
    assert reply.text == "a b"


def test_what_is_refused_is_counted_by_its_status() -> None:
    sample, _ = unary("503 Service Unavailable", b'{"error": {"message": "later"}}')
    assert sample.error == "status_503"
    assert sample.output_tokens is None
