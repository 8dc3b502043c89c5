"""A body is amended in one place, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.accept.amend import amended
from gateway.errors import InvalidRequest
from gateway.parse.openai import parse_json
from gateway.vocabulary import ROUTES

SALT = "cache_salt"
XARGS = ("vllm_xargs", "mode")

names = st.sampled_from([SALT, "vllm_xargs", "mode", "a", 'q"\\{', "é", ""]) | st.text(max_size=3)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=6)
white = st.text(" \t\r\n", max_size=2)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """An object and one way to write it, spaces, escapes and all."""
    document = draw(objects)

    def text(value: str) -> str:
        written = json.dumps(value, ensure_ascii=draw(st.booleans()))
        if value and value[0].isascii() and value[0].isalpha() and draw(st.booleans()):
            written = f'"\\u{ord(value[0]):04{draw(st.sampled_from("xX"))}}{written[2:]}'
        return written

    def gap() -> str:
        return draw(white)

    def write(value: Any) -> str:
        if isinstance(value, dict):
            pairs = [f"{gap()}{text(k)}{gap()}:{gap()}{write(v)}{gap()}" for k, v in value.items()]
            return "{" + (",".join(pairs) or gap()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(write(each) for each in value) + "]"
        return text(value) if isinstance(value, str) else json.dumps(value)

    style = draw(st.sampled_from(["compact", "spaced", "wild"]))
    if style == "compact":
        written = json.dumps(document, separators=(",", ":"))
    elif style == "spaced":
        written = json.dumps(document)
    else:
        written = gap() + write(document) + gap()
    return document, written.encode("utf-8", "surrogatepass")


def utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def set_at(document: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """What `amended` promises, by values."""
    name, *inner = path
    if not inner:
        return {**document, name: value}
    held = document.get(name)
    if held is None:
        held = {}
    if isinstance(held, dict):
        return {**document, name: set_at(held, tuple(inner), value)}
    return document


@given(bodies(), st.sampled_from([(SALT,), ("vllm_xargs",), XARGS, ("a", "mode", SALT)]), values)
@example(({}, b"{}"), (SALT,), "x")
@example(({}, b" {\n} "), XARGS, "x")
@example(({SALT: "b"}, b'{"\\u0063ache_salt":"b"}'), (SALT,), "x")
@example(({"vllm_xargs": None}, b'{"vllm_xargs":null}'), XARGS, "x")
@example(({"vllm_xargs": 5}, b'{"vllm_xargs":5}'), XARGS, "x")
def test_the_member_is_set_and_the_rest_is_as_it_was(
    written: tuple[dict[str, Any], bytes], path: tuple[str, ...], value: Any
) -> None:
    document, body = written
    if not utf8(body):
        return
    after = amended(body, path, json.dumps(value).encode())
    assert json.loads(after, object_pairs_hook=unique) == set_at(document, path, value)
    # One splice: what precedes it and what follows it are the client's bytes.
    head = next((i for i, (x, y) in enumerate(zip(body, after, strict=False)) if x != y), len(body))
    tail = 0
    while tail < len(body) - head and body[-1 - tail] == after[-1 - tail]:
        tail += 1
    if path[0] not in document:
        assert head + tail == len(body)


@given(bodies(), st.sampled_from([SALT, "mode", "a"]))
def test_a_member_is_read_as_it_stands(written: tuple[dict[str, Any], bytes], name: str) -> None:
    document, body = written
    if not utf8(body):
        return
    seen: list[bytes | None] = []

    def keep(held: bytes | None) -> bytes:
        seen.append(held)
        return b'"new"' if held is None else held

    after = amended(body, (name,), keep)
    [value] = seen
    if value is None:
        assert name not in document
    else:
        assert json.loads(value) == document[name]
        assert after == body


fragments = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'"cache_salt"', b'"\\u0063ache_salt"',
         b"1", b"null", b" ", b"\n", b"a", b'"x"', b"\xff", b'"cache_salt":1', b"\\u00", b"-"]
    ),
    max_size=14,
).map(b"".join)  # fmt: skip


@given(fragments, st.sampled_from([(SALT,), XARGS]))
@example(b'{"cache_salt":1,"cache_salt":1}', (SALT,))
@example(b'{"cache_salt":"a","a":1,"cache_salt":2}', (SALT,))
@example(b'{"cache_salt":1} {}', (SALT,))
@example(b'{"cache_salt":1,"":2,"":0,"cache_salt":"four"}', (SALT,))  # lengths that mislead
@example(b'{"":0,"a":1,"\\u0063ache_salt":2,"a":11,"cache_salt":3}', (SALT,))
def test_no_amendment_makes_a_body_readable_that_was_not(
    body: bytes, path: tuple[str, ...]
) -> None:
    after = amended(body, path, b'"x"')
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.json.decode(after, type=dict[str, msgspec.Raw])
        return
    assert names_of(after) - names_of(body) <= {path[0]}
    if len(names_of(body)) < count_of(body):
        assert len(names_of(after)) < count_of(after)  # still to be refused
        assert after == body or path[0] not in names_of(body)


def names_of(body: bytes) -> set[str]:
    return {name for name, _ in json.loads(body, object_pairs_hook=list)}


def count_of(body: bytes) -> int:
    return len(json.loads(body, object_pairs_hook=list))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_an_amended_body_is_parsed_to_the_same_request(
    separators: tuple[str, str], text: str
) -> None:
    document = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    body = json.dumps(document, separators=separators, ensure_ascii=False).encode()
    before, after = (
        parse_json(each, ROUTES[0], lambda _, count: count)
        for each in (body, amended(body, (SALT,), b'"s"'))
    )
    assert (after.model, after.max_tokens) == (before.model, before.max_tokens)
    assert bytes(after.prompt) == bytes(before.prompt)
    assert [(name, bytes(part)) for name, part in after.context] == [(SALT, b'"s"')]


@pytest.mark.parametrize("path", [(SALT,), XARGS])
def test_what_is_added_is_laid_out_as_the_body_is(path: tuple[str, ...]) -> None:
    document = {"model": "m", "prompt": "two words"}
    value: Any = "s"
    for name in reversed(path[1:]):
        value = {name: value}
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps(document, separators=separators).encode()
        whole = json.dumps({path[0]: value, **document}, separators=separators).encode()
        assert amended(body, path, b'"s"') == whole


def test_a_second_spelling_of_a_name_is_refused_by_who_parses() -> None:
    body = b'{"model":"m","cache_salt":"a","\\u0063ache_salt":"b"}'
    with pytest.raises(InvalidRequest):
        parse_json(amended(body, (SALT,), b'"x"'), ROUTES[0], lambda _, count: count)
