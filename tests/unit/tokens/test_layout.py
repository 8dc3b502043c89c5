"""What a replica's /tokenize tells is put back together, and its template seen through by trial."""

from __future__ import annotations

import json
import random

import jinja2
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.request import GenerationRequest
from gateway.tokens.layout import edges, learn, trials
from gateway.tokens.prompts import ChatPrompt, Message, TextPrompt, read_prompt
from gateway.tokens.token_text import TokenText, byte_level, pieces
from serving.sim.tokens import render_chat, token_string, tokenize
from tests.builders import a_route
from tests.tokenizers_made import CHATML, FORGETFUL, REASONED, SPECIAL, TRIMMED
from tests.tokenizers_made import byte_level as a_tokenizer

TOKENIZER: Tokenizer = a_tokenizer()
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "it", "and", "we", "see", "that", "is")


def simulated(text: str) -> TokenText:
    tokens = tokenize(text)
    return byte_level(tokens, [token_string(token) for token in tokens])


def made(text: str) -> TokenText:
    encoded = TOKENIZER.encode(text, add_special_tokens=False)
    return byte_level(encoded.ids, encoded.tokens)


def prose(words: int) -> str:
    rng = random.Random(words)
    return " ".join(rng.choices(WORDS, k=words))


def asked(messages: list[Message]) -> tuple[ChatPrompt, bytes]:
    raw = json.dumps(messages).encode()
    request = GenerationRequest(a_route(), "m", False, len(raw), 1, None, raw)  # type: ignore[arg-type]
    prompt = read_prompt(request)
    assert isinstance(prompt, ChatPrompt)
    return prompt, raw


def rendered(template: str, messages: list[Message]) -> str:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    made = environment.from_string(template)
    return made.render(messages=messages, add_generation_prompt=True)


CHAT: list[Message] = [
    {"role": "system", "content": prose(300)},
    {"role": "user", "content": prose(30) + ".\n"},
    {"role": "assistant", "content": prose(20)},
    {"role": "user", "content": prose(400)},
]


def found(template: str, messages: list[Message]) -> tuple[list[tuple[int, int]], ChatPrompt]:
    prompt, raw = asked(messages)
    layout = learn([made(rendered(template, each)) for each in trials()])
    return edges(prompt, raw, made(rendered(template, messages)), layout), prompt


@given(text=st.text())
def test_byte_level_strings_are_the_bytes_they_stand_for(text: str) -> None:
    told = simulated(text)
    assert told.text == text.encode()
    whole = len(told.text) // 4
    assert list(told.ends)[:whole] == [4 * (at + 1) for at in range(whole)]
    encoded = TOKENIZER.encode(text, add_special_tokens=False)
    if not any(token in SPECIAL or not token.isprintable() for token in encoded.tokens):
        assert made(text).text.decode() == TOKENIZER.normalizer.normalize_str(text)


def test_added_tokens_are_written_as_they_are() -> None:
    told = byte_level([1, 2, 3], ["<\uff5cbegin▁of▁sentence\uff5c>", "Ã©", "Ġx"])
    assert told.text.decode() == "<\uff5cbegin▁of▁sentence\uff5c>é x"
    assert told.beginning_at(told.ends[0]) == 1
    assert told.beginning_at(told.ends[0] + 1) is None
    assert told.beginning_at(len(told.text)) is None


def test_pieces_have_spaces_and_bytes() -> None:
    told = pieces([1, 2, 3, 4], ["<s>", "▁the", "<0xE4>", "x"])
    assert told.text == b"<s> the\xe4x"
    assert list(told.ends) == [3, 7, 8, 9]


def test_messages_end_at_edges_and_long_contents_have_some_inside() -> None:
    told, prompt = found(CHATML, CHAT)
    at = [place for place, _ in told]
    inside = [place for place in at if prompt.ends[2] < place < prompt.ends[3]]
    assert len(inside) >= 4
    text = made(rendered(CHATML, CHAT))
    ends = [count for place, count in told if place in prompt.ends]
    for count, message in zip(ends, CHAT, strict=True):
        before = text.text[: text.ends[count - 1]]
        assert before.strip().endswith(message["content"].strip().encode())
        assert text.text[len(before) :].startswith(b"<|end|>")


