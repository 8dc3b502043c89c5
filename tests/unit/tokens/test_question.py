"""What a replica is asked, where we cannot read a prompt ourselves."""

from __future__ import annotations

import json

from gateway.parse.openai import parse_json
from gateway.tokens.remote import question
from tests.builders import a_route


def asked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    body = json.dumps({"model": "m", "messages": messages}).encode()
    request = parse_json(body, a_route("/v1/chat/completions"), lambda _, size: size // 4)
    told: list[dict[str, str]] = json.loads(question(request).body)["messages"]
    return told


def test_messages_are_asked_about_as_they_stand() -> None:
    messages = [{"role": "user", "content": "What is water?"}]
    assert asked(messages) == messages


def test_reasoning_goes_by_its_newer_name() -> None:
    """Chats know the older one too, /tokenize does not."""
    thought = {"role": "assistant", "content": "Wet.", "reasoning_content": "Hm."}
    assert asked([thought]) == [{"role": "assistant", "content": "Wet.", "reasoning": "Hm."}]
    both = {**thought, "reasoning": "Aha."}
    assert asked([both]) == [{"role": "assistant", "content": "Wet.", "reasoning": "Aha."}]
