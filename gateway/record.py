"""What records are made of.

mypyc, which may compile modules of the hot path, drops the keywords of a class. `frozen=True` on a
record there says what holds for whoever reads and checks it; that it holds comes from here, a
module that is never compiled: options are inherited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr  # noqa: PLC0414  # handed on
else:

    def mypyc_attr(**_):
        """What mypyc is to know of a class, `acyclic=True`: no cycle leads through its objects, so
        the collector need not know of them. The interpreter learns nothing from it."""
        return lambda of: of


class Value(msgspec.Struct, frozen=True):
    """Some values that belong together and do not change: equal where they are equal."""


class Node(msgspec.Struct, gc=False, eq=False):
    """One of many that live long, and that no cycle leads through; it is itself and no other."""
