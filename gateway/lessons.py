"""What is learnt of prompts and replicas after the choice, off the critical path.

Asked by the corridor, which waits for none of it: read this prompt as tokens and tell the policy,
so that the next one alike is looked up by the names of its blocks; and see whether this response
says what engine has written it. Lessons are worked off slice by slice, others having turns between.

Invariants. Nothing here delays a request. A prompt that cannot be read teaches nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.fleet.exposition import read_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.choose.chooser import Chooser, Claim
    from gateway.fleet.ledger import Replica
    from gateway.kv_cache import EngineFacts, Tokenised
    from gateway.tokens.service import Tokens
    from gateway.vocabulary import GenerationRequest

MOST_WAITING: Final = 1000
"""Lessons not yet begun; more come than can be learnt if there are so many."""

_FINGERPRINT: Final = re.compile(rb'"system_fingerprint": ?"([^"\\]{1,200})"')


class Lessons:
    """Works for as long as `run` runs."""

    __slots__ = ("_chooser", "_observe", "_tokens", "_waiting", "_wake")

    def __init__(
        self, chooser: Chooser, tokens: Tokens, observe: Callable[[Replica, EngineFacts], None]
    ) -> None:
        """`observe` is told what responses say of engines."""
        self._chooser = chooser
        self._tokens = tokens
        self._observe = observe
        self._waiting: deque[Iterator[None]] = deque(maxlen=MOST_WAITING)
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Lessons: {len(self._waiting)} waiting>"

    def dispatched(self, request: GenerationRequest, claim: Claim, replica: Replica) -> None:
        """It is on its way there."""
        if claim.dispatch is not None:
            self._tokens.submit(request, partial(self._read, claim), replica.address)

    def answered(self, replica: Replica, tail: bytes) -> None:
        """A response was relayed whole, and this is its end."""
        if replica.facts.version is not None:
            return
        found = _FINGERPRINT.search(tail)
        if found is not None:
            self._observe(replica, read_fingerprint(found[1].decode("ascii", "replace")))

    def _read(self, claim: Claim, tokenised: Tokenised | None) -> None:
        if tokenised is not None:
            self._waiting.append(self._chooser.learn(claim, tokenised))
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                for _ in self._waiting.popleft():
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
