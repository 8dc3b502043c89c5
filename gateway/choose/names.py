"""A prompt by the names of its blocks, and what a replica's events tell of it."""

from __future__ import annotations

from gateway.choose.stretch import Lesson
from gateway.record import Value
from gateway.vocabulary import Tokens


class Names(Value, frozen=True):
    """How the blocks of so many of a prompt's first tokens are named; `is_whole`: of all."""

    lesson: Lesson
    tokens: Tokens
    is_whole: bool


class Held(Value, frozen=True):
    """What a replica's events tell of a prompt; `is_all`: all that could be looked up."""

    tokens: Tokens
    on_gpu: Tokens
    is_all: bool
