"""Four gateways before one replica, in virtual time, whose requests wait for their turns."""

from __future__ import annotations

from random import Random

import pytest

from gateway.settings import HoldSettings
from tests.bench.routing.cache import BLOCK_TOKENS, Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.held import Door, Held, Waiter
from tests.bench.routing.several import GATEWAYS

GATEWAYS_THERE = 4
SPECS = (ReplicaSpec(16_000.0, cache_blocks=4000),)


class Watched(Held):
    """Keeps the most that the replica was ever sent and had not begun."""

    most = 0

    def _send(self, door: Door, waiter: Waiter, index: int, now: float) -> None:
        super()._send(door, waiter, index, now)
        unbegun = sum(each.part(index, now).unbegun for each in self.doors)
        self.most = max(self.most, unbegun)


def strangers(number: int, prompt_tokens: int, every_s: float) -> list[Arrival]:
    blocks = -(-prompt_tokens // BLOCK_TOKENS)
    return [
        Arrival(each, each * every_s, prompt_tokens, 2, tuple(range(each * 99, each * 99 + blocks)))
        for each in range(number)
    ]


def most_unbegun(arrivals: list[Arrival]) -> int:
    world = Watched(SPECS, GATEWAYS_THERE)
    run = world.run(arrivals, GATEWAYS["four held"](SPECS, world, Random(1)))
    assert len(run.served) == len(arrivals)
    assert not any(room.unbegun or room.sequences for door in world.doors for room in door.rooms)
    return world.most


@pytest.mark.parametrize("prompt_tokens", [500, 1500])
def test_a_burst_to_all_of_them_is_committed_once_and_a_prompt_of_each(prompt_tokens: int) -> None:
    commit = HoldSettings().commit_tokens
    assert commit is not None
    burst = strangers(200, prompt_tokens, 0.0)
    assert commit // 2 < most_unbegun(burst) <= commit + (GATEWAYS_THERE - 1) * prompt_tokens


def test_prompts_that_wait_at_all_of_them_go_one_by_one() -> None:
    """Each as long as what may be committed: one is read, and no more than one is sent into a gap
    than would be by one gateway, but where two see it within the time that news take."""
    commit_s = HoldSettings().commit_s
    assert commit_s is not None
    prompt_tokens = int(commit_s * 16_000)
    assert most_unbegun(strangers(60, prompt_tokens, 0.4)) <= 2 * prompt_tokens
