"""The roster: who is there, who serves what, and who is told."""

from __future__ import annotations

import pytest

from gateway.errors import NoReplica, UnknownModel
from gateway.fleet.health import Sign
from gateway.fleet.ledger import Replica
from gateway.fleet.roster import Roster
from gateway.fleet.snapshot import fleet_document
from gateway.kv_cache import EngineFacts
from gateway.settings import FleetSettings
from gateway.vocabulary import Health, ModelCard, ModelName, ReplicaAddress, Role

M = ModelName("m")
N = ModelName("n")


class Diary:
    """Writes down what a listener is told."""

    def __init__(self, roster: Roster) -> None:
        self.lines: list[str] = []
        self._roster = roster
        roster.subscribe(self)

    def joined(self, replica: Replica) -> None:
        assert replica in self._roster.replicas
        self.lines.append(f"joined {replica.id}")

    def left(self, replica: Replica) -> None:
        assert replica not in self._roster.replicas
        self.lines.append(f"left {replica.id}")

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        assert replica.health is now
        self.lines.append(f"{replica.id} {was} > {now}")


def at(url: str, *models: ModelName, role: Role = Role.BOTH) -> ReplicaAddress:
    return ReplicaAddress(f"http://{url}", models, role)


def a_roster(*addresses: ReplicaAddress, healthy: bool = True) -> Roster:
    roster = Roster(FleetSettings())
    roster.apply(addresses, "static")
    for replica in roster.replicas:
        if healthy:
            roster.sign(replica, Sign.PROBE_SUCCESS, 0.0)
    return roster


def ids(roster: Roster) -> list[str]:
    return [replica.id for replica in roster.replicas]


def eject(roster: Roster, replica: Replica) -> None:
    for _ in range(3):
        roster.sign(replica, Sign.FAILURE, 0.0)


def test_candidates_take_work_and_serve_the_model() -> None:
    roster = a_roster(at("a:1", M), at("b:1", M, N), at("c:1", N))
    a, b, c = roster.replicas
    assert roster.candidates(M) == (a, b)
    assert roster.candidates(N) == (b, c)
    eject(roster, b)
    assert roster.candidates(M) == (a,)
    roster.sign(a, Sign.FAILURE, 0.0)
    assert roster.candidates(M) == (a,), "a suspect takes work"


def test_a_model_nobody_serves_is_unknown() -> None:
    with pytest.raises(UnknownModel):
        a_roster(at("a:1", M)).candidates(N)


def test_a_model_may_be_served_later_while_a_replica_has_not_said_what_it_serves() -> None:
    roster = a_roster(at("a:1", M), at("b:1"), healthy=False)
    with pytest.raises(NoReplica):
        roster.candidates(N)
    pinned = a_roster(at("a:1", M), healthy=False)
    with pytest.raises(UnknownModel):
        pinned.candidates(N)


def test_no_model_is_unknown_to_an_empty_fleet() -> None:
    with pytest.raises(NoReplica):
        Roster(FleetSettings()).candidates(M)


def test_a_model_whose_replicas_are_all_out_says_when_to_come_back() -> None:
    roster = a_roster(at("a:1", M))
    eject(roster, roster.replicas[0])
    assert not roster.is_ready
    with pytest.raises(NoReplica) as caught:
        roster.candidates(M)
    assert caught.value.retry_after_s == 5.0


def test_one_url_is_one_replica_however_many_sources_name_it() -> None:
    roster = a_roster(at("a:1", M))
    roster.apply([at("a:1"), at("b:1")], "dns:x")
    assert ids(roster) == ["a:1", "b:1"]
    roster.apply([], "static")
    assert ids(roster) == ["a:1", "b:1"]
    roster.apply([], "dns:x")
    assert ids(roster) == []


@pytest.mark.parametrize("order", [("static", "file:f", "dns:x"), ("dns:x", "file:f", "static")])
def test_where_sources_disagree_settings_win_over_files_and_files_over_dns(
    order: tuple[str, ...],
) -> None:
    roster = Roster(FleetSettings())
    roles = {"static": Role.DECODE, "file:f": Role.PREFILL, "dns:x": Role.BOTH}
    for source in order:
        roster.apply([at("a:1", role=roles[source])], source)
    assert [replica.role for replica in roster.replicas] == [Role.DECODE]
    roster.apply([], "static")
    assert [replica.role for replica in roster.replicas] == [Role.PREFILL]


def test_http_and_https_on_one_port_are_two_replicas_with_two_ids() -> None:
    roster = a_roster(ReplicaAddress("http://a:1"), ReplicaAddress("https://a:1"))
    assert ids(roster) == ["a:1", "https://a:1"]


def test_a_replica_named_by_nobody_takes_nothing_new_and_leaves_with_its_last_lease() -> None:
    roster = a_roster(at("a:1", M))
    diary, replica = Diary(roster), roster.replicas[0]
    with replica.lease(5):
        roster.apply([], "static")
        assert replica.health is Health.DRAINING
        roster.forget_idle()
        assert ids(roster) == ["a:1"]
        with pytest.raises(NoReplica):
            roster.candidates(M)
        roster.sign(replica, Sign.SUCCESS, 0.0)
        assert not replica.takes_work
    assert ids(roster) == []
    assert diary.lines == ["a:1 healthy > draining", "left a:1"]


