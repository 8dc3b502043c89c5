"""What the demand signal learns of the fleet."""

from __future__ import annotations

from random import Random
from time import process_time

from gateway.choose.policies import policy
from gateway.fleet.health import Sign
from gateway.fleet.roster import Roster
from gateway.hold.cold import ColdHold
from gateway.hold.gate import Gate
from gateway.scale.demands import Demands
from gateway.settings import ChooseSettings, FleetSettings, HoldSettings, ScaleSettings
from gateway.supply import Supply
from gateway.vocabulary import ModelCard, ModelName, ReplicaAddress

M, TUNED, ASLEEP = ModelName("m"), ModelName("tuned"), ModelName("asleep")
DEADLINE_S = 600.0


class House:
    """The rooms that are asked."""

    def __init__(self) -> None:
        self.now = 0.0
        settings = HoldSettings(cold_start_s=75.0, max_sequences=128)
        self.roster = Roster(FleetSettings.of({"models": [ASLEEP]}))
        self.gate = Gate(settings, lambda: self.now, self.roster.serving)
        cold = ColdHold(settings, lambda: self.now, self.roster.serving)
        chooser = policy(ChooseSettings(policy="cache-aware"), Random(0))
        self.supply = Supply(self.roster, chooser, self.gate, cold, DEADLINE_S, lambda: self.now)

    def joins(self, *names: str, pinned: tuple[ModelName, ...] = ()) -> None:
        addresses = [ReplicaAddress(f"http://{name}:8000", pinned) for name in names]
        self.roster.apply(addresses, "static")

    def serves(self, *cards: ModelCard) -> None:
        for replica in self.roster.replicas:
            self.roster.observe_models(replica, cards)
            self.roster.sign(replica, Sign.SUCCESS, self.now)


def test_models_are_those_that_are_served_or_declared_and_adapters_are_not_scaled() -> None:
    house = House()
    house.joins("a")
    house.serves(ModelCard(M), ModelCard(TUNED, parent=M))
    assert set(house.supply.models()) == {M, ASLEEP}
    assert house.supply.base(TUNED) == M
    assert house.supply.base(M) == M
    assert house.supply.base(ASLEEP) == ASLEEP
    assert house.supply.base(ModelName("stranger")) is None


def test_a_model_whose_replicas_are_all_out_is_still_known() -> None:
    house = House()
    house.joins("a", pinned=(M,))
    for _ in range(20):
        house.roster.sign(house.roster.replicas[0], Sign.FAILURE, 0.0)
    assert set(house.supply.models()) == {M, ASLEEP}
    assert house.supply.base(M) == M


def test_who_has_joined_loads_until_it_serves() -> None:
    house = House()
    house.joins("a", pinned=(M,))
    found = house.supply.standing(M, 1.0)
    assert (found.ready, found.loading, found.cold_start_s) == (0, 1, 75.0)
    assert found.sequences == 128
    assert house.supply.standing(ASLEEP, 1.0).loading == 0
    house.serves()
    found = house.supply.standing(M, 2.0)
    assert (found.ready, found.loading) == (1, 0)


def test_who_loads_for_too_long_will_not_come() -> None:
    house = House()
    house.joins("a", pinned=(M,))
    assert house.supply.standing(M, DEADLINE_S - 1.0).loading == 1
    assert house.supply.standing(M, DEADLINE_S).loading == 0


def test_who_has_left_loads_no_more() -> None:
    house = House()
    house.joins("a", "b", pinned=(M,))
    house.joins("b", pinned=(M,))
    assert house.supply.standing(M, 1.0).loading == 1
    house.joins()
    assert house.supply.standing(M, 1.0).loading == 0


def test_who_does_not_say_yet_what_it_will_serve_is_the_only_models() -> None:
    house = House()
    house.joins("a")
    assert house.supply.standing(ASLEEP, 1.0).loading == 1


def test_pods_without_an_address_are_on_the_way_for_a_while() -> None:
    house = House()
    house.roster.unplaced = {"ns/q#0": ()}
    assert house.supply.standing(ASLEEP, 1.0).loading == 1, "the only model's, who does not say"
    house.roster.unplaced = {"ns/p#0": (M,), "ns/p#1": (M,)}
    assert house.supply.standing(M, 1.0).loading == 2
    assert house.supply.standing(ASLEEP, 1.0).loading == 0
    house.roster.unplaced = {"ns/p#1": (M,), "ns/r#0": (M,)}
    assert house.supply.standing(M, 500.0).loading == 2
    assert house.supply.standing(M, DEADLINE_S + 1.0).loading == 1, "r came later"
    house.roster.unplaced = {}
    assert house.supply.standing(M, DEADLINE_S + 2.0).loading == 0


def test_who_hears_elsewhere_of_somebody_who_waits_counts_pods_from_that_moment_on() -> None:
    house = House()
    house.now = 10 * DEADLINE_S
    demands = Demands(ScaleSettings(), house.supply, lambda: house.now)
    house.roster.unplaced = {"here/pod#0": (ASLEEP,)}
    demands.activated(ASLEEP)
    assert house.supply.standing(ASLEEP, house.now).loading == 1


def test_many_models_on_many_replicas_hold_nobody_up() -> None:
    """Standings of n models on n replicas: n times as much for each, not n times n."""

    def took_s(size: int) -> float:
        house = House()
        addresses = [
            ReplicaAddress(f"http://r{each}:8000", (ModelName(f"m{each}"),)) for each in range(size)
        ]
        house.roster.apply(addresses, "static")
        house.serves()
        models = house.supply.models()
        times = []
        for _ in range(5):
            began_at = process_time()
            for model in models:
                house.supply.standing(model, 1.0)
            times.append(process_time() - began_at)
        return min(times)

    assert took_s(160) < 20 * took_s(40)
