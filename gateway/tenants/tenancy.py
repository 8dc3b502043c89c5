"""The room's door: whose request is this, and may it come in?

`Tenancy` asks for keys; `Strangers`, where there are none, asks nothing and costs next to nothing.
Both understand two fields of a request's head: `X-Headrace-Class`, which can only lower a tenant's
own class, and `X-Headrace-Deadline-Ms`, the time in which a first byte is of use.

Invariants. What a stay has taken is given back at its end, however it ends. A request keeps the
tenant it came as: a new file changes what comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from gateway.errors import ClientGone, GatewayError, InvalidKey, InvalidRequest, ModelNotAllowed
from gateway.request import GenerationRequest
from gateway.tenants.keys import KeyRing, presented_key
from gateway.tenants.limits import Allowance
from gateway.tenants.ration import ALONE
from gateway.tenants.salts import Salter
from gateway.vocabulary import ANYBODY, BodyKind, Route, ServiceClass, Tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.clock import Clock
    from gateway.request import Usage
    from gateway.tenants.document import Document
    from gateway.vocabulary import Seconds, Tokens

CLASS: Final = b"x-headrace-class"
DEADLINE: Final = b"x-headrace-deadline-ms"
LONGEST_DEADLINE_MS: Final = 86_400_000
HESITATION_S: Final = 0.012

_CLASSES: Final = tuple(ServiceClass)  # the most urgent first
_BY_NAME: Final = {each.value.encode(): each for each in _CLASSES}
_JSON: Final = BodyKind.JSON  # found faster by a name of our own
_UNSALTED: Final = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""Routes that touch no cache."""


class Client(Protocol):
    """Who asks."""

    notes: Sequence[bytes]

    @property
    def fields(self) -> Mapping[bytes, bytes]: ...
    @property
    def on_behalf_of(self) -> str | None:
        """The name of the tenant where it is known without a key; empty for nobody's."""

    @property
    def received_at(self) -> Seconds: ...
    @property
    def route(self) -> Route: ...
    def amend(self, *path: str, value: Callable[[bytes | None], bytes]) -> bool:
        """Set a member of the JSON object that the body is, given what it was. False where it is
        none, or may be read in two ways."""


class Served(Protocol):
    """What became of a request."""

    @property
    def usage(self) -> Usage: ...
    @property
    def dispatched_at(self) -> Seconds | None: ...
    @property
    def first_byte_at(self) -> Seconds | None: ...
    @property
    def chunks(self) -> int: ...
    @property
    def status(self) -> int | None: ...


class Caller:
    """Who a request comes from, and until when its answer is of use."""

    __slots__ = ("deadline", "key_id", "tenant")

    def __init__(self, tenant: Tenant, key_id: str | None, deadline: Seconds | None) -> None:
        self.tenant = tenant
        self.key_id = key_id  # which of its keys it showed
        self.deadline = deadline

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.tenant.name or 'anybody'}>"

    def asks(self, request: GenerationRequest) -> GenerationRequest:
        """The request, as the caller's. Raises ModelNotAllowed."""
        if self.tenant is ANYBODY and self.deadline is None:
            return request
        tenant = self.tenant
        if tenant.models is not None and request.model not in tenant.models:
            raise ModelNotAllowed(param="model")
        return request.completed(tenant, self.deadline, request.reading)

    def hesitates(self, request: GenerationRequest) -> bool:
        """Should it ask again in HESITATION_S before it stays?"""
        return False

    def stay(self, request: GenerationRequest, client: Client, served: Served) -> Caller:
        """One request's time with us: used by `with`."""
        return self

    def __enter__(self) -> None:
        """Who has no limits just comes in."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is to be given back."""


def anybody(client: Client) -> Caller:
    """Nobody in particular. Raises InvalidRequest for a class or deadline that is none."""
    fields = client.fields
    if CLASS not in fields and DEADLINE not in fields:
        return _ANYBODY
    return Caller(_lowered(_ANYBODIES, fields), None, _deadline(fields, client.received_at))


