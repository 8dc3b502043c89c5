"""Whose turn is it on one client's connection? What happens to a request there, from its head on.

Asked by the lane, which reads heads and bodies, and by what has been answered: an exchange, or a
cycle of uvicorn's for the ASGI app. Requests are served one at a time and in order; a pipelined one
waits.

This is apart from the lane because a lane derives from uvicorn's protocol, and so, compiled, each
of its attributes is looked up by name; a request asks for some forty (ADR 32).

Invariants. At most one exchange is live, and at most one gathers its body: the last that began.
Who waits is in `pipeline`, the next on the right. Idle means that the last has been answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from gateway.accept.exchange import CONTINUE, Exchange, whole_reply
from gateway.accept.patience import Outflow, Phase, is_overdue
from gateway.errors import BodyTooLarge, ClientError, ClientGone, RequestTimedOut

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from gateway.accept.door import Door
    from gateway.accept.head import Head
    from gateway.accept.recall import Recall
    from gateway.vocabulary import Seconds

MOST_WAITING: Final = 8
"""Pipelined requests that may wait on a connection; beyond, it is not read, and so we would not
see its client leave."""

# CPython 3.11 takes 0.14 us to find an enum's member by its name, and 0.02 us to find these.
IDLE: Final = Phase.IDLE
HEAD: Final = Phase.HEAD
BODY: Final = Phase.BODY
SERVED: Final = Phase.SERVED
LINGERING: Final = Phase.LINGERING


class Line:
    """The requests of one connection, from when it is made."""

    __slots__ = (
        "_door", "_flow", "_is_write_paused", "_loop", "_outflow", "_owes_continue", "_since",
        "_tasks", "body_bytes", "gathering", "is_deaf", "last", "live", "phase", "pipeline",
        "recall", "transport",
    )  # fmt: skip

    def __init__(
        self,
        door: Door,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        flow: FlowControl,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        """`tasks` are the app's, for which uvicorn waits when it shuts down."""
        self._door = door
        self._loop = loop
        self.transport: Final = transport
        self._flow = flow
        self._tasks = tasks
        self.pipeline: Final[deque[tuple[Any, Any]]] = deque()  # cycles with their app, exchanges
        self.last: Exchange | RequestResponseCycle | None = None  # the request that began last
        self.live: Exchange | None = None  # the exchange being served
        self.gathering: Exchange | None = None  # the exchange whose body is being read
        self.recall: Recall | None = None  # the last request, where the next may be like it
        self.phase = IDLE
        self._since = door.now  # when the phase began
        self.body_bytes = 0
        self._outflow = Outflow()
        self._is_write_paused = False
        self._owes_continue = False  # to the exchange that gathers, once its turn has come
        self.is_deaf = False  # nothing more is parsed on this connection

    def __repr__(self) -> str:
        return f"<Line {self.phase.name} {self.live!r}>"

    def enter(self, phase: Phase) -> None:
        """Read something else from now on."""
        self.phase = phase
        self._since = self._door.now

    # A request

    def recalls(self, data: bytes) -> bool:
        """Is this read another request like the one before? Then it has begun, and is whole."""
        recall = self.recall
        if recall is None or self.phase is not IDLE:
            return False
        again = recall.again(data, self, self._door)
        if again is None:
            return False
        exchange, head = again
        self.body_bytes = len(data)
        self.open(exchange, head, keeps_alive=True)
        if self.gathering is exchange:  # it has not been refused
            self.whole(exchange)
        return True

    def open(self, exchange: Exchange, head: Head, *, keeps_alive: bool) -> None:
        """An exchange has begun: it gathers its body, and waits for its turn."""
        door = self._door
        exchange.keep_alive = keeps_alive and exchange.takes_chunks and not door.is_closing
        must_wait = not self._is_answered()
        self.last = self.gathering = exchange
        if must_wait:
            self.pipeline.appendleft((exchange, None))
            self._owes_continue = head.expects_continue
            if len(self.pipeline) > MOST_WAITING:
                self._flow.pause_reading()
        objection = door.objection(head, exchange.route)
        if objection is not None:
            self._refuse(exchange, objection)
        elif head.expects_continue and not must_wait:
            self.transport.write(CONTINUE)

    def opened(self, cycle: RequestResponseCycle) -> None:
        """The app's request has begun: uvicorn has put its cycle where it belongs."""
        self.last = cycle
        if len(self.pipeline) <= MOST_WAITING:
            self._flow.resume_reading()

    def gather(self, exchange: Exchange, body: bytes) -> None:
        """More of the body of the exchange that gathers."""
        exchange.take_body(body)
        if self.body_bytes > self._door.limit(exchange.route):
            self._refuse(exchange, BodyTooLarge())

    def whole(self, exchange: Exchange) -> None:
        """The body is here, or will never be: serve it, if its turn has come."""
        self.enter(SERVED)
        self.gathering = None
        exchange.is_whole = True
        if not self.pipeline or all(waiting is not exchange for waiting, _ in self.pipeline):
            self._launch(exchange)

    def _launch(self, exchange: Exchange) -> None:
        exchange.received_at = self._door.clock()
        if not exchange.is_gone:
            self.live = exchange
            if self._is_write_paused:  # by a response before it
                exchange.pause(exchange.received_at)
        exchange.task = self._task(self._door.serve(exchange))

    def _task(self, serving: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """What the loop's `create_task` makes, but for a name made up and numbered: by uvloop, that
        costs half as much again. Whoever makes the loop's tasks makes this one too."""
        if self._loop.get_task_factory() is None:
            return asyncio.Task(serving, loop=self._loop, name="request")
        return self._loop.create_task(serving)

    # Its response

    def _is_answered(self) -> bool:
        """The last request, if there has been one."""
        last = self.last
        # Compiled, an exchange is asked directly and a cycle by name.
        if isinstance(last, Exchange):
            return last.response_complete
        return last is None or last.response_complete

    def exchange_ended(self, exchange: Exchange, *, reusable: bool) -> None:
        """The response is written: the connection is free for what comes next, or closes."""
        if self.live is exchange:
            self.live = None
        if reusable:
            self.response_ended()
        elif self.is_deaf:
            self._linger()
        else:
            self.transport.close()

    def response_ended(self) -> None:
        """A response has gone out, ours or the app's: the next request's turn. Idle connections are
        closed by the sweep, not by a timer each."""
        if self.transport.is_closing():
            return
        if self._flow.read_paused:
            self._flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if not isinstance(cycle, Exchange):
                task = self._loop.create_task(cycle.run_asgi(app))
                task.add_done_callback(self._tasks.discard)
                self._tasks.add(task)
            elif cycle.is_whole:
                self._launch(cycle)
            elif self._owes_continue:
                self._owes_continue = False
                self.transport.write(CONTINUE)
        else:
            self.rest_if_served()

    def rest_if_served(self) -> None:
        """Idle, once the last request is whole and has been answered, in whatever order."""
        if self.phase is SERVED and self._is_answered():
            self.enter(IDLE)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._is_write_paused = True
        if self.live is not None:
            self.live.pause(self._door.clock())

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_write_paused = False
        if self.live is not None:
            self.live.resume()

    # What goes wrong

    def lost(self) -> None:
        """The client has left, and with it whoever was served or waited."""
        live, waiting = self.live, [cycle for cycle, _ in self.pipeline]
        if self.gathering is not None and self.gathering not in waiting:
            waiting.append(self.gathering)
        self.live = self.gathering = None
        self.pipeline.clear()
        if live is not None:
            live.gone()
        for exchange in waiting:
            if isinstance(exchange, Exchange):
                exchange.fault = ClientGone()  # counted, though it never was served
                exchange.gone()
                self._launch(exchange)
        self.last = self.recall = None  # an exchange knows us: both would stay

    def cut_short(self) -> None:
        """End the exchange being served, telling its client what can still be told."""
        if self.live is not None and self.live.task is not None:
            self.live.task.cancel()

    def _hang_up_after_reply(self) -> None:
        """Parse no more; the last of the replies that are owed is the last on this connection."""
        self.is_deaf = True
        if self.last is not None:
            self.last.keep_alive = False

    def _refuse(self, exchange: Exchange, error: ClientError) -> None:
        exchange.fault = error
        self._hang_up_after_reply()
        self.whole(exchange)

    def malformed(self, error: ClientError) -> None:
        """Refuse what is not a request we can read. Responses that are owed are not disturbed."""
        if self.is_deaf:
            return  # once is enough
        gathering = self.gathering
        self._hang_up_after_reply()
        if gathering is not None:
            gathering.fault = error
            self.whole(gathering)
            return
        self._door.malformed += 1
        if self.phase is BODY:  # of a request that is the app's
            if self._is_answered():
                self._linger()  # there must be no second answer
        elif self._is_answered():
            self.transport.write(whole_reply(error))
            self._linger()
        else:
            self.enter(SERVED)

    def _linger(self) -> None:
        """Say that nothing more comes; close for good when the client has had time to read why."""
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.enter(LINGERING)

    def check(self, now: Seconds) -> None:
        """Part of the door's sweep: close the connection if its client has dawdled."""
        settings, transport = self._door.settings, self.transport
        unsent = transport.get_write_buffer_size()
        if self._outflow.stalled_s(unsent, now) > settings.client_stall_s and self.live is None:
            transport.abort()
        if transport.is_closing():
            return
        if self._flow.read_paused or (unsent and self.phase is LINGERING):
            self._since = now  # it is we who do not read, or it who still does
        if not is_overdue(self.phase, now - self._since, self.body_bytes, settings):
            return
        if self.phase is IDLE or self.phase is LINGERING:
            transport.close()
        elif not self.is_deaf:
            self.malformed(RequestTimedOut())
        elif not self.pipeline:
            transport.abort()  # the app waits for a body that will not come
