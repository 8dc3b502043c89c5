"""What is read of one line, and what is told of one that cannot be worked on."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batch.lines import ENDPOINTS, LineRefused, body_of, prefix_key, read_line
from gateway.batch.nouns import BatchLine
from gateway.batch.validation import MOST_PROBLEMS, Validation
from gateway.settings import BatchSettings

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": CHAT,
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "unheard_of": 1.5},
}


def a_line(**changes: Any) -> bytes:
    """The good line with changes; None takes a member away."""
    line = {**GOOD, **changes}
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode()


def test_a_good_line_is_read_and_its_body_is_kept_byte_for_byte() -> None:
    body = b'{ "model" : "m",\t"messages":[], "n": 1.50, "x": "\\u00e9" }'
    raw = b'{"custom_id":"a","method":"POST","url":"%b","body":%b}' % (CHAT.encode(), body)
    line = read_line(raw, 3, 77, CHAT)
    assert (line.number, line.custom_id, line.model) == (3, "a", "m")
    assert (line.start, line.length) == (77, len(raw))
    assert body_of(raw) == body


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_type", "custom_id"),
        (b"[" * 100_000, "invalid_json_line", None),
        (a_line(custom_id=None), "missing_required_parameter", "custom_id"),
        (a_line(custom_id=3), "invalid_type", "custom_id"),
        (a_line(custom_id=""), "invalid_value", "custom_id"),
        (a_line(custom_id="x" * 513), "invalid_value", "custom_id"),
        (a_line(method="GET"), "invalid_method", "method"),
        (a_line(url="/v1/completions"), "mismatched_url", "url"),
        (a_line(url=None), "missing_required_parameter", "url"),
        (a_line(body=None), "missing_required_parameter", "body"),
        (a_line(body="{}"), "invalid_type", "body"),
        (a_line(body={}), "missing_required_parameter", "body.model"),
        (a_line(body={"model": 1}), "invalid_type", "body.model"),
        (a_line(body={"model": ""}), "invalid_value", "body.model"),
        (a_line(body={"model": "m", "stream": True}), "invalid_value", "body.stream"),
        (a_line(body={"model": "m", "stream": "no"}), "invalid_type", "body.stream"),
    ],
)
def test_a_mistake_is_named(raw: bytes, code: str, param: str | None) -> None:
    with pytest.raises(LineRefused) as refused:
        read_line(raw, 9, 0, CHAT)
    problem = refused.value.problem(9)
    assert (problem.code, problem.param, problem.line) == (code, param, 9)
    assert problem.message.endswith(".")


VALUES = st.sampled_from([*GOOD.values(), None, 1, [], "", "POST", {"model": "m"}])
LINES = st.dictionaries(st.sampled_from([*GOOD, "other"]), VALUES).map(json.dumps)


@given(st.binary(max_size=200) | LINES.map(str.encode))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        line = read_line(raw, 1, 0, CHAT)
    except LineRefused:
        return
    assert json.loads(raw)["custom_id"] == line.custom_id


prompts = st.lists(st.sampled_from(["a" * 300, "b" * 300, "c" * 700]), max_size=5).map("".join)


@given(st.lists(prompts, min_size=2, max_size=8))
def test_sorted_by_their_key_lines_that_share_a_beginning_stand_together(texts: list[str]) -> None:
    """Between two prompts with the same first block there is none with another."""
    route = ENDPOINTS["/v1/completions"]
    keyed = sorted(
        (prefix_key({"prompt": msgspec.Raw(json.dumps(text).encode())}, route), text)
        for text in texts
    )
    for shared in (4, 8):  # bytes of key: one block, two blocks
        heads = [key[:shared] for key, _ in keyed]
        runs = [head for at, head in enumerate(heads) if at == 0 or heads[at - 1] != head]
        assert len(set(runs)) == len(runs)
    for key, text in keyed:
        assert len(key) == 4 * min(64, -(-(len(text) + 2) // 256))


def validated(
    content: bytes, models: tuple[str, ...] = ("m",), **knobs: int
) -> tuple[list[BatchLine], Validation]:
    validation = Validation(CHAT, models, BatchSettings.of(knobs))
    chunks = list(validation.chunks(io.BytesIO(content)))
    return [line for chunk in chunks for line in chunk], validation


@given(st.lists(st.booleans(), max_size=30), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_lines_are_found_where_they_stand(blanks: list[bool], end: bytes) -> None:
    raws = [b"" if blank else a_line(custom_id=f"{n}") for n, blank in enumerate(blanks)]
    content = end.join(raws)
    lines, validation = validated(content)
    assert not [each for each in validation.problems if each.code != "empty_file"]
    assert [line.custom_id for line in lines] == [str(n) for n, b in enumerate(blanks) if not b]
    for line in lines:
        stood = content[line.start : line.start + line.length]
        assert json.loads(stood)["custom_id"] == line.custom_id


def test_what_is_told_of_a_file_is_bounded() -> None:
    _, validation = validated(b"x\n" * 1000)
    assert len(validation.problems) == MOST_PROBLEMS
    _, validation = validated(b"\n".join(a_line(custom_id=f"{n}") for n in range(9)), max_lines=5)
    assert [each.code for each in validation.problems] == ["too_many_lines"]
    long = a_line(body={"model": "m", "messages": "x" * 1000})
    _, validation = validated(a_line() + b"\n" + long + b"\n", max_line_bytes=500)
    assert [(each.code, each.line) for each in validation.problems] == [("line_too_long", 2)]
    lines, validation = validated(long, max_line_bytes=len(long))
    assert (len(lines), validation.problems) == (1, [])
    _, validation = validated(b" \n\n")
    assert [each.code for each in validation.problems] == ["empty_file"]
