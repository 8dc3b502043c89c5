"""What is learnt of prompts and replicas after the choice, off the critical path.

Asked by the corridor, which waits for none of it: read this prompt as tokens and tell the policy,
so that the next one alike is looked up by the names of its blocks; and see whether this response
says what engine has written it. Lessons are worked off slice by slice, others having turns between.
One thing is waited for, and not for long: a prompt whose tokens could change the choice.

Invariants. Nothing else here delays a request. A prompt that cannot be read teaches nothing. No
prompt is read twice.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.fleet.exposition import read_fingerprint
from gateway.kv_cache import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.choose.chooser import Chooser, Claim
    from gateway.fleet.ledger import Replica
    from gateway.kv_cache import EngineFacts, Tokenised
    from gateway.request import GenerationRequest
    from gateway.settings import ChooseSettings
    from gateway.tokens.service import Tokens
    from gateway.vocabulary import Seconds

MOST_WAITING: Final = 1000
"""Lessons not yet begun; more come than can be learnt if there are so many."""

IN_TIME, LATE, UNREAD = "in_time", "late", "unread"

GIVE_UP_AFTER, REST_S = 4, 10.0
"""Where so many prompts in a row came late, none is waited for a while. Those that cannot be read
say so at once."""

MOST_NAMELESS: Final = 256
"""Answers of a replica that are looked at for the engine's name: a search costs as much as reading
their `usage`."""

_MARK: Final = b'"system_fingerprint"'  # found in a tenth of the time an expression takes
_FINGERPRINT: Final = re.compile(rb'"system_fingerprint": ?"([^"\\]{1,200})"')


class Lessons:
    """Works for as long as `run` runs."""

    __slots__ = (
        "_chooser", "_late", "_observe", "_rests_until", "_tokens", "_waiting", "_wake",
        "first_s", "read_first_by_result",
    )  # fmt: skip

    def __init__(
        self,
        chooser: Chooser,
        tokens: Tokens,
        observe: Callable[[Replica, EngineFacts], None],
        settings: ChooseSettings,
    ) -> None:
        """`observe` is told what responses say of engines."""
        self.first_s: Seconds = settings.tokenise_first_s
        """So long a prompt may take to be read before it is sent; 0: none is."""
        self.read_first_by_result = {IN_TIME: 0, LATE: 0, UNREAD: 0}
        self._late = 0  # in a row
        self._rests_until: Seconds = 0.0
        self._chooser = chooser
        self._tokens = tokens
        self._observe = observe
        self._waiting: deque[Iterator[None]] = deque(maxlen=MOST_WAITING)
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Lessons: {len(self._waiting)} waiting>"

    def dispatched(self, request: GenerationRequest, claim: Claim, replica: Replica) -> None:
        """It is on its way there."""
        if claim.dispatch is None:
            return
        if request.reading is not None:
            request.reading.when_over(partial(self._read, claim))
        elif claim.dispatch.wants_tokens:
            self._tokens.submit(request, partial(self._read, claim), replica.address)

    async def read_first(
        self, request: GenerationRequest, replicas: Sequence[Replica]
    ) -> GenerationRequest:
        """Its prompt is worth reading before the choice: the request with that, as far as it can be
        done in time. What comes later is learnt from all the same."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            return request
        reading, known = Reading(), asyncio.Event()

        def early(tokenised: Tokenised) -> None:
            reading.early(tokenised)
            known.set()

        def end(tokenised: Tokenised | None) -> None:
            reading.end(tokenised)
            known.set()

        free = min(replicas, key=lambda one: one.inflight_requests)
        self._tokens.submit(request, end, free.address, early)
        result = LATE
        try:
            async with asyncio.timeout(self.first_s):
                await known.wait()
                for _ in self._chooser.name(reading):
                    await asyncio.sleep(0)
                result = UNREAD if reading.tokenised is None else IN_TIME
        except TimeoutError:
            pass  # it goes on without
        self.read_first_by_result[result] += 1
        if result is LATE:
            self._late += 1
        elif result is IN_TIME:
            self._late = 0
        if self._late >= GIVE_UP_AFTER:
            self._late, self._rests_until = 0, loop.time() + REST_S
        return request.completed(request.tenant, request.deadline, reading)

    def answered(self, replica: Replica, tail: bytes) -> None:
        """A response was relayed whole, and this is its end. An engine says which it is in all of
        them or in none."""
        if replica.nameless_answers >= MOST_NAMELESS or replica.facts.version is not None:
            return
        replica.nameless_answers += 1
        if _MARK not in tail:
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
