"""What goes into a chat template, as vLLM would hand it on."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.tokens.json_text import characters, elements, integers, members
from gateway.tokens.prompts import (
    ChatPrompt,
    Prompt,
    TextPrompt,
    TokenPrompt,
    Unreadable,
    cache_salt,
    read_prompt,
)
from tests.builders import a_route

HI = [{"role": "user", "content": "hi"}]


def asked(path: str, **body: Any) -> GenerationRequest:
    written = json.dumps({"model": "m", **body}).encode()
    return parse_json(written, a_route(path), lambda _, size: size // 4)


def chat(path: str = "/v1/chat/completions", **body: Any) -> ChatPrompt:
    prompt: Prompt = read_prompt(asked(path, **body))
    assert isinstance(prompt, ChatPrompt)
    assert len(prompt.messages) == len(prompt.ends) == len(prompt.strings)
    return prompt


def test_contents_are_lists_of_texts_and_arguments_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1}'}}
    bad = {"id": "2", "type": "function", "function": {"name": "g", "arguments": "[oops"}}
    given = [
        {"role": "system", "content": "x-anthropic-billing-header: 7\nBe kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b"], "name": "n", "x": 1},
        {"role": "assistant", "content": None, "tool_calls": [call, bad]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "assistant", "content": "c", "reasoning_content": "r", "tool_calls": []},
    ]
    assert chat(messages=given).messages == [
        {"role": "system", "content": ["Be kind."]},
        {"role": "user", "content": ["a", "b"], "name": "n"},
        {
            "role": "assistant",
            "content": [],
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1}}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": ["done"], "tool_call_id": "1"},
        {"role": "assistant", "content": ["c"], "reasoning": "r", "reasoning_content": "r"},
    ]


def test_tools_are_written_in_the_engines_order() -> None:
    tool = {"function": {"parameters": {"z": 1, "a": 2}, "name": "f", "x": 1}, "type": "function"}
    (shown,) = chat(messages=HI, tools=[tool]).tools or []
    assert json.dumps(shown) == (
        '{"type": "function", "function": {"name": "f", "description": null, '
        '"parameters": {"z": 1, "a": 2}}}'
    )
    assert chat(messages=HI).tools is None
    assert chat(messages=HI, tools=[]).tools == []


def test_variables_are_those_of_the_request_with_the_engines_defaults() -> None:
    assert chat(messages=HI).variables == {"add_generation_prompt": True}
    asked_for: dict[str, Any] = {
        "chat_template_kwargs": {"deep": True},
        "add_generation_prompt": False,
    }
    assert chat(messages=HI, **asked_for, reasoning_effort="low").variables == {
        "deep": True,
        "reasoning_effort": "low",
        "enable_thinking": True,
        "add_generation_prompt": False,
    }


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "developer", "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": []},
        {"messages": "hi"},
        {"messages": HI, "chat_template": "{{ 1 }}"},
        {"messages": HI, "continue_final_message": True},
        {"messages": HI, "truncate_prompt_tokens": 5},
        {"messages": HI, "echo": True},
        {"messages": HI, "documents": [{}]},
        {"messages": HI, "chat_template_kwargs": {"messages": []}},
        {"messages": HI, "tools": [{"type": "retrieval"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
    ],
)
def test_what_we_cannot_be_sure_of_is_unknown(body: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        chat(**body)


def test_completions_are_one_text_or_one_list_of_tokens() -> None:
    def read(**body: Any) -> Prompt:
        return read_prompt(asked("/v1/completions", **body))

    assert read(prompt="a") == TextPrompt("a", (0, 3), True)
    assert read(prompt=["a"], add_special_tokens=False) == TextPrompt("a", (1, 4), False)
    assert read(prompt=[1, 2]) == TokenPrompt([1, 2], (0, 6))
    assert read(prompt=[[1, 2]]) == TokenPrompt([1, 2], (1, 7))
    others: list[Any] = [["a", "b"], [], [1.5], [True], None, {}]
    for other in others:
        with pytest.raises(Unreadable):
            read(prompt=other)
    with pytest.raises(Unreadable):
        read(prompt="a", suffix="b")
    with pytest.raises(Unreadable):
        read(max_tokens=1)


def test_a_response_is_instructions_and_input() -> None:
    prompt = chat("/v1/responses", input="hi", instructions="Be kind.")
    assert prompt.messages == [
        {"role": "system", "content": ["Be kind."]},
        {"role": "user", "content": ["hi"]},
    ]
    assert prompt.ends == [0, 4]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    assert chat("/v1/responses", input=parts).messages == [{"role": "user", "content": ["hi"]}]
    with pytest.raises(Unreadable):
        chat("/v1/responses", input="hi", previous_response_id="r")
    with pytest.raises(Unreadable):
        chat("/v1/responses", input=[{"type": "function_call", "role": "user"}])


def test_anthropic_messages_become_messages_of_a_chat() -> None:
    given = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "r"},
                {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2"}]},
    ]
    system = [
        {"type": "text", "text": text} for text in ("x-anthropic-billing-header: 1", "S", "T")
    ]
    tool = {"name": "f", "input_schema": {"properties": {}}}
    prompt = chat("/v1/messages", messages=given, system=system, tools=[tool])
    assert prompt.messages == [
        {"role": "system", "content": ["ST"]},
        {"role": "user", "content": ["a"]},
        {
            "role": "assistant",
            "content": ["b"],
            "reasoning": "t",
            "reasoning_content": "t",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
            ],
        },
        {"role": "tool", "content": ["r"], "tool_call_id": "1"},
        {"role": "user", "content": ["c"]},
        {"role": "tool", "content": [""], "tool_call_id": "2"},
    ]
    assert prompt.ends[0] == 0
    assert prompt.ends[3] == prompt.ends[4] < prompt.ends[5]
    assert prompt.tools == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": None,
                "parameters": {"properties": {}, "type": "object"},
            },
        }
    ]
    for content in ([{"type": "image"}], [{"type": "document"}], 5):
        with pytest.raises(Unreadable):
            chat("/v1/messages", messages=[{"role": "user", "content": content}])


def test_a_salt_is_read() -> None:
    assert cache_salt(asked("/v1/completions", prompt="a", cache_salt="s\u00e4lt")) == "s\u00e4lt"
    assert cache_salt(asked("/v1/completions", prompt="a")) is None


json_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -12, 1.5e300, "", 'a"b\\', "é😀\n", [], [[1], {"a": [2]}], {}, {"x": {"y": []}}]
)
layouts = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])


@given(st.lists(json_values, max_size=5), layouts, st.booleans(), st.sampled_from([None, 1]))
def test_elements_and_members_are_where_a_decoder_finds_them(
    values: list[Any], separators: tuple[str, str], is_ascii: bool, indent: int | None
) -> None:
    raw = json.dumps(values, separators=separators, ensure_ascii=is_ascii, indent=indent).encode()
    assert [json.loads(raw[start:end]) for start, end in elements(raw)] == values
    named = {f'"{index}\\é': value for index, value in enumerate(values)}
    raw = json.dumps(named, separators=separators, ensure_ascii=is_ascii, indent=indent).encode()
    places = members(raw)
    assert places is not None
    assert {name: json.loads(raw[a:b]) for name, (a, b) in places.items()} == named
    if named:
        (name, value), *_ = named.items()
        twice = raw[:-1].rstrip() + f", {json.dumps(name)}: {json.dumps(value)}}}".encode()
        assert members(twice) is None


@given(st.text(max_size=60), st.booleans(), st.integers(1, 9))
def test_places_in_a_string_are_between_characters(text: str, is_ascii: bool, every: int) -> None:
    raw = (b"[1, " + json.dumps(text, ensure_ascii=is_ascii).encode()) + b"]"
    places = list(characters(raw, (4, len(raw) - 1), every))
    for at, count in places:
        assert json.loads(raw[4:at] + b'"') == text[:count]
    assert places == sorted(set(places))
    assert len(places) >= (len(raw) - 7) // (2 * every + 16)
    assert all(b[0] - a[0] >= every for a, b in itertools.pairwise(places))


@given(st.lists(st.integers(0, 200_000), max_size=40), st.integers(1, 9), layouts)
def test_places_in_token_ids_are_behind_whole_ones(
    ids: list[int], every: int, separators: tuple[str, str]
) -> None:
    raw = json.dumps(ids, separators=separators).encode()
    for at, count in integers(raw, every):
        assert json.loads(raw[: at - 1] + b"]") == ids[:count]
