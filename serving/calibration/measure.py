"""Measures one point on an engine that does nothing else meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from statistics import median
from typing import Final

from serving.calibration.engine import VOCABULARY, CalibratedEngine, EngineError, Reply
from serving.calibration.fit import Row
from serving.calibration.points import Point
from serving.sim.timing import StepWork

STEPS: Final = 24
"""Tokens that each sequence of a batch makes; the window in which all decode is shorter."""
LEAST_GAPS: Final = 4
SHARED: Final = 0.02
"""Tokens that come so close, in the time of a long prompt, come from one step."""


class Bench:
    """Owner of the chance in prompts, and of the engine while it is measured."""

    def __init__(self, engine: CalibratedEngine, step_tokens: int, seed: int) -> None:
        """`step_tokens`: the most tokens that the engine computes in a step."""
        self.engine = engine
        self.step_tokens = step_tokens
        self._rng = Random(seed)

    def __repr__(self) -> str:
        return f"<Bench of {self.engine!r}>"

    def prompt(self, tokens: int) -> list[int]:
        """Random ids, never the same again."""
        return [self._rng.randrange(*VOCABULARY) for _ in range(tokens)]

    async def measure(self, point: Point) -> Row:
        """One measurement. Raises EngineError, also where what came says nothing."""
        if point.behind:
            return await self._behind(point)
        if not point.batch:
            return await self._prefill(point)
        if not point.uncached:
            return await self._decode(point)
        return await self._mixed(point)

    async def _prefill(self, point: Point) -> Row:
        prefix = self.prompt(point.cached)
        if prefix:
            await self.engine.generate(prefix, 1)
        reply = await self.engine.generate(prefix + self.prompt(point.uncached), 1)
        computed = point.cached + point.uncached - reply.cached_tokens
        return Row(
            reply.first_s,
            StepWork(computed, computed * (reply.cached_tokens + computed / 2)),
            steps=-(-computed // self.step_tokens),
            with_arrival=True,
            what=str(point),
        )

    async def _behind(self, point: Point) -> Row:
        """The time between the first tokens of two prompts, the second of which had to wait."""
        alone = await self.engine.generate(self.prompt(point.behind), 1)
        first = asyncio.create_task(self.engine.generate(self.prompt(point.behind), 1))
        await asyncio.sleep(0.4 * alone.first_s)
        second = await self.engine.generate(self.prompt(point.uncached), 1)
        between_s = second.token_at[0] - (await first).token_at[0]
        if between_s < SHARED * alone.first_s:
            raise EngineError(f"{point}: the prompt did not have to wait")
        work = StepWork(point.uncached, point.uncached**2 / 2)
        return Row(between_s, work, what=str(point))

    async def _decode(self, point: Point) -> Row:
        replies = await asyncio.gather(*await self._batch(point))
        start = max(reply.token_at[0] for reply in replies)
        end = min(reply.token_at[-1] for reply in replies)
        gaps = [
            after - before
            for reply in replies
            for before, after in pairwise(reply.token_at)
            if start <= before and after <= end
        ]
        if len(gaps) < LEAST_GAPS:
            raise EngineError(f"{point}: the sequences did not decode together")
        return Row(median(gaps), self._decodes(point), what=str(point))

    async def _mixed(self, point: Point) -> Row:
        """The one step in which the prompt is computed, as the others see it."""
        begun = [asyncio.Event() for _ in range(point.batch)]
        batch = await self._batch(point, begun)
        await asyncio.gather(*(each.wait() for each in begun))
        newcomer = await self.engine.generate(self.prompt(point.uncached), 1)
        gaps = [_gap_at(newcomer.token_at[0], reply) for reply in await asyncio.gather(*batch)]
        decodes, uncached = self._decodes(point), point.uncached
        work = StepWork(
            uncached, uncached**2 / 2, decodes.decode_sequences, decodes.decode_context_tokens
        )
        return Row(median(gaps), work, what=str(point))

    async def _batch(
        self, point: Point, begun: Sequence[asyncio.Event | None] = ()
    ) -> list[asyncio.Task[Reply]]:
        """Sequences that share a cached context, and so begin to decode at once."""
        prefix = self.prompt(point.context)
        await self.engine.generate(prefix, 1)
        return [
            asyncio.create_task(self.engine.generate([*prefix, *self.prompt(1)], STEPS, event))
            for event in begun or [None] * point.batch
        ]

    @staticmethod
    def _decodes(point: Point) -> StepWork:
        """In the middle of the window."""
        context = point.context + STEPS // 2
        return StepWork(decode_sequences=point.batch, decode_context_tokens=point.batch * context)


def _gap_at(instant: float, reply: Reply) -> float:
    """The time between tokens that ended next to an instant."""
    gaps: Sequence[tuple[float, float]] = list(pairwise(reply.token_at))
    before, after = min(gaps, key=lambda gap: abs(gap[1] - instant))
    return after - before
