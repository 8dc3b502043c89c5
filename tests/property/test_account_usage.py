"""Whatever a replica sends, reading its usage gives counts or nothing, and quickly."""

from __future__ import annotations

import json

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.account.usage import _DOCUMENT, NOTHING, _usage, read_usage
from gateway.request import Usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    (
        "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens",
        "prompt_tokens_details", "input_tokens_details", "cached_tokens", "usage", "response",
        "cache_read_input_tokens",
    )
)  # fmt: skip
DOCUMENTS = st.dictionaries(
    NAMES, JSON | st.dictionaries(NAMES, JSON | st.integers(0, 99), max_size=4), max_size=4
)


def is_usage(found: Usage) -> bool:
    counts = (found.prompt_tokens, found.output_tokens, found.cached_tokens)
    return all(each is None or (type(each) is int and each >= 0) for each in counts)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.booleans(), st.integers(0, 50), st.integers(0, 50))
def test_any_document_whole_or_cut_gives_counts_or_nothing(
    document: dict[str, object], is_event: bool, from_start: int, from_end: int
) -> None:
    text = json.dumps({"usage": document, "response": document}).encode()
    whole = b"data: " + text + b"\n\n" if is_event else text
    assert is_usage(read_usage(whole))
    assert is_usage(read_usage(whole[from_start : len(whole) - from_end]))


COUNTS = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99)})
WITH_USAGE = st.dictionaries(
    st.sampled_from(("usage", "response", "a", "b")),
    JSON
    | COUNTS
    | st.dictionaries(st.sampled_from(("usage", "response", "a")), JSON | COUNTS, max_size=3),
    max_size=4,
)


@settings(max_examples=500, deadline=None)
@given(WITH_USAGE, st.booleans(), st.booleans())
@example({"response": {"usage": {"prompt_tokens": 1}}, "usage": None}, True, True)
@example({"usage": {"prompt_tokens": 1}, "a": {"usage": {"prompt_tokens": 2}}}, True, True)
def test_the_outermost_usage_is_read_wherever_others_stand(
    document: dict[str, object], is_event: bool, is_compact: bool
) -> None:
    text = json.dumps(document, separators=(",", ":") if is_compact else None).encode()
    try:
        read = _DOCUMENT.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return  # where something in its place is no usage: see the tests beside
    counts = read.usage or (read.response.usage if read.response is not None else None)
    expected = NOTHING if counts is None else _usage(counts)
    assert read_usage(b"data: " + text + b"\n\n" if is_event else text) == expected


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=80))
def test_any_bytes_give_counts_or_nothing(before: bytes, after: bytes) -> None:
    assert is_usage(read_usage(before + b'"usage"' + after))
    assert is_usage(read_usage(before + b'{"usage":{' + after))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 2**40), st.integers(0, 2**40), st.booleans())
def test_counts_are_read_whatever_the_text_beside_them_says(
    text: str, prompt: int, output: int, is_ascii: bool
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": output}
    text = f'{text}"usage": {{"prompt_tokens": 1}}{text}'
    document = {"choices": [{"text": text}], "usage": usage, "system_fingerprint": text}
    tail = json.dumps(document, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert read_usage(tail) == Usage(prompt, output, None)
    silent = json.dumps({"choices": [{"text": text}]}, ensure_ascii=is_ascii)
    assert read_usage(silent.encode("utf-8", "surrogatepass")) == NOTHING
