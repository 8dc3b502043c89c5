"""Recorded traffic in each format, and what is made of it."""

from __future__ import annotations

import json

import pytest

from loadtest.traces import Replayed, TraceError, read_trace
from loadtest.workloads import Replay

MOONCAKE = [
    '{"timestamp": 3000, "input_length": 700, "output_length": 20, "hash_ids": [0, 9]}',
    '{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [0, 4]}',
]
AZURE = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
]
AZURE_2024 = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2024-05-10 00:00:00.009930+00:00,2162,5",
    "2024-05-10 00:00:00.017335+00:00,2399,6",
]
BURSTGPT = [
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "5,ChatGPT,472,18,490,Conversation log",
    "45,ChatGPT,1087,0,1087,Conversation log",
    "118,GPT-4,417,276,693,Conversation log",
]
HEAD = '{"format": "headrace-recording", "version": 1}'
OWN = {
    "at_s": 2.5, "route": "/v1/completions", "stream": False, "prompt_tokens": 100,
    "output_tokens": 7, "chunks": 1, "prompt_bytes": 400, "tenant": None,
    "marks": [[128, "aa"], [256, "bb"]],
}  # fmt: skip


def test_mooncake() -> None:
    first, second = read_trace(MOONCAKE)
    assert (first.at_s, second.at_s) == (0.0, 3.0)
    assert list(first.named()) == [("0", 512), ("4", 512)]
    assert list(second.named()) == [("0", 512), ("9", 188)]
    assert (first.own_tokens, second.output_tokens) == (0, 20)


@pytest.mark.parametrize(("lines", "apart_s"), [(AZURE, 4.314579), (AZURE_2024, 0.007405)])
def test_azure(lines: list[str], apart_s: float) -> None:
    first, second = read_trace(lines)
    assert second.at_s - first.at_s == pytest.approx(apart_s, abs=1e-5)
    assert first.prompt_tokens in (374, 2162)
    assert first.own_tokens == first.prompt_tokens


def test_burstgpt_without_its_failures() -> None:
    found = read_trace(BURSTGPT)
    assert [(each.at_s, each.prompt_tokens, each.output_tokens) for each in found] == [
        (5, 472, 18),
        (118, 417, 276),
    ]


def test_our_own_recordings_spread_tokens_over_the_bytes_of_marks() -> None:
    (found,) = read_trace([HEAD, json.dumps(OWN)])
    assert list(found.named()) == [("aa", 32), ("bb", 32)]
    assert found.own_tokens == 36
    (step,) = Replay(trace="").session_of(found)
    (call,) = step.calls
    assert call.path == "/v1/completions"
    assert call.body["max_tokens"] == 7
    assert not any(name.startswith("stream") for name in call.body)
    assert len(call.body["prompt"]) == 400


def test_equal_blocks_become_equal_beginnings() -> None:
    first, second = (
        next(Replay(trace="").session_of(each)).calls[0].body["messages"][0]["content"]
        for each in read_trace(MOONCAKE)
    )
    assert first[:2048] == second[:2048]
    assert first[2048:2060] != second[2048:2060]


def test_a_trace_is_scaled_and_cut_to_what_an_engine_takes() -> None:
    request = Replayed(0.0, 1024, 100, ("a", "b"), (512, 512))
    (step,) = Replay(trace="", scale=0.25, output_scale=0.5).session_of(request)
    body = step.calls[0].body
    assert (len(body["messages"][0]["content"]), body["max_tokens"]) == (1024, 50)
    (step,) = Replay(trace="", most_tokens=120).session_of(request)
    body = step.calls[0].body
    assert (len(body["messages"][0]["content"]), body["max_tokens"]) == (240, 60)


@pytest.mark.parametrize(
    "lines",
    [[], ["hello"], ['{"a": 1}'], AZURE[:1], [AZURE[0], "yesterday,1,2"], [*BURSTGPT[:1], "1,2"],
     [HEAD], [HEAD, '{"at_s": 1}'], ["\x00"]],
)  # fmt: skip
def test_what_is_no_trace_is_said_to_be_none(lines: list[str]) -> None:
    with pytest.raises(TraceError):
        read_trace(lines)
