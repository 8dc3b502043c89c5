"""A reply as a stream of events, whichever API writes them."""

from typing import Protocol

from serving.sim.call import Call
from serving.sim.service import Job, Piece, Service, Usage


class Rendering(Protocol):
    """How one API writes a stream: events as bytes, each ended by an empty line."""

    def preface(self) -> list[bytes]:
        """Sent at once, before any token."""

    def opening(self, usage: Usage) -> list[bytes]:
        """Sent before the first piece."""

    def piece(self, piece: Piece, usage: Usage) -> bytes: ...

    def closing(self, usage: Usage) -> list[bytes]:
        """Sent after the last piece."""


async def stream(service: Service, call: Call, jobs: list[Job], rendering: Rendering) -> None:
    """The head at once, then an event per token as they come (vLLM answers before it computes)."""
    await call.open_stream()
    if preface := rendering.preface():
        await call.events(preface)
    with service.generating(call, jobs) as generation:
        is_open = False
        async for pieces in generation.pieces():
            events = [] if is_open else rendering.opening(generation.usage)
            is_open = True
            events += [rendering.piece(piece, generation.usage) for piece in pieces]
            await call.events(events)
    await call.events(rendering.closing(generation.usage))
    await call.end_stream()
