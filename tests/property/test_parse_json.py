"""What the parser reads of a JSON body is what json.loads reads, or it refuses the body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.vocabulary import ModelName
from tests.builders import a_route

ROUTE = a_route("/v1/chat/completions")
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
READ = ("model", "stream", *LIMITS, "messages")

Member = tuple[str, str]  # a name and the text of its value

spaces = st.text(" \t\r\n", max_size=3)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars | st.sampled_from([True, False, 0, 1, -1, 16, 1.0, "m", "", None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(READ) | texts


@st.composite
def string_text(draw: st.DrawFn, text: str) -> str:
    """One of the ways to write a JSON string."""
    written = []
    for character in text:
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        escaped = "".join(
            f"\\u{unit:04x}"
            for unit in memoryview(character.encode("utf-16-le")).cast("H").tolist()
        )
        written.append(draw(st.sampled_from([plain, plain, plain, escaped, escaped.upper()])))
    return '"' + "".join(written).replace("\\U", "\\u") + '"'


@st.composite
def members(draw: st.DrawFn) -> list[tuple[str, str, Any]]:
    """Members of an object: the name, how it is written, and the value."""
    found = draw(st.lists(st.tuples(names, values), max_size=9))
    if draw(st.booleans()):
        found.append(("model", draw(st.sampled_from(["m", "meta/llama", "ü", 7, "", None]))))
    if found and draw(st.integers(0, 3)) == 0:
        found.insert(draw(st.integers(0, len(found))), draw(st.sampled_from(found)))
    return [(name, draw(string_text(name)), value) for name, value in found]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[str]]:
    """The text of an object, in one of many layouts, and the names of its members in order."""
    found = draw(members())
    layout = draw(st.sampled_from(["compact", "python", "free"]))

    def gap(usual: str) -> str:
        return draw(spaces) if layout == "free" else usual

    space = " " if layout == "python" else ""
    written = []
    for _, name, value in found:
        member = json.dumps(value, ensure_ascii=draw(st.booleans()))
        written.append(f"{gap('')}{name}{gap('')}:{gap(space)}{member}")
    text = gap("") + "{" + f"{gap('')},{gap(space)}".join(written) + gap("") + "}" + gap("")
    return text, [name for name, _, _ in found]


def read(body: bytes) -> GenerationRequest | InvalidRequest:
    try:
        return parse_json(body, ROUTE, lambda model, prompt_bytes: prompt_bytes + len(model))
    except InvalidRequest as error:
        return error


def reference(text: str) -> tuple[str, bool, int | None] | None:
    """(model, stream, max_tokens) by json.loads; None where a body must be refused."""
    top: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        top[:] = pairs
        return dict(pairs)

    document = json.loads(text, object_pairs_hook=keep)
    if not isinstance(document, dict) or len({name for name, _ in top}) < len(top):
        return None
    model, stream = document.get("model"), document.get("stream")
    limits = [document[name] for name in LIMITS if document.get(name) is not None]
    limit = limits[0] if limits else None
    is_count = limit is None or (type(limit) in (int, float) and limit >= 0 and limit == int(limit))
    if not isinstance(model, str) or not model or not isinstance(stream, bool | None):
        return None
    return (model, bool(stream), limit) if is_count else None


@given(bodies())
@example(('{"model":"xx","a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"model":"m"}', []))
@example(('{"model": "m", "max_tokens": 16.0, "stream": null}', []))
def test_what_is_read_is_what_json_loads_reads(body: tuple[str, list[str]]) -> None:
    text, _ = body
    found, expected = read(text.encode()), reference(text)
    if expected is None:
        assert isinstance(found, InvalidRequest), found
    else:
        assert isinstance(found, GenerationRequest), found
        assert (found.model, found.stream, found.max_tokens) == expected


@given(bodies())
def test_a_body_with_two_members_of_one_name_is_always_refused(
    body: tuple[str, list[str]],
) -> None:
    text, found = body
    assume(len(set(found)) < len(found))
    assert isinstance(read(text.encode()), InvalidRequest)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(0, 60),
    st.sampled_from(["model", "k0", "mod\\u0065l"]),
)
def test_no_length_of_a_hidden_member_makes_up_for_the_spaces_of_another_layout(
    lengths: list[int], hidden: int, name: str
) -> None:
    others = ",".join(f'"k{number}":"{"x" * length}"' for number, length in enumerate(lengths))
    text = f'{{"{name}":"{"x" * hidden}",{others},"model":"m"}}'
    assert reference(text) is not None or isinstance(read(text.encode()), InvalidRequest)


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ud83d\\u0041"])
def test_half_of_a_surrogate_pair_is_refused(half: str) -> None:
    """Python's parser takes it, and with it vLLM's server; its tokenizer may not."""
    body = f'{{"model":"m","messages":"{"long " * 20_000}{half}"}}'
    assert json.loads(body)
    assert isinstance(read(body.encode()), InvalidRequest)
    pair = body.replace(half, "\\ud83d\\ude00")
    assert isinstance(read(pair.encode()), GenerationRequest)


@given(texts, st.booleans())
def test_the_prompt_is_measured_as_it_stands_in_the_body(text: str, ascii_only: bool) -> None:
    messages = [{"role": "user", "content": text}]
    written = json.dumps(messages, ensure_ascii=ascii_only)
    found = read(f'{{"messages": {written}, "model": "mm"}}'.encode())
    assert isinstance(found, GenerationRequest)
    assert found.prompt_bytes == len(written.encode())
    assert found.prompt_tokens == found.prompt_bytes + 2


@given(values)
def test_a_limit_is_read_only_where_text_is_generated(limit: Any) -> None:
    text = json.dumps({"model": "m", "input": "x", "max_tokens": limit})
    found = parse_json(text.encode(), a_route("/v1/embeddings"), lambda *_: 1)
    assert found.max_tokens is None
    assert found.model == ModelName("m")


@pytest.mark.parametrize("depth", [990, 5_000, 200_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize(
    "layout", ['{"model":"m","messages":%s}', '{ "model":"m","messages" : %s }']
)
def test_nesting_is_refused_or_read_and_nothing_else(
    depth: int, opens: str, closes: str, layout: str
) -> None:
    body = (layout % (opens * depth + "1" + closes * depth)).encode()
    found = read(body)
    if depth > 100_000 or isinstance(found, InvalidRequest):  # interpreters differ in between
        assert isinstance(found, InvalidRequest)
        assert "nested" in str(found)
