"""The pool of idle connections against a slow model of it: each is in exactly one state."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from gateway.relay.pool import Pool

IDLE_S = 4.0
KEYS = ("r1", "r2")


class Connection:
    """Something with an identity."""


class PoolMachine(RuleBasedStateMachine):
    """Whoever holds a connection may give it back, once; time moves between steps."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.model: dict[str, list[tuple[Connection, float]]] = {key: [] for key in KEYS}
        self.owned: set[Connection] = set()  # by a user, or closed for good

    @initialize(most=st.integers(0, 3))
    def opened(self, most: int) -> None:
        self.most = most
        self.pool: Pool[str, Connection] = Pool(IDLE_S, most)

    @rule(target=held)
    def connect(self) -> Connection:
        return self._fresh()

    def _fresh(self) -> Connection:
        made = Connection()
        self.owned.add(made)
        return made

    @rule(key=st.sampled_from(KEYS), connection=consumes(held))
    def put_back(self, key: str, connection: Connection) -> None:
        has_room = len(self.model[key]) < self.most
        assert self.pool.put_back(key, connection, self.now) is has_room
        if has_room:
            self.owned.remove(connection)
            self.model[key].append((connection, self.now))

    @rule(target=held, key=st.sampled_from(KEYS))
    def take_or_connect(self, key: str) -> Connection:
        taken = self.pool.take(key, self.now)
        newest = self.model[key][-1] if self.model[key] else None
        if newest is None or self.now - newest[1] >= IDLE_S:
            assert taken is None
            return self._fresh()
        assert taken is newest[0], "the newest first"
        assert taken not in self.owned, "handed out twice"
        self.model[key].pop()
        self.owned.add(taken)
        return taken

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def dies_while_idle(self, key: str, data: st.DataObject) -> None:
        if self.model[key]:
            dead = data.draw(st.sampled_from(self.model[key]))
            self.model[key].remove(dead)
            self.owned.add(dead[0])
            self.pool.remove(key, dead[0])
            self.pool.remove(key, dead[0])

    @rule(key=st.sampled_from(KEYS), connection=held)
    def a_connection_that_is_not_idle_is_removed_in_vain(
        self, key: str, connection: Connection
    ) -> None:
        self.pool.remove(key, connection)

    @rule(by_s=st.floats(0.0, 3.0))
    def time_passes(self, by_s: float) -> None:
        self.now += by_s

    @rule()
    def expire(self) -> None:
        expired = self.pool.expire(self.now)
        old = [
            connection
            for shelf in self.model.values()
            for connection, since in shelf
            if self.now - since >= IDLE_S
        ]
        assert set(expired) == set(old)
        assert len(expired) == len(old)
        self.owned.update(old)
        for key, shelf in self.model.items():
            self.model[key] = [entry for entry in shelf if entry[0] not in set(old)]

    @rule(key=st.sampled_from(KEYS))
    def drain(self, key: str) -> None:
        assert set(self.pool.drain(key)) == {connection for connection, _ in self.model[key]}
        self.owned.update(connection for connection, _ in self.model[key])
        self.model[key] = []

    @rule()
    def drain_all(self) -> None:
        everything = [connection for shelf in self.model.values() for connection, _ in shelf]
        assert sorted(map(id, self.pool.drain_all())) == sorted(map(id, everything))
        self.owned.update(everything)
        self.model = {key: [] for key in KEYS}

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if hasattr(self, "pool"):
            assert len(self.pool) == sum(len(shelf) for shelf in self.model.values())
            idle = {connection for shelf in self.model.values() for connection, _ in shelf}
            assert not idle & self.owned


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
