"""Whatever a document says: it is read as settings, or every bad key is named, and no value is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from operator import ge, gt, le, lt
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.section import Section, SettingsError
from gateway.settings import CrowdSettings, RelaySettings, Settings

SECRET = "s3cret"
COMPARED = {"gt": gt, "ge": ge, "lt": lt, "le": le}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


def paths(section: type[Section], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Of all knobs that are no sections, in sections that ask for none of them."""
    found: list[tuple[str, ...]] = []
    for name, kind in get_type_hints(section).items():
        if isinstance(kind, type) and issubclass(kind, Section):
            found += [] if kind is CrowdSettings else paths(kind, (*at, name))
        elif name in {each.name for each in fields(section)}:
            found.append((*at, name))
    return found


KNOBS = paths(Settings)


def put(document: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = value


def refusal(document: object) -> list[str]:
    """What is said of a document, line by line."""
    try:
        Settings.of(document)
    except SettingsError as error:
        return str(error).split("\n  ")[1:]
    return []


@st.composite
def odd_documents(draw: st.DrawFn) -> object:
    """Sections and knobs by their names, with anything in them; or anything at all."""
    document: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(KNOBS), max_size=6)):
        put(document, path, draw(anything))
    return draw(st.sampled_from([document, draw(anything)]))


@given(odd_documents())
def test_any_document_is_settings_or_is_refused(document: object) -> None:
    with suppress(SettingsError):
        settings = Settings.of(document)
        assert Settings.of(settings.document()) == settings


@given(
    st.sets(st.sampled_from(KNOBS)),
    st.sets(st.sampled_from([(*path[:-1], "no_such_knob") for path in KNOBS])),
)
def test_every_bad_key_is_named_and_no_value_is(
    bad: set[tuple[str, ...]], unknown: set[tuple[str, ...]]
) -> None:
    document: dict[str, Any] = {}
    for path in bad | unknown:
        put(document, path, {"deeper": {SECRET: [SECRET]}})
    lines = refusal(document)
    told = {line.partition(": ")[0].removesuffix(".deeper") for line in lines}
    assert told == {".".join(path) for path in bad | unknown}
    assert SECRET not in "".join(lines)


@given(st.sampled_from(fields(RelaySettings)), st.integers(-2, 3) | st.floats(-1, 2))
def test_a_number_is_taken_when_it_is_within_its_bounds(knob: Any, value: float) -> None:
    kind = get_type_hints(RelaySettings)[knob.name]
    fits = all(
        within(value, knob.metadata[name])
        for name, within in COMPARED.items()
        if name in knob.metadata
    )
    is_number = kind is float or (kind is int and value == int(value))
    if is_number and fits:
        read = getattr(RelaySettings.of({knob.name: value}), knob.name)
        assert type(read) is kind
        assert read == value
    else:
        with pytest.raises(SettingsError, match=f"^{knob.name}: Input should be "):
            RelaySettings.of({knob.name: value})