def json_of(messages: list[Message]) -> bytes:
    return asked(messages)[1]


def test_what_a_template_may_still_change_has_no_edge() -> None:
    thoughtful = [dict(each) for each in CHAT]
    thoughtful[2]["content"] = "<think>well</think>" + thoughtful[2]["content"]
    told, prompt = found(FORGETFUL, thoughtful)
    assert [place for place, _ in told if place > prompt.ends[1]] == [len(json_of(thoughtful))]
    told, prompt = found(FORGETFUL, thoughtful[:3])  # nobody has asked on, and it is still there
    assert [place for place, _ in told if place > prompt.ends[1]] == [len(json_of(thoughtful[:3]))]
    told, prompt = found(TRIMMED, CHAT[1:])
    assert [place for place, _ in told] == [len(json_of(CHAT[1:]))]
    told, prompt = found(TRIMMED, CHAT)
    assert prompt.ends[0] not in [place for place, _ in told], "a ! may follow, or not"


def test_a_message_that_is_written_otherwise_when_it_is_the_last_has_its_edge_with_the_next() -> (
    None
):
    wrapped = CHATML.replace(
        "{{ message['content'] }}",
        "{% if loop.last and message.role == 'assistant' %}<|think|>{% endif %}"
        "{{ message['content'] }}",
    )
    told, prompt = found(wrapped, CHAT[:3])
    assert prompt.ends[2] not in [place for place, _ in told]
    told, prompt = found(wrapped, CHAT)
    assert {prompt.ends[1], prompt.ends[3]} < {place for place, _ in told}
    assert prompt.ends[2] not in [place for place, _ in told]


def test_a_content_whose_header_depends_on_what_follows_has_no_edge_inside() -> None:
    told, prompt = found(REASONED, CHAT)
    places = [place for place, _ in told]
    assert prompt.ends[3] in places, "without a name, messages are known when they end"
    assert not [each for each in places if prompt.ends[2] < each < prompt.ends[3]]


def test_a_prompt_that_is_not_laid_out_as_the_trials_has_no_edge_from_there_on() -> None:
    prompt, raw = asked(CHAT)
    layout = learn([made(rendered(CHATML, each)) for each in trials()])
    text = rendered(CHATML, CHAT)
    for was, last in (("system", 0), ("assistant", prompt.ends[1])):
        other = text.replace(f"<|start|>{was}", f"<|start|>{was[:-1]}!")
        told = edges(prompt, raw, made(other), layout)
        assert [place for place, _ in told if place > last] == [len(raw)]
    assert len(edges(prompt, raw, made(text), None)) == 1


def test_trials_that_were_refused_are_left_out() -> None:
    answers = [
        None if each[0]["role"] == "system" else made(rendered(CHATML, each)) for each in trials()
    ]
    layout = learn(answers)
    assert {role for pair in layout.between for role in pair} == {"", "user", "assistant"}
    assert learn([None] * len(trials())).between == {}


def test_tokens_that_reach_across_spaces_have_no_edge_inside() -> None:
    def told(messages: list[Message]) -> TokenText:
        return simulated(render_chat([(each["role"], each["content"]) for each in messages]))

    prompt, raw = asked(CHAT)
    layout = learn([told(each) for each in trials()])
    places = [place for place, _ in edges(prompt, raw, told(CHAT), layout)]
    assert places == [*prompt.ends, len(raw)]


def test_texts_have_edges_inside() -> None:
    text = prose(400)
    prompt = TextPrompt(text, (0, len(text) + 2), False)
    raw = f'"{text}"'.encode()
    told = edges(prompt, raw, made(text), None)
    assert len(told) >= 5
    for at, count in told[:-1]:
        assert made(text[: at - 1]).tokens[:count] == made(text).tokens[:count]
