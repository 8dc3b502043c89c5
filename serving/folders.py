"""The user's cache folder, and how something expensive is made in it exactly once.

Engines, models, logs: all that is large or personal lives below one folder of the user's, never
in the source tree. `made_once` is the only way in: it takes a lock (two `headrace up` may start
together), trusts a folder only if its marker was written last, and clears away what an
interrupted run left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

Say = Callable[[str], None]
"""Takes one line of progress; called often, so it must be quick."""

MARKER: Final = ".complete"


class CommandFailed(Exception):
    """A command of ours exited with anything but 0; the text carries its last lines."""


def cache_root(environ: Mapping[str, str], home: Path) -> Path:
    """Where all of it is kept: `HEADRACE_CACHE`, else the XDG cache folder, else ~/.cache."""
    if chosen := environ.get("HEADRACE_CACHE"):
        return Path(chosen)
    base = environ.get("XDG_CACHE_HOME")
    # The XDG rule: a relative path there is to be ignored.
    return (Path(base) if base and Path(base).is_absolute() else home / ".cache") / "headrace"


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock file `path`; say once that we wait if another process holds it.

    The kernel frees the lock when its holder dies, however it dies: nothing to clean up.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another headrace that is making {path.stem}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[Path], None], say: Say) -> Path:
    """Return `folder`, made by `make(folder)` unless an earlier call completed it.

    A failure or an interruption leaves no marker, so that the next call starts again from nothing.
    """
    marker = folder / MARKER
    if marker.exists():
        return folder
    with locked(folder.with_name(folder.name + ".lock"), say):
        if marker.exists():
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        make(folder)
        marker.touch()
    return folder


def run_saying(command: Sequence[str], tell: Say, environ: Mapping[str, str] | None = None) -> None:
    """Run a command to its end, handing each line it prints to `tell`.

    `environ` is added to ours. The command does not outlive us: an exception here, Ctrl-C among
    them, ends it. Raises CommandFailed.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environ or {})},
        text=True,
        errors="replace",
    ) as child:
        assert child.stdout is not None
        try:
            for raw in child.stdout:
                lines.append(raw.rstrip())
                tell(lines[-1])
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        tail = "\n".join(lines[-15:])
        raise CommandFailed(f"{' '.join(command[:5])} ... failed ({child.returncode}):\n{tail}")
