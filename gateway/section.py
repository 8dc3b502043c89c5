"""What all settings are made of: frozen sections, and how text and variables become a document.

A section is a dataclass whose knobs say their bounds, so that a document can be read as one and
everything that is wrong with it be told at once. Pure. The knobs themselves are in
`gateway.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import cache, partial
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypedDict,
    TypeVar,
    Union,
    Unpack,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

T = TypeVar("T")

PREFIX: Final = "GATEWAY__"

_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^@]*(?=@)|([?&]\w*password=)[^&#]*", re.IGNORECASE)


class SettingsError(Exception):
    """The settings cannot be used; the message names every bad key."""


class Problem(NamedTuple):
    """A bad key and what is wrong with it; never what was written there."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class SectionError(SettingsError):
    """A document is not the section it was read as."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Bounds(TypedDict, total=False):
    """What a knob may be set to."""

    gt: float
    ge: float
    lt: float
    le: float
    min_length: int
    pattern: str


def knob(
    default: T,
    *,
    description: str = "",
    alias: str | None = None,
    is_secret: bool = False,
    **bounds: Unpack[Bounds],
) -> T:
    """A field that need not be set. In a document it is called `alias`, if it has one."""
    allowed = Meta(**bounds)  # type: ignore[call-overload]  # it has one for each pair of them
    about = {"description": description, "alias": alias, "bounds": allowed}
    made: Any
    if isinstance(default, dict):
        made = field(default_factory=default.copy, repr=not is_secret, metadata=about)
    else:
        made = field(default=default, repr=not is_secret, metadata=about)
    return cast("T", made)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Section:
    """A frozen group of knobs; an unknown key is an error.

    A knob without a default has its bounds in its type, `Annotated[int, Meta(gt=0)]`; a function in
    there has the last word on the value. What several knobs must be together is checked by
    `__post_init__`. Both raise ValueError.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    BARE: ClassVar[str | None] = None
    """The knob that a document means which is only a string."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def of(cls, document: object) -> Self:
        """What a document says. Raises SettingsError naming every bad key."""
        wrong: list[Problem] = []
        section: Self = _section(cls, document, "", wrong)
        if wrong:
            raise SectionError(wrong)
        return section

    def document(self) -> dict[str, Any]:
        """Of which the same would be read."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


Check = Callable[[Any], Any]
"""Gives the value as it is to be. Raises ValueError."""

Read = Callable[[object, str, list[Problem]], Any]
"""A value as what it is to be, and where it stands. What is wrong with it is added to the list."""


class Knob(NamedTuple):
    """What is known of a knob before any document is."""

    name: str
    """In documents."""
    field: str
    is_required: bool
    read: Read


def _section(kind: type[Section], value: object, at: str, wrong: list[Problem]) -> Any:
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and kind.BARE is not None:
        value = {kind.BARE: value}
    if not isinstance(value, Mapping):
        wrong.append(Problem(at, "must be a mapping"))
        return None
    before, left, said = len(wrong), dict(value), dict[str, Any]()
    for knob in _knobs(kind):  # type: ignore[arg-type]  # mypy takes its instances' hash for its own
        if knob.name in left:
            said[knob.field] = knob.read(left.pop(knob.name), _in(at, knob.name), wrong)
        elif knob.is_required:
            wrong.append(Problem(_in(at, knob.name), "is missing"))
    wrong += [Problem(_in(at, name), "there is no such knob") for name in left]
    if len(wrong) > before:
        return None
    try:
        return kind(**said)
    except ValueError as error:
        wrong.append(Problem(at, str(error)))


