"""Laws of the simulated engine, its cache and its language, whatever comes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.sim.blocks import BlockPool
from serving.sim.engine import Batch, Engine, EngineRequest, FinishReason, StepResult
from serving.sim.kv_cache import AllBlocksCleared, BlockRemoved, BlockStored, CacheKey
from serving.sim.timing import EngineShape, StepTiming, StepWork
from serving.sim.tokens import TOKEN_LIMIT, detokenize, next_tokens, render_chat, tokenize

TIMING = StepTiming(0.01, 0.001, 0.0, 0.01, 0.001, 0.0)
TOKENS = st.integers(0, 2)
"""Few different tokens, so that prompts often share prefixes."""

turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text()), max_size=5)


@given(st.text())
def test_detokenizing_a_tokenized_text_gives_it_back(text: str) -> None:
    tokens = tokenize(text)
    assert detokenize(tokens) == text
    assert len(tokens) == -(-len(text.encode()) // 4)
    assert all(0 <= token < TOKEN_LIMIT for token in tokens)


@given(st.text(), st.text())
def test_equal_beginnings_of_texts_are_equal_beginnings_of_tokens(head: str, tail: str) -> None:
    shared = len(head.encode()) // 4
    assert tokenize(head + tail)[:shared] == tokenize(head)[:shared]


@given(turns, turns)
def test_a_conversation_that_goes_on_keeps_all_of_its_tokens(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    head = tokenize(render_chat(before, replies=False))
    assert tokenize(render_chat(before + after, replies=False))[: len(head)] == head


@given(turns, st.integers(0, 30))
def test_a_reply_is_found_again_in_the_next_turns_prompt(
    before: list[tuple[str, str]], length: int
) -> None:
    prompt = tokenize(render_chat(before))
    reply, _ = next_tokens(prompt, 0, length)
    next_turn = tokenize(render_chat([*before, ("assistant", detokenize(reply)), ("user", "go")]))
    assert next_turn[: len(prompt) + length] == prompt + reply


@given(st.lists(st.integers(0, TOKEN_LIMIT - 1)), st.integers(), st.integers(0, 40), st.data())
def test_a_reply_cut_anywhere_goes_on_as_it_would_have(
    prompt: list[int], seed: int, length: int, data: st.DataObject
) -> None:
    whole, _ = next_tokens(prompt, seed, length)
    cut = data.draw(st.integers(0, len(whole)))
    rest, _ = next_tokens(prompt + whole[:cut], seed, length - cut)
    assert whole[:cut] + rest == whole


work = st.builds(
    StepWork,
    st.integers(0, 10**6),
    st.floats(0, 1e9),
    st.integers(0, 1000),
    st.integers(0, 10**7),
)


@given(work, work)
def test_more_work_never_takes_less_time(one: StepWork, other: StepWork) -> None:
    timing = StepTiming(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    both = StepWork(
        one.prefill_tokens + other.prefill_tokens,
        one.prefill_token_pairs + other.prefill_token_pairs,
        one.decode_sequences + other.decode_sequences,
        one.decode_context_tokens + other.decode_context_tokens,
    )
    assert timing.seconds(both) >= timing.seconds(one) >= 0.1


class PoolMachine(RuleBasedStateMachine):
    """Takes, shares, gives back and remembers in any order, against a model of holders."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.holders: dict[int, int] = {}
        self.names: dict[int, bytes] = {}

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        if count > self.pool.free:
            return
        taken, forgotten = self.pool.take(count)
        assert len(taken) == count
        assert not any(block in self.holders for block in taken)
        assert sorted(forgotten) == sorted(
            self.names.pop(block) for block in taken if block in self.names
        )
        self.holders |= dict.fromkeys(taken, 1)

    @precondition(lambda self: bool(self.holders))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.pool.give_back([block])
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]

    @rule(name=st.sampled_from([b"a", b"b", b"c"]))
    def share_by_name(self, name: bytes) -> None:
        block = self.pool.find(name)
        assert (block is not None) == (name in self.names.values())
        if block is not None:
            assert self.names[block] == name
            self.pool.share([block])
            self.holders[block] = self.holders.get(block, 0) + 1

    @precondition(lambda self: bool(set(self.holders) - set(self.names)))
    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c"]))
    def remember(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.holders) - set(self.names))))
        self.pool.remember(block, name)
        self.names[block] = name

    @rule()
    def forget_all(self) -> None:
        assert self.pool.forget_all() == (not self.holders)
        if not self.holders:
            self.names.clear()

    @invariant()
    def free_and_used_are_all(self) -> None:
        self.pool.check()
        assert self.pool.used == len(self.holders)
        assert self.pool.free + self.pool.used == self.pool.total


