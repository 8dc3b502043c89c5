"""How long may a client take over each part of a request, and over reading what it was sent?

Asked by the sweep, a few times a second, for every connection: is this one overdue? What then
happens to it is the lane's business.

Invariant: no phase lasts for ever by the client's doing. While a response is being made the client
waits for us, and it is the relay that is patient or not.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.settings import AcceptSettings
    from gateway.vocabulary import Seconds

LINGER_S: Final = 2.0
"""How long a refused client may go on sending before its connection is closed for good: closing at
once would reset it, and the refusal would be lost (RFC 9112, section 9.6)."""


class Phase(Enum):
    """What we are reading from a client."""

    IDLE = "nothing: between requests"
    HEAD = "a request's head"
    BODY = "its body"
    SERVED = "nothing: the request is whole, its response is not"
    LINGERING = "whatever still comes, to throw it away"


def is_overdue(phase: Phase, elapsed_s: Seconds, body_bytes: int, settings: AcceptSettings) -> bool:
    """Has a phase lasted too long? `body_bytes` are those of the body that have come."""
    match phase:
        case Phase.IDLE:
            return elapsed_s > settings.keep_alive_s
        case Phase.HEAD:
            return elapsed_s > settings.header_timeout_s
        case Phase.BODY:
            earned_s = body_bytes / settings.min_body_bytes_per_s
            return elapsed_s > settings.body_timeout_s + earned_s
        case Phase.LINGERING:
            return elapsed_s > LINGER_S
        case Phase.SERVED:
            return False


class Outflow:
    """Watches what waits to be sent to a client: does it shrink?"""

    __slots__ = ("_since", "_unsent")

    def __init__(self) -> None:
        self._unsent = 0
        self._since: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<Outflow {self._unsent} bytes unsent>"

    def stalled_s(self, unsent: int, now: Seconds) -> Seconds:
        """For how long the same bytes have waited, as far as the looks at it tell; 0 for none."""
        if not unsent or unsent != self._unsent:
            self._unsent, self._since = unsent, now
        return now - self._since
