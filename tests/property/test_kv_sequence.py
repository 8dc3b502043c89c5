"""The sequence of one source beside an engine, and a network that loses what it likes.

What was applied since the last retelling is compared with what the engine of that life has really
published. Bytes of a batch are unique: they hold the life and the number.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.kv_sequence import (
    Apply,
    Ask,
    Effect,
    EventSequence,
    Patience,
    Retold,
    Say,
)
from gateway.kv_cache import Certainty

PATIENCE = Patience(held_batches=4)
LOOK_S = 0.5  # so often it is asked what is due
Batch = tuple[int, int, bool]  # life, number, does it clear the cache?


def written(batch: Batch) -> bytes:
    return repr(batch).encode()


class World:
    """An engine that keeps `kept` batches, the wires, and who listens."""

    def __init__(self, kept: int, can_replay: bool) -> None:
        self.sequence = EventSequence(can_replay, PATIENCE)
        self.kept = kept
        self.now = 0.0
        self.life = 0
        self.log: list[Batch] = []
        self.published: dict[bytes, Batch] = {}
        self.wire: deque[Batch | None] = deque()  # None: it was cut here
        self.asked: Ask | None = None  # not yet served
        self.replies: deque[tuple[int, Batch | None]] = deque()  # (round, batch or the end)
        self.applied: list[Batch] = []
        self.said = Certainty.SILENT
        self.do(self.sequence.begin(self.now))

    def do(self, effects: list[Effect]) -> None:
        queue = deque(effects)
        while queue:
            match queue.popleft():
                case Apply(number, raw):
                    batch = self.published[raw]
                    assert number == batch[1]
                    assert not self.applied or number > self.applied[-1][1]
                    self.applied.append(batch)
                    if batch[2]:
                        queue.extend(self.sequence.cleared(number))
                case Retold():
                    self.applied.clear()
                case Say(certainty):
                    assert certainty is not self.said
                    self.said = certainty
                case Ask() as ask:
                    self.asked = ask
                    self.replies = deque(r for r in self.replies if r[0] == ask.round - 1)
        assert self.said is self.sequence.certainty
        self.check()

    def check(self) -> None:
        """Whatever is claimed is true of what was applied."""
        told = self.applied
        cleared = [index for index, batch in enumerate(told) if batch[2]]
        if cleared:
            told = told[cleared[-1] :]
        first = told[0][1] if told else 0
        is_whole = [batch[:2] for batch in told] == [
            (told[0][0], first + index) for index in range(len(told))
        ]
        if self.said is Certainty.EXACT:
            assert is_whole
            assert cleared or first == 0
        elif self.said is Certainty.PARTIAL:
            assert is_whole

    # What may happen

    def publish(self, clears: bool = False) -> None:
        batch = (self.life, len(self.log), clears)
        self.log.append(batch)
        self.published[written(batch)] = batch
        self.wire.append(batch)

    def publish_cleared(self) -> None:
        self.publish(clears=True)

    def lose(self) -> None:
        if self.wire and self.wire[0] is not None:
            self.wire.popleft()

    def hear(self) -> None:
        if self.wire:
            batch = self.wire.popleft()
            if batch is None:
                self.do(self.sequence.cut(self.now))
            else:
                self.do(self.sequence.live(batch[1], written(batch), self.now))

    def hear_twice(self) -> None:
        if self.wire and self.wire[0] is not None:
            self.wire.appendleft(self.wire[0])
            self.hear()
            self.hear()

    def serve(self, lost: frozenset[int] = frozenset()) -> None:
        """Answer the round; of its messages, those numbered `lost` are, but never the first."""
        if self.asked is None:
            return
        ask, self.asked = self.asked, None
        told: list[Batch | None] = [
            batch for batch in self.log[-self.kept :] if batch[1] >= ask.first
        ]
        told.append(None)
        self.replies += [
            (ask.round, each)
            for index, each in enumerate(told)
            if index not in lost or (index == 0 and each is not None)
        ]

    def reply(self) -> None:
        if self.replies:
            round_, batch = self.replies.popleft()
            if batch is None:
                self.do(self.sequence.ended(round_, self.now))
            else:
                number = batch[1]
                self.do(self.sequence.replayed(round_, number, written(batch), self.now))

    def restart(self) -> None:
        self.life += 1
        self.log.clear()
        self.replies.clear()
        self.wire.append(None)

    def forget_request(self) -> None:
        self.asked = None

    def wait(self) -> None:
        """Until something is due: it is asked again and again."""
        until = self.now + 2 * PATIENCE.verify_after_s
        while self.now < until and not self.wire and not self.replies:
            effects = self.sequence.idle(self.now)
            if effects:
                self.do(effects)
                return
            self.now += LOOK_S

    def repair(self) -> None:
        self.do(self.sequence.repair(self.now))

    def settle(self) -> None:
        """From now on nothing is lost."""
        for _ in range(60):
            while self.wire or self.asked or self.replies:
                self.hear()
                self.serve()
                self.reply()
            self.wait()


LOST = st.frozensets(st.integers(0, 12), max_size=4)
STEPS = st.lists(
    st.sampled_from(
        [World.publish] * 4
        + [World.hear] * 4
        + [World.reply] * 5
        + [World.lose, World.hear_twice, World.wait, World.repair, World.publish_cleared]
        + [World.restart, World.forget_request, World.serve]
    )
    | LOST,
    max_size=120,
)


@given(STEPS, st.sampled_from([1, 3, 1000]), st.booleans())
def test_what_is_claimed_is_true_and_in_the_end_everything_is_known(
    steps: list[object], kept: int, can_replay: bool
) -> None:
    world = World(kept, can_replay)
    for step in steps:
        if isinstance(step, frozenset):
            world.serve(step)
        else:
            step(world)  # type: ignore[operator]
    world.settle()
    if can_replay:
        assert world.said in (Certainty.EXACT, Certainty.PARTIAL)
        known = world.applied[-1][:2] if world.applied else None
        assert known == (world.log[-1][:2] if world.log else None)
        if kept >= len(world.published):
            assert world.said is Certainty.EXACT
