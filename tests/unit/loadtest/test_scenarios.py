"""Scenarios as they are written, and those that come with the package."""

from __future__ import annotations

from itertools import islice

import pytest

from loadtest.scenario import Plan, ScenarioError, load_scenario, read_scenario, shipped
from loadtest.workloads import Replay

SHORT = "question: Why?\n"


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_asks_a_question_and_can_be_planned(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.question.endswith("?")
    assert scenario.duration_s <= 300
    if isinstance(scenario.workload, Replay):
        return  # its trace is not in the package
    plan = Plan(scenario)
    if scenario.is_open_loop:
        assert len(list(islice(plan.instants(), 10))) == 10
    step = next(plan.session(0))
    assert step.calls[0].body


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed: 1", "question"),
        (SHORT + "sed: 1", "sed"),
        (SHORT + "arrivals: {kind: poisson, rate: 3}", "rate"),
        (SHORT + "arrivals: {kind: sometimes}", "sometimes"),
        (SHORT + "arrivals: {kind: users, users: 0}", "at least one user"),
        (SHORT + "warm_up_s: 60", "warm-up"),
        (SHORT + "arrivals: {kind: own-times}", "replay"),
        (SHORT + "workload: {kind: rag, documents: many}", "documents"),
        (SHORT + "arrivals: {kind: poisson, rate_per_s: 0}", "a rate is above 0"),
        (SHORT + "arrivals: {kind: bursts, rate_per_s: -1}", "a rate is above 0"),
        (SHORT + "workload: {kind: shared-prefix, groups: 0}", "workload.groups"),
        (SHORT + "workload: {kind: rag, per_question: 0}", "workload.per_question"),
        (SHORT + "workload: {kind: agents, siblings: 0}", "workload.siblings"),
        (SHORT + "workload: {kind: embeddings, inputs: 0}", "workload.inputs"),
        (SHORT + "workload: {kind: multi-turn, think_s: -1}", "workload.think_s"),
        (SHORT + "workload: {kind: long-context, prompt_tokens: {mean: 0}}", "prompt_tokens.mean"),
        (SHORT + "workload: {kind: tenants, tenants: []}", "workload.tenants"),
        (SHORT + "objectives: {share: 95}", "objectives.share"),
        (SHORT + "objectives: {ttft_s: 0}", "objectives.ttft_s"),
        (SHORT + "fleet: {replicas: 0}", "fleet.replicas"),
        ("[", "expected"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ScenarioError, match=complaint):
        read_scenario(text)


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match="shared-prefix"):
        load_scenario("nothing-like-it")


def test_a_trace_that_is_not_there_is_named() -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.jsonl"):
        Plan(read_scenario(SHORT + "workload: {kind: replay, trace: nowhere.jsonl}"))
