"""What is foreseen of conversations when a replica is chosen, against an engine's own cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.holdings import Holdings
from gateway.choose.text_chain import Prompt
from gateway.request import GenerationRequest, Usage
from gateway.vocabulary import ModelName, ReplicaId
from tests.builders import a_route

SIZE = 16
NAMES = [ReplicaId("a:1"), ReplicaId("b:1")]
Message = dict[str, str]


def tokens_of(messages: list[Message]) -> list[str]:
    """A marker before each message and behind it, a token for every three letters."""
    tokens: list[str] = []
    for each in messages:
        content = each["content"]
        tokens += ["<" + each["role"]]
        tokens += [content[at : at + 3] for at in range(0, len(content), 3)]
        tokens += [">"]
    return tokens


def chain(tokens: list[str]) -> list[int]:
    """Names of the full blocks."""
    names, above = [], 0
    for at in range(0, len(tokens) // SIZE * SIZE, SIZE):
        above = hash((above, *tokens[at : at + SIZE]))
        names.append(above)
    return names


class Engine:
    """Keeps every full block that it has computed."""

    def __init__(self) -> None:
        self._blocks: set[int] = set()

    def ask(self, prompt: list[str], answer: str) -> tuple[int, int]:
        """The tokens it found in its cache, and those of its answer."""
        found = 0
        for block in chain(prompt[:-1]):
            if block not in self._blocks:
                break
            found += SIZE
        said = tokens_of([{"role": "assistant", "content": answer}])[1:]
        self._blocks.update(chain([*prompt, *said][:-1]))
        return found, len(said)


@dataclass
class World:
    """Two engines and what a gateway knows of them."""

    holdings: Holdings = field(default_factory=lambda: Holdings(1_000_000, 1000.0))
    engines: list[Engine] = field(default_factory=lambda: [Engine(), Engine()])

    def ask(self, who: int, messages: list[Message], answer: str, indent: int | None) -> bool:
        """One request. Was what it would hit foreseen?"""
        text = json.dumps(messages, indent=indent).encode()
        asked = Prompt(
            GenerationRequest(
                route=a_route(),
                model=ModelName("m"),
                stream=True,
                prompt_bytes=len(text),
                prompt_tokens=len(text) // 5,
                max_tokens=None,
                prompt=text,
            )
        )
        foreseen = self.holdings.hits(asked, NAMES)
        dispatch = self.holdings.dispatched(
            asked, NAMES[who], 0.0, (foreseen.tokens[who], foreseen.ruler)
        )
        prompt = [*tokens_of(messages), "<assistant"]
        found, said = self.engines[who].ask(prompt, answer)
        dispatch.answered(Usage(len(prompt), said, found), 0.0)
        dispatch.ended()
        return foreseen.tokens[who] == found


words = st.text('abcdefgh "\n', min_size=1, max_size=400)
turns = st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.integers(0, 1), turns), min_size=1, max_size=3),
       st.sampled_from([None, 2]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_next_turns_and_repeated_prompts_are_foreseen_to_the_token(
    conversations: list[tuple[int, list[tuple[str, str, bool]]]], indent: int | None
) -> None:
    world = World()
    for number, (who, said) in enumerate(conversations):
        messages = [
            {"role": "system", "content": f"{number} is the number of all that follows" * 9}
        ]
        for turn, (question, answer, is_repeated) in enumerate(said):
            messages.append({"role": "user", "content": question})
            is_foreseen = world.ask(who, messages, answer, indent)
            assert is_foreseen or turn == 0
            if is_repeated:
                assert world.ask(who, messages, answer, indent)
            messages.append({"role": "assistant", "content": answer})
