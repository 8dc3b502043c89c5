"""What rooms ask of one another as a request goes and its answer comes.

Rooms do not see each other, so what one asks of another is said here. Whoever is such a thing
derives from it: compiled, what derives from a protocol is called as C calls, what merely has the
names through the interpreter (docs/adr/0032-the-compiled-hot-path.md). The names are enough where
nothing depends on that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.order import Place
    from gateway.request import Usage
    from gateway.vocabulary import Seconds, Tokens


class Watcher(Protocol):
    """Who is told when bytes of a response come."""

    __slots__ = ()

    def first_byte(self, now: Seconds) -> None: ...

    def chunk(self, now: Seconds) -> None: ...


class Sent(Protocol):
    """What is at a replica, and wants to know when its prompt has been read."""

    __slots__ = ()

    @property
    def uncached(self) -> Tokens:
        """Prompt tokens that the replica is believed not to hold."""

    def first_byte(self, now: Seconds) -> None: ...


class Owing(Protocol):
    """What is owed to a replica's ledger until its first byte."""

    __slots__ = ()

    def prefilled(self) -> None: ...


class Claim(Protocol):
    """What the policy that chose remembers of one dispatch, until it ends."""

    __slots__ = ()

    @property
    def uncached(self) -> Tokens | None:
        """Prompt tokens that the replica does not hold, as far as is known by now; None where the
        policy does not know."""

    @property
    def alone(self) -> Tokens | None:
        """The same without what is only on its way there: what it would have to prefill if it went
        before those it shares its beginning with. It waits in the order of this."""

    def waits(self, place: Place) -> None:
        """It is not sent yet, and stands there among those who wait for its replica."""

    def goes(self) -> None:
        """It is sent now. To be told of those that have waited."""

    def follow(self, on_less: Callable[[Tokens], object]) -> None:
        """From now on who is told here hears by how much `uncached` becomes less."""

    def first_byte(self, now: Seconds) -> None:
        """The replica has read the prompt."""

    def answered(self, usage: Usage, now: Seconds) -> None:
        """The response was relayed whole, and this is what it says of the prompt."""
