"""A long body is read by its outline as it is read whole, or the engine will refuse it."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.parse.openai import LONG_BODY, _split, _split_by_outline, _split_whole
from gateway.parse.outline import LONG_STRING, outline

Members = dict[str, bytes]

ODD = ('"', "\\", "\n", "ü", "\u2028", "\\n", '\\"', "\\\\", "{", "]", ":", ",", "\x00", "/")
EDITS = (b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ", b"\x01", b"\xff", b"x", b"")
NAMES = ("model", "messages", "prompt", "stream", "tools", "x", "ü", "")


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Mostly prose, some of it long, with something odd here and there."""
    rng = Random(draw(st.integers(0, 2**32)))
    size, every = (
        draw(st.sampled_from((0, 9, 1000, 20_000))),
        draw(st.sampled_from((20, 600, 3000))),
    )
    parts = []
    written = 0
    while written < size:
        parts.append("word " * rng.randint(1, every // 5) + rng.choice(ODD))
        written += len(parts[-1])
    return "".join(parts)


values = st.recursive(
    texts() | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A long object, in one of many layouts; perhaps with two members of a name."""
    names = st.sampled_from(NAMES) | texts()
    members = draw(st.lists(st.tuples(names, values), min_size=1, max_size=5))
    members.append(("messages", [{"role": "user", "content": draw(texts()) + "long " * 4000}]))
    comma, colon, edge = draw(
        st.sampled_from(((",", ":", ""), (", ", ": ", ""), (" ,", ":\t", " ")))
    )
    ascii_only = draw(st.booleans())
    written = [
        json.dumps(name, ensure_ascii=ascii_only)
        + colon
        + json.dumps(value, ensure_ascii=ascii_only)
        for name, value in draw(st.permutations(members))
    ]
    return (edge + "{" + comma.join(written) + "}" + edge).encode()


def read_by(split: object, body: bytes) -> Members | InvalidRequest:
    assert callable(split)
    try:
        return {name: bytes(value) for name, value in split(body).items()}
    except InvalidRequest as error:
        return error


@given(bodies())
@settings(max_examples=300, deadline=None)
def test_whatever_can_be_read_whole_is_read_the_same_by_its_outline(body: bytes) -> None:
    found, whole = read_by(_split, body), read_by(_split_whole, body)
    if isinstance(whole, InvalidRequest):
        assert isinstance(found, InvalidRequest)
        assert str(found) == str(whole)
    else:
        assert found == whole


@given(bodies(), st.integers(0, 2**32), st.sampled_from(EDITS), st.booleans())
@settings(max_examples=600, deadline=None)
def test_a_broken_body_is_refused_unless_what_is_broken_is_inside_of_a_long_string(
    body: bytes, seed: int, edit: bytes, is_near_the_end: bool
) -> None:
    """Where that is, the engine has no JSON to read either."""
    rng = Random(seed)
    marks = [at for at in range(len(body)) if body[at : at + 1] in b'"{}[]:,\\']
    at = rng.choice(marks) if is_near_the_end else rng.randrange(len(body))
    broken = body[:at] + edit + body[at + rng.randint(0, 1) :]
    found, whole = read_by(_split, broken), read_by(_split_whole, broken)
    if not isinstance(whole, InvalidRequest):
        assert found == whole
    elif not isinstance(found, InvalidRequest):
        assert is_inside(broken, at)
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            json.loads(broken)


def is_inside(body: bytes, at: int) -> bool:
    """Is that place in a string which the outline of the body leaves out?"""
    found = outline(body)
    left_out = 0
    for where, size in [] if found is None else found[1]:
        if where + left_out <= at <= where + left_out + size:
            return True
        left_out += size
    return False


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(LONG_STRING, 20_000))
@example(b'{"model":"m","prompt":"', b'"}', LONG_BODY)
@settings(max_examples=300, deadline=None)
def test_any_bytes_around_a_long_string_are_read_the_same_or_refused(
    before: bytes, after: bytes, size: int
) -> None:
    body = before + b"x" * size + after
    by_outline = _split_by_outline(body)
    if by_outline is not None:
        whole = read_by(_split_whole, body)
        assert {name: bytes(value) for name, value in by_outline.items()} == whole


@pytest.mark.parametrize("spaces", ["", " "])
def test_long_prose_is_read_by_its_outline(spaces: str) -> None:
    """Or all of this would be true of nothing."""
    text = 'He said: "no".\nWe went on. ' + "And on, and on. " * 60
    document = {"model": "m", "messages": [{"role": "user", "content": text * 30}], "stream": True}
    body = json.dumps(document, separators=("," + spaces, ":" + spaces)).encode()
    members = _split_by_outline(body)
    assert members is not None
    assert {name: json.loads(bytes(value)) for name, value in members.items()} == document


@pytest.mark.parametrize(
    "content",
    ['{"a": 1, "b": [2]}, ' * 2000, "\\" * 40_000, '\\"' * 20_000, "x" * 40_000 + "\\" * 18],
)
def test_what_is_full_of_marks_is_given_up(content: str) -> None:
    body = json.dumps({"prompt": content, "model": "m"}).encode()
    assert outline(body) is None
    assert read_by(_split, body) == read_by(_split_whole, body)


@pytest.mark.parametrize("backslashes", range(12))
def test_a_mark_ends_a_string_unless_an_odd_number_of_backslashes_is_before_it(
    backslashes: int,
) -> None:
    body = b'{"a":"%b%b","model":"m"}' % (b"x" * 20_000, b"\\" * backslashes)
    found, whole = read_by(_split, body), read_by(_split_whole, body)
    assert isinstance(whole, InvalidRequest) == (backslashes % 2 == 1)
    assert isinstance(found, InvalidRequest) == (backslashes % 2 == 1)
    assert isinstance(found, InvalidRequest) or found == whole


@pytest.mark.parametrize("half", [b"\\ud800", b"\\uDFFF", b"\\ud83d\\u0041"])
def test_half_of_a_pair_is_refused_wherever_it_stands(half: bytes) -> None:
    """Python's parser takes it, and with it vLLM's server; its tokenizer may not."""
    body = b'{"model":"m","prompt":"' + b"long " * LONG_BODY + half + b'"}'
    assert json.loads(body)
    with pytest.raises(InvalidRequest):
        _split(body)
    pair = body.replace(half, b"\\ud83d\\ude00")
    assert _split(pair).keys() == {"model", "prompt"}
