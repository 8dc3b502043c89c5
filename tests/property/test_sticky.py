"""Sessions that stick, against a list that is searched from its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.sticky import SLACK, Sticky
from gateway.vocabulary import ReplicaId
from tests.builders import a_replica

SESSIONS = st.sampled_from([None, b"a", b"b", b"c", b"d"])
SENT = st.lists(st.tuples(SESSIONS, st.sampled_from("xyz")), max_size=40)


@given(SENT, st.integers(1, 3))
def test_the_last_sessions_are_known_by_where_they_went_last(
    sent: list[tuple[bytes | None, str]], capacity: int
) -> None:
    sticky = Sticky(1.25, capacity)
    fleet = [a_replica(name) for name in "xyz"]
    for session, name in sent:
        sticky.sent(session, ReplicaId(f"{name}:8000"))
    homes: dict[bytes, str] = {}
    for session, name in reversed(sent):
        if session is not None and len(homes) < capacity:
            homes.setdefault(session, name)
    assert len(sticky) == len(homes) <= capacity
    for session in (None, b"a", b"b", b"c", b"d"):
        home = sticky.home(session, fleet)
        assert (None if home is None else fleet[home].id[0]) == homes.get(session or b"")


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.floats(1, 4), st.data())
def test_nobody_stays_beyond_the_bound(
    inflight: list[int], bound: float, data: st.DataObject
) -> None:
    fleet = [a_replica(f"r{i}", requests=count) for i, count in enumerate(inflight)]
    at = data.draw(st.integers(0, len(fleet) - 1))
    sticky = Sticky(bound)
    sticky.sent(b"s", fleet[at].id)
    limit = bound * sum(inflight) / len(inflight) + SLACK
    assert sticky.home(b"s", fleet) == (at if inflight[at] <= limit else None)
