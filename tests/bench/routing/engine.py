"""One simulated engine: steps that mix a chunk of prefill with a token for every running sequence.

As vLLM schedules: a step first gives every running sequence its next token, then fills what is left
of its token budget with prompts, first come first served, several in one step or one over several.
A prompt is admitted while its tokens find room in the KV cache and sequences are below their limit;
what the cache holds then needs no prefill, and what a step computes is in the cache for those that
are admitted after it, in the same step already. A first token comes at the end of the step that
finishes its prompt. A step of p prompt tokens at context x, of n sequences with c tokens of context

    step_s + n x sequence_s + c x context_token_s + p / rate x (1 + x / attention_tokens)

seconds long. Steps without prefill are taken many at a time, up to the next end or arrival.

Left out: preemption (room for the whole answer is kept from admission on), speculation, swapping.

Invariants. Never more tokens in a step than its budget allows. Whoever is admitted ends. An engine
with work is in a stint; an idle one is in none.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from math import floor
from typing import Final

from tests.bench.routing.cache import BLOCK_TOKENS, Arrival, BlockCache, hit_tokens

FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a simulated replica can do. The figures are of the order of a 32B model on two GPUs.

    It is there from `joins_at` to `leaves_at`, as shares of the span of a run's arrivals.
    """

    prefill_tokens_per_s: float
    cache_blocks: int
    step_tokens: int = 2048
    step_s: float = 0.008
    sequence_s: float = 0.000_05
    context_token_s: float = 2e-8
    attention_tokens: float = 49_152.0  # context at which attention costs as much as all else
    most_running: int = 256
    joins_at: float = 0.0
    leaves_at: float = FOREVER

    def prefill_s(self, tokens: int, context: int) -> float:
        """How long these tokens of a prompt take, after so many others."""
        return tokens / self.prefill_tokens_per_s * self._dearer(context + tokens / 2)

    def _dearer(self, context: float) -> float:
        return 1.0 + context / self.attention_tokens


@dataclass(slots=True)
class Job:
    """A request on its way through one engine."""

    arrival: Arrival
    arrived_at_s: float
    hit_tokens: int = 0
    computed: int = 0  # of the prompt, hits included
    first_token_at_s: float | None = None

    @property
    def room(self) -> int:
        """KV tokens it takes beside what was cached."""
        return self.arrival.prompt_tokens - self.hit_tokens + self.arrival.output_tokens


@dataclass(slots=True)
class Stint:
    """One step with prefill, or several without."""

    began_at_s: float
    step_s: float
    steps: int
    finishing: list[Job] = field(default_factory=list)
    has_prefill: bool = False

    @property
    def ends_at_s(self) -> float:
        """When the last of its steps ends."""
        return self.began_at_s + self.steps * self.step_s


class Engine:
    """A queue, a cache, and the sequences that run."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.cache = BlockCache(spec.cache_blocks)
        self.promised: Counter[int] = Counter()  # blocks of prompts that are not yet computed
        self.prefill_s = 0.0  # seconds spent on prompts, hits left out
        self.stint: Stint | None = None
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []  # admitted; at most one is partly computed
        self._decoding: list[tuple[int, int, Job]] = []  # a heap by the step of the last token
        self._order = count()
        self._step = 0
        self._context = 0  # tokens of those that decode
        self.room = 0  # KV tokens taken

    def __repr__(self) -> str:
        return f"<Engine {len(self._waiting)} waiting, {len(self._decoding)} decoding>"

    @property
    def jobs(self) -> list[Job]:
        """All that have not ended, those before their first token first."""
        finishing = self.stint.finishing if self.stint else []
        decoding = [job for *_, job in self._decoding]
        return [*finishing, *self._prefilling, *self._waiting, *decoding]

    def submit(self, job: Job, now: float) -> None:
        """It arrives. A stint without prefill is cut at the end of the step that runs."""
        self._waiting.append(job)
        self.promised.update(job.arrival.blocks)
        stint = self.stint
        if stint is None:
            self._begin(now)
        elif not stint.has_prefill:
            done = floor((now - stint.began_at_s) / stint.step_s) + 1
            stint.steps = min(stint.steps, done)

    def finish(self) -> tuple[list[Job], list[Job]]:
        """The stint is over: who had a first token at its end, and who a last."""
        stint = self.stint
        if stint is None:
            raise AssertionError("an idle engine has nothing to finish")
        now = stint.ends_at_s
        self._step += stint.steps
        self._context += stint.steps * len(self._decoding)
        ended = []
        while self._decoding and self._decoding[0][0] <= self._step:
            job = heapq.heappop(self._decoding)[2]
            self._context -= job.arrival.prompt_tokens + job.arrival.output_tokens - 1
            ended.append(job)
        for job in stint.finishing:
            job.first_token_at_s = now
            self._forget_promise(job)
            if job.arrival.output_tokens > 1:
                end = self._step + job.arrival.output_tokens - 1
                heapq.heappush(self._decoding, (end, next(self._order), job))
                self._context += job.arrival.prompt_tokens
            else:
                ended.append(job)
        self.room -= sum(job.room for job in ended)
        self.stint = None
        self._begin(now)
        return stint.finishing, ended

    def _forget_promise(self, job: Job) -> None:
        for block in job.arrival.blocks:
            self.promised[block] -= 1
            if not self.promised[block]:
                del self.promised[block]

    def _begin(self, now: float) -> None:
        """The next stint, if there is anything to do."""
        spec, sequences = self.spec, len(self._decoding)
        work_s, finishing, has_prefill = self._fill(spec.step_tokens - sequences)
        if not has_prefill and not sequences:
            return
        self.prefill_s += work_s
        step_s = (
            spec.step_s
            + sequences * spec.sequence_s
            + self._context * spec.context_token_s
            + work_s
        )
        steps = 1 if has_prefill else self._decoding[0][0] - self._step
        self.stint = Stint(now, step_s, steps, finishing, has_prefill)

    def _fill(self, budget: int) -> tuple[float, list[Job], bool]:
        """Take prompts into a step: seconds, who will be finished, whether there were any."""
        work_s, finishing = 0.0, list[Job]()
        has_prefill = False
        while budget > 0 and (self._prefilling or self._admit()):
            job = self._prefilling[0]
            tokens = min(budget, job.arrival.prompt_tokens - job.computed)
            work_s += self.spec.prefill_s(tokens, job.computed)
            budget -= tokens
            job.computed += tokens
            has_prefill = True
            if job.computed < job.arrival.prompt_tokens:
                self.cache.keep(job.arrival.blocks[: job.computed // BLOCK_TOKENS])
                break
            self.cache.keep(job.arrival.blocks)
            finishing.append(self._prefilling.pop(0))
        return work_s, finishing, has_prefill

    def _admit(self) -> bool:
        """Start on the head of the queue, if there is room for it."""
        if not self._waiting:
            return False
        job = self._waiting[0]
        held = self.cache.match(job.arrival.blocks)
        job.hit_tokens = hit_tokens(held, job.arrival.prompt_tokens)
        fits = self.room + job.room <= self.spec.cache_blocks * BLOCK_TOKENS
        if self.room and not (fits and len(self._decoding) < self.spec.most_running):
            return False
        job.computed = job.hit_tokens
        self.room += job.room
        self._prefilling.append(self._waiting.popleft())
        return True
