"""Between an engine that publishes KV-cache events and whoever subscribes: a wire that can lose.

    with LossyWire(upstream="tcp://127.0.0.1:5557") as wire:
        ...                       # subscribe to wire.endpoint
        with wire.losing():       # what is published now never arrives
            ...

Frames pass as they are, on a thread of its own, for as long as the `with` lasts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import zmq

POLL_MS = 20
HIGH_WATER = 100_000


class LossyWire:
    """Subscribes to `upstream` and publishes all of it, but for what it loses."""

    def __init__(self, upstream: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.set_hwm(HIGH_WATER)
        self._sub.subscribe(b"")
        self._sub.connect(upstream)
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(HIGH_WATER)
        self._pub.bind("tcp://127.0.0.1:*")
        self.endpoint = self._pub.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.passed = 0
        self.lost = 0
        self._is_losing = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="lossy wire", daemon=True)

    def __repr__(self) -> str:
        return f"<LossyWire at {self.endpoint}: {self.passed} passed, {self.lost} lost>"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._sub.close(linger=0)
        self._pub.close(linger=0)
        self._context.term()

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """Lose everything that comes while the `with` lasts."""
        self._is_losing.set()
        try:
            yield
        finally:
            self._is_losing.clear()

    def _carry(self) -> None:
        while not self._is_over.is_set():
            if not self._sub.poll(POLL_MS):
                continue
            frames = self._sub.recv_multipart()
            if self._is_losing.is_set():
                self.lost += 1
            else:
                self._pub.send_multipart(frames)
                self.passed += 1
