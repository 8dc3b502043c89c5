"""What of a head goes on is what is for the replica: all of it, in its order, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.accept.head import REQUEST_ID, read_head, reading

HOP_BY_HOP = (
    b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"proxy-authorization", b"proxy-connection",
)  # fmt: skip
OURS = (b"host", b"content-length", b"expect", b"accept-encoding", b"x-request-id")

letters = st.text("abc-", min_size=1, max_size=3).map(str.encode)
names = letters | st.sampled_from((*HOP_BY_HOP, *OURS, b"content-type", b"authorization"))
values = st.binary(max_size=8).map(lambda value: bytes(set(value) - {0, 10, 13}))
connections = st.lists(letters | st.sampled_from([b"close", b"content-type"]), max_size=3)


@given(st.lists(st.tuples(names, values), max_size=8), connections)
def test_end_to_end_fields_go_on_and_no_others(
    fields: list[tuple[bytes, bytes]], named: list[bytes]
) -> None:
    fields = [field for field in fields if field[0] != b"connection"]
    head = read_head([(b"connection", b", ".join(named)), *fields], "1.1", b"new")
    dropped = {*HOP_BY_HOP, *OURS, *named} - {b"content-type"}
    kept = [b"%b: %b" % field for field in fields if field[0] not in dropped]
    assert head.forwarded.split(b"\r\n") == [*kept, b"x-request-id: " + head.request_id, b""]


@given(st.lists(st.binary(max_size=140), max_size=2))
def test_there_is_always_exactly_one_good_request_id(given_ids: list[bytes]) -> None:
    head = read_head([(b"x-request-id", each) for each in given_ids], "1.0", b"new")
    assert REQUEST_ID.fullmatch(head.request_id)
    if len(given_ids) == 1 and REQUEST_ID.fullmatch(given_ids[0]):
        assert head.request_id == given_ids[0]
    else:
        assert head.request_id in (b"new", b",".join(given_ids))


@given(st.lists(st.tuples(names, values), max_size=8), connections, st.booleans())
def test_a_key_that_is_for_us_is_read_and_reaches_no_replica(
    fields: list[tuple[bytes, bytes]], named: list[bytes], forwards: bool
) -> None:
    fields = [field for field in fields if field[0] not in (b"connection", b"authorization")]
    key, connection = (b"authorization", b"Bearer k"), (b"connection", b", ".join(named))
    how = reading(keys=True, forwards_keys=forwards)
    head = read_head([connection, *fields, key], "1.1", b"new", how)
    plain = read_head([connection, *fields], "1.1", b"new")
    assert head.fields[b"authorization"] == b"Bearer k"
    lines = head.forwarded.split(b"\r\n")
    assert (b"authorization: Bearer k" in lines) is forwards
    assert [line for line in lines if line != b"authorization: Bearer k"] == (
        plain.forwarded.split(b"\r\n")
    )
    twice = read_head([key, key], "1.1", b"new", reading(keys=True, forwards_keys=False))
    assert twice.fields[b"authorization"] == b"Bearer k,Bearer k"  # nobody's key
