"""Laws of the planner, whatever the model, the GPUs and the demand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.planner.hardware import Gpu, Inventory, Link, kind, link, worst_link
from serving.planner.inventory import Joined, host
from serving.planner.legal import Split, refusals
from serving.planner.memory import Budget, footprint, sequences, stages
from serving.planner.model import PlanError
from serving.planner.place import place
from serving.planner.predict import Demand, Links, Objectives, Roofline
from serving.planner.search import Candidate, Plan, Request, search
from serving.planner.sources import read_model
from serving.sim.timing import StepWork

MODELS = (
    "Qwen2.5-0.5B-Instruct", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct", "gpt-oss-20b",
    "Qwen3-30B-A3B-FP8", "Mixtral-8x7B-Instruct-v0.1", "Qwen2.5-72B-Instruct-AWQ",
    "NVIDIA-Nemotron-Nano-9B-v2", "DeepSeek-V2-Lite-Chat", "Mistral-7B-Instruct-v0.1",
)  # fmt: skip
KINDS = ("l4", "a100-40gb", "h100", "h200", "h100-1g.10gb", "h100-3g.40gb", "mi300x")
RELAXED = settings(max_examples=60, deadline=None)


@st.composite
def hosts(draw: st.DrawFn, name: str) -> list[Gpu]:
    """A host with one or two kinds of GPU, joined as it likes."""
    found: list[Gpu] = []
    for _ in range(draw(st.integers(1, 2))):
        what = kind(draw(st.sampled_from(KINDS)))
        count = draw(st.integers(1, 6))
        numbers = list(range(len(found), len(found) + count))
        told = None if draw(st.booleans()) else Joined(
            nvlink=draw(_sets(numbers)), pcie=None, numa=draw(_sets(numbers))
        )  # fmt: skip
        found += host(name, what, count, len(found), told)
    return found


def _sets(numbers: Sequence[int]) -> st.SearchStrategy[list[list[int]]]:
    """Some of the numbers, in disjoint sets."""
    return st.lists(st.integers(0, 2), min_size=len(numbers), max_size=len(numbers)).map(
        lambda marks: [
            [n for n, mark in zip(numbers, marks, strict=True) if mark == wanted]
            for wanted in sorted(set(marks))
        ]
    )


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """One to three hosts."""
    count = draw(st.integers(1, 3))
    return Inventory(tuple(gpu for n in range(count) for gpu in draw(hosts(f"host-{n}"))))


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Some rate or none, some lengths, some objectives."""
    prompt, output = draw(st.integers(1, 3000)), draw(st.integers(1, 800))
    objectives = Objectives(draw(st.floats(0.1, 10)), draw(st.floats(0.01, 0.3)))
    rate = draw(st.none() | st.floats(0.01, 20))
    return Demand(rate, prompt, output, objectives, prompt, prompt + output)


def planned(model: str, inventory: Inventory, demand: Demand) -> Plan | None:
    try:
        return search(read_model(model), inventory, Request(demand, Budget(max_model_len=4096)))
    except PlanError:
        return None


@RELAXED
@given(st.sampled_from(MODELS), inventories(), demands())
def test_no_plan_breaks_a_rule_or_exceeds_memory_or_uses_a_gpu_twice(
    name: str, inventory: Inventory, demand: Demand
) -> None:
    plan = planned(name, inventory, demand)
    assume(plan is not None)
    assert plan is not None
    used = [gpu.id for pool in plan.pools for place_ in pool.placements for gpu in place_.gpus]
    assert len(used) == len(set(used)) == plan.gpus
    assert set(used) <= {gpu.id for gpu in inventory.gpus}
    for pool in plan.pools:
        _assert_pool_stands(plan, pool.candidate, inventory)
    if demand.rate is not None:
        assert plan.rate >= demand.rate * 0.999
        for pool in plan.pools:
            seen = plan.prediction(pool)
            assert seen.ttft_s <= demand.objectives.ttft_s
            assert seen.tpot_s <= demand.objectives.tpot_s


def _assert_pool_stands(plan: Plan, it: Candidate, inventory: Inventory) -> None:
    mine = inventory.of_kind(it.kind)
    per_node = max(sum(gpu.node == node for gpu in mine) for node in {g.node for g in mine})
    assert refusals(plan.model, it.split, it.kind, per_node) == []
    used = footprint(plan.model, it.split, it.kind, plan.budget)
    total = used.weights + used.activations + used.overhead + used.longest
    assert total <= plan.budget.utilisation * it.kind.memory + 4
    # Together the GPUs of a replica hold the whole model at the least.
    least = plan.model.parameters * plan.model.quantisation.bits / 8
    assert used.weights * it.split.gpus >= 0.98 * least
    for placement in it.placements:
        assert len(placement.groups) == it.split.pipeline * it.split.data
        for group in placement.groups:
            assert len(group) == it.split.tensor
            assert len({gpu.node for gpu in group}) == 1
            assert {gpu.kind for gpu in group} == {it.kind}
            assert it.split.tensor == 1 or not it.kind.is_slice
        assert placement.links.inner == min(_pairwise(group) for group in placement.groups)
        if it.split.gpus > 1:
            assert placement.links.outer == _pairwise(placement.gpus)


def _pairwise(gpus: Sequence[Gpu]) -> Link:
    return min((link(a, b) for a, b in itertools.combinations(gpus, 2)), default=Link.NVSWITCH)


