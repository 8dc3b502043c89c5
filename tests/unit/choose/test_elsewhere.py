"""What other gateways say they have sent."""

from __future__ import annotations

from array import array

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.choose.dispatch import PENDING_S
from gateway.choose.elsewhere import ON_ITS_WAY_S
from gateway.choose.holdings import Holdings
from gateway.choose.text_chain import Prompt
from gateway.kv_cache import Certainty, EngineFacts, Placement
from gateway.request import GenerationRequest
from gateway.vocabulary import ROUTES, ModelName, ReplicaId

R1, R2 = ReplicaId("r1:8000"), ReplicaId("r2:8000")


def a_prompt(text: bytes = b"x" * 6000) -> Prompt:
    return Prompt(
        GenerationRequest(ROUTES[0], ModelName("m"), True, len(text), len(text) // 4, None, text)
    )


def marks(prompt: Prompt) -> bytes:
    return array("Q", prompt.whole()).tobytes()


def a_placement() -> Placement:
    return Placement(R1, 0.25, marks(a_prompt()))


def an_end() -> Placement:
    return Placement(R1, 0.25, marks(a_prompt())[-8:], is_over=True)


def on_their_way(holdings: Holdings) -> int:
    """Or pending."""
    return len(holdings._elsewhere._coming) + len(holdings._elsewhere._arrived)


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
    assert holdings._texts.walk(a_prompt()).pending, "its events may be on their way"
    holdings.tidy(1.0 + ON_ITS_WAY_S + PENDING_S)
    assert not holdings._texts.walk(a_prompt()).pending


def test_marks_that_are_none_are_left() -> None:
    holdings = Holdings(100_000, 100_000.0)
    for marks in (b"", b"123", array("Q", [1]).tobytes()[:7]):
        holdings.placed(Placement(R1, 0.25, marks), 1.0)
    assert not len(holdings)


def test_it_is_on_its_way_until_its_gateway_says_that_it_is_not() -> None:
    """Whoever follows it there meanwhile is in the order of what has not been read."""
    holdings = Holdings(100_000, 100_000.0)
    holdings.described(R1, EngineFacts(block_size=16))
    holdings.certainty(R1, Certainty.EXACT)
    holdings.placed(a_placement(), 1.0)
    assert holdings.dispatched(a_prompt(), R1, 2.0).read_share == 0.0
    holdings.placed(an_end(), 9.0)
    assert holdings.dispatched(a_prompt(), R1, 9.0).read_share > 0.9
    holdings.tidy(9.0 + PENDING_S)
    assert on_their_way(holdings) == 0


def test_one_that_was_not_read_there_is_forgotten() -> None:
    """Its gateway chose another replica for it, say: who shares its beginning finds nothing."""
    holdings = Holdings(100_000, 100_000.0)
    holdings.described(R1, EngineFacts(block_size=16))
    holdings.certainty(R1, Certainty.EXACT)
    holdings.placed(a_placement(), 1.0)
    assert any(holdings.hits(a_prompt(), (R1,)).tokens)
    holdings.placed(replace(an_end(), was_read=False), 9.0)
    assert not any(holdings.hits(a_prompt(), (R1,)).tokens)
    assert not holdings._texts.walk(a_prompt()).pending
    assert on_their_way(holdings) == 0
    holdings.tidy(9.0 + PENDING_S)
    assert not len(holdings)


def test_an_end_of_what_was_never_heard_of_is_left() -> None:
    holdings = Holdings(100_000, 100_000.0)
    holdings.placed(an_end(), 1.0)
    assert not len(holdings)


def test_what_is_on_its_way_to_a_replica_that_starts_anew_is_forgotten_in_time() -> None:
    holdings = Holdings(100_000, 100_000.0)
    holdings.certainty(R1, Certainty.EXACT)
    holdings.placed(a_placement(), 1.0)
    holdings.forget(R1)
    holdings.certainty(R1, Certainty.EXACT)
    holdings.placed(an_end(), 2.0)
    assert on_their_way(holdings) == 1, "its end is another's"
    holdings.tidy(1.0 + ON_ITS_WAY_S)
    holdings.tidy(1.0 + ON_ITS_WAY_S + PENDING_S)
    assert on_their_way(holdings) == 0
    assert not len(holdings)


TEXTS = [bytes(2000), bytes(2000) + b"x" * 2000]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sent", "sent", "over", "unread", "passed", "passed"]),
        st.integers(0, len(TEXTS) - 1),
        st.sampled_from([R1, R2]),
        st.sampled_from([0.5, PENDING_S, ON_ITS_WAY_S - 1.0]),
    ),
    max_size=40,
)


ALIKE = [
    (what, 0, R1, passed_s)
    for what, passed_s in (
        ("sent", 0.0), ("passed", ON_ITS_WAY_S - 1.0), ("sent", 0.0), ("over", 0.0),
        ("passed", PENDING_S), ("passed", PENDING_S),
    )
]  # fmt: skip


@given(EVENTS)
@example(ALIKE)
def test_as_many_are_on_their_way_as_were_said_to_be(
    events: list[tuple[str, int, ReplicaId, float]],
) -> None:
    """Beside a model that keeps them in a list: the oldest alike ends, or whatever is too old."""
    holdings, now = Holdings(100_000, 100_000.0), 0.0
    for replica in (R1, R2):
        holdings.certainty(replica, Certainty.EXACT)
    coming: list[tuple[float, int, ReplicaId]] = []
    arrived: list[tuple[float, int, ReplicaId]] = []
    for what, which, replica, passed_s in events:
        prompt = a_prompt(TEXTS[which])
        told = marks(prompt)
        if what == "sent":
            holdings.placed(Placement(replica, 0.25, told), now)
            coming.append((now, which, replica))
        elif what in {"over", "unread"}:
            was_read = what == "over"
            end = Placement(replica, 0.25, told[-8:], is_over=True, was_read=was_read)
            holdings.placed(end, now)
            alike = [each for each in coming if each[1:] == (which, replica)]
            if alike:
                coming.remove(alike[0])
                if was_read:
                    arrived.append((now, which, replica))
        else:
            now += passed_s
            holdings.tidy(now)
            late = [each for each in coming if each[0] + ON_ITS_WAY_S <= now]
            coming = [each for each in coming if each not in late]
            arrived += [(now, *each[1:]) for each in late]
            arrived = [each for each in arrived if each[0] + PENDING_S > now]
        assert on_their_way(holdings) == len(coming) + len(arrived)
        givens = {at: holdings._record(at).sent for at in (R1, R2)}
        for text in TEXTS:
            there = {at for _, one, at in coming + arrived if TEXTS[one].startswith(text)}
            walk = holdings._texts.walk(a_prompt(text))
            bits = sum(bits for bits, at in walk.pending if at == a_prompt(text).marks)
            assert bits == sum(givens[at].bit for at in there)
        for at, given_there in givens.items():
            if all(one[2] != at for one in coming):
                assert not any(each.unread for each in given_there.kept.values())
    holdings.tidy(now + ON_ITS_WAY_S)
    holdings.tidy(now + ON_ITS_WAY_S + PENDING_S)
    assert on_their_way(holdings) == 0
    assert not any(holdings._texts.walk(a_prompt(text)).pending for text in TEXTS)
