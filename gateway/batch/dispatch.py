"""The lines in flight: which may start, which must make way, and what becomes of each.

Works hand in lines; the dispatcher starts them as the pace of their model allows, in the order in
which they were handed in. A line that was displaced, or that nobody had room for, goes back to the
front. A line ends by one call of `answered` on its work; a work that stops takes its lines out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from gateway.batch.pace import Pace, displaced
from gateway.errors import Displaced, QueueFull, TooManyRequests, UnknownModel
from gateway.vocabulary import ModelName

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from gateway.batch.nouns import BatchLine
    from gateway.clock import Clock
    from gateway.errors import GatewayError
    from gateway.settings import BatchSettings
    from gateway.vocabulary import ReplicaId, ReplicaView, Route, Seconds

LOOK_EVERY_S: Final = 0.02  # how soon interactive work is noticed
_NO_ROOM: Final = frozenset({429, 503})
_LEAST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class Answer(Protocol):
    """What came back for a line."""

    @property
    def request_id(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def error(self) -> GatewayError | None:
        """Set where the gateway, not a replica, had the last word."""


class Errand(Protocol):
    """A request of our own."""

    among: Container[ReplicaId] | None
    """Only these replicas are to be asked."""

    @property
    def replica(self) -> ReplicaId | None:
        """Where it was sent; None before."""

    async def run(self) -> Answer:
        """Its life. Cancelled, the engine stops working on it."""


class Sender(Protocol):
    """Makes requests of our own."""

    def new(self, route: Route, body: bytes, tenant: str) -> Errand: ...


class Fleet(Protocol):
    """Who could answer."""

    def serving(self, model: ModelName) -> Sequence[ReplicaView]:
        """Those that take work and serve it; may be none."""

    def known_at_zero(self, model: ModelName) -> object | None:
        """Something, if requests for a model are held where there are none."""


class Owner(Protocol):
    """Whose lines they are."""

    @property
    def route(self) -> Route: ...
    @property
    def tenant(self) -> str: ...
    @property
    def is_behind(self) -> bool:
        """It has more results than it has written down: no new line until it has caught up."""

    async def body(self, line: BatchLine) -> bytes: ...

    def answered(self, line: BatchLine, answer: Answer) -> None: ...

    def broke(self, error: Exception) -> None:
        """A line could not be read: the work cannot go on."""


class _Flight:
    """A line in flight."""

    __slots__ = ("errand", "is_displaced", "line", "queue", "task")

    def __init__(self, queue: _Queue, line: BatchLine) -> None:
        self.queue = queue
        self.line = line
        self.errand: Errand | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_displaced = False


class _Queue:
    """The lines of one owner for one model that wait, and the tries of those that failed."""

    __slots__ = (
        "inflight", "model", "open_to", "owner", "pause_s", "paused_until", "tries", "waiting",
    )  # fmt: skip

    def __init__(self, owner: Owner, model: ModelName) -> None:
        self.owner = owner
        self.model = model
        self.waiting: deque[BatchLine] = deque()
        self.inflight = 0
        self.open_to: set[ReplicaId] | None = (
            set()
        )  # what has room for a line; None: whatever comes
        self.tries: Counter[int] = Counter()  # by line
        self.pause_s: Seconds = _LEAST_PAUSE_S
        self.paused_until: Seconds = 0.0

    def may_start(self, now: Seconds) -> bool:
        """A line of it, by what is known here."""
        return (
            bool(self.waiting and (self.open_to is None or self.open_to))
            and now >= self.paused_until
            and not self.owner.is_behind
        )

    def back(self, line: BatchLine, now: Seconds) -> None:
        """There was no room for a line: it is the next, later, and later still if need be."""
        self.waiting.appendleft(line)
        if now >= self.paused_until:
            self.paused_until = now + self.pause_s
            self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


class Dispatcher:
    """Owns every line in flight of this gateway."""

    def __init__(self, settings: BatchSettings, sender: Sender, fleet: Fleet, clock: Clock) -> None:
        self._settings = settings
        self._floor = settings.lines_beside_others
        self._sender = sender
        self._fleet = fleet
        self._clock = clock
        self._queues: list[_Queue] = []  # the next to be served first
        self._paces: dict[ModelName, Pace] = {}
        self._flights: dict[int, _Flight] = {}  # by a number that grows: the oldest first
        self._next = 0
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        waiting = sum(len(queue.waiting) for queue in self._queues)
        return f"<Dispatcher {len(self._flights)} lines in flight, {waiting} waiting>"

    @property
    def inflight(self) -> int:
        """Lines that have been sent and have not ended."""
        return len(self._flights)

    def add(self, owner: Owner, lines: Sequence[BatchLine]) -> None:
        """Take in lines, in the order of work."""
        queues: dict[str, _Queue] = {}
        for line in lines:
            queue = queues.get(line.model)
            if queue is None:
                model = ModelName(line.model)
                queue = queues[model] = _Queue(owner, model)
                self._paces.setdefault(
                    model,
                    Pace(self._settings.lines_per_replica, self._floor),
                )
            queue.waiting.append(line)
        self._queues += queues.values()

    async def withdraw(self, owner: Owner) -> None:
        """Take out every line of `owner`; when this returns none is in flight."""
        self._queues = [queue for queue in self._queues if queue.owner is not owner]
        models = {queue.model for queue in self._queues}
        self._paces = {model: pace for model, pace in self._paces.items() if model in models}
        flights = [flight for flight in self._flights.values() if flight.queue.owner is owner]
        tasks = [flight.task for flight in flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def look(self) -> None:
        """The background loop: lets lines start, and makes them make way."""
        while True:
            self.pump()
            await asyncio.sleep(LOOK_EVERY_S)

    def pump(self) -> None:
        """Start what may start, of every owner in turn; displace what must make way.

        O(lines in flight + replicas that serve the models asked for + lines started).
        """
        if not self._queues:
            return
        ours: Counter[ReplicaId] = Counter()
        for flight in self._flights.values():
            if flight.errand is not None and flight.errand.replica is not None:
                ours[flight.errand.replica] += 1
        now = self._clock()
        caps: dict[ReplicaId, int] = {}
        free: Counter[ModelName] = Counter()
        open_to: dict[ModelName, set[ReplicaId] | None] = {}
        for model, pace in self._paces.items():
            room = pace.room(self._fleet.serving(model), ours, now)
            caps |= {replica: most for replica, most in room.items() if most <= self._floor}
            free[model] = pace.window(room)
            open_to[model] = {replica for replica, most in room.items() if ours[replica] < most}
            if not room and self._fleet.known_at_zero(model) is not None:
                free[model], open_to[model] = 1, None  # one line is held, and so wakes the model
        for queue in self._queues:
            queue.open_to = open_to[queue.model]
            free[queue.model] -= queue.inflight
        self._start_some(free)
        self._displace(caps)

    def _start_some(self, free: Counter[ModelName]) -> None:
        now = self._clock()
        willing = self._queues
        while willing := [q for q in willing if free[q.model] > 0 and q.may_start(now)]:
            for queue in willing:
                if free[queue.model] > 0:
                    free[queue.model] -= 1
                    self._start(queue)
        self._queues.append(self._queues.pop(0))  # another goes first, the next time

    def _displace(self, caps: Mapping[ReplicaId, int]) -> None:
        flying = [
            (flight.errand.replica, key)
            for key, flight in self._flights.items()
            if flight.errand is not None and not flight.is_displaced
        ]
        for key in displaced(caps, flying):
            flight = self._flights[key]
            flight.is_displaced = True
            if flight.task is not None:
                flight.task.cancel()

    def _start(self, queue: _Queue) -> None:
        flight = _Flight(queue, queue.waiting.popleft())
        key = self._next = self._next + 1
        self._flights[key] = flight
        queue.inflight += 1
        flight.task = asyncio.create_task(self._fly(flight, key), name="batch line")
        # One that is cancelled before its first step runs nothing of itself.
        flight.task.add_done_callback(partial(self._over, key))

    def _over(self, key: int, _: asyncio.Task[None] | None = None) -> None:
        """It is in flight no longer. Only the first call counts."""
        if (flight := self._flights.pop(key, None)) is not None:
            flight.queue.inflight -= 1

    async def _fly(self, flight: _Flight, key: int) -> None:
        queue, owner = flight.queue, flight.queue.owner
        try:
            body = await owner.body(flight.line)
            flight.errand = self._sender.new(owner.route, body, owner.tenant)
            flight.errand.among = queue.open_to
            self._landed(flight, await flight.errand.run())
        except asyncio.CancelledError:
            if flight.is_displaced:
                self.outcomes["displaced"] += 1
                self._again(flight)
            raise
        except (OSError, ValueError) as error:  # what cannot be read cannot be sent
            owner.broke(error)
        finally:  # at once: what has ended must not be taken back by the next look
            self._over(key)

    def _landed(self, flight: _Flight, answer: Answer) -> None:
        """An answer came: it is the line's, or the line has to try again."""
        queue, number = flight.queue, flight.line.number
        if answer.status in _NO_ROOM or isinstance(answer.error, UnknownModel):
            self.outcomes["no_room"] += 1
            return self._again(flight, is_full=answer.error is None or _is_full(answer.error))
        if answer.status >= 500:
            queue.tries[number] += 1
            if queue.tries[number] < self._settings.max_attempts:
                self.outcomes["tried_again"] += 1
                return self._again(flight)
        queue.pause_s = _LEAST_PAUSE_S
        if (pace := self._paces.get(queue.model)) is not None:
            pace.answered()
        self.outcomes["completed" if answer.status < 400 else "failed"] += 1
        queue.owner.answered(flight.line, answer)

    def _again(self, flight: _Flight, *, is_full: bool = True) -> None:
        if is_full and (pace := self._paces.get(flight.queue.model)) is not None:
            pace.refused()
        flight.queue.back(flight.line, self._clock())


def _is_full(error: GatewayError) -> bool:
    """Was it we who had no room? Else its tenant's limits are reached, or nobody was there to be
    asked: fewer lines at once would change nothing."""
    return isinstance(error, QueueFull | TooManyRequests | Displaced)