@RELAXED
@given(st.sampled_from(MODELS), inventories(), demands(), st.randoms(use_true_random=False))
def test_the_order_of_gpus_does_not_matter(
    name: str, inventory: Inventory, demand: Demand, dice: random.Random
) -> None:
    gpus = list(inventory.gpus)
    dice.shuffle(gpus)
    one, other = planned(name, inventory, demand), planned(name, Inventory(tuple(gpus)), demand)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert _chosen(one) == _chosen(other)


def _chosen(plan: Plan) -> list[tuple[str, str, list[str]]]:
    return [
        (
            pool.candidate.kind.name,
            str(pool.candidate.split),
            [gpu.id for placement in pool.placements for gpu in placement.gpus],
        )
        for pool in plan.pools
    ]


@RELAXED
@given(inventories(), st.integers(1, 6))
def test_the_first_replica_is_on_the_best_joined_gpus_of_all_hosts(
    inventory: Inventory, tensor: int
) -> None:
    for what in inventory.kinds:
        mine = inventory.of_kind(what)
        found = place(mine, tensor, 1)
        sets = [
            some
            for node in {gpu.node for gpu in mine}
            for some in itertools.combinations([g for g in mine if g.node == node], tensor)
        ]
        assert bool(found) == bool(sets)
        if found and not what.is_slice:
            assert found[0].links.inner == max(map(_pairwise, sets))


@RELAXED
@given(inventories(), st.integers(1, 4), st.integers(1, 4))
def test_as_many_replicas_are_placed_as_there_is_room_for(
    inventory: Inventory, tensor: int, groups: int
) -> None:
    for what in inventory.kinds:
        mine = inventory.of_kind(what)
        found = place(mine, tensor, groups)
        each = [sum(gpu.node == node for gpu in mine) for node in {gpu.node for gpu in mine}]
        assert len(found) == sum(count // tensor for count in each) // groups
        used = [gpu.id for placement in found for gpu in placement.gpus]
        assert len(used) == len(set(used))


@RELAXED
@given(hosts("here"))
def test_the_worst_link_is_the_worst_of_all_pairs(gpus: list[Gpu]) -> None:
    for size in (1, 2, 3):
        for some in itertools.islice(itertools.combinations(gpus, size), 50):
            assert worst_link(some) == _pairwise(some)


def _exhaustive(plan: Plan, demand: Demand) -> tuple[float, float]:
    """The least price, and the greatest rate, of all fleets: every split of every kind, in every
    number of replicas, every combination of kinds."""
    per_kind: dict[str, list[tuple[float, float]]] = {}
    for it in plan.candidates:
        options = per_kind.setdefault(it.kind.name, [(0.0, 0.0)])
        options += [
            (n * it.split.gpus * it.kind.price, sum(it.rates[:n]))
            for n in range(1, len(it.rates) + 1)
        ]
    fleets = [
        (sum(price for price, _ in chosen), sum(rate for _, rate in chosen))
        for chosen in itertools.product(*per_kind.values())
    ]
    enough = [price for price, rate in fleets if demand.rate is None or rate >= demand.rate]
    return min(enough), max(rate for _, rate in fleets)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), inventories(), demands())
def test_exhaustive_search_agrees(name: str, inventory: Inventory, demand: Demand) -> None:
    plan = planned(name, inventory, demand)
    assume(plan is not None)
    assert plan is not None
    least, most = _exhaustive(plan, demand)
    if demand.rate is None:
        assert abs(plan.rate - most) <= 1e-9 * most
    else:
        assert abs(plan.price - least) <= 1e-9 * least


@RELAXED
@given(st.sampled_from(MODELS), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))
def test_more_gpus_never_leave_less_room_for_each(name: str, tensor: int, pipeline: int) -> None:
    model, what, budget = read_model(name), kind("h200"), Budget(max_model_len=1024)
    assume(not refusals(model, Split(tensor, pipeline), what, 8))
    one = footprint(model, Split(), what, budget)
    many = footprint(model, Split(tensor, pipeline), what, budget)
    assert many.weights <= one.weights
    assert many.longest <= one.longest
    assert sequences(model, Split(tensor, pipeline), what, budget, 1000.0) >= 0


@given(st.integers(1, 200), st.data())
def test_stages_are_dealt_as_the_engine_deals_them(layers: int, data: st.DataObject) -> None:
    pipeline = data.draw(st.integers(1, layers))
    counts = stages(layers, pipeline)
    assert sum(counts) == layers
    assert max(counts) - min(counts) <= 1
    assert len(counts) == pipeline


@RELAXED
@given(
    st.sampled_from(MODELS),
    st.sampled_from([1, 2, 4]),
    st.lists(st.floats(0, 2000), min_size=4, max_size=4),
    st.integers(0, 3),
)
def test_a_step_never_gets_shorter_with_more_work(
    name: str, tensor: int, amounts: list[float], grown: int
) -> None:
    model = read_model(name)
    links = Links(Link.NVSWITCH, Link.NVSWITCH)
    timing = Roofline(model, Split(tensor), kind("h200"), links)
    prefill, pairs, decoding, mean = amounts

    def seconds(prefill: float, pairs: float, decoding: float, mean: float) -> float:
        return timing.seconds(StepWork(prefill, pairs, decoding, decoding * mean))

    before = seconds(prefill, pairs, decoding, mean)
    more = [prefill, pairs, decoding, mean]
    more[grown] += 100
    assert before > 0
    assert seconds(*more) >= before
