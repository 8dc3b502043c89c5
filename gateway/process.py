"""One process that serves: its loop, its collector, its signals."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Any, Final

from gateway.app import House

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.worker import Worker

GC_THRESHOLD: Final = 50_000  # objects made and not yet freed before the youngest are looked at


def run(settings: Settings, worker: Worker | None = None) -> int:
    """Serve until told to stop. Returns the exit code."""
    house = House(settings, worker)
    server = house.server()

    async def main() -> None:
        # Requests die by reference count; what the start has built lives for ever. Left alone, the
        # collector would walk over all of it several times a second and find nothing.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        await house.serve(server)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runner.run(main())
    return 0 if server.started else 1


def _loop_factory() -> Any:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
