"""A file that lists replicas, read: `{replicas: [URL or {url, models, role}, ...]}`.

Asked: which addresses? Pure. Invariant: any text gives addresses or SettingsError with one line
that says what is wrong. An empty list is a list; an empty file is not.
"""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import ValidationError

from gateway.section import Section, SettingsError
from gateway.settings import ReplicaSettings
from gateway.vocabulary import ReplicaAddress


class _Listing(Section):
    replicas: tuple[ReplicaSettings, ...]


def read_listing(content: bytes) -> tuple[ReplicaAddress, ...]:
    """The replicas in YAML or JSON, in their order. Raises SettingsError."""
    try:
        listing = _Listing.model_validate(_document(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise SettingsError(f"{where}: {first['msg']}") from None
    return tuple(each for replica in listing.replicas for each in replica.addresses())


def _document(content: bytes) -> Any:
    """JSON first: YAML, its superset, does not know tabs."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # then it is YAML, or nothing
    from gateway.yaml_text import NotYaml, read_yaml

    try:
        return read_yaml(content)
    except NotYaml as error:
        raise SettingsError(f"neither YAML nor JSON: {error}") from error
