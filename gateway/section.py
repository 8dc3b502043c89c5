"""What all settings are made of: frozen sections, and how text and variables become a document.

A section is a dataclass whose knobs say their bounds. pydantic reads a document as one and says
everything that is wrong with it at once; it is loaded when that is asked for and not before, so
whoever is given sections (`gateway.apart`) does without its 11 MB. Pure. The knobs themselves are
in `gateway.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    dataclass_transform,
)

import msgspec

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

T = TypeVar("T")

PREFIX: Final = "GATEWAY__"

_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^@]*(?=@)|([?&]\w*password=)[^&#]*", re.IGNORECASE)

# Where pydantic speaks of Python, and before the words of checks of ours.
_SAID: Final = {
    "dataclass_type": "must be a mapping",
    "missing": "is missing",
    "unexpected_keyword_argument": "there is no such knob",
}
_VALUE_ERROR: Final = "Value error, "


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

    def __reduce__(self) -> tuple[type[SectionError], tuple[list[Problem]]]:
        return SectionError, (self.problems,)


class Bounds(TypedDict, total=False):
    """What a knob may be set to, by pydantic's names."""

    gt: float
    ge: float
    lt: float
    le: float
    min_length: int
    pattern: str


def knob(
    default: T = MISSING,  # type: ignore[assignment]  # as of `dataclasses.field`
    *,
    description: str,
    alias: str | None = None,
    is_secret: bool = False,
    **bounds: Unpack[Bounds],
) -> T:
    """A field of a section; without a default it must be set. In a document it is called `alias`,
    if it has one."""
    about = {"description": description, "alias": alias, **bounds}
    made: Any
    if isinstance(default, dict):
        made = field(default_factory=default.copy, repr=not is_secret, metadata=about)
    else:
        made = field(default=default, repr=not is_secret, metadata=about)
    return cast("T", made)


class Matching(NamedTuple):
    """In a type: text like this, with nothing around it."""

    pattern: str
    is_stripped: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        rules = {"pattern": self.pattern, "strip_whitespace": self.is_stripped}
        return {**handler(source), **rules}


class Becoming(NamedTuple):
    """In a type: what a function makes of the value. It raises ValueError."""

    make: Callable[[Any], Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": self.make},
            "schema": handler(source),
        }


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Section:
    """A frozen group of knobs; an unknown key is an error.

    What several knobs must be together is checked by `__post_init__`, which raises ValueError.
    """

    BARE: ClassVar[str | None] = None
    """The knob that a document means which is only a string."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "hide_input_in_errors": True}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if cls.BARE is None:
            return schema
        function = {"type": "no-info", "function": cls._unfolded}
        return {"type": "function-before", "function": function, "schema": schema}

    @classmethod
    def _unfolded(cls, document: object) -> object:
        return {cls.BARE: document} if isinstance(document, str) else document

    @classmethod
    def of(cls, document: object) -> Self:
        """What a document says. Raises SectionError, which names every bad key and no value."""
        from pydantic import ValidationError

        try:
            # mypy takes its instances' hash for the class's
            section: Self = reader(cls).validate_python(document)  # type: ignore[arg-type]
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False, include_context=False)
            raise SectionError([_problem(each) for each in found]) from None
        return section

    def document(self) -> dict[str, Any]:
        """Of which the same would be read."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


@cache
def reader(section: type[Section]) -> TypeAdapter[Any]:
    """Who reads documents as such a section, and knows its JSON Schema."""
    from pydantic import TypeAdapter

    return TypeAdapter(section)


def _problem(error: ErrorDetails) -> Problem:
    what = _SAID.get(error["type"], error["msg"].removeprefix(_VALUE_ERROR))
    return Problem(".".join(map(str, error["loc"])), what)


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
