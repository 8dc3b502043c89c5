"""Label and field selectors, as the Kubernetes API writes them in a query."""

from __future__ import annotations

import re
from typing import Any

from tests.kube.cluster import Matches, Object

_TERM = re.compile(r",(?![^(]*\))")  # commas, but for those in brackets
_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_EQUAL = re.compile(r"^([^\s!=]+)\s*(==|=|!=)\s*(\S*)$")


def matching(labels: str, fields: str = "") -> Matches:
    """Does an object match both?"""
    terms = [term.strip() for term in _TERM.split(labels) if term.strip()]
    paths = [term.split("=", 1) for term in fields.split(",") if "=" in term]

    def matches(found: Object) -> bool:
        has = found["metadata"].get("labels") or {}
        return all(_holds(term, has) for term in terms) and all(
            str(_at(found, path.rstrip("!="))) == value.lstrip("=") for path, value in paths
        )

    return matches


def _holds(term: str, labels: dict[str, str]) -> bool:
    if equal := _EQUAL.match(term):
        name, operator, value = equal.groups()
        return (labels.get(name) == value) is (operator != "!=")
    if among := _SET.match(term):
        name, operator, values = among.groups()
        is_in = labels.get(name) in [value.strip() for value in values.split(",")]
        return is_in is (operator == "in")
    if term.startswith("!"):
        return term[1:].strip() not in labels
    return term in labels


def _at(found: Object, path: str) -> Any:
    value: Any = found
    for name in path.split("."):
        value = (value or {}).get(name)
    return "" if value is None else value
