"""The stand-in's controllers, whatever becomes ready or is scaled when.

The machine is played by hand: pods become ready in any order, and those deleted are gone some time
later. In between a Deployment's rollout may never have too many pods, or too few that serve.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.kube.cluster import Cluster, Key, Object, Place
from tests.kube.controllers import (
    DEPLOYMENTS,
    GROUPS,
    LWS,
    PODS,
    Controllers,
    is_going,
    is_ready,
    key_of,
)

NAME = Key(*DEPLOYMENTS, "models", "d")
GROUP = Key(*GROUPS, "models", "g")


def a_deployment(replicas: int, surge: int, missing: int) -> Object:
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"image": "1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": missing}},
            "template": template,
        },
    }


class Play:
    """A cluster, its controllers, and a machine that does one thing at a time."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.cluster = Cluster()
        self.cluster.departs.add("pods")
        self.controllers = Controllers(self.cluster)

    def pods(self) -> list[Object]:
        return [*self.cluster.select(Place(*PODS))]

    def settle(self) -> None:
        """Look until there is nothing to do."""
        seen = 0
        while seen != self.cluster.version:
            seen = self.cluster.version
            self.controllers.look()

    def happen(self) -> bool:
        """One pod becomes ready, or is gone; False if there is none that could."""
        waiting = [each for each in self.pods() if is_going(each) or not is_ready(each)]
        if not waiting:
            return False
        pod = self.rng.choice(waiting)
        if is_going(pod):
            self.cluster.remove(key_of(PODS, pod))
        else:
            ready = {"conditions": [{"type": "Ready", "status": "True"}]}
            self.cluster.merge(key_of(PODS, pod), {"status": ready})
        return True

    def change(self, key: Key, **spec: Any) -> None:
        new = copy.deepcopy(self.cluster.get(key))
        new["spec"] |= spec
        self.cluster.replace(key, new)


@given(
    seed=st.integers(0, 999),
    replicas=st.integers(1, 5),
    surge=st.integers(0, 2),
    missing=st.integers(0, 2),
)
def test_a_rollout_keeps_to_its_bounds_and_ends(
    seed: int, replicas: int, surge: int, missing: int
) -> None:
    play = Play(Random(seed))
    play.cluster.create(NAME, a_deployment(replicas, surge, missing))
    play.settle()
    while play.happen():
        play.settle()
    template = copy.deepcopy(play.cluster.get(NAME)["spec"]["template"])
    for image in ("2", "1"):  # and back to the first
        template["spec"]["containers"][0]["image"] = image
        play.change(NAME, template=copy.deepcopy(template))
        play.settle()
        while play.happen():
            play.settle()
            there = [each for each in play.pods() if not is_going(each)]
            assert len(there) <= replicas + surge
            assert sum(map(is_ready, there)) >= replicas - max(missing, not surge)
        images = [each["spec"]["containers"][0]["image"] for each in play.pods()]
        assert images == [image] * replicas
        status = play.cluster.get(NAME)["status"]
        assert status["updatedReplicas"] == status["readyReplicas"] == replicas
        assert status["conditions"][1]["reason"] == "NewReplicaSetAvailable"
    assert len([*play.cluster.select(Place("apps", "replicasets"))]) == 2


@given(seed=st.integers(0, 999), wanted=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_scale_is_followed_and_the_cheapest_go_first(seed: int, wanted: list[int]) -> None:
    play = Play(Random(seed))
    play.cluster.create(NAME, a_deployment(4, 0, 1))
    play.settle()
    while play.happen():
        play.settle()
    cost = "controller.kubernetes.io/pod-deletion-cost"
    for number, pod in enumerate(play.pods()):
        patch = {"metadata": {"annotations": {cost: str(number)}}}
        play.cluster.merge(key_of(PODS, pod), patch)
    dear = [each["metadata"]["name"] for each in play.pods()]
    play.change(NAME, replicas=2)
    play.settle()
    left = [each["metadata"]["name"] for each in play.pods() if not is_going(each)]
    assert left == dear[2:]
    for replicas in wanted:
        play.change(NAME, replicas=replicas)
        play.settle()
        for _ in range(play.rng.randrange(4)):
            play.happen()
            play.settle()
        assert sum(not is_going(each) for each in play.pods()) == replicas
    play.cluster.delete(NAME)
    play.settle()
    while play.happen():
        play.settle()
    assert not play.pods()
    assert not [*play.cluster.select(Place("apps", "replicasets"))]


@given(seed=st.integers(0, 999), replicas=st.integers(1, 3), size=st.integers(1, 3))
def test_groups_come_and_go_whole(seed: int, replicas: int, size: int) -> None:
    play = Play(Random(seed))
    worker: Object = {"metadata": {"labels": {}}, "spec": {"containers": [{"image": "1"}]}}
    template: Object = {"size": size, "workerTemplate": worker}
    play.cluster.create(
        GROUP,
        {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "spec": {"replicas": replicas, "leaderWorkerTemplate": template},
        },
    )

    def end(image: str, groups: int) -> None:
        play.settle()
        while play.happen():
            play.settle()
        found = [
            (each["metadata"]["labels"][f"{LWS}/group-index"], each["spec"]["containers"][0])
            for each in play.pods()
        ]
        assert [number for number, _ in found] == [
            str(number) for number in range(groups) for _ in range(size)
        ]
        assert {container["image"] for _, container in found} == ({image} if groups else set())

    end("1", replicas)
    broken = play.rng.choice(play.pods())
    play.cluster.merge(key_of(PODS, broken), {"status": {"phase": "Failed"}})
    play.settle()
    gone = {each["metadata"]["name"] for each in play.pods() if is_going(each)}
    assert len(gone) == size
    end("1", replicas)
    new = copy.deepcopy(template)
    new["workerTemplate"]["spec"]["containers"][0]["image"] = "2"
    play.change(GROUP, leaderWorkerTemplate=new)
    end("2", replicas)
    play.change(GROUP, replicas=0)
    end("2", 0)
