"""What answers say of the engine that wrote them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from gateway.choose.policies import policy
from gateway.fleet.ledger import Replica
from gateway.kv_cache import EngineFacts
from gateway.lessons import MOST_NAMELESS, Lessons
from gateway.settings import ChooseSettings
from tests.builders import a_replica

NAMED = b'{"choices": [], "system_fingerprint": "vllm-0.32.0-tp2-0123abcd", "usage": null}'
NAMELESS = b'{"choices": [], "usage": null}'


@pytest.fixture
def told() -> list[tuple[Replica, EngineFacts]]:
    return []


@pytest.fixture
def lessons(told: list[tuple[Replica, EngineFacts]]) -> Lessons:
    settings = ChooseSettings()
    tokens: Any = None  # asked of nothing here
    return Lessons(policy(settings, Random(1)), tokens, lambda *fact: told.append(fact), settings)


def test_an_answer_that_names_its_engine_is_told_of(
    lessons: Lessons, told: list[tuple[Replica, EngineFacts]]
) -> None:
    replica = a_replica()
    lessons.answered(replica, NAMELESS)
    assert not told
    lessons.answered(replica, NAMED)
    ((who, facts),) = told
    assert who is replica
    assert facts.version == "0.32.0"


def test_who_is_known_is_not_looked_at(
    lessons: Lessons, told: list[tuple[Replica, EngineFacts]]
) -> None:
    replica = a_replica()
    replica.facts = EngineFacts(version="0.31.0")
    lessons.answered(replica, NAMED)
    assert not told


def test_who_never_says_it_is_not_looked_at_for_ever(
    lessons: Lessons, told: list[tuple[Replica, EngineFacts]]
) -> None:
    silent, late = a_replica("silent"), a_replica("late")
    for _ in range(MOST_NAMELESS - 1):
        lessons.answered(silent, NAMELESS)
        lessons.answered(late, NAMELESS)
    lessons.answered(late, NAMED)
    assert [who for who, _ in told] == [late], "the last that is looked at"
    lessons.answered(silent, NAMELESS)
    lessons.answered(silent, NAMED)
    assert [who for who, _ in told] == [late]
