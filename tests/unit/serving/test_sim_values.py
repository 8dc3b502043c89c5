"""Profiles, settings, replies, faults and metrics: what is decided by calling a function."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.sim.engine import Engine, FinishReason
from serving.sim.faults import Faults, Garbage, Refuse, Reset, Stuck
from serving.sim.histogram import Histogram, render_family
from serving.sim.metrics import Timings, render_metrics
from serving.sim.replies import plan_reply
from serving.sim.requests import Limits
from serving.sim.settings import (
    KvEventSettings,
    SimSettings,
    engine_shape,
    load_profile,
    shipped_profiles,
)
from serving.sim.tokens import tokenize

PROMPT = tokenize("once upon a time")


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_says_how_it_was_made_and_fits_its_cache(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.note
    Engine(engine_shape(SimSettings(profile=name), profile), profile.timing)


def test_a_profile_may_be_a_file_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    text = msgspec.json.encode(load_profile("fast"))
    file.write_bytes(text)
    assert load_profile(str(file)) == load_profile("fast")
    file.write_bytes(text.replace(b"0.0002", b"-1.0"))
    with pytest.raises(ValueError, match=r"timing\.base_s"):
        load_profile(str(file))
    with pytest.raises(ValueError, match=r"shipped are .*cpu-tiny, fast"):
        load_profile("no-such")


def test_flags_replace_limits_of_the_profile_and_the_context_shrinks_to_the_cache() -> None:
    profile = load_profile("fast")
    shape = engine_shape(SimSettings(blocks=10, max_num_seqs=3), profile)
    assert (shape.blocks, shape.max_num_seqs, shape.max_model_len) == (10, 3, 160)
    assert shape.block_size == profile.engine.block_size


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ()},
        {"models": ("a", "a")},
        {"models": ("a",), "loras": ("a=p",)},
        {"speed": 0.0},
        {"kv_events": KvEventSettings(replay_endpoint="tcp://127.0.0.1:*")},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SimSettings(**wrong)  # type: ignore[arg-type]


def test_adapters_are_numbered_and_have_a_path() -> None:
    first, second = SimSettings(loras=("a=some/path", "b")).adapters()
    assert (first.name, first.path, first.number) == ("a", "some/path", 1)
    assert (second.name, second.path, second.number) == ("b", "b", 2)


def test_a_reply_ends_at_its_limit_or_at_the_end_of_the_context() -> None:
    for limits, room in ((Limits(5, ignores_end=True), 99), (Limits(99, ignores_end=True), 5)):
        reply = plan_reply(PROMPT, limits, room, seed=0, mean_tokens=2)
        assert (len(reply.tokens), reply.finish) == (5, FinishReason.LENGTH)


def test_a_reply_ends_by_itself_unless_told_not_to() -> None:
    reply = plan_reply(PROMPT, Limits(500), 500, seed=0, mean_tokens=4)
    assert reply.finish is FinishReason.STOP
    assert len(reply.tokens) < 500
    longer = Limits(500, least_tokens=len(reply.tokens) + 1)
    assert len(plan_reply(PROMPT, longer, 500, 0, 4).tokens) > len(reply.tokens)


def test_a_stop_string_ends_a_reply_before_itself() -> None:
    whole = plan_reply(PROMPT, Limits(20, ignores_end=True), 99, 0, None)
    stop = whole.text[13:18]
    reply = plan_reply(PROMPT, Limits(20, stops=("no such", stop), ignores_end=True), 99, 0, None)
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert (reply.finish, reply.stop_reason) == (FinishReason.STOP, stop)
    assert reply.tokens == whole.tokens[: len(reply.tokens)]
    assert len(reply.pieces) == len(reply.tokens)


def test_a_fault_strikes_so_many_requests_and_is_gone() -> None:
    faults = Faults(Random(0))
    faults.merge({"reset": {"after_chunks": 3, "next": 2}})
    drawn = [faults.draw() for _ in range(3)]
    assert drawn[0] == Reset(after_chunks=3, next=2)
    assert isinstance(drawn[1], Reset)
    assert drawn[2] is None
    assert faults.table.reset is None


def test_a_fault_strikes_its_share_of_requests() -> None:
    faults = Faults(Random(1))
    faults.merge({"garbage": {"ratio": 0.25}})
    struck = sum(isinstance(faults.draw(), Garbage) for _ in range(4000))
    assert 900 < struck < 1100


def test_faults_merge_one_by_one_and_end_by_none() -> None:
    faults = Faults(Random(0))
    faults.merge({"slow": 3.0, "refuse": {"status": 500}})
    faults.merge({"stuck": {"where": "after_head"}})
    assert faults.table.slow == 3.0
    assert faults.draw() == Stuck(where="after_head")
    faults.merge({"stuck": None, "slow": None})
    assert faults.draw() == Refuse(status=500)
    assert faults.table.slow == 1.0
    faults.clear()
    assert faults.draw() is None


@pytest.mark.parametrize("wrong", [{"nonsense": {}}, {"refuse": {"status": 200}}, {"slow": 0}])
def test_a_wrong_fault_changes_nothing(wrong: dict[str, object]) -> None:
    faults = Faults(Random(0))
    faults.merge({"slow": 2.0})
    before = faults.table
    with pytest.raises(msgspec.ValidationError):
        faults.merge(wrong)
    assert faults.table == before


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.cumulative()) == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 12.0


def test_label_values_are_escaped() -> None:
    text = render_family("f", "gauge", "help", [({"l": 'a"b\\c\nd'}, 1.0)])
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"l": 'a"b\\c\nd'}


def test_the_metrics_page_has_the_names_a_gateway_reads() -> None:
    profile = load_profile("fast")
    engine = Engine(profile.engine, profile.timing)
    page = render_metrics(engine, Timings(), "m", {"block_size": "16"}, max_loras=1)
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
    ):
        sample = families[f"vllm:{name}"].samples[0]
        assert sample.labels["model_name"] == "m"
        assert sample.labels["engine"] == "0"
    assert families["vllm:prefix_cache_hits"].type == "counter"
    info = families["vllm:cache_config_info"].samples[0]
    assert info.labels["block_size"] == "16"
    assert families["vllm:lora_requests_info"].samples[0].labels["max_lora"] == "1"
