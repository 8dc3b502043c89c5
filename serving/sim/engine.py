"""A continuous-batching engine as a step machine: what vLLM's scheduler does, without a model.

Asked to take requests (`submit`), drop them (`abort`), and compute one step at a time. A step is
begun (`begin`: who runs, how many tokens each, which blocks, how long it will take) and completed
(`complete`: tokens come out, requests finish); `step` does both, for virtual time. Between the two,
whoever drives the engine lets the step's duration pass.

How a batch is made (vLLM 0.32, v1/core/sched/scheduler.py):
1. a budget of `max_num_batched_tokens` per step;
2. running requests first, in order of admission: one token each when decoding, what is left of the
   prompt (a chunk of it, if the budget ends) when not; when blocks run out, the request admitted
   last gives all of its blocks back and waits again at the head of the queue (recompute);
3. then waiting requests, first come first served, while budget and `max_num_seqs` last and the
   whole request fits in the cache; a cached prefix is shared. vLLM admits nobody in a step that
   preempted; here that follows: the preempted one heads the queue, and does not fit, because
   another took of the blocks it gave back.

Invariants (`check`): a request waits, runs, or is unknown; running requests hold exactly the blocks
of their computed tokens; used blocks are those some running request holds; one batch at a time.
Same submissions, aborts and instants give the same steps: there is no chance here. Output tokens
come with the request, because no model is asked for them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serving.sim.block_hash import BlockHasher, HashAlgorithm
from serving.sim.blocks import BlockPool
from serving.sim.kv_cache import CacheKey, Holding, KvCache, KvEvent
from serving.sim.timing import EngineShape, StepTiming, StepWork


class FinishReason(StrEnum):
    """Why a request ended; the values are vLLM's labels."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A prompt, and the tokens the model would answer with; none for a pooling request."""

    id: str
    prompt: Sequence[int]
    output: Sequence[int]
    finish: FinishReason
    key: CacheKey = field(default_factory=CacheKey)
    announces_reuse: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What one step brought one request: a token, its end, or both."""

    request_id: str
    token: int | None
    finish: FinishReason | None
    cached_tokens: int
    queued_s: float
    """From submission to first admission."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A step that has begun: tokens to compute per request, and how long it takes."""

    duration_s: float
    tokens: dict[str, int]
    work: StepWork


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that has been computed."""

    duration_s: float
    outputs: list[Output]
    events: list[KvEvent]


@dataclass(slots=True)
class Totals:
    """Counters since the start, in the terms of vLLM's metrics."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    steps: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(FinishReason, 0)
    )


@dataclass(slots=True, eq=False)
class _Course:
    """One request's way through the engine."""

    request: EngineRequest
    holding: Holding
    submitted_at: float
    computed: int = 0
    """Leading tokens whose blocks are held and computed; says nothing while the request waits."""
    generated: int = 0
    cached_tokens: int | None = None
    queued_s: float = 0.0

    @property
    def is_prefilling(self) -> bool:
        return len(self.holding.tokens) - self.computed > 1 or self.generated == 0


