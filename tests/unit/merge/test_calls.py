"""Calls put together and taken apart: everybody gets what they would have been given alone."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.merge.calls import (
    LAYOUTS,
    Call,
    Item,
    Layout,
    in_pieces,
    merged_body,
    put_together,
    read_call,
    taken_apart,
)

PATHS = sorted(LAYOUTS)


def tokens_of(item: Item) -> int:
    """What our engine counts: a stand-in for any rule that looks at one item alone."""
    text = "".join(item) if isinstance(item, str | tuple) else item
    return len(text) + 2


def engine(path: str, body: bytes) -> bytes:
    """Answers as vLLM does: every item by itself, the sum of their tokens, ranks best first."""
    call = read_call(path, body)
    assert call is not None
    value = [crc32(repr(item).encode()) / 2**32 for item in call.items]
    usage = {"prompt_tokens": sum(map(tokens_of, call.items)), "completion_tokens": 0}
    usage["total_tokens"] = usage["prompt_tokens"]
    document: dict[str, Any] = {"id": "x", "model": call.model, "usage": usage}
    if call.layout is Layout.RANKS:
        results = [
            {"index": index, "document": {"text": item[1]}, "relevance_score": one}
            for index, (item, one) in enumerate(zip(call.items, value, strict=True))
        ]
        results.sort(key=lambda each: -float(str(each["relevance_score"])))
        document["results"] = results[: call.top_n]
    else:
        document["data"] = [
            {"index": index, "object": "embedding", "embedding": [one]}
            for index, one in enumerate(value)
        ]
    return json.dumps(document).encode()


def body_of(path: str, texts: list[str], **more: object) -> bytes:
    layout = LAYOUTS[path]
    if layout is Layout.INPUTS:
        items: dict[str, object] = {"input": texts}
    elif layout is Layout.PAIRS:
        items = {"text_1": "q", "text_2": texts}
    else:
        items = {"query": "q", "documents": texts}
    return json.dumps({"model": "m", **items, **more}).encode()


def the(path: str, body: bytes) -> Call:
    call = read_call(path, body)
    assert call is not None
    return call


texts = st.lists(st.text(max_size=8), min_size=1, max_size=6)
callers = st.lists(texts, min_size=1, max_size=6)


@pytest.mark.parametrize("path", PATHS)
@given(everybody=callers, data=st.data())
def test_each_gets_what_it_would_have_been_given_alone(
    path: str, everybody: list[list[str]], data: st.DataObject
) -> None:
    more: list[dict[str, object]] = [{} for _ in everybody]
    if LAYOUTS[path] is Layout.RANKS:
        more = [data.draw(st.sampled_from([{}, {"top_n": 0}, {"top_n": 2}])) for _ in everybody]
    bodies = [body_of(path, own, **each) for own, each in zip(everybody, more, strict=True)]
    calls = [the(path, body) for body in bodies]
    assert len({call.key for call in calls}) == 1
    counts = [tokens_of(item) for call in calls for item in call.items]
    answers = taken_apart(calls, engine(path, merged_body(calls)), counts)
    for answer, body in zip(answers, bodies, strict=True):
        assert json.loads(answer) == json.loads(engine(path, body))


@pytest.mark.parametrize("path", PATHS)
@given(own=texts, pieces=st.integers(1, 8))
def test_a_list_in_pieces_is_answered_as_a_whole(path: str, own: list[str], pieces: int) -> None:
    body = body_of(path, own)
    parts = in_pieces(the(path, body), pieces)
    assert len(parts) == min(pieces, len(own))
    assert [item for part in parts for item in part.items] == list(the(path, body).items)
    lengths = {len(part.items) for part in parts}
    assert max(lengths) - min(lengths) <= 1
    whole = put_together(parts, [engine(path, merged_body([part])) for part in parts])
    assert json.loads(whole) == json.loads(engine(path, body))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"input": "a"}, {"input": "b", "dimensions": 8}),
        ({"input": "a"}, {"input": "b", "encoding_format": "base64"}),
        ({"input": "a"}, {"input": [1, 2]}),
        ({"input": "a"}, {"input": "b", "cache_salt": "s"}),
        ({"input": "a"}, {"input": "b", "model": "n"}),
    ],
)
def test_calls_that_differ_in_more_than_their_items_are_kept_apart(
    one: dict[str, object], other: dict[str, object]
) -> None:
    first, second = (
        the("/v1/embeddings", json.dumps({"model": "m", **each}).encode()) for each in (one, other)
    )
    assert first.key != second.key


def test_scores_of_different_texts_and_routes_are_kept_apart() -> None:
    same = json.dumps({"model": "m", "text_1": "q", "text_2": ["a"]}).encode()
    other = json.dumps({"model": "m", "text_1": "p", "text_2": ["a"]}).encode()
    assert the("/score", same).key != the("/score", other).key
    assert the("/score", same).key != the("/v1/score", same).key


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"model": "m"}',
        b'{"input": "a"}',
        b'{"model": "m", "input": []}',
        b'{"model": "m", "input": [1, "a"]}',
        b'{"model": "m", "input": {"a": 1}}',
        b'{"model": 3, "input": "a"}',
        b'{"model": "m", "input": "a", "messages": []}',
        b'{"model": "m", "input": ["\xff"]}',
    ],
)
def test_what_is_not_understood_is_not_merged(body: bytes) -> None:
    assert read_call("/v1/embeddings", body) is None


def test_one_text_as_tokens_is_one_item() -> None:
    call = the("/v1/embeddings", b'{"model": "m", "input": [5, 6, 7]}')
    assert call.items == [[5, 6, 7]]
    assert json.loads(merged_body([call])) == {"model": "m", "input": [[5, 6, 7]]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["usage"].update(prompt_tokens=1),
        lambda document: document["usage"].clear(),
        lambda document: document["data"].pop(),
        lambda document: document["data"][0].update(index=1),
        lambda document: document["data"][0].update(index=7),
        lambda document: document["data"][0].pop("index"),
        lambda document: document.pop("data"),
        lambda document: document.update(data=3),
        lambda document: document.pop("usage"),
    ],
)
def test_an_answer_of_another_shape_is_not_dealt_out(spoil: Any) -> None:
    calls = [the("/v1/embeddings", body_of("/v1/embeddings", each)) for each in (["a"], ["b"])]
    document = json.loads(engine("/v1/embeddings", merged_body(calls)))
    spoil(document)
    with pytest.raises(ValueError, match=r"."):
        taken_apart(calls, json.dumps(document).encode(), [3, 3])


@given(st.sampled_from(PATHS), st.binary(max_size=60))
def test_any_bytes_are_read_or_let_pass(path: str, body: bytes) -> None:
    read_call(path, body)
    calls = [the(path, body_of(path, ["a"]))]
    with pytest.raises(ValueError, match=r"."):
        taken_apart(calls, body, [3])
