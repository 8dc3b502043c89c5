"""What every test may ask for: time that only the test moves, and chance that is the same each run.

Nothing here opens a socket; `tests/house.py` does, for those tests that say so.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import settings

from gateway.vocabulary import Seconds

# Read when gRPC is imported: its handlers of forks fail where calls are under way, and some tests
# start processes beside them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# Whether an example took 200 ms says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class ManualClock:
    """A `gateway.clock.Clock` that stands still until told to move."""

    def __init__(self) -> None:
        self.now: Seconds = 1000.0

    def __call__(self) -> Seconds:
        return self.now

    def advance(self, by_s: Seconds) -> Seconds:
        """Let so much time pass; returns the new instant."""
        self.now += by_s
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def rng() -> Random:
    return Random(20261123)
