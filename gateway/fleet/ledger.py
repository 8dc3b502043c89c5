"""What has been put on each replica, by us and by the other gateways we know of.

Asked: how many requests have been sent there that have not ended, and how many prompt tokens of
those has it still to read? Ours are counted by leases, taken and given back by `with`, O(1) each
way; others' are told, a moment later.

Invariants: no count is ever negative; with no lease open and nothing told of others all are zero;
the prompt tokens of a lease are given back exactly once, at the first byte or at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

from gateway.fleet.health import Standing
from gateway.kv_cache import EngineFacts
from gateway.ports import Owing
from gateway.vocabulary import (
    Health,
    ModelCard,
    ModelName,
    ReplicaAddress,
    ReplicaId,
    Role,
    Tokens,
)

NO_MODELS: Final[Mapping[ModelName, ModelCard]] = MappingProxyType({})


class Replica:
    """A replica, as this gateway sees it. A `vocabulary.ReplicaView`.

    The roster alone sets `address`, `models` and `facts` (swapped whole, never changed in place),
    `standing` and `on_idle`; leases and what is told of others alone move the counters in flight,
    which are of all gateways together; lessons, who are told of answers, `nameless_answers`.
    """

    __slots__ = (
        "_others",
        "address",
        "facts",
        "id",
        "inflight_prompt_tokens",
        "inflight_requests",
        "models",
        "nameless_answers",
        "on_change",
        "on_idle",
        "others_prompt_tokens",
        "others_requests",
        "standing",
    )

    def __init__(self, address: ReplicaAddress) -> None:
        self.id: Final = address.id
        self.address = address
        self.models: Mapping[ModelName, ModelCard] = NO_MODELS
        self.facts = EngineFacts()
        self.nameless_answers = 0  # that were looked at and did not say which engine it is
        self.standing = Standing()
        self.inflight_requests = 0
        self.inflight_prompt_tokens: Tokens = 0
        self._others: dict[str, tuple[int, Tokens]] = {}  # by gateway
        self.others_requests = 0
        self.others_prompt_tokens: Tokens = 0
        self.on_idle: Callable[[], None] | None = None  # set while no source names it
        self.on_change: Callable[[ReplicaId], None] | None = None
        """Our own part has changed; set while there are other gateways."""

    def __repr__(self) -> str:
        return (
            f"<Replica {self.id} {self.role} {self.health}: {self.inflight_requests} requests, "
            f"{self.inflight_prompt_tokens} prompt tokens in flight; {len(self.models)} models>"
        )

    @property
    def role(self) -> Role:
        """What it does; its address says so."""
        return self.address.role

    @property
    def health(self) -> Health:
        """What is believed of it; `standing` holds the counts behind that.

        While it is awaited it is JOINING, however well it answers.
        """
        standing = self.standing
        if self.address.is_awaited and standing.takes_work:
            return Health.JOINING
        return standing.health

    @property
    def takes_work(self) -> bool:
        """Healthy or suspect, and not awaited."""
        return self.standing.takes_work and not self.address.is_awaited

    @property
    def own_requests(self) -> int:
        """Requests that we ourselves have sent there and that have not ended."""
        return self.inflight_requests - self.others_requests

    @property
    def own_prompt_tokens(self) -> Tokens:
        """Prompt tokens of those whose first byte has not come back."""
        return self.inflight_prompt_tokens - self.others_prompt_tokens

    def others(self, peer: str, requests: int, prompt_tokens: Tokens) -> None:
        """Another gateway has so much in flight there; nothing, once it is gone."""
        had_requests, had_tokens = self._others.pop(peer, (0, 0))
        if requests or prompt_tokens:
            self._others[peer] = (requests, prompt_tokens)
        self.others_requests += requests - had_requests
        self.others_prompt_tokens += prompt_tokens - had_tokens
        self.inflight_requests += requests - had_requests
        self.inflight_prompt_tokens += prompt_tokens - had_tokens

    def lease(self, prompt_tokens: Tokens) -> Lease:
        """A claim on this replica for one attempt, to be entered by `with`."""
        return Lease(self, prompt_tokens)


class Lease(Owing):
    """One attempt's claim. Written out by hand: a generator here would cost twice as much.

    Entered once or one use after another; `prefilled` may be called at any time, any number of
    times.
    """

    __slots__ = ("_owed_tokens", "_prompt_tokens", "_replica")

    def __init__(self, replica: Replica, prompt_tokens: Tokens) -> None:
        self._replica = replica
        self._prompt_tokens = prompt_tokens
        self._owed_tokens: Tokens = 0

    def __repr__(self) -> str:
        return (
            f"<Lease on {self._replica.id}: {self._owed_tokens} of {self._prompt_tokens} "
            "prompt tokens owed>"
        )

    def __enter__(self) -> Self:
        replica, tokens = self._replica, self._prompt_tokens
        replica.inflight_requests += 1
        replica.inflight_prompt_tokens += tokens
        self._owed_tokens += tokens
        if replica.on_change is not None:
            replica.on_change(replica.id)
        return self

    def prefilled(self) -> None:
        """The first byte is here: the prompt has been read. Gives its tokens back, once."""
        if not self._owed_tokens:
            return
        replica = self._replica
        replica.inflight_prompt_tokens -= self._owed_tokens
        self._owed_tokens = 0
        if replica.on_change is not None:
            replica.on_change(replica.id)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        replica = self._replica
        replica.inflight_prompt_tokens -= self._owed_tokens
        self._owed_tokens = 0
        replica.inflight_requests -= 1
        if replica.on_change is not None:
            replica.on_change(replica.id)
        if replica.on_idle is not None and not replica.own_requests:
            replica.on_idle()
