"""Who is asked to choose anew when a replica has nothing to do and others are waited for.

Each class for itself: else batches alone would be asked, who come last. And of every queue some,
for those of one may all have their reasons to stay.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.hold.turn import Lane, Waiter
    from gateway.vocabulary import ModelName

ASK_AT_ONCE: Final = 32
"""How many of one model and class are asked."""

_BATCH: Final = ServiceClass.BATCH  # found faster by a name of our own


def who_is_asked(
    waiting: Iterable[Waiter], is_one_free: Callable[[ModelName, bool], bool]
) -> dict[Lane, list[Waiter]]:
    """Of those that wait, in order of coming: the last, by queue. `is_one_free` says whether a
    replica that serves a model has nothing to do, and may be given a batch or else others.
    O(waiting), and one question for each model."""
    alike: dict[tuple[ModelName, bool], bool] = {}
    groups: defaultdict[tuple[ModelName, int], defaultdict[Lane, list[Waiter]]]
    groups = defaultdict(lambda: defaultdict(list))
    for waiter in waiting:
        key = waiter.model, waiter.tenant.service_class is _BATCH
        if key not in alike:
            alike[key] = is_one_free(*key)
        if alike[key]:
            groups[waiter.model, waiter.rank][waiter.lane].append(waiter)
    asked: defaultdict[Lane, list[Waiter]] = defaultdict(list)
    for by_lane in groups.values():
        most = max(ASK_AT_ONCE // len(by_lane), 1)
        for lane, waiters in by_lane.items():
            asked[lane] += waiters[-most:]
    return asked
