"""How `headrace up` shows what it does: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from serving.child import Child
from serving.readiness import Readiness

COLOURS = {
    Readiness.STARTING: "yellow",
    Readiness.READY: "green",
    Readiness.DRAINING: "cyan",
    Readiness.DEAD: "red",
}


class Display(Protocol):
    """What the supervisor tells; all of it must return at once."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def progress(self, line: str) -> None:
        """A line that the next one replaces."""

    def show(self, children: Sequence[Child]) -> None:
        """A child changed its state."""

    def ready(self, banner: str) -> None:
        """Everything works."""

    def stopping(self, children: Sequence[Child]) -> None:
        """Everything is about to be stopped."""

    def close(self) -> None:
        """Give the terminal back. May be called twice."""


def display_for(stream: TextIO) -> Display:
    """The display that suits where the output goes."""
    return LiveDisplay(Console(file=stream)) if stream.isatty() else PlainDisplay(stream)


class PlainDisplay:
    """One line for each change; made for logs, pipes and tests."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[Readiness, int | None]] = {}

    def say(self, line: str) -> None:
        print(f"headrace: {line}", file=self._stream, flush=True)

    def progress(self, line: str) -> None:
        self.say(line)

    def show(self, children: Sequence[Child]) -> None:
        for child in children:
            if child.pid is None:
                continue  # about to be started
            name, now = child.settings.name, (child.state, child.pid)
            if self._shown.get(name) != now:
                self._shown[name] = now
                self.say(f"{name}: {describe(child)}")

    def ready(self, banner: str) -> None:
        print(f"\n{banner}\n", file=self._stream, flush=True)

    def stopping(self, children: Sequence[Child]) -> None:
        self.say("stopping")

    def close(self) -> None:
        pass


class LiveDisplay:
    """A table that moves while things start and stop, and leaves the terminal alone between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._children: Sequence[Child] = ()
        self._line = ""
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def say(self, line: str) -> None:
        self._console.print(Text(line))

    def progress(self, line: str) -> None:
        self._line = line
        self._open()

    def show(self, children: Sequence[Child]) -> None:
        self._children, self._line = children, ""
        if self._live is None and all(child.state is Readiness.READY for child in children):
            return  # a replica that came back; the banner already stands
        self._open()

    def ready(self, banner: str) -> None:
        self.close()
        # As one unwrapped text: the lines are there to be pasted.
        self._console.print(Text(f"\n{banner}\n"), soft_wrap=True)

    def stopping(self, children: Sequence[Child]) -> None:
        self._children, self._line = children, "stopping (Ctrl-C again to end everything now)"
        self._open()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self._draw,
                console=self._console,
                refresh_per_second=8,
                transient=False,
            )
            self._live.start()

    def _draw(self) -> Group | Spinner:
        self._spinner.update(text=self._line)
        if not self._children:
            return self._spinner
        table = Table(box=None, pad_edge=False, expand=True)
        # Only the log gives way when the terminal is narrow.
        for heading, width in (("", 11), ("state", 15), ("address", 23)):
            table.add_column(heading, min_width=width, no_wrap=True)
        table.add_column("last line of its log", ratio=1, no_wrap=True, overflow="ellipsis")
        for child in self._children:
            table.add_row(
                child.settings.name,
                Text(describe_state(child), style=COLOURS[child.state]),
                child.settings.url,
                Text(last_line(child), style="dim"),
            )
        return Group(table, self._spinner) if self._line else Group(table)


def describe(child: Child) -> str:
    """One child in a few words, with all a reader of the log needs to find it."""
    where = f"{child.settings.url}, pid {child.pid}"
    if child.state is Readiness.READY and child.ready_after_s is not None:
        return f"ready at {where}, after {child.ready_after_s:.1f} s"
    if child.state is Readiness.DEAD:
        return f"dead ({where}, exit code {child.exit_code})"
    return f"{child.state} ({where})"


def describe_state(child: Child) -> str:
    """The state, and for how long it took or has taken."""
    if child.state is Readiness.READY and child.ready_after_s is not None:
        return f"ready in {child.ready_after_s:.0f} s"
    if child.state is Readiness.STARTING:
        return f"starting, {time.monotonic() - child.started_at:.0f} s"
    return str(child.state)


def last_line(child: Child) -> str:
    """The last line of a child's log that says something."""
    lines = [line.strip() for line in child.log_tail(5).splitlines() if line.strip()]
    return lines[-1] if lines else ""
