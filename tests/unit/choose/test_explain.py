"""Why there?"""

from __future__ import annotations

import pytest

from gateway.choose.chooser import Choice
from gateway.choose.explain import Reason, decision, document, ranked, reason
from gateway.choose.scorers import Plain
from gateway.vocabulary import Prediction, ReplicaId
from tests.builders import a_replica

A, B = ReplicaId("a:8000"), ReplicaId("b:8000")


@pytest.mark.parametrize(
    ("chosen", "runner_up", "why"),
    [
        (Prediction(A, 1.0), None, Reason.ONLY),
        (Prediction(A, 2.0), Prediction(B, 1.0), Reason.POLICY),
        (Prediction(A, 1.0), Prediction(B, 1.0), Reason.TIE),
        (Prediction(A, 1.0, 64, 0.5), Prediction(B, 2.0, 32, 0.1), Reason.CACHED),
        (Prediction(A, 1.0, 32, 0.1), Prediction(B, 2.0, 32, 0.5), Reason.WAIT),
        (Prediction(A, 1.0, 0, 0.5), Prediction(B, 2.0, 32, 0.5), Reason.COST),
        (Prediction(A, 1.0), Prediction(B, 2.0), Reason.COST),
    ],
)
def test_what_decided_is_told_by_comparing_with_the_next_best(
    chosen: Prediction, runner_up: Prediction | None, why: Reason
) -> None:
    assert reason(chosen, runner_up) is why


def test_a_decision_is_one_line() -> None:
    fleet = [a_replica("a"), a_replica("b")]
    choice = Choice(fleet[1], 1, fleet, Plain([3.0, 2.0], fleet))
    assert decision(choice, 7) == (
        b"replica=b:8000; prompt_tokens=7; cost=2; reason=cost; runner_up=a:8000; runner_up_cost=3"
    )


def test_where_there_is_no_choice_nothing_was_priced() -> None:
    replica = a_replica("a")
    assert decision(Choice(replica, 0, [replica]), 7) == b"replica=a:8000; reason=only"


def test_the_table_is_ordered_by_cost() -> None:
    fleet = [a_replica("a"), a_replica("b"), a_replica("c")]
    table = document(ranked(Plain([3.0, 1.0, 2.0], fleet), 3))
    assert [row["replica"] for row in table] == ["b:8000", "c:8000", "a:8000"]
