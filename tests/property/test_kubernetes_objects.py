"""Whatever a Kubernetes API sends: values or ValueError, and only addresses that can be asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.kubernetes_objects import (
    read_event,
    read_metadata,
    read_page,
    read_status,
    read_version,
)
from gateway.fleet.pods import (
    Sighting,
    Stage,
    UsualPort,
    models_in,
    read_pod,
    read_slice,
    read_workload,
    replicas_of,
    unplaced_in,
)
from tests.kube.makings import a_pod, a_slice, a_workload, an_endpoint

USUAL = UsualPort("http", 8000)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3)
    ),
    max_leaves=6,
)
JUNK = st.binary(max_size=60) | ANYTHING.map(json.dumps).map(str.encode)
SAID = st.sampled_from(
    ["model", "models", "role", "port", "scheme", "data-parallel-size", "kv-events-port",
     "kv-replay-port", "kv-events-topic"]
).map("headrace.io/{}".format)  # fmt: skip
WORDS = st.sampled_from(
    ["", "0", "1", "8", "65535", "65536", "-1", "http", "https", "prefill", "decode", "a,b", "²"]
) | st.text(max_size=12)  # fmt: skip

Read = Callable[[bytes, UsualPort], tuple[Sighting, ...]]
READERS: list[tuple[Read, dict[str, Any]]] = [
    (read_pod, a_pod("p", "10.0.0.1", ports={"http": 9000}, owner="rs")),
    (read_slice, a_slice("s", [an_endpoint("10.0.0.1", pod="p"), an_endpoint("fd00::1")])),
    (read_workload, a_workload("w", "m", 1)),
]


@st.composite
def spoilt(draw: st.DrawFn, good: dict[str, Any]) -> Any:
    """A good object with one of its parts replaced by anything."""
    found = json.loads(json.dumps(good))
    at: Any = found
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return found
        key = draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or draw(st.booleans()):
            at[key] = draw(ANYTHING | WORDS)
            return found
        at = at[key]


def check(sightings: tuple[Sighting, ...]) -> None:
    for address in replicas_of(sightings):
        parts = urlsplit(address.url)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert 1 <= (parts.port or 0) <= 65535
        assert parts.path == parts.query == parts.fragment == ""
        assert address.fields.count(b"\r\n") == (1 if address.rank is None else 2)
        assert all(address.models)
    assert all(models_in(sightings))


@pytest.mark.parametrize(("read", "good"), READERS)
def test_any_bytes_are_sightings_or_a_value_error(read: Read, good: dict[str, Any]) -> None:
    @given(JUNK | spoilt(good).map(json.dumps).map(str.encode))
    def law(raw: bytes) -> None:
        with contextlib.suppress(ValueError):
            check(read(raw, USUAL))

    law()


@pytest.mark.parametrize(("read", "good"), READERS)
def test_whatever_an_object_says_of_itself_is_taken_or_refused_with_a_reason(
    read: Read, good: dict[str, Any]
) -> None:
    @given(st.dictionaries(SAID, WORDS), st.booleans())
    def law(said: dict[str, str], as_labels: bool) -> None:
        found = json.loads(json.dumps(good))
        found["metadata"]["labels" if as_labels else "annotations"] = said
        reason = "headrace.io/"
        try:
            check(read(json.dumps(found).encode(), USUAL))
        except ValueError as error:
            reason = str(error)
        assert "headrace.io/" in reason

    law()


@given(JUNK)
def test_any_bytes_are_an_answer_or_a_value_error(raw: bytes) -> None:
    for read in (read_event, read_metadata, read_page, read_version):
        with contextlib.suppress(ValueError):
            read(raw)
    read_status(raw)


def seen(stage: Stage, name: str, port: int = 8000) -> Sighting:
    pod = a_pod(name, "10.0.0.1", ready=stage is Stage.READY)
    if stage is Stage.GOING:
        pod["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
    (found,) = read_pod(json.dumps(pod).encode(), UsualPort("x", port))
    return found


def test_of_what_tells_of_the_same_port_of_a_pod_the_first_counts() -> None:
    assert len(replicas_of([seen(Stage.READY, "a"), seen(Stage.COMING, "a")])) == 1
    assert len(replicas_of([seen(Stage.READY, "a"), seen(Stage.READY, "a", 9000)])) == 2
    assert not replicas_of([seen(Stage.READY, "a"), seen(Stage.GOING, "a")])


def test_a_pod_that_waits_for_a_node_is_so_many_replicas_to_come() -> None:
    says = {"headrace.io/model": "m", "headrace.io/data-parallel-size": "2"}

    def unplaced(phase: str = "Pending", *, is_going: bool = False) -> dict[str, tuple[str, ...]]:
        pod = a_pod("p", None, ready=False, annotations=says)
        pod["status"]["phase"] = phase
        if is_going:
            pod["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
        return dict(unplaced_in(read_pod(json.dumps(pod).encode(), USUAL)))

    assert list(unplaced().values()) == [("m",), ("m",)]
    assert not unplaced("Failed")
    assert not unplaced(is_going=True)
    assert not unplaced_in([seen(Stage.COMING, "a")]), "it has an address: it is a replica"
