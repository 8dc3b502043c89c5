"""The step machine, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serving.sim.engine import Engine, EngineRequest, FinishReason, StepResult
from serving.sim.kv_cache import BlockStored, CacheKey
from serving.sim.timing import EngineShape, StepTiming, StepWork

TIMING = StepTiming(
    base_s=1.0,
    prefill_token_s=0.1,
    prefill_token_pair_s=0.001,
    decode_s=2.0,
    decode_sequence_s=0.5,
    decode_context_token_s=0.01,
)


def an_engine(
    blocks: int = 64, max_num_seqs: int = 8, max_num_batched_tokens: int = 32, reuses: bool = True
) -> Engine:
    shape = EngineShape(4, blocks, max_num_seqs, max_num_batched_tokens, blocks * 4)
    return Engine(shape, TIMING, reuses_prefixes=reuses)


def a_request(
    name: str, prompt: Sequence[int] = tuple(range(10)), output: int = 2, salt: str | None = None
) -> EngineRequest:
    tokens = tuple(range(900, 900 + output))
    return EngineRequest(name, tuple(prompt), tokens, FinishReason.LENGTH, CacheKey(salt=salt))


def steps(engine: Engine) -> list[StepResult]:
    """Every step until the engine is idle, checking its invariants."""
    done: list[StepResult] = []
    while engine.has_work:
        done.append(engine.step(float(len(done))))
        engine.check()
        assert len(done) < 1000
    return done


def test_a_request_gives_its_first_token_with_its_prompt_and_one_a_step_after() -> None:
    engine = an_engine()
    engine.submit(a_request("r", output=3), 0.0)
    outputs = [output for result in steps(engine) for output in result.outputs]
    assert [output.token for output in outputs] == [900, 901, 902]
    assert [output.finish for output in outputs] == [None, None, FinishReason.LENGTH]
    assert engine.pool.used == 0


def test_a_pooling_request_ends_with_its_prompt() -> None:
    engine = an_engine()
    engine.submit(a_request("r", output=0), 0.0)
    (only,) = steps(engine)
    (output,) = only.outputs
    assert (output.token, output.finish) == (None, FinishReason.LENGTH)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = an_engine(max_num_batched_tokens=8)
    engine.submit(a_request("r", range(20), output=1), 0.0)
    computed = []
    while engine.has_work:
        batch = engine.begin(0.0)
        assert batch is not None
        computed.append(dict(batch.tokens))
        engine.complete(batch)
    assert computed == [{"r": 8}, {"r": 8}, {"r": 4}]


def test_running_requests_decode_in_the_same_step_as_a_new_prompt() -> None:
    engine = an_engine(max_num_batched_tokens=8)
    engine.submit(a_request("old", range(4), output=5), 0.0)
    engine.step(0.0)
    engine.submit(a_request("new", range(100, 120), output=1), 0.0)
    batch = engine.begin(1.0)
    assert batch is not None
    assert batch.tokens == {"old": 1, "new": 7}
    assert batch.work == StepWork(7, 24.5, 1, 4)


def test_a_step_takes_what_the_timing_says() -> None:
    engine = an_engine()
    engine.submit(a_request("r", range(10), output=2), 0.0)
    prefill, decode = steps(engine)
    assert prefill.duration_s == pytest.approx(1.0 + 10 * 0.1 + 50 * 0.001)
    assert decode.duration_s == pytest.approx(1.0 + 2.0 + 0.5 + 10 * 0.01)


def test_no_more_run_than_max_num_seqs() -> None:
    engine = an_engine(max_num_seqs=2)
    for name in "abc":
        engine.submit(a_request(name), 0.0)
    engine.step(0.0)
    assert (engine.running, engine.waiting) == (2, 1)


def test_a_prefix_computed_before_is_not_computed_again() -> None:
    engine = an_engine()
    engine.submit(a_request("first", range(20)), 0.0)
    steps(engine)
    engine.submit(a_request("second", [*range(16), 77, 78, 79]), 5.0)
    batch = engine.begin(5.0)
    assert batch is not None
    assert batch.tokens == {"second": 3}
    outputs, _ = engine.complete(batch)
    assert outputs[0].cached_tokens == 16
    assert engine.totals.prefix_hits_tokens == 16


def test_a_cached_prompt_still_computes_its_last_block() -> None:
    engine = an_engine()
    for time in (0.0, 9.0):
        engine.submit(a_request("r", range(16), output=1), time)
        (result,) = steps(engine)
    assert result.outputs[0].cached_tokens == 12


def test_requests_of_one_step_share_the_prefix_the_first_is_only_about_to_compute() -> None:
    engine = an_engine(max_num_batched_tokens=64)
    engine.submit(a_request("a", range(17), output=1), 0.0)
    engine.submit(a_request("b", range(17), output=1), 0.0)
    (result,) = steps(engine)
    assert [output.cached_tokens for output in result.outputs] == [0, 16]


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    engine = an_engine()
    engine.submit(a_request("turn1", range(8), output=6), 0.0)
    steps(engine)
    engine.submit(a_request("turn2", [*range(8), *range(900, 906), 1, 2], output=1), 0.0)
    (result,) = steps(engine)
    assert result.outputs[0].cached_tokens == 12


def test_without_prefix_caching_nothing_is_reused_and_nothing_told() -> None:
    engine = an_engine(reuses=False)
    for _ in range(2):
        engine.submit(a_request("r", range(16), output=1), 0.0)
        (result,) = steps(engine)
        assert result.outputs[0].cached_tokens == 0
        assert result.events == []


def test_the_last_admitted_is_preempted_and_computed_again() -> None:
    engine = an_engine(blocks=6)
    engine.submit(a_request("old", range(8), output=8), 0.0)
    engine.submit(a_request("new", range(100, 108), output=8), 0.0)
    tokens: dict[str, list[int | None]] = {"old": [], "new": []}
    for result in steps(engine):
        for output in result.outputs:
            tokens[output.request_id].append(output.token)
    assert tokens["old"] == tokens["new"] == list(range(900, 908))
    assert engine.totals.preemptions == 1
    assert engine.totals.finished[FinishReason.LENGTH] == 2


def test_the_preempted_goes_before_who_waited_and_nobody_is_admitted_in_that_step() -> None:
    engine = an_engine(blocks=6, max_num_seqs=2)
    engine.submit(a_request("old", range(8), output=8), 0.0)
    engine.submit(a_request("new", range(100, 108), output=8), 0.0)
    engine.submit(a_request("next", range(200, 204), output=1), 0.0)
    scheduled: list[list[str]] = []
    while engine.totals.preemptions == 0:
        batch = engine.begin(0.0)
        assert batch is not None
        scheduled.append(list(batch.tokens))
        engine.complete(batch)
    assert scheduled[-1] == ["old"]
    ended = [
        output.request_id for result in steps(engine) for output in result.outputs if output.finish
    ]
    assert ended == ["old", "next", "new"]
    assert engine.totals.preemptions == 1


def test_a_request_waits_until_all_of_its_prompt_has_room() -> None:
    engine = an_engine(blocks=6, max_num_batched_tokens=8)
    engine.submit(a_request("small", range(8), output=3), 0.0)
    engine.submit(a_request("large", range(100, 118), output=1), 0.0)
    engine.step(0.0)
    engine.step(1.0)
    assert (engine.running, engine.waiting) == (1, 1)
    results = steps(engine)
    assert results[-1].outputs[0].queued_s > 0


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_an_aborted_request_gives_everything_back_and_says_nothing_more(steps_before: int) -> None:
    engine = an_engine(max_num_batched_tokens=8)
    engine.submit(a_request("r", range(12), output=5), 0.0)
    for _ in range(steps_before):
        engine.step(0.0)
    batch = engine.begin(0.0)
    assert batch is not None
    assert engine.abort("r")
    assert engine.complete(batch)[0] == []
    assert not engine.has_work
    assert engine.pool.used == 0
    assert engine.totals.finished[FinishReason.ABORT] == 1
    assert not engine.abort("r")
    engine.check()


def test_blocks_are_told_of_in_the_step_that_stores_them() -> None:
    engine = an_engine(max_num_batched_tokens=8)
    engine.submit(a_request("r", range(12), output=1), 0.0)
    told = [
        [event.token_ids for event in result.events if isinstance(event, BlockStored)]
        for result in steps(engine)
    ]
    assert told == [[list(range(8))], [list(range(8, 12))]]


def test_what_can_never_fit_is_refused_at_the_door() -> None:
    engine = an_engine(blocks=2)
    with pytest.raises(ValueError, match="max_model_len"):
        engine.submit(a_request("r", range(8), output=1), 0.0)
    with pytest.raises(ValueError, match="empty"):
        engine.submit(a_request("r", []), 0.0)
    engine.submit(a_request("r", range(4)), 0.0)
    with pytest.raises(ValueError, match="here already"):
        engine.submit(a_request("r", range(4)), 0.0)
    with pytest.raises(ValueError, match="cannot hold one request"):
        Engine(EngineShape(4, 2, 8, 8, 9), TIMING)


def test_an_idle_step_takes_no_time() -> None:
    assert an_engine().step(0.0) == StepResult(0.0, [], [])


def test_one_batch_at_a_time() -> None:
    engine = an_engine()
    engine.submit(a_request("r"), 0.0)
    batch = engine.begin(0.0)
    assert batch is not None
    with pytest.raises(RuntimeError):
        engine.begin(0.0)
    engine.complete(batch)
    with pytest.raises(RuntimeError):
        engine.complete(batch)
