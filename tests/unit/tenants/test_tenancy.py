"""Who asks, in which class, until when; and what a request has used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest
import yaml

from gateway.account.usage import NOTHING
from gateway.errors import (
    ClientGone,
    ConnectFailed,
    InvalidKey,
    InvalidRequest,
    ModelNotAllowed,
    TooManyAtOnce,
)
from gateway.request import GenerationRequest, Usage
from gateway.tenants.document import Document, read_documents
from gateway.tenants.keys import digest
from gateway.tenants.tenancy import Strangers, Tenancy, tokens_used
from gateway.vocabulary import ANYBODY, Route, ServiceClass
from tests.builders import a_request, a_route
from tests.conftest import ManualClock

KEY = {b"authorization": b"Bearer key"}


class Asking(msgspec.Struct):
    """A client's exchange, as far as the room looks at it."""

    fields: Mapping[bytes, bytes] = msgspec.field(default_factory=lambda: KEY)
    received_at: float = 100.0
    on_behalf_of: str | None = None
    route: Route = a_route()
    notes: Sequence[bytes] = ()
    own_salt: bytes | None = None
    amended: dict[str, bytes] = {}

    def amend(self, *path: str, value: Callable[[bytes | None], bytes]) -> bool:
        self.amended = {path[0]: value(self.own_salt)}
        return True


class Became(msgspec.Struct):
    """What became of a request."""

    usage: Usage = NOTHING
    dispatched_at: float | None = None
    first_byte_at: float | None = None
    chunks: int = 0
    status: int | None = None


def a_document(**tenant: object) -> Document:
    document = {
        "salt_secret": "s" * 32,
        "tenants": [{"name": "acme", **tenant}],
        "keys": [{"id": "hr-1", "tenant": "acme", "sha256": digest(b"key").hex()}],
    }
    return read_documents({"it": yaml.safe_dump(document).encode()})


def a_tenancy(clock: ManualClock, **tenant: object) -> Tenancy:
    made = Tenancy(clock, lambda: 0.0, 512)
    made.adopt(a_document(**tenant))
    return made


def test_a_key_leads_to_its_tenant(clock: ManualClock) -> None:
    caller = a_tenancy(clock, **{"class": "interactive", "weight": 3}).identify(Asking())
    request = caller.asks(a_request())
    assert (request.tenant.name, caller.key_id) == ("acme", "hr-1")
    assert request.tenant.service_class is ServiceClass.INTERACTIVE
    assert request.tenant.weight == 3
    assert request.deadline is None


def test_an_errand_is_served_on_behalf_of_its_tenant(clock: ManualClock) -> None:
    tenancy = a_tenancy(clock, isolate_cache=True)
    client = Asking({}, on_behalf_of="acme")
    caller = tenancy.identify(client)
    assert (caller.tenant.name, caller.key_id) == ("acme", None)
    assert "cache_salt" in client.amended
    assert tenancy.identify(Asking({}, on_behalf_of="")).tenant is ANYBODY
    client = Asking({b"x-headrace-class": b"batch"}, on_behalf_of="")
    assert tenancy.identify(client).tenant.service_class is ServiceClass.BATCH
    with pytest.raises(InvalidKey):
        tenancy.identify(Asking({}, on_behalf_of="gone"))


@pytest.mark.parametrize("fields", [{}, {b"authorization": b"Bearer no"}, {b"x-api-key": b""}])
def test_without_a_good_key_nobody_enters(clock: ManualClock, fields: dict[bytes, bytes]) -> None:
    tenancy = a_tenancy(clock)
    with pytest.raises(InvalidKey):
        tenancy.identify(Asking(fields))
    with pytest.raises(InvalidKey):
        tenancy.tenant(fields)
    with pytest.raises(InvalidKey):
        Tenancy(clock, lambda: 0.0, 0).identify(Asking())  # nothing adopted yet


def test_only_models_that_are_allowed_can_be_asked_for(clock: ManualClock) -> None:
    caller = a_tenancy(clock, models=["m"]).identify(Asking())
    caller.asks(a_request("m"))
    with pytest.raises(ModelNotAllowed):
        caller.asks(a_request("other"))


@pytest.mark.parametrize(
    ("own", "asked", "served"),
    [
        ("interactive", "batch", "batch"),
        ("interactive", "Default", "default"),
        ("default", "interactive", "default"),
        ("batch", "interactive", "batch"),
        ("batch", "batch", "batch"),
        (None, "batch", "batch"),
        (None, "interactive", "default"),
    ],
)
def test_a_class_can_be_lowered_and_never_raised(
    clock: ManualClock, own: str | None, asked: str, served: str
) -> None:
    client = Asking({**KEY, b"x-headrace-class": asked.encode()})
    tenants = Strangers() if own is None else a_tenancy(clock, **{"class": own})
    assert tenants.identify(client).asks(a_request()).tenant.service_class == served


def test_a_deadline_counts_from_the_arrival(clock: ManualClock) -> None:
    client = Asking({**KEY, b"x-headrace-deadline-ms": b"1500"})
    for tenants in (Strangers(), a_tenancy(clock)):
        assert tenants.identify(client).asks(a_request()).deadline == 101.5


