"""The few Kubernetes objects that Helm and kubectl write in protobuf, as documents.

An object is wrapped in an envelope behind four magic bytes, which says its kind. Helm keeps its
releases in Secrets or ConfigMaps; whoever deletes sends DeleteOptions, of which nothing is needed.
Source: the Kubernetes API's generated.proto files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

from tests.kube.cluster import Object

MAGIC = b"k8s\x00"

Fields = list[tuple[int, bytes]]


def from_protobuf(raw: bytes) -> Object:
    """The object in an envelope. Raises KeyError or IndexError for what is none."""
    envelope = dict(_fields(raw[len(MAGIC) :]))
    kind = dict(_fields(envelope[1]))
    found: Object = {"apiVersion": kind[1].decode(), "kind": kind[2].decode()}
    fields = list(_fields(envelope.get(2, b"")))
    if found["kind"] not in ("Secret", "ConfigMap"):
        return found
    found["metadata"] = _metadata(next((value for number, value in fields if number == 1), b""))
    data = dict(_pairs(fields, 2))
    if found["kind"] == "Secret":
        found["data"] = {name: base64.b64encode(value).decode() for name, value in data.items()}
        found["type"] = next((value for number, value in fields if number == 3), b"Opaque").decode()
    else:
        found["data"] = {name: value.decode() for name, value in data.items()}
    return found


def _metadata(raw: bytes) -> Object:
    names = {1: "name", 2: "generateName", 3: "namespace", 6: "resourceVersion"}
    fields = list(_fields(raw))
    found: Object = {
        names[number]: value.decode() for number, value in fields if number in names and value
    }
    for number, name in ((11, "labels"), (12, "annotations")):
        pairs = {key: value.decode() for key, value in _pairs(fields, number)}
        if pairs:
            found[name] = pairs
    return found


def _pairs(fields: Iterable[tuple[int, bytes]], number: int) -> Iterator[tuple[str, bytes]]:
    """The entries of the map with this number."""
    for each, value in fields:
        if each == number:
            entry = dict(_fields(value))
            yield entry.get(1, b"").decode(), entry.get(2, b"")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field; numbers as values are passed over."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        match tag & 7:
            case 0:
                _, at = _varint(raw, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case _:
                size, at = _varint(raw, at)
                yield tag >> 3, raw[at : at + size]
                at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
