"""One engine's events, heard: the sockets around an `EventSequence`.

A SUB socket hears what is published, and for each round of a replay a DEALER of its own asks. What
comes is handed to the sequence, and what the sequence says is carried out, in slices of at most
`SLICE_S`. `Means.turn` makes the slices of all ears follow each other, and while more waits than
fits in one it rests in between: so no request waits for more than a slice at a time, and at least
half of the core is left to them.

Whether the wire was cut is looked for before anything that may have come over the next one.

An engine that generates publishes something with every step. Each wake-up costs more than what it
brings, so after one that was dry there is none for `GATHER_S`, and what comes meanwhile is heard
together. Nothing is chosen wrongly for that: prompts on their way are known to be, for longer; and
who must know what is held at an instant has what waits handed in (`hear`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from gateway.fleet.kv_sequence import Apply, Ask, Effect, EventSequence, Retold, Say
from gateway.fleet.kv_wire import read_batch, read_message, replay_request
from gateway.kv_cache import BlocksCleared, BlocksStored
from gateway.vocabulary import EventSource, ReplicaId, Seconds

if TYPE_CHECKING:
    from gateway.fleet.kv_events import Heard, Means

SLICE_S: Final[Seconds] = 0.001
REST_S: Final[Seconds] = 0.001
GATHER_S: Final[Seconds] = 0.1

_READABLE: Final = int(zmq.POLLIN)

_Socket = zmq.Socket[bytes]


class Ear:
    """Listens to one source for as long as `run` runs."""

    def __init__(self, replica: ReplicaId, source: EventSource, heard: Heard, means: Means) -> None:
        self._replica = replica
        self._source = source
        self._heard = heard
        self._means = means
        self._sequence = EventSequence(source.replay_endpoint is not None, means.patience)
        self._gaps_before = heard.gaps
        self._sub: _Socket | None = None
        self._cuts: _Socket | None = None
        self._dealer: _Socket | None = None
        self._descriptors: dict[_Socket, int] = {}  # asking for one is slow
        self._round = 0
        self._woken = asyncio.Event()
        self._wants_repair = False

    def __repr__(self) -> str:
        return f"<Ear at {self._source.endpoint}: {self._sequence}>"

    def repair(self) -> None:
        """What was told of this source was found to be wrong: ask for everything anew, soon."""
        self._wants_repair = True
        self._woken.set()

    def hear(self) -> None:
        """Hand in what waits, now; at most a slice."""
        try:
            self._slice()
        except zmq.ZMQError:
            self._woken.set()  # `run` meets it too

    async def run(self) -> None:
        """Until cancelled. Raises zmq.ZMQError for an endpoint that is none."""
        means, sequence = self._means, self._sequence
        try:
            self._sub = self._open(zmq.SUB, self._source.endpoint)
            self._carry_out(sequence.begin(means.clock()))
            while True:
                self._woken.clear()
                async with means.turn:
                    is_dry = self._slice()
                    if not is_dry:
                        await asyncio.sleep(REST_S)
                if is_dry and not self._carry_out(sequence.idle(means.clock())):
                    await self._wait()
        finally:
            self._close()

    async def _wait(self) -> None:
        """Until something comes, or silence means something, but for `GATHER_S` at least."""
        self._listen(on=False)
        await asyncio.sleep(GATHER_S)
        self._listen(on=True)
        due_at, timer = self._sequence.due_at, None
        if due_at is not None:
            delay_s = max(0.0, due_at - self._means.clock())
            timer = asyncio.get_running_loop().call_later(delay_s, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            if timer is not None:
                timer.cancel()

    # A slice

    def _slice(self) -> bool:
        """Hand in what waits. True when nothing waits any more."""
        clock, sequence = self._means.clock, self._sequence
        began_at = clock()
        if self._wants_repair:
            self._wants_repair = False
            self._carry_out(sequence.repair(began_at))
        if self._was_cut():
            self._carry_out(sequence.cut(began_at))
        is_dry = self._hear_live(began_at + SLICE_S / 2)
        is_dry &= self._hear_replay(began_at + SLICE_S)
        self._heard.gaps = self._gaps_before + sequence.gaps
        return is_dry

    def _hear_live(self, deadline: Seconds) -> bool:
        clock, sequence = self._means.clock, self._sequence
        now = clock()
        while (frames := _received(self._sub)) is not None:
            try:
                message = read_message(frames)
            except ValueError:
                continue  # if it was a batch, its number will be missing
            if not message.is_end:
                self._carry_out(sequence.live(message.number, message.payload, now))
            now = clock()
            if now >= deadline:
                return False
        return True

    def _hear_replay(self, deadline: Seconds) -> bool:
        clock, sequence = self._means.clock, self._sequence
        now = clock()
        while (frames := _received(self._dealer)) is not None:
            try:
                message = read_message(frames)
            except ValueError:
                continue
            if message.is_end:
                self._carry_out(sequence.ended(self._round, now))
            else:
                self._carry_out(
                    sequence.replayed(self._round, message.number, message.payload, now)
                )
            now = clock()
            if now >= deadline:
                return False
        return True

    def _was_cut(self) -> bool:
        was_cut = False
        while (frames := _received(self._cuts)) is not None:
            was_cut |= parse_monitor_message(frames)["event"] == zmq.Event.DISCONNECTED
        return was_cut

    # What is to be done

    def _carry_out(self, effects: list[Effect]) -> bool:
        """Do it, and what follows from it. True if there was anything to do."""
        listener, heard = self._means.listener, self._heard
        for effect in effects:  # which grows while it is walked
            match effect:
                case Apply(number, batch):
                    effects += self._tell(number, batch)
                case Retold():
                    listener.retold(self._replica)
                case Say(certainty):
                    heard.certainty = certainty
                    listener.certainty(self._replica, certainty)
                case Ask(first, round_):
                    self._ask(first, round_)
        return bool(effects)

    def _tell(self, number: int, batch: bytes) -> list[Effect]:
        heard = self._heard
        heard.batches += 1
        try:
            events = read_batch(batch)
        except ValueError:
            return self._sequence.unreadable(number)
        is_cleared = False
        for event in events:
            if isinstance(event, BlocksStored):
                heard.blocks += len(event.hashes)
            elif isinstance(event, BlocksCleared):
                is_cleared = True
        if events:
            self._means.listener.apply(self._replica, events)
        return self._sequence.cleared(number) if is_cleared else []

    def _ask(self, first: int, round_: int) -> None:
        assert self._source.replay_endpoint is not None, "the sequence knows that it can ask"
        self._shut(self._dealer)
        self._dealer = self._open(zmq.DEALER, self._source.replay_endpoint)
        self._dealer.send_multipart(replay_request(first), zmq.NOBLOCK)
        self._round = round_
        self._heard.replays += 1

    # Sockets

    def _open(self, kind: zmq.SocketType, endpoint: str) -> _Socket:
        """Connected, without a bound on what it takes in. Raises zmq.ZMQError."""
        opened = self._means.context.socket(kind)
        try:
            opened.linger = 0
            opened.ipv6 = True
            opened.rcvhwm = 0
            if kind == zmq.SUB:
                opened.subscribe(self._source.topic)
                self._cuts = opened.get_monitor_socket(zmq.Event.DISCONNECTED)
                self._wake_by(self._cuts)
            opened.connect(endpoint)
            self._wake_by(opened)
        except zmq.ZMQError:
            opened.close()
            raise
        return opened

    def _wake_by(self, opened: _Socket) -> None:
        self._descriptors[opened] = descriptor = int(opened.fd)
        asyncio.get_running_loop().add_reader(descriptor, self._woken.set)

    def _listen(self, *, on: bool) -> None:
        """What waits in a socket keeps its descriptor readable, and would wake us at once."""
        loop = asyncio.get_running_loop()
        for descriptor in self._descriptors.values():
            if on:
                loop.add_reader(descriptor, self._woken.set)
            else:
                loop.remove_reader(descriptor)

    def _shut(self, opened: _Socket | None) -> None:
        if opened is not None and not opened.closed:
            asyncio.get_running_loop().remove_reader(self._descriptors.pop(opened))
            opened.close()

    def _close(self) -> None:
        self._shut(self._cuts)
        if self._sub is not None:
            self._sub.disable_monitor()
        self._shut(self._sub)
        self._shut(self._dealer)


def _received(opened: _Socket | None) -> list[bytes] | None:
    """The next message, or None where none waits. Looked for first: raising costs more."""
    if opened is None or not int(opened.getsockopt(zmq.EVENTS)) & _READABLE:
        return None
    return opened.recv_multipart(zmq.NOBLOCK)
