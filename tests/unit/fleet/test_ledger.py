"""Leases: what is taken is given back, whatever happens."""

from __future__ import annotations

import pytest

from gateway.fleet.ledger import Replica
from gateway.vocabulary import ReplicaAddress, ReplicaView, Role


def a_replica() -> Replica:
    return Replica(ReplicaAddress("http://r1:8000", role=Role.PREFILL))


def counters(replica: Replica) -> tuple[int, int]:
    return replica.inflight_requests, replica.inflight_prompt_tokens


def test_a_replica_is_what_choosers_may_read() -> None:
    view: ReplicaView = a_replica()
    assert (view.id, view.role, view.health) == ("r1:8000", "prefill", "joining")


def test_a_lease_raises_both_counters_and_gives_both_back() -> None:
    replica = a_replica()
    with replica.lease(7), replica.lease(5):
        assert counters(replica) == (2, 12)
    assert counters(replica) == (0, 0)


def test_the_first_byte_gives_the_prompt_tokens_back_once() -> None:
    replica = a_replica()
    with replica.lease(5), replica.lease(7) as lease:
        lease.prefilled()
        lease.prefilled()
        assert counters(replica) == (2, 5)
    assert counters(replica) == (0, 0)


def test_a_lease_not_entered_owes_nothing() -> None:
    replica = a_replica()
    replica.lease(7).prefilled()
    assert counters(replica) == (0, 0)


def test_a_first_byte_after_the_end_changes_nothing() -> None:
    replica = a_replica()
    with replica.lease(7) as lease:
        pass
    lease.prefilled()
    assert counters(replica) == (0, 0)


def test_an_error_inside_a_lease_passes_through_and_gives_back() -> None:
    replica = a_replica()
    with pytest.raises(KeyboardInterrupt), replica.lease(7):
        raise KeyboardInterrupt
    assert counters(replica) == (0, 0)


def test_the_last_lease_and_only_the_last_says_that_the_replica_is_idle() -> None:
    replica, said = a_replica(), []
    replica.on_idle = lambda: said.append(counters(replica))
    with replica.lease(1):
        with replica.lease(2):
            pass
        assert said == []
    assert said == [(0, 0)]


def test_reprs_tell_the_story() -> None:
    replica = a_replica()
    with replica.lease(7) as lease:
        assert repr(lease) == "<Lease on r1:8000: 7 of 7 prompt tokens owed>"
        assert repr(replica) == (
            "<Replica r1:8000 prefill joining: 1 requests, 7 prompt tokens in flight; 0 models>"
        )
