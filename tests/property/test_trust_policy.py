"""What a policy is asked and says, fuzzed; and what of it is remembered, beside a plain model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.parse.parser import Parser, Shown
from gateway.request import GenerationRequest
from gateway.trust.question import OddAnswer, Verdict, key_of, question_of, verdict_of
from gateway.trust.verdicts import Verdicts
from tests.builders import a_route

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["allow", "reason", "result", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def says(document: Any) -> Verdict | None:
    """OPA's answer read by hand; None where it says neither."""
    result = document.get("result") if isinstance(document, dict) else None
    if isinstance(result, bool):
        return Verdict(result)
    if not isinstance(result, dict) or not isinstance(result.get("allow"), bool):
        return None
    reason = result.get("reason")
    if reason is not None and not isinstance(reason, str):
        return None
    return Verdict(result["allow"], " ".join((reason or "").split())[:500] or None)


@given(JSON | st.builds(lambda result: {"result": result}, JSON))
def test_an_answer_is_yes_or_no_or_none(document: Any) -> None:
    expected = says(document)
    answer = json.dumps(document).encode()
    if expected is not None:
        assert verdict_of(200, answer) == expected
    else:
        with pytest.raises(OddAnswer):
            verdict_of(200, answer)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda raw: b'{"result": true' + raw))
def test_bytes_that_are_no_answer_let_nobody_in(raw: bytes) -> None:
    try:
        verdict = verdict_of(200, raw)
    except OddAnswer:
        return
    assert verdict == says(json.loads(raw))


NAMES = st.text(min_size=1, max_size=6)
TOOLS = st.one_of(
    NAMES.map(lambda name: ({"type": "function", "function": {"name": name}}, name)),
    NAMES.map(lambda name: ({"type": "function", "name": name, "parameters": {}}, name)),
    NAMES.map(lambda name: ({"name": name, "input_schema": {}}, name)),
    NAMES.map(lambda name: ({"type": "custom", "custom": {"name": name}}, name)),
    NAMES.map(lambda name: ({"type": "mcp", "server_label": name}, f"mcp:{name}")),
    st.just(({"type": "web_search"}, "web_search")),
)


def asked(tools: Any, text: str = "hello") -> GenerationRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "tools": tools}
    return Parser().parse(Shown(a_route("/v1/chat/completions"), json.dumps(body).encode()))


@given(st.lists(TOOLS, max_size=5), st.text(min_size=20, max_size=30), st.randoms())
def test_a_question_holds_the_names_and_nothing_of_the_prompt(
    tools: list[tuple[dict[str, Any], str]], text: str, chance: Any
) -> None:
    question = question_of(asked([tool for tool, _ in tools], text))
    names = sorted({name for _, name in tools})
    assert json.loads(question) == {"input": {"tenant": "", "model": "m", "tools": names}}
    chance.shuffle(tools)
    again = question_of(asked([tool for tool, _ in tools], text + " again"))
    assert key_of(again) == key_of(question)


@given(st.lists(TOOLS, max_size=3), st.lists(TOOLS, max_size=3))
def test_tools_meant_for_the_template_are_tools(
    open_ones: list[tuple[dict[str, Any], str]], others: list[tuple[dict[str, Any], str]]
) -> None:
    body = {
        "model": "m",
        "messages": [],
        "tools": [tool for tool, _ in open_ones],
        "chat_template_kwargs": {"thinking": True, "tools": [tool for tool, _ in others]},
    }
    for text in (json.dumps(body), json.dumps(body).replace('"tools"', '"to\\u006fls"')):
        route = a_route("/v1/chat/completions")
        question = question_of(Parser().parse(Shown(route, text.encode())))
        names = sorted({name for _, name in (*open_ones, *others)})
        assert json.loads(question)["input"]["tools"] == names


@given(NAMES, NAMES)
def test_a_tool_of_two_names_has_none(one: str, other: str) -> None:
    tool = {"type": "function", "name": one, "function": {"name": other}}
    if one == other:
        assert json.loads(question_of(asked([tool])))["input"]["tools"] == [one]
    else:
        with pytest.raises(InvalidRequest):
            question_of(asked([tool]))


@given(JSON)
def test_whatever_tools_are_they_have_names_or_are_refused(tools: Any) -> None:
    try:
        question = question_of(asked(tools))
    except InvalidRequest:
        return
    assert all(isinstance(name, str) for name in json.loads(question)["input"]["tools"])


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([b"a", b"b", b"c"]), st.booleans())),
)
def test_verdicts_are_told_while_they_are_good(
    most: int, good_for: int, steps: list[tuple[int, bytes, bool]]
) -> None:
    verdicts = Verdicts(good_for, most)
    told: list[tuple[int, bytes, Verdict]] = []  # the model: all that was ever told, in order
    now = 0
    for pause, key, is_told in steps:
        now += pause
        if is_told:
            verdict = Verdict(allowed=True, reason=str(len(told)))
            told = [each for each in told if each[1] != key and now - each[0] < good_for]
            told = (
                [*told[-(most - 1) :], (now, key, verdict)] if most > 1 else [(now, key, verdict)]
            )
            verdicts.remember(key, verdict, now)
        found = [each[2] for each in told if each[1] == key and now - each[0] < good_for]
        assert verdicts.known(key, now) == (found[0] if found else None)
        assert len(verdicts) <= most
