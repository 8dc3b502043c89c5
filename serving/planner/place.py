"""Which GPUs each replica gets: the best joined there are, and no GPU twice.

A tensor-parallel group stays on one host. A replica stays on one host if it can: where its GPUs are
best joined, and of equally good hosts on the fullest that still has room, so that whole hosts stay
whole; else it takes the emptiest hosts, as few as can be. On a host the best-joined set is sought:
behind one NVLink switch, then a bridge, then one PCIe switch, then one NUMA node; of several, the
smallest that is large enough, for the same reason.

Invariants (property-tested): every GPU at most once; as many replicas as there is room for; no set
of GPUs of one host is better joined than the first group placed; the order of the GPUs given is
nothing to the answer.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from serving.planner.hardware import Gpu, Link
from serving.planner.predict import Links

Groups = tuple[tuple[Gpu, ...], ...]
Shape = tuple[tuple[int | None, bool, int, int], ...]


class Spot(NamedTuple):
    """A free GPU of a host, by its place among them, and what it shares with others."""

    place: int
    nvlink: int | None
    is_switched: bool
    pcie: int
    numa: int


Key = Callable[[Spot], Hashable]

_CLASSES: Final[tuple[tuple[Link, Key], ...]] = (
    (Link.NVSWITCH, lambda it: it.nvlink if it.is_switched else (it.place,)),
    (Link.NVLINK, lambda it: (it.place,) if it.nvlink is None else it.nvlink),
    (Link.PCIE_SWITCH, lambda it: it.pcie),
    (Link.NUMA, lambda it: it.numa),
    (Link.SYSTEM, lambda _: None),
)
"""What GPUs of one host that are joined in a way have in common, the best join first."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica's GPUs, a tuple for each tensor-parallel group: pipeline stage by stage, and so
    for each data-parallel rank."""

    groups: Groups
    links: Links

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All of them."""
        return tuple(gpu for group in self.groups for gpu in group)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The hosts it is on, in the order of their first group."""
        return tuple(dict.fromkeys(gpu.node for gpu in self.gpus))


def place(gpus: Iterable[Gpu], tensor: int, groups: int) -> list[Placement]:
    """As many replicas as there is room for, each of so many tensor-parallel groups, on GPUs of
    one kind."""
    hosts = _Hosts(gpus)
    return list(iter(lambda: hosts.take(tensor, groups), None))


class _Hosts:
    """The free GPUs of each host. Hosts whose free GPUs are joined alike are asked only once."""

    __slots__ = ("_alike", "_free", "_shapes")

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._free: dict[str, list[Gpu]] = defaultdict(list)
        for gpu in sorted(gpus, key=lambda each: (each.node, each.index)):
            self._free[gpu.node].append(gpu)
        self._shapes = {node: _shape(free) for node, free in self._free.items()}
        self._alike: dict[Shape, list[str]] = defaultdict(list)
        for node, shape in self._shapes.items():
            self._alike[shape].append(node)

    def take(self, tensor: int, groups: int) -> Placement | None:
        """The GPUs of one replica, free no longer; None where there is no room."""
        wanted = tensor * groups
        able = [shape for shape in self._alike if len(shape) >= wanted]
        if not able:
            return self._over_hosts(tensor, groups)
        best = min(able, key=lambda shape: self._preference(shape, tensor, groups))
        inner, outer = _cut(best, tensor, groups)[1]
        return Placement(self._from(self._alike[best][0], tensor, groups), Links(inner, outer))

    def _preference(self, shape: Shape, tensor: int, groups: int) -> tuple[int, int, int, str]:
        """The best joined first; of those the fullest host."""
        inner, outer = _cut(shape, tensor, groups)[1]
        return -inner, -outer, len(shape), self._alike[shape][0]

    def _over_hosts(self, tensor: int, groups: int) -> Placement | None:
        if sum(len(free) // tensor for free in self._free.values()) < groups:
            return None
        taken: list[tuple[Gpu, ...]] = []
        inner = Link.NVSWITCH
        for node in sorted(self._free, key=lambda node: (-len(self._free[node]), node)):
            here = min(len(self._free[node]) // tensor, groups - len(taken))
            if here:
                inner = min(inner, _cut(self._shapes[node], tensor, here)[1][0])
                taken += self._from(node, tensor, here)
        return Placement(tuple(taken), Links(inner, Link.NETWORK))

    def _from(self, node: str, tensor: int, groups: int) -> Groups:
        free = self._free[node]
        shape = self._shapes[node]
        places = _cut(shape, tensor, groups)[0]
        self._alike[shape].remove(node)
        if not self._alike[shape]:
            del self._alike[shape]
        gone = {place for group in places for place in group}
        left = [gpu for place, gpu in enumerate(free) if place not in gone]
        self._free[node] = left
        if left:
            self._shapes[node] = _shape(left)
            insort(self._alike[self._shapes[node]], node)
        else:
            del self._free[node]
        return tuple(tuple(free[place] for place in group) for group in places)


def _shape(free: list[Gpu]) -> Shape:
    """How a host's free GPUs are joined, whatever their names."""
    names: dict[Hashable, int] = {}

    def number(*name: Hashable) -> int:
        return names.setdefault(name, len(names))

    return tuple(
        (
            None if gpu.nvlink is None else number("nvlink", gpu.nvlink),
            gpu.is_switched,
            number("pcie", gpu.pcie),
            number("numa", gpu.numa),
        )
        for gpu in free
    )


