"""KV-cache events over ZeroMQ, byte for byte as vLLM 0.32 sends them.

PUB sends three frames a batch: topic, sequence number (8 bytes, big-endian, from 0), and msgpack of
[time, events, rank]. ROUTER answers a replay request [b"", first number] from a DEALER with one
message per kept batch, [b"", topic, number, payload], and an end marker [b"", b"", 2^64-1, b""].
As in vLLM the ROUTER keeps ZeroMQ's own high-water mark, so batches are lost, without a word, for a
reader that is too slow: a consumer has to find the gap and ask again.

Different from vLLM: every endpoint is bound, never connected, also one that names a host.

Source: vLLM 0.32, distributed/kv_events.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from serving.sim.kv_cache import KvEvent
from serving.sim.settings import KvEventSettings

END_OF_REPLAY = b"\xff" * 8
RANK = 0

_HIGH_WATER_BATCHES = 100_000
_REPLAY_POLL_S = 0.02


class EventPublisher:
    """The two sockets, the sequence, and the batches kept for replay.

    Without an endpoint it has no sockets and does nothing. Raises OSError where an endpoint cannot
    be bound.
    """

    def __init__(self, settings: KvEventSettings, clock: Callable[[], float]) -> None:
        self.endpoint: str | None = None
        self.replay_endpoint: str | None = None
        self._settings = settings
        self._clock = clock
        self._topic = settings.topic.encode()
        self._encoder = msgspec.msgpack.Encoder()
        self._next_number = 0
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=settings.buffer_steps)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pub: zmq.Socket[bytes] | None = None
        self._router: zmq.Socket[bytes] | None = None
        if settings.endpoint is not None:
            self._open(settings.endpoint, settings.replay_endpoint)

    def __repr__(self) -> str:
        return f"<EventPublisher at {self.endpoint}, next batch {self._next_number}>"

    def sources(self) -> dict[str, dict[str, Any]]:
        """What GET /kv_event_sources says: the configuration per rank, ports resolved."""
        if self.endpoint is None:
            return {}
        config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": self._settings.buffer_steps,
            "hwm": _HIGH_WATER_BATCHES,
            "max_queue_size": _HIGH_WATER_BATCHES,
            "topic": self._settings.topic,
        }
        return {str(RANK): config}

    def publish(self, events: list[KvEvent]) -> None:
        """Send one batch, without waiting for anyone."""
        if self._pub is None:
            return
        number = self._next_number.to_bytes(8, "big")
        payload = self._encoder.encode([self._clock(), events, RANK])
        self._next_number += 1
        self._pub.send_multipart((self._topic, number, payload), zmq.NOBLOCK)
        self._kept.append((number, payload))

    async def serve_replays(self) -> None:
        """Answer replay requests, for ever; at once done where there is no replay endpoint."""
        while self._router is not None:
            while self._router.poll(0):
                self._replay(self._router, self._router.recv_multipart(zmq.NOBLOCK))
            await asyncio.sleep(_REPLAY_POLL_S)

    def close(self) -> None:
        """Close both sockets; nothing is sent any more."""
        for opened in (self._pub, self._router):
            if opened is not None:
                opened.close(linger=0)
        if self._context is not None:
            self._context.term()
        self._pub = self._router = self._context = None

    def _replay(self, router: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Send what is kept from a number on, then the end; ignore what is no request."""
        if len(frames) != 3:
            return
        peer, _, first = frames
        for number, payload in self._kept:
            if number >= first:
                router.send_multipart((peer, b"", self._topic, number, payload))
        router.send_multipart((peer, b"", b"", END_OF_REPLAY, b""))

    def _open(self, endpoint: str, replay_endpoint: str | None) -> None:
        self._context = zmq.Context()
        try:
            self._pub = self._context.socket(zmq.PUB)
            self._pub.set_hwm(_HIGH_WATER_BATCHES)
            self.endpoint = _bind(self._pub, endpoint)
            if replay_endpoint is not None:
                self._router = self._context.socket(zmq.ROUTER)
                self.replay_endpoint = _bind(self._router, replay_endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"{endpoint}: {error}") from error


def _bind(opened: zmq.Socket[bytes], endpoint: str) -> str:
    """The endpoint bound, with the port the system chose."""
    opened.bind(endpoint)
    bound = opened.getsockopt_string(zmq.LAST_ENDPOINT)
    return bound.rstrip("\0")
