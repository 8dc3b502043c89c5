"""A file that lists replicas, read: `{replicas: [URL or {url, models, role}, ...]}`.

Asked: which addresses? Pure. Invariant: any text gives addresses or SettingsError with one line
that says what is wrong. An empty list is a list; an empty file is not.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.section import Section, SectionError, SettingsError
from gateway.settings import ReplicaSettings
from gateway.vocabulary import ReplicaAddress


class Listing(Section):
    """The replicas there are."""

    replicas: tuple[ReplicaSettings, ...]

    def addresses(self) -> tuple[ReplicaAddress, ...]:
        """Theirs, in their order."""
        return tuple(each for replica in self.replicas for each in replica.addresses())


def read_listing(content: bytes) -> Listing:
    """What YAML or JSON says. Raises SettingsError."""
    try:
        return Listing.of(_document(content))
    except SectionError as error:
        where, what = error.problems[0]
        raise SettingsError(f"{where or 'the whole'}: {what}") from None


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
