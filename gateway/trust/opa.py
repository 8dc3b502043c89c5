"""May this tenant call this model, with these tools? Open Policy Agent says, beside us.

Asked once per question while the answer is good; a question takes bounded time, the wait for one of
`max_asking` places included. Closed unless it says yes: no answer in time, an answer that is none,
or nobody there, and the request is refused, as not decided rather than not allowed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from gateway.errors import PolicyDenied, PolicyUnavailable
from gateway.fetch import FetchFailed, fetch
from gateway.trust.question import OddAnswer, Verdict, key_of, question_of, verdict_of
from gateway.trust.verdicts import Verdicts

if TYPE_CHECKING:
    from gateway.clock import Clock
    from gateway.request import GenerationRequest
    from gateway.settings import OpaSettings
    from gateway.vocabulary import Seconds

_log = logging.getLogger(__name__)


class Opa:
    """Asks one sidecar. Owner of what it has said."""

    def __init__(self, settings: OpaSettings, clock: Clock) -> None:
        self.decisions = Counter(allowed=0, denied=0, undecided=0)
        self.asked = 0
        self.asked_s: Seconds = 0.0
        self._url = settings.url or ""
        self._timeout_s = settings.timeout_s
        self._clock = clock
        self._verdicts = Verdicts(settings.cache_s, settings.cache_entries)
        self._places = asyncio.Semaphore(settings.max_asking)
        self._is_silent = False

    def __repr__(self) -> str:
        return f"<Opa {self._url} {dict(self.decisions)}>"

    async def check(self, request: GenerationRequest) -> None:
        """Raises PolicyDenied with the policy's reason; PolicyUnavailable where there is no answer;
        InvalidRequest for tools without names."""
        question = question_of(request)
        key = key_of(question)
        verdict = self._verdicts.known(key, self._clock())
        if verdict is None:
            verdict = await self._ask(question, key)
        if verdict.allowed:
            self.decisions["allowed"] += 1
            return
        self.decisions["denied"] += 1
        raise PolicyDenied(
            f"The policy does not allow this: {verdict.reason}" if verdict.reason else None
        )

    async def _ask(self, question: bytes, key: bytes) -> Verdict:
        """Or be told what others who asked the same have heard meanwhile."""
        began = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                known = self._verdicts.known(key, self._clock())
                if known is not None:
                    return known
                self.asked += 1
                status, answer = await fetch(
                    self._url, timeout_s=self._timeout_s, tls=None, method="POST", body=question
                )
            verdict = verdict_of(status, answer)
        except (TimeoutError, FetchFailed, OddAnswer) as error:
            self.decisions["undecided"] += 1
            self._complain(error)
            raise PolicyUnavailable from error
        finally:
            self.asked_s += self._clock() - began
        if self._is_silent:
            self._is_silent = False
            _log.info("the policy at %s answers", self._url)
        self._verdicts.remember(key, verdict, self._clock())
        return verdict

    def _complain(self, error: Exception) -> None:
        """Once, until it answers again."""
        if not self._is_silent:
            self._is_silent = True
            _log.error(
                "the policy at %s does not decide, so nobody may: %s",
                self._url,
                str(error) or f"no answer within {self._timeout_s:g} s",
            )
