"""Expressions of CEL as an API server evaluates them: rules of custom kinds, and policies.

Google's runtime for C++ does the work; what Kubernetes adds to the language, and our expressions
or the kinds we use ask for, is added here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings

_UNITS: Final = {
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
    "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip
_TEXT, _NUMBER, _TRUTH, _WHOLE = (
    cel.Type.STRING, cel.Type.DOUBLE, cel.Type.BOOL, cel.Type.INT,
)  # fmt: skip


def _find(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[0] if found else ""


def quantity(text: str) -> float:
    """A quantity of Kubernetes, as a number."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def _compare(one: str, other: float) -> int:
    return (quantity(one) > other) - (quantity(one) < other)


def _function(name: str, parameters: list[Any], result: Any, does: Any, *, member: bool) -> Any:
    return cel.FunctionDecl(
        name,
        [
            cel.Overload(
                f"kubernetes_{name}",
                return_type=result, parameters=parameters, is_member=member, impl=does,
            )
        ],
    )  # fmt: skip


_FUNCTIONS: Final = [
    _function("find", [_TEXT, _TEXT], _TEXT, _find, member=True),
    _function("quantity", [_TEXT], _NUMBER, quantity, member=False),
    _function("compareTo", [_TEXT, _NUMBER], _WHOLE, _compare, member=True),
]


@cache
def _environment(names: tuple[str, ...]) -> Any:
    return cel.NewEnv(
        variables=dict.fromkeys(names, cel.Type.DYN),
        extensions=[ext_optional.ExtOptional(), ext_strings.ExtStrings()],
        functions=_FUNCTIONS,
    )


@cache
def _compiled(expression: str, names: tuple[str, ...]) -> Any:
    return _environment(names).compile(expression)


def evaluated(expression: str, data: Mapping[str, Any]) -> Any:
    """Its value. Raises what the runtime raises: names that are not in `data` do not compile."""
    names = tuple(sorted(data))
    return _compiled(expression, names).eval(data=dict(data)).plain_value()


def defaulted(schema: Any, value: Any) -> Any:
    """An object as an API server takes it in: what is not said is as the schema has it."""
    if isinstance(value, list):
        return [defaulted(schema.get("items", {}), each) for each in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    filled = {key: it["default"] for key, it in fields.items() if "default" in it} | value
    others = schema.get("additionalProperties")
    inner = others if isinstance(others, dict) else {}
    return {key: defaulted(fields.get(key, inner), it) for key, it in filled.items()}


def broken_rules(schema: Any, value: Any, path: str = "") -> Iterator[str]:
    """Rules of a custom kind (x-kubernetes-validations) that an object breaks, by their messages;
    those that compare it with what it was before do not apply to a new one."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue
        if evaluated(rule["rule"], {"self": value}) is not True:
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for key, inner in value.items():
            found = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(found, dict):
                yield from broken_rules(found, inner, f"{path}.{key}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, inner in enumerate(value):
            yield from broken_rules(schema["items"], inner, f"{path}[{number}]")
