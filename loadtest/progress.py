"""What the terminal shows while a run goes: how far, how fast, how long users wait.

Drawn from the run's own ticks, twice a second, never by a thread of its own.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table

from loadtest.figures import percentile
from loadtest.report.said import ms, number, percent
from loadtest.run import Live
from loadtest.scenario import Scenario

_RECENT_S = 5.0


class Progress:
    """A few lines that are drawn over and over on a terminal; nothing elsewhere."""

    def __init__(self, console: Console, scenario: Scenario, title: str) -> None:
        self._scenario = scenario
        self._title = title
        self._screen = Screen(console=console, auto_refresh=False, transient=True)
        self._is_shown = console.is_terminal

    def __enter__(self) -> Progress:
        if self._is_shown:
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._screen.stop()

    def tick(self, live: Live) -> None:
        """Draw what is known now."""
        if self._is_shown:
            self._screen.update(self._drawn(live), refresh=True)

    def _drawn(self, live: Live) -> Group:
        now_s = live.driver.now_s()
        total_s = self._scenario.duration_s
        recent = [each for each in live.samples[-2000:] if each.ended_s > now_s - _RECENT_S]
        ttfts_s = [each.ttft_s for each in recent if each.ttft_s is not None]
        tpots_s = [each.tpot_s for each in recent if each.tpot_s is not None]
        failed = sum(each.error is not None for each in live.samples)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            f"[bold]{number(len(recent) / min(_RECENT_S, max(now_s, 0.1)))}[/]/s",
            f"[bold]{live.driver.open_requests}[/] open",
            f"TTFT [bold]{_p50(ttfts_s)}[/] ms, p95 [bold]{_p95(ttfts_s)}[/]",
            f"TPOT [bold]{_p50(tpots_s)}[/] ms",
            f"[bold red]{failed} failed[/]" if failed else f"{live.driver.sent} sent",
            f"[dim]own CPU {percent(live.watch.cpu)}[/]",
        )
        left_s = total_s - now_s
        what = f"{left_s:.0f} s left" if left_s > 0 else "waiting for the last replies"
        bar = ProgressBar(total=total_s, completed=min(now_s, total_s), width=36)
        head = Table.grid(padding=(0, 2))
        head.add_row(f"[bold cyan]{self._title}[/]", bar, what)
        return Group(head, grid)


def _p50(values_s: list[float]) -> str:
    return ms(percentile(values_s, 0.5) if values_s else None)


def _p95(values_s: list[float]) -> str:
    return ms(percentile(values_s, 0.95) if values_s else None)
