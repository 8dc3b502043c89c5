"""One child process with a health check: started, awaited, drained, stopped; nothing of it left
behind.

A child leads a process group of its own. So Ctrl-C in the terminal reaches only us, who stop
things in order, and when the leader is gone whatever it started (an engine is three processes)
can be swept up. On Linux a child is told to stop when we die without having stopped it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from serving.asking import answers
from serving.readiness import Readiness, Sign, after

PR_SET_PDEATHSIG: Final = 1
POLL_S: Final = 0.1
ONE_WISH_S: Final = 0.5
SWEEP_S: Final = 2.0
"""What the rest of a group gets, once its leader has gone, to go by itself."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What to run and how to see that it works."""

    name: str
    command: tuple[str, ...]
    host: str
    port: int
    health_path: str
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""
    log: Path | None = None
    """Where its output is appended; None: it writes where we write."""
    grace_s: float = 15.0
    """From SIGTERM to SIGKILL."""
    tls: ssl.SSLContext | None = None
    """How it is asked; None: over plain HTTP."""

    @property
    def url(self) -> str:
        """Where the child is reached."""
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}"


class Child:
    """One run of one process."""

    def __init__(
        self,
        settings: ChildSettings,
        clock: Callable[[], float],
        listener: Callable[[bytes], None] | None = None,
    ) -> None:
        """`listener` is handed what the process and its own children write, as it comes."""
        self.settings = settings
        self.state = Readiness.STARTING
        self.started_at = clock()
        self.ready_after_s: float | None = None
        self._clock = clock
        self._process: Process | None = None
        self._listener = listener
        self._listening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Child {self.settings.name} {self.state} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        """The leader's process id, once started."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative signal number if a signal ended it."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process. Raises OSError if it cannot be."""
        with contextlib.ExitStack() as stack:
            output: IO[bytes] | int | None = None if self._listener is None else PIPE
            if self.settings.log is not None:
                self.settings.log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self.settings.log.open("ab"))
            self._process = await asyncio.create_subprocess_exec(
                *self.settings.command,
                env={**os.environ, **self.settings.environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        if self._listener is not None:
            self._listening = asyncio.create_task(self._listen(self._listener))

    async def until_ready(self) -> bool:
        """Wait until the health check answers (True) or the process has gone (False)."""
        where = self.settings
        while self.exit_code is None:
            if await answers(where.host, where.port, where.health_path, tls=where.tls):
                self.state = after(self.state, Sign.ANSWERED)
                self.ready_after_s = self._clock() - self.started_at
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def until_gone(self) -> int:
        """Wait for the process to end, sweep up its group, return its exit code."""
        assert self._process is not None, "start() first"
        code = await self._process.wait()
        self.state = after(self.state, Sign.EXITED)
        await self._sweep(self._process.pid)
        if self._listening is not None:
            await self._listening  # all who could write have gone
        return code

    async def stop(self) -> None:
        """Ask it to stop, give it its grace, then end it. Harmless if it has gone already."""
        if self._process is None:
            return
        self.state = after(self.state, Sign.ASKED_TO_STOP)
        _signal_process(self._process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self.settings.grace_s)
        except TimeoutError:
            self.kill()
        await self.until_gone()

    def kill(self) -> None:
        """End the whole group now."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines it wrote, for a person."""
        if self.settings.log is None or not self.settings.log.exists():
            return ""
        text = self.settings.log.read_bytes()[-100_000:].decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def _listen(self, listener: Callable[[bytes], None]) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while heard := await self._process.stdout.read(65536):
            listener(heard)

    async def _sweep(self, group: int) -> None:
        deadline = self._clock() + SWEEP_S
        while _signal_group(group, 0):
            if self._clock() > deadline:
                _signal_group(group, signal.SIGKILL)
                return
            await asyncio.sleep(POLL_S / 2)


class Patience:
    """Tells a second wish to stop, which means at once, from the echo of the first.

    `timeout` and some shells signal both us and our group; two signals that close are one wish.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_at: float | None = None

    def asked_again(self) -> bool:
        """Note a wish to stop; True if it is not the first."""
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
        return now - self._first_at > ONE_WISH_S


def _signal_process(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(group: int, number: int) -> bool:
    """Send to every process of the group; False if there is none."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def dies_with_parent() -> Callable[[], None] | None:
    """What a child does before it becomes its program: ask the kernel for SIGTERM at our death."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

    return ask