def test_a_draining_replica_named_again_joins_again_with_its_leases() -> None:
    roster = a_roster(at("a:1", M))
    diary, replica = Diary(roster), roster.replicas[0]
    with replica.lease(5):
        roster.apply([], "static")
        roster.apply([at("a:1", M)], "static")
        assert roster.replicas == (replica,)
        assert replica.inflight_requests == 1
    assert roster.replicas == (replica,)
    assert diary.lines == ["a:1 healthy > draining", "a:1 draining > joining"]


def test_a_replica_that_joins_again_has_yet_to_say_what_it_serves() -> None:
    roster = a_roster(at("a:1"))
    replica = roster.replicas[0]
    with replica.lease(5):
        roster.apply([], "static")
        with pytest.raises(UnknownModel):
            roster.candidates(M)
        roster.apply([at("a:1")], "static")
        with pytest.raises(NoReplica):
            roster.candidates(M)


def test_a_source_that_names_a_replica_twice_is_taken_at_its_first_word() -> None:
    roster = a_roster(at("a:1", M), at("a:1", N))
    assert ids(roster) == ["a:1"]
    assert list(roster.known_models()) == [M]


def test_a_replica_drained_by_a_sign_stays_so_while_it_is_named() -> None:
    roster = a_roster(at("a:1", M))
    replica = roster.replicas[0]
    roster.sign(replica, Sign.DRAIN, 0.0)
    roster.apply([at("a:1", M)], "static")
    assert replica.health is Health.DRAINING
    assert roster.replicas == (replica,)
    roster.apply([], "static")
    assert ids(roster) == []


def test_changed_pins_count_at_once_and_health_is_kept() -> None:
    roster = a_roster(at("a:1", M))
    roster.apply([at("a:1", N)], "static")
    assert roster.candidates(N) == roster.replicas
    with pytest.raises(UnknownModel):
        roster.candidates(M)


def test_models_observed_count_unless_they_are_pinned() -> None:
    roster = a_roster(at("a:1"), at("b:1", N))
    a, b = roster.replicas
    cards = [ModelCard(M, max_model_len=2048), ModelCard(ModelName("lora"), parent="m")]
    roster.observe_models(a, cards)
    roster.observe_models(b, cards)
    assert roster.candidates(M) == (a,)
    assert roster.candidates(ModelName("lora")) == (a,)
    assert dict(roster.known_models()) == {c.id: c for c in [*cards, ModelCard(N)]}
    roster.observe_models(a, cards[:1])
    with pytest.raises(UnknownModel):
        roster.candidates(ModelName("lora"))


def test_models_of_a_replica_that_takes_no_work_are_not_listed() -> None:
    roster = a_roster(at("a:1", M), at("b:1", N))
    eject(roster, roster.replicas[0])
    assert list(roster.known_models()) == [N]


def test_telling_the_same_again_changes_nothing_and_rebuilds_nothing() -> None:
    roster = a_roster(at("a:1", M))
    diary, before, index = Diary(roster), roster.replicas, roster.candidates(M)
    roster.apply([at("a:1", M)], "static")
    roster.observe_models(before[0], [ModelCard(N)])
    roster.sign(before[0], Sign.SUCCESS, 1.0)
    assert roster.replicas is before
    assert roster.candidates(M) is index
    assert diary.lines == []


def test_a_listener_hears_in_order_until_it_leaves() -> None:
    roster = Roster(FleetSettings(failures_to_eject=1))
    diary = Diary(roster)
    roster.apply([at("a:1", M)], "static")
    roster.sign(roster.replicas[0], Sign.PROBE_SUCCESS, 0.0)
    roster.sign(roster.replicas[0], Sign.FAILURE, 0.0)
    roster.apply([], "static")
    roster.unsubscribe(diary)
    roster.apply([at("a:1", M)], "static")
    assert diary.lines == [
        "joined a:1",
        "a:1 joining > healthy",
        "a:1 healthy > ejected",
        "a:1 ejected > draining",
        "left a:1",
    ]


def test_the_document_holds_what_is_believed_and_no_credentials() -> None:
    roster = Roster(FleetSettings())
    roster.apply([ReplicaAddress("https://user:secret@a:1", (M,))], "static")
    replica = roster.replicas[0]
    roster.sign(replica, Sign.PROBE_SUCCESS, 0.0)
    roster.sign(replica, Sign.FAILURE, 0.0)
    roster.observe_facts(replica, EngineFacts(tensor_parallel=2, prefix_caching=False))
    with replica.lease(9):
        assert fleet_document(roster) == {
            "is_ready": True,
            "replicas": [
                {
                    "id": "https://a:1",
                    "url": "https://a:1",
                    "role": "both",
                    "health": "suspect",
                    "models": ["m"],
                    "engine": {"tensor_parallel": 2, "prefix_caching": False},
                    "inflight_requests": 1,
                    "inflight_prompt_tokens": 9,
                    "others_inflight_requests": 0,
                    "others_inflight_prompt_tokens": 0,
                    "failures_in_a_row": 1,
                    "ejections": 0,
                }
            ],
        }
    assert repr(roster) == "<Roster: 1 of 1 replicas take work>"
