"""The settings as JSON Schema, which Helm checks a chart's values against: made from the knobs."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from enum import Enum
from inspect import getdoc
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from gateway.section import Section


def schema(section: type[Section]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a section, and what it refers to by name."""
    kinds: dict[str, Any] = {}
    return _section(section, kinds), dict(sorted(kinds.items()))


def _section(section: type[Section], kinds: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    required = [each.name for each in fields(section) if not _has_default(each)]
    return {
        "additionalProperties": False,
        "description": getdoc(section),
        "properties": {each.name: _knob(each, hints[each.name], kinds) for each in fields(section)},
        **({"required": required} if required else {}),
        "type": "object",
    }


def _has_default(knob: Field[Any]) -> bool:
    return knob.default is not MISSING or knob.default_factory is not MISSING


def _knob(knob: Field[Any], kind: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    said = _kind(kind, knob.metadata.get("bounds", Meta()), kinds)
    if knob.metadata.get("description"):
        said["description"] = knob.metadata["description"]
    if isinstance(knob.default, Section) and not knob.metadata:
        return said  # its own defaults, which are told where it is
    if knob.default is not MISSING:
        said["default"] = msgspec.json.decode(msgspec.json.encode(knob.default))
    elif knob.default_factory is not MISSING:
        said["default"] = knob.default_factory()
    return said


def _kind(kind: Any, bounds: Meta, kinds: dict[str, Any]) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Section):
        if kind.__name__ not in kinds:
            kinds[kind.__name__] = {}  # or a section in itself would have no end
            made = _section(kind, kinds)
            kinds[kind.__name__] = made if kind.BARE is None else _or_text(made)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        kinds[kind.__name__] = {
            "description": getdoc(kind),
            "enum": [each.value for each in kind],
            "type": "string",
        }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (Union, UnionType):
        return {"anyOf": [_kind(inner[0], bounds, kinds), {"type": "null"}]}
    if origin is tuple:
        return {"items": _kind(inner[0], bounds, kinds), "type": "array"}
    if origin is dict:
        return {"additionalProperties": _kind(inner[1], bounds, kinds), "type": "object"}
    made = msgspec.json.schema(Annotated[kind, bounds])
    if "pattern" in made:  # Python's \Z is JSON Schema's $
        made["pattern"] = made["pattern"].replace(r"\Z", "$")
    return made


def _or_text(section: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, section]}
