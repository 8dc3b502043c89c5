"""How an API server merges what clients send into what it holds.

Three ways: a merge patch (RFC 7386); a strategic merge patch, where lists of named things are
merged by name; and server-side apply, where a manager gives up what it no longer says.

The merge keys are those of the built-in kinds that charts use; other lists are replaced whole.
Nobody else's ownership of a field is minded: the last who applies has it.
Source: Kubernetes' api-conventions and sig-api-machinery's strategic-merge-patch.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

Object = dict[str, Any]

_KEYS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "conditions": ("type",),
        "containers": ("name",),
        "env": ("name",),
        "imagePullSecrets": ("name",),
        "initContainers": ("name",),
        "ownerReferences": ("uid",),
        "ports": ("containerPort", "port"),
        "topologySpreadConstraints": ("topologyKey",),
        "volumeMounts": ("mountPath",),
        "volumes": ("name",),
    }
)


def merged(target: Object, patch: Object) -> Object:
    """RFC 7386, in place."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            below = target.get(name)
            target[name] = merged(below if isinstance(below, dict) else {}, value)
        else:
            target[name] = value
    return target


def strategic(target: Object, patch: Object) -> Object:
    """A strategic merge patch, in place."""
    if patch.get("$patch") == "replace":
        target.clear()
    if "$retainKeys" in patch:
        for name in target.keys() - set(patch["$retainKeys"]):
            del target[name]
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            plain = name.partition("/")[2]
            target[plain] = [each for each in target.get(plain, []) if each not in value]
        elif name.startswith("$"):
            continue  # orders are taken up below, with their lists
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            target.pop(name, None)
        elif isinstance(value, dict):
            below = target.get(name)
            target[name] = strategic(below if isinstance(below, dict) else {}, value)
        elif (key := _key(name, value)) is not None:
            target[name] = _strategic_list(target.get(name) or [], value, key)
        else:
            target[name] = value
    for name, order in patch.items():
        if name.startswith("$setElementOrder/"):
            _put_in_order(target, name.partition("/")[2], order)
    return target


def applied(target: Object, before: Object, now: Object) -> Object:
    """Server-side apply, in place, by a manager that has applied `before`: what it said then and
    does not say now is gone."""
    for name, was in before.items():
        if name not in now and name in target:
            _forsake(target, name, was)
    for name, value in now.items():
        was = before.get(name)
        if isinstance(value, dict):
            below = target.get(name)
            inner = below if isinstance(below, dict) else {}
            target[name] = applied(inner, was if isinstance(was, dict) else {}, value)
        elif (key := _key(name, value)) is not None:
            target[name] = _applied_list(target.get(name) or [], was or [], value, key)
        else:
            target[name] = copy.deepcopy(value)
    return target


def _forsake(target: Object, name: str, was: Any) -> None:
    """Take away what was said; what others have put below it stays."""
    here = target[name]
    if isinstance(here, dict) and isinstance(was, dict):
        for below in was:
            if below in here:
                _forsake(here, below, was[below])
        if here:
            return
    del target[name]


def _key(name: str, items: Any) -> str | None:
    """By which items of this list are told apart; None: it is replaced whole."""
    if isinstance(items, list) and items and all(isinstance(each, dict) for each in items):
        for key in _KEYS.get(name, ()):
            if all(key in each for each in items):
                return key
    return None


def _strategic_list(target: list[Object], patch: list[Object], key: str) -> list[Object]:
    found = {each[key]: each for each in target}
    for each in patch:
        if each.get("$patch") == "delete":
            found.pop(each[key], None)
        else:
            found[each[key]] = strategic(found.get(each[key], {}), each)
    return [*found.values()]


def _applied_list(
    target: list[Object], before: list[Object], now: list[Object], key: str
) -> list[Object]:
    found = {each[key]: each for each in target}
    were = {each[key]: each for each in before}
    said = [each[key] for each in now]
    others = [value for name, value in found.items() if name not in said and name not in were]
    return [
        *(applied(found.get(each[key], {}), were.get(each[key], {}), each) for each in now),
        *others,
    ]


def _put_in_order(target: Object, name: str, order: list[Any]) -> None:
    """Items that the order names come in it; others stay behind them."""
    items = target.get(name)
    if not items:
        return
    if all(isinstance(each, dict) for each in order):
        (key,) = order[0]
        places = {each[key]: place for place, each in enumerate(order)}
        items.sort(key=lambda each: places.get(each.get(key), len(places)))
    else:
        items.sort(key=lambda each: order.index(each) if each in order else len(order))
