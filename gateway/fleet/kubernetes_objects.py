"""What every Kubernetes object and every answer of its API has in common, read.

Asked: which object is this, which are on this page, what does this line of a watch say? Pure.
Invariant: any bytes give a value or ValueError. Of an object only what we decide by is read, the
rest is passed over; what an object says of itself to us stands in its annotations or labels, under
`headrace.io/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from gateway.fleet.watching import Key

PREFIX: Final = "headrace.io/"

T = TypeVar("T")


class Owner(msgspec.Struct, frozen=True):
    """Who made an object."""

    kind: str
    uid: str
    controller: bool | None = None


class Metadata(
    msgspec.Struct,
    frozen=True,
    rename={
        "version": "resourceVersion",
        "deleted_at": "deletionTimestamp",
        "owners": "ownerReferences",
    },
):
    """Of any object."""

    name: str = ""
    namespace: str = ""
    version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deleted_at: str | None = None
    owners: tuple[Owner, ...] | None = None

    @property
    def key(self) -> Key:
        """Its place."""
        return Key(self.namespace, self.name)

    @property
    def is_going(self) -> bool:
        """It is being deleted."""
        return self.deleted_at is not None

    def label(self, name: str) -> str | None:
        """Its label of this name."""
        return (self.labels or {}).get(name)

    def says(self, name: str) -> str | None:
        """What it says under `headrace.io/name`: an annotation, else a label; never empty."""
        full = PREFIX + name
        return (self.annotations or {}).get(full) or (self.labels or {}).get(full) or None


class Envelope(msgspec.Struct, frozen=True):
    """An object of which nothing but the metadata is read."""

    metadata: Metadata


class _PageMeta(msgspec.Struct, rename={"version": "resourceVersion", "continue_from": "continue"}):
    version: str = ""
    continue_from: str | None = None


class Page(msgspec.Struct):
    """A page of a list, its objects still unread."""

    metadata: _PageMeta
    items: Sequence[msgspec.Raw] | None = None


class Event(msgspec.Struct):
    """A line of a watch, its object still unread."""

    type: str
    object: msgspec.Raw


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float | None = None


class Status(msgspec.Struct):
    """What is in place of an object where something went wrong."""

    code: int | None = None
    message: str | None = None
    details: _Details | None = None

    @property
    def retry_after_s(self) -> float:
        """How long to leave it alone; 0: it does not say."""
        return (self.details.retry_after_seconds if self.details else None) or 0.0


def reader(kind: type[T]) -> msgspec.json.Decoder[T]:
    """A decoder; `read` uses it."""
    return msgspec.json.Decoder(kind)


_PAGE: Final = reader(Page)
_EVENT: Final = reader(Event)
_STATUS: Final = reader(Status)
_ENVELOPE: Final = reader(Envelope)


def read(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw) -> T:
    """The value in `raw`. Raises ValueError where it is not of that kind."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_page(body: bytes) -> Page:
    """A page of a list. Raises ValueError."""
    page = read(_PAGE, body)
    if not page.metadata.version:
        raise ValueError("a list without a version")
    return page


def read_event(line: bytes) -> Event:
    """A line of a watch. Raises ValueError."""
    return read(_EVENT, line)


def read_status(raw: bytes | msgspec.Raw) -> Status:
    """What went wrong; an empty one where that cannot be read."""
    try:
        return read(_STATUS, raw)
    except ValueError:
        return Status()


def read_metadata(raw: bytes | msgspec.Raw) -> Metadata:
    """Which object it is, and its version. Raises ValueError where it does not say."""
    meta = read(_ENVELOPE, raw).metadata
    if not (meta.name and meta.version):
        raise ValueError("an object without a name or a version")
    return meta


def read_version(raw: bytes | msgspec.Raw) -> str:
    """The version that a bookmark marks. Raises ValueError where there is none."""
    version = read(_ENVELOPE, raw).metadata.version
    if not version:
        raise ValueError("a bookmark without a version")
    return version
