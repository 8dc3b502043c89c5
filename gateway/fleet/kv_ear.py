"""One engine's events, heard: the sockets around an `EventSequence`.

A SUB socket hears what is published, and for each round of a replay a DEALER of its own asks. What
comes waits in the sockets until somebody takes a turn at listening (`turn`): it is then handed to
the sequence, and what the sequence says is carried out.

Whether the wire was cut is looked for before anything that may have come over the next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from gateway.fleet.kv_sequence import Apply, Ask, Effect, EventSequence, Say
from gateway.fleet.kv_wire import read_batch, read_message, replay_request
from gateway.kv_cache import BlockEvent, BlocksCleared, BlocksStored
from gateway.vocabulary import EventSource, ReplicaId, Seconds

if TYPE_CHECKING:
    from gateway.fleet.kv_events import Heard, Means

MOST_EVENTS: Final = 64
"""So many are told at once, of however many batches: what is done for each telling is dear beside
what is done for each block."""

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
        self._round = 0
        self._wants_repair = False
        self._events: list[BlockEvent] = []  # read, and not yet told
        self._trouble: asyncio.Future[None] | None = None  # while it runs; ends with what ends it

    def __repr__(self) -> str:
        return f"<Ear at {self._source.endpoint}: {self._sequence}>"

    def repair(self) -> None:
        """What was told of this source was found to be wrong: ask for everything anew, soon."""
        self._wants_repair = True

    async def run(self) -> None:
        """Until cancelled. Raises zmq.ZMQError for an endpoint that is none, and what `fail` was
        told."""
        self._trouble = asyncio.get_running_loop().create_future()
        try:
            self._sub = self._open(zmq.SUB, self._source.endpoint)
            self._carry_out(self._sequence.begin(self._means.clock()))
            await self._trouble
        finally:
            self._trouble = None
            self._close()

    def fail(self, error: Exception) -> None:
        """A turn went wrong: `run` ends with this."""
        if self._trouble is not None and not self._trouble.done():
            self._trouble.set_exception(error)

    def turn(self, deadline: Seconds) -> bool:
        """Hand in what waits, until then. True when nothing waits any more, nor is due.

        Raises zmq.ZMQError, and whatever the listener raises.
        """
        if self._sub is None or self._trouble is None or self._trouble.done():
            return True
        try:
            return self._slice(deadline)
        finally:
            self._tell()

    @property
    def is_calm(self) -> bool:
        """What comes next is more of the same: there is no hurry to hear it."""
        return self._sequence.is_under_way and not self._wants_repair

    def _slice(self, deadline: Seconds) -> bool:
        clock, sequence = self._means.clock, self._sequence
        began_at = clock()
        if self._wants_repair:
            self._wants_repair = False
            self._carry_out(sequence.repair(began_at))
        if self._was_cut():
            self._carry_out(sequence.cut(began_at))
        is_dry = self._hear_live((began_at + deadline) / 2)
        is_dry &= self._hear_replay(deadline)
        if is_dry and self._carry_out(sequence.idle(clock())):
            is_dry = False
        self._heard.gaps = self._gaps_before + sequence.gaps
        return is_dry

    def _hear_live(self, deadline: Seconds) -> bool:
        clock, sequence = self._means.clock, self._sequence
        now = clock()
        if not _waits(self._sub):
            return True
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
        if not _waits(self._dealer):
            return True
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
        if not _waits(self._cuts):
            return False
        while (frames := _received(self._cuts)) is not None:
            was_cut |= parse_monitor_message(frames)["event"] == zmq.Event.DISCONNECTED
        return was_cut

    # What is to be done

    def _carry_out(self, effects: list[Effect]) -> bool:
        """Do it, and what follows from it. True if there was anything to do."""
        listener, heard = self._means.listener, self._heard
        for effect in effects:  # which grows while it is walked
            if isinstance(effect, Apply):
                effects += self._read(effect.number, effect.batch)
            elif isinstance(effect, Ask):
                self._ask(effect.first, effect.round)
            else:
                self._tell()
                if isinstance(effect, Say):
                    heard.certainty = effect.certainty
                    listener.certainty(self._replica, effect.certainty)
                else:
                    listener.retold(self._replica)
        return bool(effects)

    def _read(self, number: int, batch: bytes) -> list[Effect]:
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
        self._events += events
        if len(self._events) >= MOST_EVENTS:
            self._tell()
        return self._sequence.cleared(number) if is_cleared else []

    def _tell(self) -> None:
        """The listener is told of what has been read."""
        if self._events:
            events, self._events = self._events, []
            self._means.listener.apply(self._replica, events)

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
            opened.connect(endpoint)
        except zmq.ZMQError:
            opened.close()
            raise
        return opened

    def _shut(self, opened: _Socket | None) -> None:
        if opened is not None and not opened.closed:
            opened.close()

    def _close(self) -> None:
        self._shut(self._cuts)
        if self._sub is not None:
            self._sub.disable_monitor()
        self._shut(self._sub)
        self._shut(self._dealer)


def _waits(opened: _Socket | None) -> bool:
    """Is there a message? Asking costs less than an exception that says there is none."""
    return opened is not None and bool(int(opened.getsockopt(zmq.EVENTS)) & _READABLE)


def _received(opened: _Socket | None) -> list[bytes] | None:
    """The next message; None where none waits. Frames know whether more follow, and are asked:
    asking the socket, as `recv_multipart` does, takes as long as all the rest."""
    if opened is None:
        return None
    try:
        frame = opened.recv(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    frames = [frame.bytes]
    while frame.more:
        frame = opened.recv(zmq.NOBLOCK, copy=False)
        frames.append(frame.bytes)
    return frames
