"""What all settings are made of: frozen sections, and how text and variables become a document.

Pure. The knobs themselves are in `gateway.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

PREFIX: Final = "GATEWAY__"

_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^@]*(?=@)|([?&]\w*password=)[^&#]*", re.IGNORECASE)


class SettingsError(Exception):
    """The settings cannot be used; the message names every bad key."""


class Section(BaseModel):
    """A frozen group of knobs; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def problems(error: ValidationError) -> list[str]:
    """Every bad key and what is wrong with it; never what was written there."""
    return [
        ": ".join([*filter(None, [".".join(map(str, problem["loc"]))]), problem["msg"]])
        for problem in error.errors(include_input=False)
    ]


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
