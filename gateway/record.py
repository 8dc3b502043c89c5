"""What records are made of.

mypyc, which may compile modules of the hot path, drops the keywords of a class. `frozen=True` on a
record there says what holds for whoever reads and checks it; that it holds comes from here, a
module that is never compiled: options are inherited.
"""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True):
    """Some values that belong together and do not change: equal where they are equal."""


class Node(msgspec.Struct, gc=False, eq=False):
    """One of many that live long, and that no cycle leads through; it is itself and no other."""