class Engine:
    """One replica's scheduler and cache."""

    def __init__(
        self,
        shape: EngineShape,
        timing: StepTiming,
        algorithm: HashAlgorithm = HashAlgorithm.SHA256,
        reuses_prefixes: bool = True,
    ) -> None:
        if shape.blocks * shape.block_size < shape.max_model_len:
            raise ValueError(
                f"{shape.blocks} blocks of {shape.block_size} tokens cannot hold one request of "
                f"max_model_len={shape.max_model_len}"
            )
        self.shape = shape
        self.timing = timing
        self.pool = BlockPool(shape.blocks)
        self.cache = KvCache(self.pool, shape.block_size, BlockHasher(algorithm), reuses_prefixes)
        self.totals = Totals()
        self._waiting: deque[_Course] = deque()
        self._running: list[_Course] = []
        self._courses: dict[str, _Course] = {}
        self._batch: Batch | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.running} running, {self.waiting} waiting, {self.pool!r}>"

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._courses)

    def adapters(self) -> tuple[list[str], list[str]]:
        """Names of the adapters that running and waiting requests use, each once, sorted."""
        return _adapter_names(self._running), _adapter_names(self._waiting)

    def submit(self, request: EngineRequest, now: float) -> None:
        """Queue a request. Raises ValueError for a known id, or one that can never fit."""
        if request.id in self._courses:
            raise ValueError(f"request {request.id} is here already")
        if not request.prompt:
            raise ValueError("an empty prompt cannot be computed")
        if len(request.prompt) + len(request.output) > self.shape.max_model_len:
            raise ValueError("prompt and output exceed max_model_len")
        course = _Course(request, self.cache.open(request.prompt, request.key), now)
        self._courses[request.id] = course
        self._waiting.append(course)

    def abort(self, request_id: str) -> bool:
        """Drop a request and its blocks at once; False if it is not here."""
        course = self._courses.pop(request_id, None)
        if course is None:
            return False
        if course in self._running:
            self._running.remove(course)
        else:
            self._waiting.remove(course)
        self.cache.let_go(course.holding)
        self.totals.finished[FinishReason.ABORT] += 1
        return True

    def step(self, now: float) -> StepResult:
        """Compute one whole step in virtual time; empty, of no duration, when idle."""
        batch = self.begin(now)
        if batch is None:
            return StepResult(0.0, [], self.cache.take_events())
        outputs, events = self.complete(batch)
        return StepResult(batch.duration_s, outputs, events)

    def begin(self, now: float) -> Batch | None:
        """Decide the next step; None when there is nothing to do.

        O(running + admitted). Raises RuntimeError while another batch is open.
        """
        if self._batch is not None:
            raise RuntimeError("a batch is open already")
        tokens: dict[str, int] = {}
        self._continue_running(tokens)
        self._admit_waiting(tokens, now)
        if not tokens:
            return None
        work = self._work(tokens)
        self._batch = Batch(self.timing.seconds(work), tokens, work)
        return self._batch

    def complete(self, batch: Batch) -> tuple[list[Output], list[KvEvent]]:
        """What the batch brought; requests aborted meanwhile bring nothing."""
        if batch is not self._batch:
            raise RuntimeError("this batch is not the open one")
        self._batch = None
        self.totals.steps += 1
        outputs = []
        for request_id, count in batch.tokens.items():
            course = self._courses.get(request_id)
            if course is None:
                continue
            course.computed += count
            if course.computed == len(course.holding.tokens):
                outputs.append(self._produce(course))
        return outputs, self.cache.take_events()

    def clear_cache(self) -> bool:
        """Forget cached prefixes; False while any block is in use."""
        return self.cache.clear()

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken. O(blocks + requests)."""
        self.pool.check()
        held: set[int] = set()
        for course in self._running:
            blocks = course.holding.blocks
            assert self.pool.held(blocks), f"{course.request.id} lost a block"
            assert len(set(blocks)) == len(blocks), f"{course.request.id} holds a block twice"
            assert len(blocks) * self.shape.block_size >= course.computed
            held.update(blocks)
        assert len(held) == self.pool.used, "a used block belongs to nobody"
        assert all(not course.holding.blocks for course in self._waiting)
        assert len(self._courses) == self.running + self.waiting
        assert self.running <= self.shape.max_num_seqs

    def _continue_running(self, tokens: dict[str, int]) -> None:
        """Give running requests their share of the budget, in order of admission."""
        budget, index = self.shape.max_num_batched_tokens, 0
        while index < len(self._running) and budget > 0:
            course = self._running[index]
            count = min(len(course.holding.tokens) - course.computed, budget)
            while not self.cache.hold(course.holding, course.computed + count):
                if self._preempt_last() is course:
                    return
            tokens[course.request.id] = count
            budget -= count
            index += 1

    def _preempt_last(self) -> _Course:
        course = self._running.pop()
        self.cache.let_go(course.holding)
        self.totals.preemptions += 1
        self._waiting.appendleft(course)
        return course

    def _admit_waiting(self, tokens: dict[str, int], now: float) -> None:
        """Start waiting requests, in order, while budget, sequences and blocks last."""
        budget = self.shape.max_num_batched_tokens - sum(tokens.values())
        while self._waiting and budget > 0 and len(self._running) < self.shape.max_num_seqs:
            course = self._waiting[0]
            holding = course.holding
            cached = self.cache.cached_blocks(holding)
            if not self.cache.could_hold(holding, cached, len(holding.tokens)):
                return
            self._waiting.popleft()
            self.cache.share(holding, cached, course.request.announces_reuse)
            course.computed = len(cached) * self.shape.block_size
            count = min(len(holding.tokens) - course.computed, budget)
            self.cache.hold(holding, course.computed + count)
            self._running.append(course)
            self._note_admission(course, now)
            tokens[course.request.id] = count
            budget -= count

    def _note_admission(self, course: _Course, now: float) -> None:
        self.totals.prefix_queries_tokens += len(course.holding.tokens)
        self.totals.prefix_hits_tokens += course.computed
        if course.cached_tokens is None:
            course.cached_tokens = course.computed
            course.queued_s = now - course.submitted_at

    def _work(self, tokens: dict[str, int]) -> StepWork:
        """The step's size in the terms of the timing model."""
        prefill_tokens = decode_sequences = decode_context = 0
        pairs = 0.0
        for request_id, count in tokens.items():
            course = self._courses[request_id]
            if course.is_prefilling:
                prefill_tokens += count
                pairs += count * (course.computed + count / 2)
            else:
                decode_sequences += 1
                decode_context += course.computed
        return StepWork(prefill_tokens, pairs, decode_sequences, decode_context)

    def _produce(self, course: _Course) -> Output:
        """The next token of a request whose known tokens are all computed; its end, if that."""
        request = course.request
        token = finish = None
        if course.generated == 0:
            self.totals.prompt_tokens += len(request.prompt)
            self.totals.cached_prompt_tokens += course.cached_tokens or 0
        if course.generated < len(request.output):
            token = request.output[course.generated]
            course.generated += 1
            self.totals.generated_tokens += 1
        if course.generated == len(request.output):
            finish = request.finish
            self._finish(course, finish)
        elif token is not None:
            self.cache.append(course.holding, token)
        return Output(request.id, token, finish, course.cached_tokens or 0, course.queued_s)

    def _finish(self, course: _Course, reason: FinishReason) -> None:
        del self._courses[course.request.id]
        self._running.remove(course)
        self.cache.let_go(course.holding)
        self.totals.finished[reason] += 1


def _adapter_names(courses: Sequence[_Course] | deque[_Course]) -> list[str]:
    return sorted({c.request.key.adapter.name for c in courses if c.request.key.adapter})
