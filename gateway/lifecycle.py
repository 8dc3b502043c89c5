"""How a gateway lives and ends: what runs beside the requests, and how it leaves.

A base of `app.House`, which puts in the parts. Starts nothing before it is told to `serve`, and
ends all of it when the server has stopped, whatever has led to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.accept.tls import watch_certificates
from gateway.clock import monotonic
from gateway.loops import every, kept
from gateway.panel import Panel

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

    from gateway.account.accounts import Accounts
    from gateway.account.recording import Log
    from gateway.batch.service import Batches
    from gateway.console.broadcast import Broadcast
    from gateway.fleet.discover import Discovery
    from gateway.fleet.probe import Prober
    from gateway.fleet.sleepers import Sleepers
    from gateway.scale.demands import Demands
    from gateway.scale.keda import KedaScaler
    from gateway.server import Server
    from gateway.siblings import Siblings
    from gateway.tenants.watch import TenantsWatch
    from gateway.tokens.service import Tokens
    from gateway.trust.service import Trust
    from gateway.worker import Worker

FLUSH_EVERY_S: Final = 0.2
TIDY_EVERY_S: Final = 0.2
LOOK_EVERY_S: Final = 1.0
DRAIN_LOOK_EVERY_S: Final = 0.02
CUT_SHORT_S: Final = 1.0

Loop = Callable[[], Awaitable[object]]


class Lifecycle(Panel):
    """From the first request to the last."""

    accounts: Accounts
    batches: Batches | None
    console: Broadcast
    demands: Demands
    keda: KedaScaler | None
    log: Log
    tokens: Tokens
    trust: Trust
    _discoveries: Sequence[Discovery]
    _prober: Prober
    _siblings: Siblings | None
    _sleepers: Sleepers
    _tenants_watch: TenantsWatch | None
    _worker: Worker | None

    async def serve(self, server: Server) -> None:
        """Run until the server has stopped; then end every background loop.

        Raises OSError where KEDA's scaler cannot listen, or we are not told who we are.
        """
        try:
            await self.trust.start()
            if self.keda is not None:
                await self.keda.start()
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(kept(name, loop), name=name)
                    for name, loop in self._loops(server.config.ssl)
                ]
                try:
                    await self._listen(server)
                finally:
                    for task in loops:
                        task.cancel()
        finally:
            await self._close()

    def _loops(self, context: ssl.SSLContext | None) -> Iterator[tuple[str, Loop]]:
        """What runs beside the requests; `context` is what clients are spoken to by."""
        yield "sweep", self.door.sweep
        yield "watch", self.relay.watch
        yield "hold", self.gate.watch
        yield "cold", self.cold.watch
        yield "probe", self._prober.run
        yield "sleepers", self._sleepers.run
        yield "flush", partial(every, FLUSH_EVERY_S, self.log.flush)
        yield "tidy", partial(every, TIDY_EVERY_S, self._tidy)
        yield "demand", partial(every, LOOK_EVERY_S, self.demands.look)
        yield "console", self.console.run
        yield "lessons", self.lessons.run
        if self.kv_events is not None:
            yield "kv events", self.kv_events.run
        yield from self.trust.loops()
        yield from ((repr(each), each.run) for each in self._discoveries)
        if self.batches is not None:
            yield "batches", self.batches.run
        if self.link is not None:
            yield "peers", self.link.run
        if self._siblings is not None:
            yield "siblings", self._siblings.run
        if self._tenants_watch is not None:
            yield "tenants", self._tenants_watch.run
        if context is not None:
            yield "certificates", partial(watch_certificates, context, self._settings.accept.tls)

    async def _listen(self, server: Server) -> None:
        if self._worker is None:
            await server.serve()
        else:
            accept = self._settings.accept
            await server.serve([await self._worker.socket(accept, self, server.stop)])

    async def _close(self) -> None:
        """The end, whatever has led to it."""
        await self._cut_short()
        if self.keda is not None:
            await self.keda.stop()
        if self.batches is not None:
            self.batches.close()
        self.tokens.close()
        self.relay.close()
        await asyncio.to_thread(self.log.close)  # which waits for its threads

    def _tidy(self) -> None:
        """What the policy remembers is put in order, and what it doubts is asked for again."""
        self.chooser.tidy(monotonic())
        for replica in self.chooser.repairs():
            if self.kv_events is not None:
                self.kv_events.replay(replica)

    async def drain(self) -> None:
        """Take nothing new; let what runs finish, for as long as the grace lasts; cut the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.admit.drain_grace_s
        self.door.is_closing = True
        self.admission.drain()
        self.console.close()
        if self.batches is not None:
            await self.batches.stop()
        if self.keda is not None:
            await self.keda.stop()
        while self.accounts.open_entries and loop.time() < deadline:
            await asyncio.sleep(DRAIN_LOOK_EVERY_S)
        await self._cut_short()

    async def _cut_short(self) -> None:
        """End whatever is still being served, and give it a moment to say so."""
        self.door.cut_short()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CUT_SHORT_S
        while self.accounts.open_entries and loop.time() < deadline:
            await asyncio.sleep(DRAIN_LOOK_EVERY_S)
