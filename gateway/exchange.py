"""An exchange, as the corridor and the rooms see it: a client's, or an errand of our own.

What has been asked lies in attributes; how it is answered are methods, which those who live it
have. One class for all to name, where each room might say what it needs in a protocol: each request
is looked at some twenty times here, and compiled, a class of our own is asked directly and a
protocol by name (docs/adr/0032-the-compiled-hot-path.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from gateway.accept.amend import Value
    from gateway.errors import GatewayError
    from gateway.vocabulary import Body, ReplicaId, Route, Seconds


class Source(Protocol):
    """What a slow client pauses: the replica's side of the relay."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Message:
    """What is parsed: a body, and what was said of it. `fields` are those fields of its head that
    are read, by lower-case name."""

    __slots__ = ("fields", "route")

    def __init__(self, route: Route, fields: Mapping[bytes, bytes]) -> None:
        self.route = route
        self.fields = fields

    @property
    def body(self) -> Body:
        """Raises what is wrong with it, where that is known."""
        raise NotImplementedError

    @property
    def content_type(self) -> bytes:
        """As it was written; empty where it was not."""
        return self.fields.get(b"content-type", b"")


@mypyc_attr(allow_interpreted_subclasses=True)
class AnyExchange(Message):
    """What lives: a request, and the response to it."""

    __slots__ = (
        "among", "forwarded", "has_started", "notes", "on_behalf_of", "paused_since", "received_at",
        "replica", "request_id", "source", "takes_chunks", "target",
    )  # fmt: skip

    def __init__(
        self,
        route: Route,
        target: bytes,
        request_id: bytes,
        forwarded: bytes,
        fields: Mapping[bytes, bytes],
    ) -> None:
        """`target` is path and query; `forwarded` are the header lines that replicas are sent."""
        super().__init__(route, fields)
        self.target = target
        self.request_id = request_id
        self.forwarded = forwarded
        self.received_at: Seconds = 0.0
        self.takes_chunks = False  # speaks HTTP/1.1, and so the chunked framing
        self.among: Container[ReplicaId] | None = None  # the only replicas to ask; None: any
        self.on_behalf_of: str | None = None  # a tenant, or nobody; None where a key will tell
        self.replica: ReplicaId | None = None  # where the last attempt went
        self.source: Source | None = None  # while a replica answers
        self.paused_since: Seconds | None = None  # since when it is too slow to write to
        self.has_started = False  # a response head has been decided: nobody else may be tried
        self.notes: Sequence[bytes] = ()  # header lines of our own for the response

    @property
    def is_gone(self) -> bool:
        """Nobody waits for the response."""
        raise NotImplementedError

    def amend(self, *path: str, value: Value) -> bool:
        """Set a member of the JSON object that the body is; every other byte stays. False where it
        is none."""
        raise NotImplementedError

    def keep_waiting(self) -> None:
        """It waits for its turn: let its client know that it has not been forgotten, if that can be
        said."""
        raise NotImplementedError

    def start(self, status: int, fields: bytes, length: int | None, *, chunked: bool) -> None:
        """Decide the response head. `fields` are lines; `length` None without `chunked` means that
        the body ends with the connection."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Write body bytes, already framed."""
        raise NotImplementedError

    @property
    def sink(self) -> Callable[[bytes], object]:
        """What does the same as `write` from now on, on a shorter way if there is one."""
        raise NotImplementedError

    def finish(self) -> None:
        """The response has been written whole."""
        raise NotImplementedError

    def refuse(self, error: GatewayError) -> None:
        """Tell why it ends here, in whatever way is still possible."""
        raise NotImplementedError

    def cut(self) -> None:
        """End here, in the middle: whoever reads sees a response that is not complete."""
        raise NotImplementedError
