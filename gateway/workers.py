"""One gateway as several processes that share its port: who starts them, and what becomes of them.

The kernel spreads connections over the workers' listening sockets (SO_REUSEPORT; Linux does). The
supervisor listens to nobody itself: it keeps the port, starts a worker again that has died, after a
pause that doubles while it keeps dying, and passes on the signal to stop. A worker whose supervisor
has died stops too. What workers know of each other goes over the same link as between gateways
(`peers`), what they have counted over `siblings`.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from gateway import process
from gateway.clock import monotonic
from gateway.peers.link import listen
from gateway.section import SettingsError
from gateway.server import shared_port
from gateway.siblings import retire
from gateway.worker import Worker

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.vocabulary import Seconds

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
SETTLED_S: Final = 10.0
"""Who has lived so long did not die of its start."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
"""Those that the supervisor acts on."""

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Serve until told to stop. Returns the exit code."""
    if settings.peers.workers == 1:
        return process.run(settings)
    if sys.platform != "linux":
        raise SettingsError("peers.workers: more than one needs Linux, whose kernel shares a port")
    return Supervisor(settings).run()


class Post:
    """A worker's place: who has it now, or when somebody is to have it."""

    def __init__(self, index: int, link: socket.socket) -> None:
        self.index = index
        self.link = link
        self.pid: int | None = None
        self.since: Seconds = 0.0
        self.start_at: Seconds = 0.0
        self.pause_s = FIRST_PAUSE_S
        self.starts = 0

    def __repr__(self) -> str:
        return f"<Post {self.index}: {self.pid}>"


class Supervisor:
    """Starts the workers and looks after them."""

    def __init__(self, settings: Settings) -> None:
        """Raises OSError where a port is taken."""
        self._port = _reserved(settings.accept.host, settings.accept.port)
        port: int = self._port.getsockname()[1]
        accept = replace(settings.accept, port=port)
        self._settings = replace(settings, accept=accept)
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-"))
        peers = settings.peers
        self._posts = [Post(index, listen(peers, index)) for index in range(peers.workers)]
        self._lifeline = os.pipe()
        self._signals = os.pipe()
        self._is_stopping = False
        self._code = 0

    def run(self) -> int:
        """Until all workers have ended."""
        for end in self._signals:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._signals[1])
        for each in SIGNALS:
            signal.signal(each, _noted)
        log.info(
            "%d workers share %s, port %d",
            len(self._posts), self._settings.accept.host, self._settings.accept.port,
        )  # fmt: skip
        gc.freeze()  # what all workers have is theirs together, as long as nobody touches it
        try:
            while not (self._is_stopping and all(post.pid is None for post in self._posts)):
                self._start_those_due()
                self._wait()
                self._reap()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self._code

    def _start_those_due(self) -> None:
        now = monotonic()
        for post in self._posts:
            if post.pid is None and not self._is_stopping and post.start_at <= now:
                post.since = now
                post.starts += 1
                # What is sent to a worker before it is one would be noted here, as sent to us.
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
                try:
                    post.pid = os.fork() or self._become(post)
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _wait(self) -> None:
        """For a signal, or until somebody is to be started again."""
        now = monotonic()
        due = [post.start_at - now for post in self._posts if post.pid is None]
        timeout = None if self._is_stopping or not due else max(min(due), 0.0)
        if select.select([self._signals[0]], [], [], timeout)[0]:
            for number in os.read(self._signals[0], 256):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop()

    def _stop(self) -> None:
        """The workers are told; told again, they do not finish what they are at."""
        self._is_stopping = True
        for post in self._posts:
            if post.pid is not None:
                os.kill(post.pid, signal.SIGTERM)

    def _reap(self) -> None:
        for post in self._posts:
            if post.pid is None:
                continue
            pid, status = os.waitpid(post.pid, os.WNOHANG)
            if pid:
                post.pid = None
                self._ended(post, os.waitstatus_to_exitcode(status))

    def _ended(self, post: Post, code: int) -> None:
        if self._is_stopping:
            if code != -signal.SIGTERM:  # by which one ends that does not listen yet
                self._code = self._code or abs(code)
            return
        retire(self._folder, post.index)
        now = monotonic()
        has_settled = now - post.since >= SETTLED_S
        if code > 0 and post.starts == 1 and not has_settled:
            self._code = code  # it cannot be started at all, and has said why
            self._stop()
            return
        post.pause_s = FIRST_PAUSE_S if has_settled else min(2 * post.pause_s, LONGEST_PAUSE_S)
        post.start_at = now + post.pause_s
        log.warning(
            "worker %d ended with %d; another one starts in %.1f s", post.index, code, post.pause_s
        )

    def _become(self, post: Post) -> NoReturn:
        """From here on this process is a worker."""
        code = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C is the supervisor's to hear
            signal.set_wakeup_fd(-1)
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for end in (*self._signals, self._lifeline[1]):
                os.close(end)
            ports = [each.link.getsockname()[1] for each in self._posts]
            worker = Worker(
                post.index, post.link.dup(), tuple(ports), self._folder, self._lifeline[0]
            )
            code = process.run(self._settings, worker)
        except (SettingsError, OSError) as error:
            sys.stderr.write(f"headrace: {error}\n")
            code = 2
        except Exception:
            log.exception("worker %d has a bug", post.index)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _noted(number: int, frame: object) -> None:
    """The signal's number is in the pipe."""


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers. Raises OSError where somebody else has it."""
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)  # fails where others share the port already
    return shared_port(host, port)
