"""A file of tenants is read whole or not at all, and what is wrong is told without its secrets."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.section import SettingsError
from gateway.tenants.document import read_documents
from gateway.tenants.keys import digest
from gateway.vocabulary import ServiceClass

SECRET = "k" * 40
HASH = digest(b"key").hex()


def a_document(**changes: Any) -> dict[str, Any]:
    document = {
        "salt_secret": SECRET,
        "tenants": [{"name": "acme", "class": "batch", "weight": 2, "isolate_cache": True}],
        "keys": [{"id": "hr-1", "tenant": "acme", "sha256": HASH}],
    }
    return {**document, **changes}


def read(*documents: dict[str, Any]) -> Any:
    return read_documents(
        {f"{place}.yaml": yaml.safe_dump(each).encode() for place, each in enumerate(documents)}
    )


def test_a_file_is_read() -> None:
    [tenant] = read(a_document()).tenants
    assert tenant.tenant().service_class is ServiceClass.BATCH
    assert tenant.tenant().weight == 2
    assert tenant.limits().tokens_per_minute is None
    assert tenant.tenant().models is None
    assert SECRET not in repr(read(a_document()))
    assert HASH not in repr(read(a_document()))
    assert not read_documents({"empty.yaml": b""}).tenants
    assert not read_documents({}).tenants


def test_files_say_together_what_one_could_say_alone() -> None:
    whole = a_document()
    parts = [{"tenants": whole["tenants"]}, {"keys": whole["keys"]}, {"salt_secret": SECRET}]
    assert read(*parts) == read(whole)


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([a_document(keys=[{"id": "hr-1", "tenant": "nobody", "sha256": HASH}])], "nobody"),
        ([a_document(tenants=[{"name": "acme"}] * 2)], "two tenants named acme"),
        ([a_document(keys=a_document()["keys"] * 2)], "two keys with the id hr-1"),
        ([a_document(salt_secret=None)], "isolate_cache"),
        ([a_document(salt_secret="short")], "salt_secret"),
        ([a_document(), {"salt_secret": "K" * 40}], "two values of salt_secret"),
        ([a_document(tenants=[{"name": "a b"}])], "tenants.0.name"),
        ([a_document(tenants=[{"name": "acme\n"}])], "tenants.0.name"),
        ([a_document(tenants=[{"name": "acme", "class": "vip"}])], "tenants.0.class"),
        ([a_document(tenants=[{"name": "acme", "weight": 0}])], "tenants.0.weight"),
        ([a_document(tenants=[{"name": "acme", "tokens_per_day": 0}])], "tokens_per_day"),
        ([a_document(tenants=[{"name": "acme", "rpm": 5}])], "tenants.0.rpm"),
        ([a_document(keys=[{"id": "hr-1", "tenant": "acme", "sha256": "x"}])], "keys.0.sha256"),
    ],
)
def test_whatever_is_wrong_is_named(documents: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(*documents)
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)
    assert HASH not in str(refused.value)


@pytest.mark.parametrize("end", [": : :", "\nkeys: [", "\n\tx", "\nsalt_secret: !!int x"])
def test_what_is_not_yaml_is_not_quoted(end: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_documents({"keys.yaml": f"salt_secret: {SECRET}{end}".encode()})
    assert SECRET[:5] not in str(refused.value)
    assert str(refused.value.__cause__) == "None"
    assert "keys.yaml" in str(refused.value)


@given(st.binary(max_size=60) | st.text("{}[]:-'\"\n &*!kt", max_size=40).map(str.encode))
def test_whatever_stands_there_is_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(SettingsError):
        read_documents({"keys.yaml": content})
