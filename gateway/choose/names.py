"""A prompt by the names of its blocks, and what a replica's events tell of it."""

from __future__ import annotations

import msgspec

from gateway.choose.stretch import Lesson
from gateway.vocabulary import Tokens


class Names(msgspec.Struct, frozen=True):
    """How the blocks of so many of a prompt's first tokens are named; `is_whole`: of all."""

    lesson: Lesson
    tokens: Tokens
    is_whole: bool


class Held(msgspec.Struct, frozen=True):
    """What a replica's events tell of a prompt; `is_all`: all that could be looked up."""

    tokens: Tokens
    on_gpu: Tokens
    is_all: bool
