"""What `pytest -n N -p tests.side_by_side tests` runs side by side, and what alone.

Files are handed to N processes, one at a time, in the order of the collection; those of tests that
start processes or look at a clock come last, and to one process only, when all others have ended:
what keeps a core busy beside them makes them fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

ALONE: Final = ("tests/e2e/", "tests/integration/")
"""How the names of those begin that want the machine for themselves."""


def _is_alone(name: str) -> bool:
    return name.startswith(ALONE)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which files are handed out; the same in all processes."""
    items.sort(key=lambda item: _is_alone(item.nodeid))


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Who hands out the files."""
    return QuietEnd(config, log)


class QuietEnd(LoadFileScheduling):
    """Files to whoever has nothing left to do; at the end, to the last process that is there."""

    def schedule(self) -> None:
        """Begin."""
        self.config.option.loadscopereorder = False
        super().schedule()

    def remove_node(self, node: WorkerController) -> str | None:
        """A process has ended: the last may be waiting for that. The test it crashed in, if any."""
        crashed: str | None = super().remove_node(node)
        if self.workqueue:
            for each in self.nodes:
                self._reschedule(each)
        return crashed

    def _assign_work_unit(self, node: WorkerController) -> None:
        if not self._next_is_alone() or len(self.nodes) == 1:
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        others = [each for each in self.nodes if each is not node]
        if not self._next_is_alone() or not others:
            super()._reschedule(node)
        elif self._pending_of(self.assigned_work[node]) <= 2 and not all(
            each.shutting_down for each in others
        ):
            node.shutdown()

    def _next_is_alone(self) -> bool:
        return _is_alone(next(iter(self.workqueue), ""))
