"""Who is asked to choose anew when a replica has nothing to do and others are waited for.

Each class for itself: else batches alone would be asked, who come last. And of every queue some,
for those of one may all have their reasons to stay.

Where there are several gateways, who waits for what another prompt brings is asked only beside such
a one, or once it has waited for long. Each gateway would else take its part of those that share a
beginning to a replica that must read it once more, and leave the others where it is; one gateway
alone takes all of them along.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from gateway.order import PATIENCE_S
from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.hold.turn import Lane, Waiter
    from gateway.vocabulary import ModelName, Seconds

ASK_AT_ONCE: Final = 32
"""How many of one model and class are asked."""

_BATCH: Final = ServiceClass.BATCH  # found faster by a name of our own


def who_is_asked(
    waiting: Iterable[Waiter], is_one_free: Callable[[ModelName, bool], bool], now: Seconds
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
            last = waiters[-most:]
            asked[lane] += last if lane.room.gateways == 1 else _not_led(last, waiters, now)
    return asked


def _not_led(some: Iterable[Waiter], waiters: Iterable[Waiter], now: Seconds) -> list[Waiter]:
    """Of some of those that wait for one replica: who follows nobody, or one of them."""
    leading = {each.group for each in waiters if not each.follows}
    return [each for each in some if each.group in leading or now - each.since > PATIENCE_S]
