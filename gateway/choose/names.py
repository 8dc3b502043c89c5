"""A prompt by the names of its blocks, and what a replica's events tell of it."""

from __future__ import annotations

from typing import Final

from gateway.choose.stretch import Lesson
from gateway.vocabulary import Tokens


class Names:
    """How the blocks of so many of a prompt's first tokens are named; `is_whole`: of all."""

    __slots__ = ("is_whole", "lesson", "tokens")

    def __init__(self, lesson: Lesson, tokens: Tokens, *, is_whole: bool) -> None:
        self.lesson: Final = lesson
        self.tokens: Final = tokens
        self.is_whole: Final = is_whole

    def __repr__(self) -> str:
        return f"<Names of {self.tokens} tokens, {self.lesson!r}>"


class Held:
    """What a replica's events tell of a prompt; `is_all`: all that could be looked up."""

    __slots__ = ("is_all", "on_gpu", "tokens")

    def __init__(self, tokens: Tokens, on_gpu: Tokens, *, is_all: bool) -> None:
        self.tokens: Final = tokens
        self.on_gpu: Final = on_gpu
        self.is_all: Final = is_all

    def __repr__(self) -> str:
        return f"<Held {self.tokens} tokens, {self.on_gpu} on GPU>"