@lru_cache(maxsize=65536)
def _cut(
    shape: Shape, tensor: int, groups: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[Link, Link]]:
    """Which of a host's free GPUs so many groups take, and how well they are joined: inside the
    worst group, and all together."""
    gpus = [Spot(place, *joined) for place, joined in enumerate(shape)]
    chosen = best_set(gpus, tensor * groups)
    taken = _groups(chosen, tensor)
    inner = min(_joined(group) for group in taken)
    return tuple(tuple(spot.place for spot in group) for group in taken), (inner, _joined(chosen))


def _groups(spots: list[Spot], size: int) -> list[list[Spot]]:
    left, found = spots, []
    while left:
        group = best_set(left, size)
        taken = {spot.place for spot in group}
        found.append(group)
        left = [spot for spot in left if spot.place not in taken]
    return found


def best_set(spots: list[Spot], size: int) -> list[Spot]:
    """`size` of the GPUs of one host, so that the worst link between them is the best possible."""
    if size == len(spots):
        return spots
    for level, (_, key) in enumerate(_CLASSES):
        fits = [each for each in _classes(spots, key) if len(each) >= size]
        if fits:
            return _part(min(fits, key=_smallest), size, level)
    raise ValueError("more GPUs wanted than there are")


def _part(spots: list[Spot], size: int, level: int) -> list[Spot]:
    """`size` of a class whose members are all joined alike: whole finer classes first, so that
    what is left over is in as few pieces as can be."""
    if size == len(spots):
        return spots
    if level == 0:
        return _by_switch(spots, size)
    chosen: list[Spot] = []
    finer = _classes(spots, _CLASSES[level - 1][1])
    for each in sorted(finer, key=lambda each: (-len(each), each[0].place)):
        if len(each) <= size - len(chosen):
            chosen += each
    rest = size - len(chosen)
    if rest:
        taken = {spot.place for spot in chosen}
        chosen += best_set([spot for spot in spots if spot.place not in taken], rest)
    return sorted(chosen, key=lambda spot: spot.place)


def _by_switch(spots: list[Spot], size: int) -> list[Spot]:
    """Behind one NVLink switch all pairs are alike: GPUs near one another on PCIe go together."""
    return sorted(spots, key=lambda spot: (spot.numa, spot.pcie, spot.place))[:size]


def _joined(spots: list[Spot]) -> Link:
    """The worst link between any two; they share the name that stands for it."""
    if len(spots) == 1:
        return Link.NVSWITCH
    return next(link for link, key in _CLASSES if len({key(spot) for spot in spots}) == 1)


def _classes(spots: list[Spot], key: Key) -> list[list[Spot]]:
    found: dict[Hashable, list[Spot]] = defaultdict(list)
    for spot in spots:
        found[key(spot)].append(spot)
    return list(found.values())


def _smallest(spots: list[Spot]) -> tuple[int, int]:
    return len(spots), spots[0].place
