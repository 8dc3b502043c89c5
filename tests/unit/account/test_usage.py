"""Token counts from the last bytes of a response, in every dialect vLLM speaks."""

from __future__ import annotations

import json

import pytest

from gateway.account.usage import NOTHING, read_usage
from gateway.request import Usage

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    "usage": {
        "prompt_tokens": 12,
        "total_tokens": 17,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8},
    },
    "prompt_logprobs": None,
    "kv_transfer_params": None,
}
COMPLETION = {
    "id": "cmpl-1",
    "choices": [{"text": " hi"}],
    "usage": {
        "prompt_tokens": 12,
        "total_tokens": 17,
        "completion_tokens": 5,
        "prompt_tokens_details": None,
    },
}
EMBEDDING = {
    "object": "list",
    "data": [{"embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0},
}
RESPONSE = {
    "id": "resp_1",
    "metadata": {"usage": "none of your business"},
    "output": [{"content": [{"text": "hi"}]}],
    "tools": [{"parameters": {"properties": {"usage": {"type": "object"}}}}],
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 17,
    },
    "user": None,
}
MESSAGE = {
    "type": "message",
    "content": [{"type": "text", "text": "hi"}],
    "usage": {
        "input_tokens": 3,  # neither read from the cache nor written to it
        "output_tokens": 5,
        "cache_read_input_tokens": 8,
        "cache_creation_input_tokens": 1,
    },
}


def sse(*documents: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return b"".join(f"{head}data: {json.dumps(each)}\n\n".encode() for each in documents)


DELTA = {"id": "1", "choices": [{"delta": {"content": "hi"}}]}
CHAT_END = sse(DELTA, {"id": "1", "choices": [], "usage": CHAT["usage"]}) + b"data: [DONE]\n\n"
RESPONSE_END = sse({"type": "response.completed", "response": RESPONSE}, name="response.completed")
MESSAGE_END = sse(
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": MESSAGE["usage"]},
    name="message_delta",
) + sse({"type": "message_stop"}, name="message_stop")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (json.dumps(CHAT).encode(), Usage(12, 5, 8)),
        (json.dumps(CHAT, separators=(",", ":")).encode(), Usage(12, 5, 8)),
        (json.dumps(CHAT, indent=2).encode(), Usage(12, 5, 8)),
        (json.dumps(COMPLETION).encode(), Usage(12, 5, None)),
        (json.dumps(EMBEDDING).encode(), Usage(12, 0, None)),
        (json.dumps(RESPONSE).encode(), Usage(12, 5, 8)),
        (json.dumps(MESSAGE).encode(), Usage(12, 5, 8)),
        (CHAT_END, Usage(12, 5, 8)),
        (CHAT_END.replace(b"\n", b"\r\n"), Usage(12, 5, 8)),
        (RESPONSE_END, Usage(12, 5, 8)),
        (MESSAGE_END, Usage(12, 5, 8)),
    ],
)
def test_every_dialect_gives_its_counts(tail: bytes, expected: Usage) -> None:
    assert read_usage(tail) == expected


@pytest.mark.parametrize("document", [CHAT, COMPLETION, RESPONSE, MESSAGE])
def test_a_tail_without_its_beginning_is_enough(document: dict[str, object]) -> None:
    whole = json.dumps(document).encode()
    for start in range(0, whole.rindex(b'"usage"') + 1, 7):
        assert read_usage(whole[start:]) == read_usage(whole)


LOOKS_LIKE_IT = '", "usage": {"prompt_tokens": 999, "completion_tokens": 999}, "x": "'


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [{"text": LOOKS_LIKE_IT}]},
        {"choices": [{"message": {"tool_calls": [{"function": {"arguments": LOOKS_LIKE_IT}}]}}]},
        {**CHAT, "system_fingerprint": LOOKS_LIKE_IT},
        {**CHAT, "usage": None},
    ],
)
def test_text_that_looks_like_usage_misleads_nobody(document: dict[str, object]) -> None:
    assert read_usage(json.dumps(document).encode()) in (NOTHING, Usage(12, 5, 8))
    streamed = sse(document, {"choices": [], "usage": CHAT["usage"]}) + b"data: [DONE]\n\n"
    assert read_usage(streamed) == Usage(12, 5, 8)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b'"usage"',
        b'{"usage":',
        b'{"usage": {',
        b'{"usage": [1]}',
        b'{"usage": "prompt_tokens"}',
        b'{"usage": {"prompt_tokens": "12"}}',
        b'{"usage": {"prompt_tokens": true}}',
        b'{"usage": {"prompt_tokens": -1}}',
        b'{"usage": {"prompt_tokens": 1.5}}',
        b'{"usage": {"prompt_tokens": NaN}}',
        b'{"usage": {"prompt_tokens": ' + b"9" * 40 + b"}}",
        b'{"usage": {"prompt_tokens_details": [8]}}',
        b'{"usage": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}",
        b'{"usage": ' + b"[" * 100_000,
        b'{"usage"\xff: {"prompt_tokens": 1}}',
        b'{"usage": {"\xff": 1}}',
        b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    ],
)
def test_what_cannot_be_read_is_nothing(tail: bytes) -> None:
    assert read_usage(tail) == NOTHING
