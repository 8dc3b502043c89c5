"""Children that are pinned to a core, metered exactly, and never left behind.

CPU time is the kernel's process clock (all threads, user and system, dead threads included) of
every process in the child's tree, in nanosecond steps; /proc's utime + stime is the same quantity
in steps of 10 ms. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_TERM_GRACE_S: Final = 3.0
_SCHED_CLOCK: Final = 2  # CPUCLOCK_SCHED in the kernel's posix-timers ABI
_LIBC: Final = ctypes.CDLL(None)
_GIVE_WAY: Final = 10  # of `nice`


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: the subject alone, the load and the replicas beside it."""

    subject: int
    load: int
    upstream: int

    @classmethod
    def allot(cls) -> Cores:
        """Share out the cores this process may use. Raises RuntimeError below two."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise RuntimeError("the benchmark needs two cores: one for the subject, one for load")
        return cls(subject=usable[-1], load=usable[0], upstream=usable[1 if len(usable) > 2 else 0])


@dataclass(frozen=True, slots=True)
class Child:
    """A running child, leader of its own process group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> tuple[int, ...]:
        """The child and all its descendants, as they are now."""
        return tree_of(self.process.pid)

    def resident_bytes(self) -> int:
        """Resident memory of the whole tree, shared pages counted in each process."""
        return sum(_resident_bytes(pid) for pid in self.pids())

    def log_tail(self, lines: int = 12) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def tree_of(pid: int) -> tuple[int, ...]:
    """A process and all its descendants, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, ()))
    return tuple(found)


def engines_give_way(pids: Iterable[int]) -> None:
    """Of these, the processes in which vLLM computes let its servers, and everybody else, go first.
    Every thread has a priority of its own."""
    for pid in pids:
        if (Path("/proc") / str(pid) / "comm").read_text().startswith("VLLM::"):
            for thread in (Path("/proc") / str(pid) / "task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), _GIVE_WAY)


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds consumed so far by these processes. Raises OSError when one is gone."""
    return sum(time.clock_gettime((~pid << 3) | _SCHED_CLOCK) for pid in pids)


@contextmanager
def running(
    name: str, command: Sequence[str], *, core: int, folder: Path, root: Path
) -> Iterator[Child]:
    """Run a command pinned to a core, its output in `folder`; its whole group ends with the block.

    The child is told to end too if this process dies without leaving the block.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: _bind(core),  # noqa: PLW1509 (this process has one thread)
        )
    try:
        yield Child(name, process, log)
    finally:
        _end(process)


def _bind(core: int) -> None:
    os.sched_setaffinity(0, {core})
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours without the proxies, which some HTTP clients would use even for loopback."""
    kept = {name: text for name, text in environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_TERM_GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
