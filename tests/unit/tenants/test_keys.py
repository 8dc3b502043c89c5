"""Keys are random, told apart by their ids, and kept as hashes."""

from __future__ import annotations

import hashlib

import pytest

from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, KeyRing, digest, new_key, presented_key

RANDOM = bytes(range(ID_BYTES + SECRET_BYTES))


def test_a_key_holds_all_its_randomness_and_its_id_none_of_the_secret() -> None:
    made = new_key(RANDOM)
    assert made.key.startswith(made.id + "-")
    secret = made.key.removeprefix(made.id + "-")
    assert len(secret) == 43  # 256 bits
    assert new_key(RANDOM[:ID_BYTES] + RANDOM[ID_BYTES:][::-1]).id == made.id
    assert secret not in repr(made)
    with pytest.raises(ValueError, match="randomness"):
        new_key(RANDOM[:-1])


def test_a_ring_finds_its_keys_and_no_others() -> None:
    ring = KeyRing([(digest(b"one"), "hr-1", "acme"), (digest(b"two"), "hr-2", "other")])
    assert ring.find(b"one") == ("hr-1", "acme")
    assert ring.find(b"two") == ("hr-2", "other")
    for wrong in (
        b"",
        b"One",
        b"one ",
        digest(b"one"),
        hashlib.sha256(b"one").hexdigest().encode(),
    ):
        assert ring.find(wrong) is None
    assert "acme" not in repr(ring)


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "key"),
    [
        (None, None, None),
        (b"Bearer k", None, b"k"),
        (b"bearer  k ", None, b"k"),
        (b"Bearer ", None, None),
        (b"Bearer", b"x", b"x"),
        (b"Basic k", None, None),
        (b"Basic k", b"x", b"x"),
        (b"Bearer k", b"x", b"k"),
        (None, b" ", None),
        (b"Bearer a,Bearer b", None, b"a,Bearer b"),  # two fields: a key that is nobody's
    ],
)
def test_a_key_stands_where_clients_of_either_dialect_put_it(
    authorization: bytes | None, x_api_key: bytes | None, key: bytes | None
) -> None:
    fields = {b"authorization": authorization, b"x-api-key": x_api_key}
    given = {name: value for name, value in fields.items() if value is not None}
    assert presented_key(given) == key