@pytest.mark.parametrize(
    "field",
    [
        (b"x-headrace-class", b"vip"),
        (b"x-headrace-class", b""),
        (b"x-headrace-deadline-ms", b"-1"),
        (b"x-headrace-deadline-ms", b"0"),
        (b"x-headrace-deadline-ms", b"1e3"),
        (b"x-headrace-deadline-ms", b"9" * 400),
        (b"x-headrace-deadline-ms", "\u00b2".encode("latin-1")),
        (b"x-headrace-deadline-ms", b"86400001"),
    ],
)
def test_what_is_no_class_or_deadline_is_refused(
    clock: ManualClock, field: tuple[bytes, bytes]
) -> None:
    for tenants in (Strangers(), a_tenancy(clock)):
        with pytest.raises(InvalidRequest):
            tenants.identify(Asking({**KEY, field[0]: field[1]}))


def test_anybody_s_request_is_left_alone() -> None:
    request = a_request()
    client = Asking({})
    caller = Strangers().identify(client)
    assert caller.asks(request) is request
    assert request.tenant is ANYBODY
    with caller.stay(request, client, Became()):
        pass
    assert client.notes == ()


def test_isolated_tenants_have_their_salt_in_what_touches_a_cache(clock: ManualClock) -> None:
    tenancy = a_tenancy(clock, isolate_cache=True)
    plain, own, tokenize = Asking(), Asking(own_salt=b'"x"'), Asking(route=a_route("/tokenize"))
    for client in (plain, own, tokenize):
        tenancy.identify(client)
    assert plain.amended["cache_salt"] == tenancy.members["acme"].salter.plain  # type: ignore[union-attr]
    assert own.amended["cache_salt"] not in (b'"x"', plain.amended["cache_salt"])
    assert tokenize.amended == {}
    plain = Asking()
    a_tenancy(clock).identify(plain)
    assert plain.amended == {}


def a_stay(tenancy: Tenancy, request: GenerationRequest, became: Became) -> Asking:
    client = Asking()
    with tenancy.identify(client).stay(request, client, became):
        pass
    return client


def test_a_stay_reserves_what_may_be_used_and_settles_what_was(clock: ManualClock) -> None:
    tenancy = a_tenancy(clock, tokens_per_minute=1000)
    client = a_stay(tenancy, a_request(max_tokens=300), Became(usage=Usage(90, 10, None)))
    assert b"x-ratelimit-remaining-tokens: 600\r\n" in b"".join(client.notes)
    client = a_stay(tenancy, a_request(), Became())
    assert b"x-ratelimit-remaining-tokens: 288\r\n" in b"".join(client.notes)  # 900 - (100 + 512)
    allowance = tenancy.members["acme"].allowance
    assert (allowance.reserved, allowance.settled, allowance.open) == (1012, 100, 0)


def test_a_refusal_says_what_is_left_too(clock: ManualClock) -> None:
    tenancy = a_tenancy(clock, max_concurrent=1, requests_per_minute=60)
    caller = tenancy.identify(Asking())
    client = Asking()
    with caller.stay(a_request(), Asking(), Became()), pytest.raises(TooManyAtOnce):
        caller.stay(a_request(), client, Became()).__enter__()
    assert b"x-ratelimit-remaining-requests: 59\r\n" in b"".join(client.notes)
    assert tenancy.members["acme"].allowance.open == 0


def test_a_new_document_keeps_what_was_used_and_whoever_is_in(clock: ManualClock) -> None:
    tenancy = a_tenancy(clock, tokens_per_minute=1000)
    caller = tenancy.identify(Asking())
    request = caller.asks(a_request(max_tokens=300))
    with caller.stay(request, Asking(), Became(usage=Usage(90, 10, None))):
        tenancy.adopt(a_document(tokens_per_minute=2000, weight=9))
        client = a_stay(tenancy, a_request(max_tokens=0), Became())
        assert b"x-ratelimit-remaining-tokens: 1500\r\n" in b"".join(client.notes)
        assert request.tenant.weight == 1
        tenancy.adopt(read_documents({}))
        with pytest.raises(InvalidKey):
            tenancy.identify(Asking())
    assert tenancy.members == {}


@pytest.mark.parametrize(
    ("became", "error", "used"),
    [
        (Became(usage=Usage(7, 5, 3), first_byte_at=1.0), None, 12),
        (Became(usage=Usage(7, None, None), first_byte_at=1.0), None, 7),
        (Became(dispatched_at=0.0, first_byte_at=1.0, chunks=4), None, 104),
        (Became(dispatched_at=0.0, first_byte_at=1.0, chunks=4), ClientGone(), 104),
        (Became(dispatched_at=0.0, first_byte_at=1.0, chunks=4, status=400), None, 0),
        (Became(dispatched_at=0.0), ClientGone(), 100),
        (Became(dispatched_at=0.0), BaseException(), 100),
        (Became(dispatched_at=0.0), ConnectFailed(), 0),
        (Became(), ClientGone(), 0),
    ],
)
def test_what_was_used_is_what_the_replica_said_or_else_what_can_be_told(
    became: Became, error: BaseException | None, used: int
) -> None:
    assert tokens_used(a_request(stream=True), became, error) == used
    if became.chunks and not became.status:
        assert tokens_used(a_request(), became, error) == 100
