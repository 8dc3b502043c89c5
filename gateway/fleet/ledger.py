"""What we ourselves have put on each replica.

Asked: how many requests have we sent there that have not ended, and how many prompt tokens of
those has it still to read? Counted by leases, taken and given back by `with`, O(1) each way.

Invariants: both counters are never negative; with no lease open both are zero; the prompt tokens of
a lease are given back exactly once, at the first byte or at the end.
These counts are ours alone: other gateways before the same replica have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

from gateway.fleet.health import Standing
from gateway.kv_cache import EngineFacts
from gateway.vocabulary import Health, ModelCard, ModelName, ReplicaAddress, Role, Tokens

NO_MODELS: Final[Mapping[ModelName, ModelCard]] = MappingProxyType({})


class Replica:
    """A replica, as this gateway sees it. A `vocabulary.ReplicaView`.

    The roster alone sets `address`, `models` and `facts` (swapped whole, never changed in place),
    `standing` and `on_idle`; leases alone move the counters.
    """

    __slots__ = (
        "address",
        "facts",
        "id",
        "inflight_prompt_tokens",
        "inflight_requests",
        "models",
        "on_idle",
        "standing",
    )

    def __init__(self, address: ReplicaAddress) -> None:
        self.id: Final = address.id
        self.address = address
        self.models: Mapping[ModelName, ModelCard] = NO_MODELS
        self.facts = EngineFacts()
        self.standing = Standing()
        self.inflight_requests = 0
        self.inflight_prompt_tokens: Tokens = 0
        self.on_idle: Callable[[], None] | None = None  # set while no source names it

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

    def lease(self, prompt_tokens: Tokens) -> Lease:
        """A claim on this replica for one attempt, to be entered by `with`."""
        return Lease(self, prompt_tokens)


class Lease:
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
        return self

    def prefilled(self) -> None:
        """The first byte is here: the prompt has been read. Gives its tokens back, once."""
        self._replica.inflight_prompt_tokens -= self._owed_tokens
        self._owed_tokens = 0

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
        if replica.on_idle is not None and not replica.inflight_requests:
            replica.on_idle()
