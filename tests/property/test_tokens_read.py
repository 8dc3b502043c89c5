"""A prompt's tokens are those of its whole text, and its edges hold whatever comes after them."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.tokens.layout import Layout, edges, learn, trials
from gateway.tokens.prompts import ChatPrompt, TextPrompt, read_prompt
from gateway.tokens.reader import Reader
from gateway.tokens.token_text import READINGS, TokenText
from tests.builders import a_route
from tests.tokenizers_made import (
    CHATML,
    FORGETFUL,
    REASONED,
    TRIMMED,
    byte_level,
    made_folder,
    sentence_piece,
)

Message = dict[str, Any]

SMOLLM2 = Path.home() / ".cache/headrace/models/SmolLM2-135M-Instruct"
KINDS: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "chatml": (byte_level, CHATML),
    "trimmed": (sentence_piece, TRIMMED),
    "forgetful": (byte_level, FORGETFUL),
    "trimmed-bytes": (byte_level, TRIMMED),
    "reasoned": (sentence_piece, REASONED),
}
PIECES = (
    *(
        "the",
        " fox",
        " jumps",
        "dog",
        "'s",
        "'ll",
        " 123",
        "4567",
        " return",
        "def",
        "x",
        " a b c ",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t\t",
        " \n",
        ", ",
        ". ",
        "!",
        "}\n",
        "\\",
        '"',
        "/",
        "\x00",
        "\x7f",
    ),
    *(
        "é",
        "e\u0301",
        "ß",
        "東京",
        "は",
        "。",
        "我们",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
        "\u00a0",
        "\u2028",
    ),
    *("<|start|>", "<|end|>", "<|think|>", "<s>", "</s>", "<|", "|>", "<|start", " <pad>", "<unk>"),
    *("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "▁", "Ġ"),
)
WHITE = (*filter(str.isspace, PIECES), "a", "1", "!", "。")
CONTINUATIONS = (*PIECES, "")
ROLES = ("user", "assistant", "user", "system", "tool")


@dataclass(frozen=True)
class Model:
    """A reader, and what it is compared with: the libraries, plainly used."""

    reader: Reader
    tokenizer: Tokenizer
    template: str

    def tokens(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def told(self, text: str, *, special: bool) -> list[TokenText]:
        """What a replica would tell of it, in every way it may be read."""
        ids = self.tokens(text, special=special)
        strings = [str(self.tokenizer.id_to_token(each)) for each in ids]
        return [reading(ids, strings) for reading in READINGS]

    def text(self, messages: list[Message]) -> str:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        return environment.from_string(self.template).render(
            messages=messages, add_generation_prompt=True, bos_token="<s>"
        )


@pytest.fixture(scope="module", params=[*KINDS, "smollm2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One model of each kind; the real one where `headrace up` has fetched it."""
    if request.param == "smollm2":
        if not (SMOLLM2 / "tokenizer.json").is_file():
            pytest.skip(
                "SmolLM2 is not in the cache folder: `headrace up` or `make e2e` puts it there"
            )
        folder, template = SMOLLM2, (SMOLLM2 / "chat_template.jinja").read_text(encoding="utf-8")
    else:
        make, template = KINDS[request.param]
        folder = made_folder(tmp_path_factory.mktemp(request.param), make(), template)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Model(Reader(folder, 256 * 1024), tokenizer, template)


def a_text(rng: random.Random, pieces: int) -> str:
    pieces_of = rng.choice((PIECES, PIECES, WHITE))
    words = rng.choices(pieces_of, k=rng.choice((2, 3, 6, 40)))
    return "".join(rng.choices(words, k=pieces))


def a_conversation(rng: random.Random) -> list[Message]:
    count = rng.randint(1, 6)
    messages: list[Message] = []
    for index in range(count):
        role = "system" if index == 0 and rng.random() < 0.3 else rng.choice(ROLES[:2])
        length = rng.choice((0, 1, 5, 20, 400, 1500))
        messages.append({"role": role, "content": a_text(rng, length)})
    return messages


def a_continuation(rng: random.Random, messages: list[Message]) -> list[Message]:
    """Another conversation with the same beginning: it leaves anywhere, inside a message too."""
    kept = [dict(message) for message in messages]
    at = rng.randrange(len(kept))
    if rng.random() < 0.8:
        content = kept[at]["content"]
        cut = rng.randint(0, len(content))
        kept[at]["content"] = content[:cut] + rng.choice(CONTINUATIONS) + a_text(rng, 5)
        if rng.random() < 0.2:
            kept[at]["name"] = "somebody"
    after = a_conversation(rng) if rng.random() < 0.6 else []
    return [*kept[: at + 1], *after]


