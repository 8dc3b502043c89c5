"""What other gateways say they have sent."""

from __future__ import annotations

from array import array

from gateway.choose.elsewhere import ON_ITS_WAY_S
from gateway.choose.holdings import Holdings
from gateway.choose.text_chain import Prompt
from gateway.kv_cache import Certainty, EngineFacts, Placement
from gateway.vocabulary import ROUTES, GenerationRequest, ModelName, ReplicaId

R1, R2 = ReplicaId("r1:8000"), ReplicaId("r2:8000")


def a_prompt() -> Prompt:
    text = b"x" * 6000
    return Prompt(GenerationRequest(ROUTES[0], ModelName("m"), True, 6000, 1500, None, text))


def a_placement() -> Placement:
    return Placement(R1, 0.25, a_prompt().whole().tobytes())


def test_it_is_believed_to_be_there_and_nowhere_else() -> None:
    holdings = Holdings(100_000, 100_000.0)
    holdings.placed(a_placement(), 1.0)
    there, elsewhere = holdings.hits(a_prompt(), (R1, R2)).tokens
    assert 1000 < there < 1500
    assert elsewhere == 0


def test_where_events_tell_it_is_on_its_way_for_a_while() -> None:
    holdings = Holdings(100_000, 100_000.0)
    holdings.described(R1, EngineFacts(block_size=16))
    holdings.certainty(R1, Certainty.EXACT)
    holdings.placed(a_placement(), 1.0)
    walk = holdings._texts.walk(a_prompt())
    assert walk.pending
    holdings.tidy(1.0 + ON_ITS_WAY_S)
    assert not holdings._texts.walk(a_prompt()).pending


def test_marks_that_are_none_are_left() -> None:
    holdings = Holdings(100_000, 100_000.0)
    for marks in (b"", b"123", array("Q", [1]).tobytes()[:7]):
        holdings.placed(Placement(R1, 0.25, marks), 1.0)
    assert not len(holdings)
