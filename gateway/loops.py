"""What is done beside the requests, again and again, until the gateway ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from gateway.vocabulary import Seconds

AGAIN_S: Final = 1.0

log = logging.getLogger(__name__)


async def kept(name: str, loop: Callable[[], Awaitable[object]]) -> None:
    """Run a loop to its end. One that a bug ends begins again a moment later: what goes on beside
    the requests ends none of them."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s has a bug, and begins again", name)
            await asyncio.sleep(AGAIN_S)
        else:
            return


async def every(period_s: Seconds, what: Callable[[], object]) -> NoReturn:
    """Do it so often."""
    while True:
        await asyncio.sleep(period_s)
        what()