@cache
def _knobs(kind: type[Section]) -> tuple[Knob, ...]:
    """Worked out once: lists of replicas and of keys are long."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        Knob(
            each.metadata.get("alias") or each.name,
            each.name,
            each.default is MISSING and each.default_factory is MISSING,
            _reader(hints[each.name], each.metadata.get("bounds", Meta())),
        )
        for each in fields(kind)
    )


def _reader(kind: Any, bounds: Meta) -> Read:
    """Of a knob of this type, whose bounds are those of its elements."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Section):
        return partial(_section, kind)
    if origin in (Union, UnionType):  # with None
        return partial(_optional, _reader(inner[0], bounds))
    if origin is tuple:
        return partial(_elements, _reader(inner[0], bounds))
    if origin is dict:
        return partial(_items, _reader(inner[0], Meta()), _reader(inner[1], bounds))
    checks = tuple(filter(callable, getattr(kind, "__metadata__", ())))
    return partial(_scalar, Annotated[kind, bounds], checks)


def _optional(read: Read, value: object, at: str, wrong: list[Problem]) -> Any:
    return None if value is None else read(value, at, wrong)


def _elements(read: Read, value: object, at: str, wrong: list[Problem]) -> Any:
    if isinstance(value, list | tuple):
        return tuple([read(each, _in(at, number), wrong) for number, each in enumerate(value)])
    wrong.append(Problem(at, "must be a list"))
    return None


def _items(name: Read, read: Read, value: object, at: str, wrong: list[Problem]) -> Any:
    if isinstance(value, Mapping):
        places = [(each, _in(at, each)) for each in value]
        return {name(each, place, wrong): read(value[each], place, wrong) for each, place in places}
    wrong.append(Problem(at, "must be a mapping"))
    return None


def _scalar(
    kind: Any, checks: tuple[Check, ...], value: object, at: str, wrong: list[Problem]
) -> Any:
    """Numbers and truth may be written as text: who fills in a template may have to."""
    try:
        read = msgspec.convert(value, kind, strict=False)
        for check in checks:
            read = check(read)
    except msgspec.ValidationError as error:
        wrong.append(Problem(at, _told(error, kind)))
    except ValueError as error:
        wrong.append(Problem(at, str(error)))
    else:
        return read
    return None


def _told(error: msgspec.ValidationError, kind: Any) -> str:
    """What msgspec says; but where there are few values it says which was found, not which are."""
    kind = get_args(kind)[0]
    few: list[Any] = []
    if get_origin(kind) is Literal:
        few = list(get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        few = [each.value for each in kind]
    return f"must be one of {', '.join(few)}" if few else str(error)


def _in(at: str, name: object) -> str:
    return f"{at}.{name}" if at else str(name)


def without_passwords(document: Any) -> Any:
    """The same, to be shown: whatever is the password of a URL is stars."""
    if isinstance(document, dict):
        return {key: without_passwords(value) for key, value in document.items()}
    if isinstance(document, list):
        return [without_passwords(value) for value in document]
    if isinstance(document, str):
        return _PASSWORD.sub(r"\1\2***", document)
    return document


def read_document(text: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """YAML text as a document, with what `GATEWAY__SECTION__KNOB` variables put into it.

    Raises SettingsError for what is not a mapping of sections.
    """
    document: Any = {}
    if text.strip():
        from gateway.yaml_text import NotYaml, read_yaml

        try:
            document = read_yaml(text)
        except NotYaml as error:
            raise SettingsError(f"the settings are not YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError("the settings must be a mapping of sections, such as `accept:`")
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX):
            _put(document, name, value)
    return document


def _put(document: dict[str, Any], name: str, value: str) -> None:
    """Set the key a variable names; its value is read as YAML, so lists and numbers work."""
    *parents, leaf = [part.lower() for part in name.removeprefix(PREFIX).split("__")]
    for parent in parents:
        section = document.setdefault(parent, {})
        if not isinstance(section, dict):
            raise SettingsError(f"{name}: `{parent}` is not a section")
        document = section
    from gateway.yaml_text import NotYaml, read_yaml

    try:
        document[leaf] = read_yaml(value)
    except NotYaml as error:
        raise SettingsError(f"{name} is not readable: {error}") from error
