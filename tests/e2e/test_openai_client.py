"""The official client, through the gateway, to real vLLM replicas."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI

from tests.e2e.conftest import CHAT, EMBEDDINGS, Stack

ASK = "Name three fruits."


def test_models_are_listed_once_each_and_can_be_retrieved(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == [CHAT, EMBEDDINGS]
    assert client.models.retrieve(CHAT).id == CHAT


def test_a_chat_is_answered_and_its_tokens_are_counted(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": ASK}], max_tokens=40, temperature=0
    )
    assert "Bananas" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 34
    assert reply.usage.prompt_tokens_details is not None


def test_a_streamed_chat_ends_with_usage_and_says_the_same(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": ASK}],
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert "Bananas" in text
    assert len(chunks) > 5, "a stream comes in pieces"
    assert usage is not None
    assert usage.completion_tokens == 15


def test_a_completion_continues_the_prompt(client: OpenAI) -> None:
    reply = client.completions.create(
        model=CHAT, prompt="One, two, three, four,", max_tokens=6, temperature=0
    )
    assert "five" in reply.choices[0].text


def test_embeddings_come_from_the_second_model_and_mean_something(client: OpenAI) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Quarterly tax law."]
    cat, kitten, tax = (
        entry.embedding for entry in client.embeddings.create(model=EMBEDDINGS, input=texts).data
    )
    assert len(cat) == 384
    assert _dot(cat, kitten) > 0.5 > _dot(cat, tax)


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_an_unknown_model_is_not_found_and_nothing_of_the_fleet_is_told(
    client: OpenAI, stack: Stack
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-7", messages=[{"role": "user", "content": "?"}])
    assert caught.value.code == "model_not_found"
    told = caught.value.response.text
    hidden = [CHAT, *(process.url.removeprefix("http://") for process in stack.chat_replicas)]
    assert not [word for word in hidden if word in told]


def test_the_responses_api_is_served(client: OpenAI) -> None:
    reply = client.responses.create(model=CHAT, input=ASK, max_output_tokens=40, temperature=0)
    assert "Bananas" in reply.output_text


def test_the_messages_api_is_served_and_counts_tokens(http: httpx.Client) -> None:
    body = {"model": CHAT, "max_tokens": 40, "messages": [{"role": "user", "content": ASK}]}
    reply = http.post("/v1/messages", json={**body, "temperature": 0})
    assert reply.status_code == 200, reply.text
    assert "Bananas" in reply.json()["content"][0]["text"]
    counted = http.post("/v1/messages/count_tokens", json=body)
    usage = reply.json()["usage"]
    cached = usage["cache_read_input_tokens"] or 0
    cached += usage["cache_creation_input_tokens"] or 0
    assert counted.json()["input_tokens"] == usage["input_tokens"] + cached


def test_text_is_turned_into_tokens_and_back(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"model": CHAT, "prompt": "a river"}).json()["tokens"]
    text = http.post("/detokenize", json={"model": CHAT, "tokens": tokens}).json()["prompt"]
    assert text == "a river"


def test_a_request_the_engine_refuses_is_refused_in_its_own_words(
    http: httpx.Client, stack: Stack
) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1_000_000}
    ours = http.post("/v1/chat/completions", json=body)
    direct = httpx.post(
        f"{stack.chat_replicas[0].url}/v1/chat/completions", json=body, trust_env=False
    )
    assert (ours.status_code, ours.content) == (direct.status_code, direct.content)
    assert ours.status_code == 400
