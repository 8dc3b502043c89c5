"""What a trigger's metadata come to, or what is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demand import Demand
from gateway.scale.trigger import KEDAS, METRICS, OURS, BadTrigger, Trigger, read_trigger
from gateway.vocabulary import ModelName

M = ModelName("org/model")


def test_a_model_alone_asks_for_the_replicas_it_needs() -> None:
    trigger = read_trigger({"model": M, "scalerAddress": "gateway:9090", "enableTLS": "true"})
    assert trigger == Trigger(M, "replicas_needed", 1.0)
    assert trigger.metric_name == "headrace-replicas-needed"
    assert trigger.value(Demand(M, replicas_needed=2.5)) == 2.5


def test_plain_figures_need_a_target() -> None:
    trigger = read_trigger({"model": M, "metric": "queued_tokens", "target": "8000"})
    assert trigger == Trigger(M, "queued_tokens", 8000.0)
    assert trigger.value(Demand(M, queued_tokens=7)) == 7


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "`model` is missing"),
        ({"model": ""}, "`model` is missing"),
        ({"modle": "m"}, "unknown metadata: modle; known are model, metric, target"),
        ({"model": "m", "metric": "gpu"}, "`metric` is `gpu`; it must be one of replicas_needed,"),
        ({"model": "m", "metric": "queued_tokens"}, "`target` is missing"),
        ({"model": "m", "target": "0"}, "`target` is `0`; it must be a number above 0"),
        ({"model": "m", "target": "many"}, "must be a number"),
        ({"model": "m", "target": "nan"}, "must be a number"),
        ({"model": "m", "target": "inf"}, "must be a number"),
        ({"model": "m", "target": ""}, "must be a number"),
    ],
)
def test_what_cannot_be_used_is_said_so_that_it_can_be_mended(
    metadata: dict[str, str], says: str
) -> None:
    with pytest.raises(BadTrigger, match=says):
        read_trigger(metadata)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from([*OURS, *KEDAS]), st.text()),
        st.one_of(st.sampled_from([*METRICS, "1", "-1", "1e400"]), st.text()),
    )
)
def test_any_metadata_are_a_trigger_or_a_mistake(metadata: dict[str, str]) -> None:
    try:
        trigger = read_trigger(metadata)
    except BadTrigger:
        assert not metadata.get("model") or set(metadata) - {"model"} - KEDAS, "that is enough"
    else:
        assert trigger.model == metadata["model"]
        assert 0 < trigger.target < float("inf")
        assert trigger.value(Demand(trigger.model)) == 0
