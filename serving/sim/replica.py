"""A running replica: settings in, a listening socket and its background tasks out.

`running_sim` is the whole life of one; tests use it as it is, `headrace sim` waits inside it for a
signal. Everything started is stopped at the exit: the listener, every connection, every request,
the tasks, the publisher.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from email.utils import formatdate
from random import Random

from uvicorn import Config
from uvicorn.server import ServerState

from serving.sim.control import Control
from serving.sim.engine import Engine
from serving.sim.faults import Faults
from serving.sim.publisher import EventPublisher
from serving.sim.routes import SimApp
from serving.sim.runner import Runner
from serving.sim.service import Service
from serving.sim.settings import SimSettings, engine_shape, load_profile
from serving.sim.wire import SimProtocol

_BACKLOG = 2048


class Sim:
    """One simulated replica; made by `running_sim`, which owns its socket and publisher."""

    def __init__(
        self,
        settings: SimSettings,
        bound: socket.socket,
        publisher: EventPublisher,
        on_exit: Callable[[], None] | None,
    ) -> None:
        self.settings = settings
        self.port: int = bound.getsockname()[1]
        self.faults = Faults(Random(settings.seed))
        profile = load_profile(settings.profile)
        self.engine = Engine(
            engine_shape(settings, profile),
            profile.timing,
            settings.hash_algorithm,
            settings.prefix_caching,
        )
        self.runner = Runner(
            self.engine, settings.speed, self.faults, publisher.publish, time.monotonic
        )
        self._publisher = publisher
        self._on_exit = on_exit
        self._listening = asyncio.Event()
        self._socket = bound
        self._server: asyncio.Server | None = None
        self._tls = None if settings.tls is None else settings.tls.context()
        self._state = ServerState()
        service = Service(settings, self.runner, self.faults, time.time)
        control = Control(service, publisher.sources(), self.crash)
        self._config = _http_config(SimApp(service, control.app()), settings)

    def __repr__(self) -> str:
        return f"<Sim {self.url} {self.engine!r}>"

    @property
    def url(self) -> str:
        """`http://host:port` (https with TLS), without a slash at the end."""
        return f"{'http' if self._tls is None else 'https'}://{self.settings.host}:{self.port}"

    @property
    def kv_events_endpoint(self) -> str | None:
        """Where events are published, the port resolved; None where they are not."""
        return self._publisher.endpoint

    @property
    def kv_replay_endpoint(self) -> str | None:
        """Where batches are replayed, the port resolved; None where they are not."""
        return self._publisher.replay_endpoint

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._state.connections)

    async def wait_listening(self) -> None:
        """Return once connections are accepted (at once, unless `load_s` is set)."""
        await self._listening.wait()

    async def _wait_listening_or(self, work: asyncio.Task[None]) -> None:
        """As `wait_listening`, but also over once the background work has failed."""
        listening = asyncio.ensure_future(self._listening.wait())
        await asyncio.wait({work, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()

    def drop_connections(self) -> None:
        """Every connection ends at once."""
        for connection in list(self._state.connections):
            connection.transport.abort()

    def crash(self, how: str) -> None:
        """Die as a process does ("exit"), or "drop" every connection and live on.

        Without a process to end, "exit" closes the listener; `revive` opens it again. For a replica
        that comes back empty, leave `running_sim` and enter another one on the same port.
        """
        if how == "exit" and self._on_exit is not None:
            self._on_exit()
        if how == "exit" and self._server is not None:
            self._server.close()
            self._server = None
            self._listening.clear()
        self.drop_connections()

    async def revive(self) -> None:
        """Listen on the same port again after `crash("exit")`; the cache is as it was."""
        if self._server is None:
            self._socket = _bound_socket(self.settings.host, self.port)
            await self._listen()

    async def drain(self) -> None:
        """Take no more connections, and let requests end, for `shutdown_timeout_s` at most."""
        if self._server is not None:
            self._server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_timeout_s):
                while self._state.tasks:
                    await asyncio.wait(list(self._state.tasks))

    async def _run(self) -> None:
        """The background work, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.runner.run(), name="sim-engine")
            tasks.create_task(self._keep_date(), name="sim-date")
            tasks.create_task(self._publisher.serve_replays(), name="sim-replays")
            if self.settings.tls is not None and self._tls is not None:
                tasks.create_task(self.settings.tls.keep_fresh(self._tls), name="sim-tls")
            await asyncio.sleep(self.settings.load_s)
            await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SimProtocol(self._config, self._state, {}, loop),
            sock=self._socket,
            ssl=self._tls,
            backlog=_BACKLOG,
        )
        self._listening.set()

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._socket.close()
        while self._state.tasks or self._state.connections:
            self.drop_connections()
            if self._state.tasks:
                await asyncio.wait(list(self._state.tasks), timeout=0.1)
            await asyncio.sleep(0)

    async def _keep_date(self) -> None:
        """The Date and Server headers, as uvicorn's own loop keeps them."""
        while True:
            date = formatdate(time.time(), usegmt=True).encode()
            self._state.default_headers = [(b"date", date), (b"server", b"uvicorn")]
            await asyncio.sleep(1.0)


@asynccontextmanager
async def running_sim(
    settings: SimSettings | None = None, on_exit: Callable[[], None] | None = None
) -> AsyncIterator[Sim]:
    """A replica that listens on this event loop inside the `with`, and is gone after it.

    The body starts at once when `load_s` is set, otherwise once connections are accepted. Raises
    OSError when a port is taken, ValueError for settings that do not fit together.
    """
    settings = settings or SimSettings()
    with (
        closing(_bound_socket(settings.host, settings.port)) as bound,
        closing(EventPublisher(settings.kv_events, time.time)) as publisher,
    ):
        sim = Sim(settings, bound, publisher, on_exit)
        work = asyncio.create_task(sim._run(), name="sim")
        try:
            if not settings.load_s:
                await sim._wait_listening_or(work)
            yield sim
        finally:
            await sim._stop()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work


def _bound_socket(host: str, port: int) -> socket.socket:
    """Bound but not yet listening: connections are refused, the port is ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def _http_config(app: SimApp, settings: SimSettings) -> Config:
    config = Config(
        app,
        http=SimProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # call_later takes any
    )
    config.load()
    return config