def asked(body: dict[str, Any], path: str, *, ascii_only: bool) -> GenerationRequest:
    written = json.dumps({"model": "m", **body}, ensure_ascii=ascii_only).encode()
    return parse_json(written, a_route(path), lambda _, size: size // 4)


def agree(model: Model, one: GenerationRequest, two: GenerationRequest) -> int:
    """Edges that both prompts have in common give both the same tokens. How many there are."""
    ours, theirs = model.reader.read(one, None), model.reader.read(two, None)
    pairs = zip(bytes(one.prompt), bytes(two.prompt), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = [(at, n) for at, n in ours.edges if at <= common]
    for _, n in shared:
        assert list(ours.tokens[:n]) == list(theirs.tokens[:n])
    assert list(ours.edges) == sorted(set(ours.edges))
    assert ours.edges[-1] == (len(one.prompt), len(ours.tokens))
    return len(shared)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), ascii_only=st.booleans())
def test_a_chat_is_read_as_its_whole_text_and_edges_hold(
    model: Model, seed: int, ascii_only: bool
) -> None:
    rng = random.Random(seed)
    messages = a_conversation(rng)
    one = asked({"messages": messages}, "/v1/chat/completions", ascii_only=ascii_only)
    read = model.reader.read(one, None)
    assert list(read.tokens) == model.tokens(model.text(messages), special=False)
    for _ in range(3):
        other = a_continuation(rng, messages)
        two = asked({"messages": other}, "/v1/chat/completions", ascii_only=ascii_only)
        agree(model, one, two)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), ascii_only=st.booleans())
def test_a_text_is_read_whole_and_edges_hold(model: Model, seed: int, ascii_only: bool) -> None:
    rng = random.Random(seed)
    text = a_text(rng, rng.choice((1, 20, 400, 2000, 6000)))
    one = asked({"prompt": text}, "/v1/completions", ascii_only=ascii_only)
    read = model.reader.read(one, None)
    assert list(read.tokens) == model.tokens(text, special=True)
    for _ in range(3):
        cut = rng.randint(0, len(text))
        other = text[:cut] + rng.choice(CONTINUATIONS) + a_text(rng, 5)
        two = asked({"prompt": other}, "/v1/completions", ascii_only=ascii_only)
        agree(model, one, two)


@functools.cache
def layouts(model: Model) -> list[Layout]:
    """What trials show of it, in every way its token strings may be read."""
    tried = [model.told(model.text(each), special=False) for each in trials()]
    return [learn(each) for each in zip(*tried, strict=True)]


def told_edges(model: Model, request: GenerationRequest) -> list[tuple[int, int]]:
    """Edges as they are found where a replica is asked."""
    prompt = read_prompt(request)
    if isinstance(prompt, TextPrompt):
        text = model.told(prompt.text, special=True)[0]
        return edges(prompt, bytes(request.prompt), text, None)
    assert isinstance(prompt, ChatPrompt)
    messages = json.loads(bytes(request.prompt))
    told_by = model.told(model.text(messages), special=False)
    for told, layout in zip(told_by, layouts(model), strict=True):
        if layout.between:
            return edges(prompt, bytes(request.prompt), told, layout)
    return []


def hold(found: list[tuple[int, int]], one: GenerationRequest, two: GenerationRequest,
         ours: list[int], theirs: list[int]) -> None:  # fmt: skip
    """Every edge of the one that lies in their common beginning holds in the other."""
    pairs = zip(bytes(one.prompt), bytes(two.prompt), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    assert found == sorted(set(found))
    for at, n in found:
        if at <= common:
            assert ours[:n] == theirs[:n], (at, n)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), ascii_only=st.booleans())
def test_edges_of_what_a_replica_tells_hold(model: Model, seed: int, ascii_only: bool) -> None:
    rng = random.Random(seed)
    messages = a_conversation(rng)
    one = asked({"messages": messages}, "/v1/chat/completions", ascii_only=ascii_only)
    ours, found = model.tokens(model.text(messages), special=False), told_edges(model, one)
    for _ in range(6):
        other = a_continuation(rng, messages)
        two = asked({"messages": other}, "/v1/chat/completions", ascii_only=ascii_only)
        hold(found, one, two, ours, model.tokens(model.text(other), special=False))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), ascii_only=st.booleans())
def test_edges_of_a_text_that_a_replica_tells_hold(
    model: Model, seed: int, ascii_only: bool
) -> None:
    rng = random.Random(seed)
    text = a_text(rng, rng.choice((1, 20, 400, 2000, 6000)))
    one = asked({"prompt": text}, "/v1/completions", ascii_only=ascii_only)
    ours, found = model.tokens(text, special=True), told_edges(model, one)
    for _ in range(4):
        other = text[: rng.randint(0, len(text))] + rng.choice(CONTINUATIONS) + a_text(rng, 5)
        two = asked({"prompt": other}, "/v1/completions", ascii_only=ascii_only)
        hold(found, one, two, ours, model.tokens(other, special=True))
