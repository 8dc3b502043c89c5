"""How often may an engine die? Deaths in, a pause before the next start (or the end) out.

Pure. Invariants: pauses never shrink until a run has been stable; never more than `restarts`
pauses in a row; nothing follows a first run that never became ready.
"""

from __future__ import annotations

from typing import Final

from serving.replica.settings import Supervision

MOST_PAUSE_S: Final = 60.0


class Endurance:
    """Counts deaths in a row."""

    __slots__ = ("_rules", "deaths")

    def __init__(self, rules: Supervision) -> None:
        self._rules = rules
        self.deaths = 0

    def __repr__(self) -> str:
        return f"<Endurance {self.deaths} of {self._rules.restarts}>"

    def died(self, ready_s: float | None) -> float | None:
        """The pause before the next start, or None: give up.

        `ready_s` is how long the run was ready; None: it never was. What cannot start will not
        start the next time, and whoever made the settings should hear of it at once; except after
        a death (a port or memory may not be free yet), where it counts as one more.
        """
        if ready_s is None and self.deaths == 0:
            return None
        if ready_s is not None and ready_s >= self._rules.stable_s:
            self.deaths = 0
        self.deaths += 1
        if self.deaths > self._rules.restarts:
            return None
        return min(self._rules.pause_s * 2.0 ** (self.deaths - 1), MOST_PAUSE_S)
