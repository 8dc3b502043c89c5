"""How the stand-in merges: by hand for what Kubernetes says of lists, by chance for the rest."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.kube.merging import applied, merged, strategic

LEAVES = st.integers(0, 3)
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | LEAVES, max_size=3),
    max_leaves=8,
)


def containers(*found: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": list(found)}}


def test_a_strategic_merge_knows_containers_by_name() -> None:
    was = containers(
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}
    )
    patch = containers({"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "c"})
    patch["spec"]["$setElementOrder/containers"] = [{"name": "c"}, {"name": "a"}, {"name": "b"}]
    env = [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]
    assert strategic(was, patch) == containers(
        {"name": "c"}, {"name": "a", "image": "1", "env": env}, {"name": "b"}
    )


def test_a_strategic_merge_deletes_and_replaces_where_it_is_told_to() -> None:
    was = containers({"name": "a"}, {"name": "b"}) | {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "finalizers": ["x", "y"],
        "labels": {"a": "1"},
    }
    patch = containers({"name": "a", "$patch": "delete"}) | {
        "strategy": {"type": "Recreate", "$retainKeys": ["type"]},
        "$deleteFromPrimitiveList/finalizers": ["x"],
        "labels": {"b": "2", "$patch": "replace"},
    }
    assert strategic(was, patch) == containers({"name": "b"}) | {
        "strategy": {"type": "Recreate"},
        "finalizers": ["y"],
        "labels": {"b": "2"},
    }


def test_applying_gives_up_what_is_no_longer_said_and_leaves_what_others_say() -> None:
    before = containers({"name": "a", "image": "1", "args": ["x"]}, {"name": "b"})
    was = containers({"name": "a", "image": "1", "args": ["x"], "tty": True}, {"name": "b"})
    was["spec"]["replicas"] = 3  # somebody else's
    now = containers({"name": "a", "image": "2"})
    assert applied(was, before, now) == {
        "spec": {"replicas": 3, "containers": [{"name": "a", "image": "2", "tty": True}]}
    }


@given(was=OBJECTS, now=OBJECTS)
def test_without_lists_a_first_apply_is_a_merge(was: Any, now: Any) -> None:
    assert applied(copy.deepcopy(was), {}, now) == merged(copy.deepcopy(was), now)
    assert strategic(copy.deepcopy(was), now) == merged(copy.deepcopy(was), now)


@given(before=OBJECTS, now=OBJECTS)
def test_alone_the_last_who_applies_has_said_it_all(before: Any, now: Any) -> None:
    assert applied(copy.deepcopy(before), before, now) == now