class EngineMachine(RuleBasedStateMachine):
    """Submissions, aborts and steps in any order; a subscriber to events follows the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(EngineShape(2, 8, 3, 6, 16), TIMING)
        self.requests: dict[str, EngineRequest] = {}
        self.received: dict[str, list[int]] = {}
        self.batch: Batch | None = None
        self.now = 0.0
        self.seen: dict[int, int] = {}
        self.submitted = self.finished = self.aborted = 0

    @rule(
        prompt=st.lists(TOKENS, min_size=1, max_size=10),
        output=st.lists(TOKENS, max_size=6),
        salt=st.sampled_from([None, None, "s"]),
    )
    def submit(self, prompt: list[int], output: list[int], salt: str | None) -> None:
        name = str(self.submitted)
        request = EngineRequest(name, prompt, output, FinishReason.STOP, CacheKey(salt=salt))
        self.engine.submit(request, self.now)
        self.requests[name] = request
        self.received[name] = []
        self.submitted += 1

    @precondition(lambda self: bool(self.requests))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        assert self.engine.abort(name)
        del self.requests[name], self.received[name]
        self.aborted += 1

    @precondition(lambda self: self.batch is None)
    @rule()
    def begin(self) -> None:
        self.batch = self.engine.begin(self.now)
        assert (self.batch is None) == (not self.requests)
        if self.batch is not None:
            assert 0 < sum(self.batch.tokens.values()) <= 6
            assert min(self.batch.tokens.values()) > 0

    @precondition(lambda self: self.batch is not None)
    @rule()
    def complete(self) -> None:
        assert self.batch is not None
        self.now += self.batch.duration_s
        outputs, events = self.engine.complete(self.batch)
        self.batch = None
        self.follow(events)
        for output in outputs:
            received = self.received[output.request_id]
            if output.token is not None:
                received.append(output.token)
            request = self.requests[output.request_id]
            assert received == list(request.output[: len(received)])
            assert output.cached_tokens < len(request.prompt)
            if output.finish is not None:
                assert received == list(request.output)
                del self.requests[output.request_id], self.received[output.request_id]
                self.finished += 1

    @precondition(lambda self: self.batch is None)
    @rule()
    def clear(self) -> None:
        assert self.engine.clear_cache() == (self.engine.pool.used == 0)
        self.follow(self.engine.cache.take_events())

    def follow(self, events: Sequence[object]) -> None:
        """Count present blocks by hash, as a consumer of events has to."""
        for event in events:
            match event:
                case BlockStored(block_hashes=hashes):
                    for name in hashes:
                        self.seen[name] = self.seen.get(name, 0) + 1
                case BlockRemoved(block_hashes=[name]):
                    self.seen[name] -= 1
                    assert self.seen[name] >= 0
                case AllBlocksCleared():
                    self.seen.clear()

    @invariant()
    def every_block_and_request_is_accounted_for(self) -> None:
        self.engine.check()
        pool = self.engine.pool
        assert pool.free + pool.used == pool.total
        assert self.submitted == self.finished + self.aborted + len(self.requests)
        if self.batch is None:
            hashed = sum(pool.carries(block) is not None for block in range(pool.total))
            assert sum(self.seen.values()) == hashed

    def teardown(self) -> None:
        """Whatever happened, the engine comes to rest with every block free."""
        if self.batch is not None:
            self.complete()
        for _ in range(200):
            if not self.requests:
                break
            self.begin()
            self.complete()
        assert not self.requests
        assert self.engine.pool.used == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


@given(
    st.lists(
        st.tuples(st.lists(TOKENS, min_size=1, max_size=10), st.integers(0, 5), st.floats(0, 0.2)),
        max_size=12,
    )
)
@settings(deadline=None)
def test_the_same_arrivals_give_the_same_steps(
    arrivals: list[tuple[list[int], int, float]],
) -> None:
    assert _virtual_run(arrivals) == _virtual_run(arrivals)


def _virtual_run(arrivals: list[tuple[list[int], int, float]]) -> list[StepResult]:
    """Serve requests that arrive with the given gaps, in virtual time."""
    engine = Engine(EngineShape(2, 8, 3, 6, 16), TIMING)
    now, done = 0.0, []
    due = []
    at = 0.0
    for prompt, length, gap in arrivals:
        at += gap
        due.append((at, prompt, length))
    while due or engine.has_work:
        while due and due[0][0] <= now:
            _, prompt, length = due.pop(0)
            name = str(len(due))
            engine.submit(EngineRequest(name, prompt, [1] * length, FinishReason.LENGTH), now)
        if not engine.has_work:
            now = due[0][0]
            continue
        done.append(engine.step(now))
        now += done[-1].duration_s
    return done
