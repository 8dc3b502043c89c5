"""The comparison over HTTP, as far as it is arithmetic: plans, figures, ratios, tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sim.tokens import tokenize
from tests.bench.figures import Spread
from tests.bench.peers.__main__ import main
from tests.bench.peers.figures import (
    Figures,
    capacity_tokens_s,
    figures,
    ratios,
    routing_cost_ms,
)
from tests.bench.peers.load import Outcome
from tests.bench.peers.report import Record, sentences, table, write
from tests.bench.peers.subjects import CONTENDERS, KV_AWARE, OURS, Behind, command
from tests.bench.peers.trace import (
    BLOCK_TOKENS,
    SCALE,
    Ask,
    as_ask,
    block_text,
    body,
    plan,
    pressing,
    prompt_text,
)
from tests.bench.routing.cache import Arrival, ideal_hit_tokens
from tests.bench.subjects import Surroundings

BLOCKS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def _ask(blocks: list[int]) -> Ask:
    return Ask(0.0, tuple(blocks), len(blocks) * BLOCK_TOKENS, 1)


@given(BLOCKS, BLOCKS)
def test_equal_leading_blocks_are_equal_leading_tokens_and_only_they(
    left: list[int], right: list[int]
) -> None:
    one, other = tokenize(prompt_text(_ask(left))), tokenize(prompt_text(_ask(right)))
    assert len(one) == len(left) * BLOCK_TOKENS
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    assert one[: shared * BLOCK_TOKENS] == other[: shared * BLOCK_TOKENS]
    if shared < min(len(left), len(right)):
        end = (shared + 1) * BLOCK_TOKENS
        assert one[shared * BLOCK_TOKENS : end] != other[shared * BLOCK_TOKENS : end]


def test_blocks_of_the_whole_trace_are_all_different() -> None:
    assert len({block_text(block) for block in range(20_000)}) == 20_000


def test_a_body_says_what_the_trace_says() -> None:
    ask = Ask(0.0, (1, 2), BLOCK_TOKENS + 7, 3, salt="s")
    chat = msgspec.json.decode(body(ask, "m"))
    assert chat["stream"] is True
    assert (chat["model"], chat["max_tokens"], chat["cache_salt"]) == ("m", 3, "s")
    assert len(tokenize(chat["messages"][0]["content"])) == BLOCK_TOKENS + 7
    assert "cache_salt" not in msgspec.json.decode(body(replace_salt(ask), "m"))


def replace_salt(ask: Ask) -> Ask:
    return msgspec.structs.replace(ask, salt=None)


def _drawn(count: int = 30) -> list[Arrival]:
    rng = Random(7)
    return [
        Arrival(n, n * 1.0, rng.randint(513, 1024), rng.randint(1, 99), (0, 1 + n % 3))
        for n in range(count)
    ]


def test_a_plan_offers_the_stated_share_of_the_capacity() -> None:
    drawn = _drawn()
    asks, ideal = plan(drawn, load=0.8, capacity_tokens_s=1000.0)
    hits = sum(ideal_hit_tokens(drawn))
    prompts = sum(each.prompt_tokens for each in drawn)
    assert ideal == pytest.approx(hits / prompts)
    work_tokens = (prompts - hits) / SCALE
    assert asks[-1].at_s == pytest.approx(work_tokens / 800.0)
    assert [ask.blocks for ask in asks] == [each.blocks for each in drawn]


def test_lengths_are_scaled_and_never_nothing() -> None:
    tiny = as_ask(Arrival(0, 0.0, 1, 1, (0,)))
    assert (tiny.prompt_tokens, tiny.output_tokens) == (1, 1)
    assert as_ask(Arrival(0, 0.0, 512 * SCALE, 1, (0,))).prompt_tokens == 512


def test_pressing_is_everything_at_once_and_nothing_shared() -> None:
    asks = pressing(_drawn())
    assert {ask.at_s for ask in asks} == {0.0}
    assert len({ask.salt for ask in asks}) == len(asks)


def test_capacity_adds_up_the_replicas() -> None:
    prompts, ttfts_s = [100, 300, 100, 300], [1.0, 1.0, 2.0, 3.0]
    assert capacity_tokens_s(prompts, ttfts_s, 2) == pytest.approx(200 / 2.0 + 600 / 3.0)
    with pytest.raises(ValueError, match="did nothing"):
        capacity_tokens_s([1], [0.0], 1)


def _figures(mean_s: float = 1.0, p90_s: float = 2.0, cpu_ms: float = 1.0) -> Figures:
    outcomes = [Outcome(0.001, 1.0, 2.0, 3) for _ in range(10)]
    made = figures(outcomes, hit_ratio=0.2, ideal=0.3, cpu_s=0.01, wall_s=5.0)
    return replace(made, mean_s=mean_s, p90_s=p90_s, cpu_ms_per_request=cpu_ms)


def test_figures_count_faults_and_leave_their_times_out() -> None:
    outcomes = [Outcome(0.0, float(n), 20.0, 3) for n in range(1, 11)]
    outcomes += [Outcome(0.5, None, 0.1, 0, "status 503"), Outcome(0.0, None, None, 0, "no end")]
    made = figures(outcomes, hit_ratio=0.2, ideal=0.3, cpu_s=0.6, wall_s=5.0)
    assert (made.requests, made.errors, made.faults) == (12, 2, ["no end", "status 503"])
    assert (made.mean_s, made.p50_s, made.p90_s) == (5.5, 5.0, 9.0)
    assert made.cpu_ms_per_request == pytest.approx(50.0)
    with pytest.raises(ValueError, match="had a first token"):
        figures(outcomes[-1:], hit_ratio=0, ideal=0, cpu_s=0, wall_s=1)


def test_ratios_go_seed_by_seed_against_the_best_peer_of_each() -> None:
    runs = {
        OURS.name: [_figures(1.0, 1.0, 0.5), _figures(1.0, 3.0, 1.0)],
        KV_AWARE.name: [_figures(2.0, 2.0, 4.0), _figures(5.0, 5.0, 4.0)],
        "other": [_figures(4.0, 1.0, 1.0), _figures(1.25, 6.0, 1.0)],
    }
    peers = [KV_AWARE.name, "other", "absent"]
    mean, p90, cpu = ratios(runs, ours=OURS.name, peers=peers, kv_aware=KV_AWARE.name)
    assert (mean.spread.low, mean.spread.high, mean.spread.rounds) == (0.5, 0.8, 2)
    assert mean.spread.median == pytest.approx(0.65)
    assert mean.is_met
    assert p90.spread.median == pytest.approx((1.0 + 0.6) / 2)
    assert not p90.is_met
    assert cpu.spread.median == pytest.approx((0.125 + 0.25) / 2)
    assert not cpu.is_met
    assert ratios({"other": runs["other"]}, ours="o", peers=["other"], kv_aware="k") == []


def test_the_cost_of_routing_is_what_is_left_of_round_robin() -> None:
    spread = routing_cost_ms([_figures(cpu_ms=3.0), _figures(cpu_ms=4.0)], [_figures()] * 2)
    assert spread == Spread(2.5, 2.0, 3.0, 2)


def _record() -> Record:
    runs = {OURS.name: [_figures(0.5)], KV_AWARE.name: [_figures(1.0, cpu_ms=9.0)]}
    faulty = replace(runs[KV_AWARE.name][0], errors=1, faults=("status 503",), late_p99_s=0.5)
    runs[KV_AWARE.name] = [faulty]
    return Record(
        date="2026-01-02",
        machine={"commit": "abc"},
        set_up={"seeds": 1},
        orders=[[OURS.name, KV_AWARE.name]],
        runs=runs,
        skipped={"smg/cache_aware": "no index"},
        ratios=ratios(runs, ours=OURS.name, peers=[KV_AWARE.name], kv_aware=KV_AWARE.name),
        routing_cost_ms={OURS.name: Spread.of([0.25])},
    )


def test_a_record_says_all_that_is_needed_to_believe_it(tmp_path: Path) -> None:
    record = _record()
    lines = table(record).splitlines()
    assert OURS.name in lines[2]
    assert len({len(line) for line in lines}) == 1
    text = "\n".join(sentences(record))
    for said in (
        "met: mean TTFT, headrace / best peer: 0.500, target 0.700",
        "MISSED: p90 TTFT, headrace / best peer: 1.000, target 0.750",
        "less the same gateway's round robin: 0.25 ms",
        "errors: status 503",
        "late by 0.500 s",
        "smg/cache_aware: skipped: no index",
    ):
        assert said in text
    page = write(record, tmp_path)
    assert page.name == "2026-01-02-routing-http-abc.md"
    kept = msgspec.json.decode(page.with_suffix(".json").read_bytes())
    assert kept["runs"][OURS.name][0]["mean_s"] == 0.5


def test_headrace_is_started_under_the_policy_asked_for(tmp_path: Path) -> None:
    behind = Behind(("http://127.0.0.1:1", "http://127.0.0.1:2"), ("tcp://a:1", "tcp://a:2"))
    line = command(OURS, behind, Surroundings((1, 2), tmp_path, tmp_path, tmp_path)).command
    assert line[line.index("--policy") + 1] == "cache-aware"
    assert [line[i + 1] for i, part in enumerate(line) if part == "--replica"] == [*behind.urls]


def test_every_gateway_has_one_floor() -> None:
    for gateway in {each.gateway for each in CONTENDERS}:
        assert sum(each.is_floor for each in CONTENDERS if each.gateway == gateway) == 1


def test_without_the_trace_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--traces", str(tmp_path), "--subjects", OURS.name]) == 2
    assert "no mooncake_conversation.jsonl" in capsys.readouterr().err
    assert main(["--traces", str(tmp_path), "--subjects", "nobody"]) == 2
    assert "no subject nobody" in capsys.readouterr().err
