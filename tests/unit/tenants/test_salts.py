"""Nobody can choose a salt that is another's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.tenants.salts import Salter

SECRET = b"s" * 32
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(texts, st.booleans())
def test_a_salt_is_stable_however_it_is_spelt_and_engines_take_it(text: str, plain: bool) -> None:
    own = json.dumps(text, ensure_ascii=plain).encode()
    salt = Salter(SECRET, "acme").member(own)
    assert salt == Salter(SECRET, "acme").member(json.dumps(text).encode())
    value = json.loads(salt)
    assert 1 <= len(value) <= 128
    assert not set(value) & set("@/\\\0")


@given(texts)
def test_no_salt_of_one_tenant_is_another_s(text: str) -> None:
    one, other = Salter(SECRET, "acme"), Salter(SECRET, "other")
    stolen = [other.plain, other.member(json.dumps(text).encode())]
    chosen = [one.plain, one.member(json.dumps(text).encode()), *map(one.member, stolen)]
    assert len({*chosen, *stolen}) == 6
    assert Salter(b"t" * 32, "acme").plain != one.plain


def test_without_one_of_its_own_a_request_has_its_tenant_s() -> None:
    salter = Salter(SECRET, "acme")
    assert salter.member(None) == salter.member(b"null") == salter.plain


@pytest.mark.parametrize("own", [b'""', b"1", b'{"a":1}', b"[]", b'"\xff"', b"true"])
def test_what_no_engine_takes_is_refused(own: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Salter(SECRET, "acme").member(own)
    assert refused.value.param == "cache_salt"
