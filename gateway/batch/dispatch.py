"""The lines in flight: which may start, which must make way, and what becomes of each.

Works hand in lines; the dispatcher starts them as the pace of their model allows, in the order in
which they were handed in. A line that was displaced, or that nobody had room for, goes back to the
front. A line ends by one call of `answered` on its work; a work that stops takes its lines out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Protocol

from gateway.batch.pace import Pace, displaced
from gateway.errors import UnknownModel
from gateway.vocabulary import ModelName

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    @property
    def replica(self) -> ReplicaId | None:
        """Where it was sent."""

    async def run(self) -> Answer:
        """Its life. Cancelled, the engine stops working on it."""


class Sender(Protocol):
    """Makes requests of our own."""

    def new(self, route: Route, body: bytes, on_behalf_of: str) -> Errand: ...


class Fleet(Protocol):
    """Who could answer."""

    def serving(self, model: ModelName) -> Sequence[ReplicaView]:
        """Those that take work and serve it; may be none."""


class Owner(Protocol):
    """Whose lines they are."""

    @property
    def route(self) -> Route: ...
    @property
    def tenant(self) -> str:
        """On whose behalf they are sent; empty for nobody's in particular."""

    @property
    def is_behind(self) -> bool:
        """It has more results than it has written down: no new line until it has caught up."""

    async def body(self, line: BatchLine) -> bytes: ...

    def answered(self, line: BatchLine, answer: Answer) -> None: ...

    def broke(self, error: Exception) -> None:
        """A line could not be read: the work cannot go on."""


class _Flight:
    """A line in flight."""

    __slots__ = ("errand", "is_displaced", "line", "owner", "task")

    def __init__(self, owner: Owner, line: BatchLine) -> None:
        self.owner = owner
        self.line = line
        self.errand: Errand | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_displaced = False


class _Queue:
    """The lines of one model that wait."""

    __slots__ = ("inflight", "pace", "pause_s", "paused_until", "waiting")

    def __init__(self, settings: BatchSettings) -> None:
        self.waiting: deque[tuple[Owner, BatchLine]] = deque()
        self.inflight = 0
        self.pace = Pace(settings.lines_per_replica, settings.lines_beside_others)
        self.pause_s: Seconds = _LEAST_PAUSE_S
        self.paused_until: Seconds = 0.0

    def pause(self, now: Seconds) -> None:
        """There was no room: look again later, and later still if there is none then."""
        self.pace.refused()
        if now >= self.paused_until:
            self.paused_until = now + self.pause_s
            self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


class Dispatcher:
    """Owns every line in flight of this gateway."""

    def __init__(self, settings: BatchSettings, sender: Sender, fleet: Fleet, clock: Clock) -> None:
        self._settings = settings
        self._sender = sender
        self._fleet = fleet
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._flights: dict[int, _Flight] = {}  # by a number that grows: the oldest first
        self._next = 0
        self._attempts: Counter[tuple[int, int]] = Counter()
        self.outcomes: Counter[str] = Counter()

    def __repr__(self) -> str:
        waiting = sum(len(queue.waiting) for queue in self._queues.values())
        return f"<Dispatcher {len(self._flights)} lines in flight, {waiting} waiting>"

    @property
    def inflight(self) -> int:
        """Lines that have been sent and have not ended."""
        return len(self._flights)

    def add(self, owner: Owner, lines: Sequence[BatchLine]) -> None:
        """Take in lines, in the order of work."""
        for line in lines:
            queue = self._queues.get(line.model)
            if queue is None:
                queue = self._queues[line.model] = _Queue(self._settings)
            queue.waiting.append((owner, line))

    async def withdraw(self, owner: Owner) -> None:
        """Take out every line of `owner`; when this returns none is in flight."""
        flights = [flight for flight in self._flights.values() if flight.owner is owner]
        tasks = [flight.task for flight in flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for model, queue in tuple(self._queues.items()):
            queue.waiting = deque(each for each in queue.waiting if each[0] is not owner)
            if not queue.waiting and not queue.inflight:
                del self._queues[model]

    async def look(self) -> None:
        """The background loop: lets lines start, and makes them make way."""
        while True:
            self.pump()
            await asyncio.sleep(LOOK_EVERY_S)

    def pump(self) -> None:
        """Start what may start; displace what must make way."""
        if not self._queues:
            return
        ours: Counter[ReplicaId] = Counter()
        for flight in self._flights.values():
            if flight.errand is not None and flight.errand.replica is not None:
                ours[flight.errand.replica] += 1
        now = self._clock()
        caps: dict[ReplicaId, int] = {}
        for model, queue in self._queues.items():
            room = queue.pace.caps(self._fleet.serving(ModelName(model)), ours)
            caps |= room
            free = queue.pace.allow(room) - queue.inflight
            if now < queue.paused_until:
                continue
            while free > 0 and queue.waiting and not queue.waiting[0][0].is_behind:
                self._start(queue, *queue.waiting.popleft())
                free -= 1
        self._displace(caps)

    def _displace(self, caps: dict[ReplicaId, int]) -> None:
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

    def _start(self, queue: _Queue, owner: Owner, line: BatchLine) -> None:
        flight = _Flight(owner, line)
        key = self._next = self._next + 1
        self._flights[key] = flight
        queue.inflight += 1
        flight.task = asyncio.create_task(self._fly(queue, flight, key), name="batch line")

    async def _fly(self, queue: _Queue, flight: _Flight, key: int) -> None:
        try:
            body = await flight.owner.body(flight.line)
            flight.errand = self._sender.new(flight.owner.route, body, flight.owner.tenant)
            answer = await flight.errand.run()
            self._landed(queue, flight, answer)
        except asyncio.CancelledError:
            if flight.is_displaced:
                self.outcomes["displaced"] += 1
                queue.pause(self._clock())
                queue.waiting.appendleft((flight.owner, flight.line))
            raise
        except (OSError, ValueError) as error:  # what cannot be read cannot be sent
            flight.owner.broke(error)
        finally:
            queue.inflight -= 1
            del self._flights[key]

    def _landed(self, queue: _Queue, flight: _Flight, answer: Answer) -> None:
        """An answer came: it is the line's, or the line has to try again."""
        place = (id(flight.owner), flight.line.number)
        if answer.status in _NO_ROOM or isinstance(answer.error, UnknownModel):
            self.outcomes["no_room"] += 1
        elif answer.status >= 500:
            self._attempts[place] += 1
            if self._attempts[place] < self._settings.max_attempts:
                self.outcomes["tried_again"] += 1
            else:
                return self._answered(flight, answer)
        else:
            queue.pace.answered()
            queue.pause_s = _LEAST_PAUSE_S
            return self._answered(flight, answer)
        queue.pause(self._clock())
        queue.waiting.appendleft((flight.owner, flight.line))

    def _answered(self, flight: _Flight, answer: Answer) -> None:
        self._attempts.pop((id(flight.owner), flight.line.number), None)
        self.outcomes["completed" if answer.status < 400 else "failed"] += 1
        flight.owner.answered(flight.line, answer)