class Strangers:
    """Everybody, where there are no keys."""

    members: Mapping[str, Member] = {}
    reload_failures = 0

    def __repr__(self) -> str:
        return "<Strangers>"

    def identify(self, client: Client) -> Caller:
        """Anybody. Raises InvalidRequest for a class or deadline that is none."""
        return anybody(client)

    def tenant(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """Who sends a head with these fields."""
        return ANYBODY

    def salt_for(self, tenant: Tenant, route: Route) -> None:
        """Nobody is kept apart."""


class Member:
    """A tenant with what it has: its view for every class it may ask for, its limits, its salts."""

    __slots__ = ("allowance", "salter", "views")

    def __init__(self, tenant: Tenant, allowance: Allowance, salter: Salter | None) -> None:
        self.views = _views(tenant)
        self.allowance = allowance
        self.salter = salter

    def __repr__(self) -> str:
        return f"<Member {self.views[0].name}>"


class Tenancy:
    """All tenants and their keys. Nobody may enter until a document has been adopted."""

    def __init__(
        self, clock: Clock, wall: Callable[[], float], assumed_output_tokens: Tokens
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.assumed_output_tokens = assumed_output_tokens
        self.members: Mapping[str, Member] = {}
        self.reload_failures = 0
        self.ranks = ALONE  # among the gateways that keep the same limits
        self.touched: set[str] = set()  # tenants whose part has changed, while there are others
        self._ring: KeyRing[Member] = KeyRing(())

    def __repr__(self) -> str:
        return f"<Tenancy of {len(self.members)}, {self._ring!r}>"

    def adopt(self, document: Document) -> None:
        """These are the tenants and keys from now on. What tenants have used, they have used."""
        now = self.clock()
        members: dict[str, Member] = {}
        for each in document.tenants:
            limits, old = each.limits(), self.members.get(each.name)
            if old is None:
                allowance = Allowance(limits, now)
            else:
                allowance = old.allowance
                allowance.resize(limits, now)
            salter = None
            if each.isolate_cache and document.salt_secret is not None:
                salter = Salter(document.salt_secret.encode(), each.name)
            members[each.name] = Member(each.tenant(), allowance, salter)
        self.members = members
        self._ring = KeyRing(
            (bytes.fromhex(key.sha256), key.id, members[key.tenant]) for key in document.keys
        )

    def identify(self, client: Client) -> Caller:
        """Who asks; where its tenant has a salt, the body has it too afterwards.

        Raises InvalidKey; InvalidRequest for a class, deadline or salt that is none, and for a body
        that a salt cannot be put into; and whatever else is wrong with the body.
        """
        fields, name = client.fields, client.on_behalf_of
        key_id: str | None = None
        if name is None:
            key_id, member = self._find(fields)
        elif name:
            member = self._named(name)
        else:
            return anybody(client)
        tenant = member.views[0] if CLASS not in fields else _lowered(member.views, fields)
        deadline = None if DEADLINE not in fields else _deadline(fields, client.received_at)
        if (
            member.salter is not None
            and _touches_a_cache(client.route)
            and not client.amend("cache_salt", value=member.salter.member)
        ):
            raise InvalidRequest(
                "The request body is no valid JSON object, or has two members of one name."
            )
        return Guest(self, member.allowance, tenant, key_id, deadline)

    def tenant(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """Who sends a head with these fields. Raises InvalidKey."""
        return self._find(fields)[1].views[0]

    def salt_for(self, tenant: Tenant, route: Route) -> Callable[[bytes | None], bytes] | None:
        """What makes the `cache_salt` of a tenant's body out of the client's own, if anything."""
        member = self.members.get(tenant.name)
        if member is None or member.salter is None or not _touches_a_cache(route):
            return None
        return member.salter.member

    def _named(self, name: str) -> Member:
        member = self.members.get(name)
        if member is None:
            raise InvalidKey("The tenant on whose behalf this was asked for is no more.")
        return member

    def _find(self, fields: Mapping[bytes, bytes]) -> tuple[str, Member]:
        key = presented_key(fields)
        found = None if key is None else self._ring.find(key)
        if found is None:
            raise InvalidKey
        return found


class Guest(Caller):
    """Somebody with a key, and one request's stay of theirs: what it holds of an allowance."""

    __slots__ = ("_allowance", "_client", "_house", "_request", "_reservation", "_served")

    def __init__(
        self,
        house: Tenancy,
        allowance: Allowance,
        tenant: Tenant,
        key_id: str | None,
        deadline: Seconds | None,
    ) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self.deadline = deadline
        self._house = house
        self._allowance = allowance

    def hesitates(self, request: GenerationRequest) -> bool:
        """While other gateways may be giving away what is left of its tenant's limits; until ours
        has its turn, or nothing is left."""
        house = self._house
        ranks = house.ranks
        if ranks is ALONE:
            return False
        tokens = self._tokens_of(request)
        return self._allowance.must_wait(tokens, house.clock(), house.wall(), ranks)

    def _tokens_of(self, request: GenerationRequest) -> Tokens:
        """What it may use."""
        tokens = request.prompt_tokens
        if request.max_tokens is not None:
            tokens += request.max_tokens
        elif request.route.generates:
            tokens += self._house.assumed_output_tokens
        return tokens

    def stay(self, request: GenerationRequest, client: Client, served: Served) -> Self:
        """Reserves on entering, which may be refused, and settles on leaving. Once."""
        self._request = request
        self._client = client
        self._served = served
        return self

    def __enter__(self) -> None:
        """Raises what `Allowance.reserve` raises."""
        house, allowance = self._house, self._allowance
        tokens = self._tokens_of(self._request)
        wall = 0.0 if allowance.day is None else house.wall()
        try:
            self._reservation = allowance.reserve(tokens, house.clock(), wall)
        finally:
            self._client.notes = allowance.lines()
        if house.ranks is not ALONE:
            house.touched.add(self.tenant.name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        used = tokens_used(self._request, self._served, error)
        house = self._house
        self._allowance.settle(self._reservation, used, house.clock())
        if house.ranks is not ALONE:
            house.touched.add(self.tenant.name)


def tokens_used(request: GenerationRequest, served: Served, error: BaseException | None) -> Tokens:
    """What a request has used: as its replica counted, else as far as we can tell.

    A stream whose client has not asked for `usage` is counted by its chunks. Who leaves while the
    prompt is being read has used the prompt; who was refused, by us or by a replica, nothing.
    """
    usage = served.usage
    if usage.prompt_tokens is not None or usage.output_tokens is not None:
        return (usage.prompt_tokens or 0) + (usage.output_tokens or 0)
    if served.first_byte_at is not None:
        if served.status is not None and served.status >= 400:
            return 0
        return request.prompt_tokens + (served.chunks if request.stream else 0)
    if served.dispatched_at is None or error is None:
        return 0
    has_left = isinstance(error, ClientGone) or not isinstance(error, GatewayError)
    return request.prompt_tokens if has_left else 0


def _views(tenant: Tenant) -> tuple[Tenant, ...]:
    """The tenant in its own class, and in those below."""
    first = _CLASSES.index(tenant.service_class)
    return tuple(
        Tenant(tenant.name, each, tenant.weight, tenant.ttft_objective_s, tenant.models)
        if each is not tenant.service_class
        else tenant
        for each in _CLASSES[first:]
    )


_ANYBODIES: Final = _views(ANYBODY)
_ANYBODY: Final = Caller(ANYBODY, None, None)


def _lowered(views: Sequence[Tenant], fields: Mapping[bytes, bytes]) -> Tenant:
    """The view in the class that is asked for, or the tenant's own where that is lower."""
    asked = fields.get(CLASS)
    if asked is None:
        return views[0]
    wanted = _BY_NAME.get(asked.lower())
    if wanted is None:
        raise InvalidRequest("`X-Headrace-Class` must be interactive, default or batch.")
    place = _CLASSES.index(wanted) - len(_CLASSES)  # from the end, as views are
    return views[max(len(views) + place, 0)]


def _deadline(fields: Mapping[bytes, bytes], received_at: Seconds) -> Seconds | None:
    said = fields.get(DEADLINE)
    if said is None:
        return None
    milliseconds = int(said) if said.isdigit() and len(said) < 10 else 0
    if not 0 < milliseconds <= LONGEST_DEADLINE_MS:
        raise InvalidRequest("`X-Headrace-Deadline-Ms` must be from 1 to 86400000 milliseconds.")
    return received_at + milliseconds / 1000


def _touches_a_cache(route: Route) -> bool:
    return route.body is _JSON and route.path not in _UNSALTED
