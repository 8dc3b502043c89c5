"""Which fault meets which request: pure choice over a small table that may change at any time.

Asked at the start of each inference request (`draw`) and of each health check. A fault may be
limited to the next N requests (`next`) and to a share of them (`ratio`); `ratio` decides first and
only requests it strikes are counted. Chance is drawn from a generator that the caller seeds.

Invariants: a request meets at most one fault, the first in the order of `_ORDER`; a fault whose
count is used up is gone from the table.
"""

from random import Random
from typing import Annotated, Any, Literal

import msgspec

Ratio = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Status = Annotated[int, msgspec.Meta(ge=400, le=599)]


class _Striking(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    next: Count | None = None
    ratio: Ratio = 1.0


class Stuck(_Striking, frozen=True, kw_only=True):
    """Accept and never answer: send nothing at all, or the head and then nothing."""

    where: Literal["before_head", "after_head"] = "before_head"


class Reset(_Striking, frozen=True, kw_only=True):
    """A TCP reset after so many events of a stream; in the middle of a body that is none."""

    after_chunks: Count = 1


class Truncate(_Striking, frozen=True, kw_only=True):
    """The connection ends, without a reset, inside a chunk (or a body) that was announced."""

    after_chunks: Count = 1


class Garbage(_Striking, frozen=True, kw_only=True):
    """Bytes that are no HTTP, then the end."""


class Drop(_Striking, frozen=True, kw_only=True):
    """The connection ends with no byte of an answer."""


class Refuse(_Striking, frozen=True, kw_only=True):
    """An error status in vLLM's error shape."""

    status: Status = 503


class SickHealth(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What /health says: a status, or nothing ever (`hangs`)."""

    status: Status = 503
    hangs: bool = False


Fault = Stuck | Reset | Truncate | Garbage | Drop | Refuse


class FaultTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Every fault that is on; None is off."""

    slow: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    """Multiplies the time of every step."""
    stuck: Stuck | None = None
    drop: Drop | None = None
    garbage: Garbage | None = None
    refuse: Refuse | None = None
    reset: Reset | None = None
    truncate: Truncate | None = None
    health: SickHealth | None = None


_ORDER = ("stuck", "drop", "garbage", "refuse", "reset", "truncate")


class Faults:
    """The table in force. Owner of its state; everyone else sees frozen tables."""

    __slots__ = ("_rng", "table")

    def __init__(self, rng: Random) -> None:
        self.table = FaultTable()
        self._rng = rng

    def __repr__(self) -> str:
        return f"<Faults {self.table!r}>"

    def merge(self, changes: dict[str, Any]) -> FaultTable:
        """Put faults on, or off with None (`slow` with 1); those not named stay.

        Raises msgspec.ValidationError for an unknown fault or field; then nothing has changed.
        """
        merged = {**msgspec.to_builtins(self.table), **changes}
        if merged.get("slow") is None:
            merged.pop("slow", None)
        self.table = msgspec.convert(merged, FaultTable)
        return self.table

    def clear(self) -> None:
        """No faults from now on."""
        self.table = FaultTable()

    def draw(self) -> Fault | None:
        """The fault that meets the next request, if any; counts it."""
        for name in _ORDER:
            fault: Fault | None = getattr(self.table, name)
            if fault is None or not self._strikes(fault):
                continue
            if fault.next is not None:
                left = fault.next - 1
                after = msgspec.structs.replace(fault, next=left) if left > 0 else None
                self.table = msgspec.structs.replace(self.table, **{name: after})
            return fault
        return None

    def _strikes(self, fault: Fault) -> bool:
        if fault.next == 0:
            return False
        return fault.ratio >= 1.0 or self._rng.random() < fault.ratio
