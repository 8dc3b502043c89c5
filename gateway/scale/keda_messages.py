"""The messages of `externalscaler.proto`, made from a table when this is loaded.

Code generated from that file would bind us to the protobuf version of whoever generated it; a
table does not, and a test compares it with what the compiler makes of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE: Final = "externalscaler"
SERVICE: Final = f"{PACKAGE}.ExternalScaler"

METHODS: Final[Mapping[str, tuple[str, str, bool]]] = {  # asks, is answered, many times?
    "IsActive": ("ScaledObjectRef", "IsActiveResponse", False),
    "StreamIsActive": ("ScaledObjectRef", "IsActiveResponse", True),
    "GetMetricSpec": ("ScaledObjectRef", "GetMetricSpecResponse", False),
    "GetMetrics": ("GetMetricsRequest", "GetMetricsResponse", False),
}

_MESSAGES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {  # fields, numbered from 1
    "ScaledObjectRef": (("name", "string"), ("namespace", "string"), ("scalerMetadata", "map")),
    "IsActiveResponse": (("result", "bool"),),
    "GetMetricSpecResponse": (("metricSpecs", "MetricSpec*"),),
    "MetricSpec": (
        ("metricName", "string"),
        ("targetSize", "int64"),
        ("targetSizeFloat", "double"),
    ),
    "GetMetricsRequest": (("scaledObjectRef", "ScaledObjectRef"), ("metricName", "string")),
    "GetMetricsResponse": (("metricValues", "MetricValue*"),),
    "MetricValue": (
        ("metricName", "string"),
        ("metricValue", "int64"),
        ("metricValueFloat", "double"),
    ),
}

_SCALARS: Final = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
}


def file_descriptor() -> FileDescriptorProto:
    """What the compiler makes of the file."""
    file = FileDescriptorProto(name="externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, start=1):
            _add_field(message, field, number, kind)
    service = file.service.add(name="ExternalScaler")
    for name, (asks, answers, is_stream) in METHODS.items():
        method = service.method.add(
            name=name, input_type=f".{PACKAGE}.{asks}", output_type=f".{PACKAGE}.{answers}"
        )
        if is_stream:
            method.server_streaming = True
    return file


def _add_field(message: DescriptorProto, name: str, number: int, kind: str) -> None:
    field = message.field.add(
        name=name, json_name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{kind.rstrip('*')}"
    if kind == "map":  # text by text: on the wire, a repeated message of a key and a value
        entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, "string")
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
    if kind == "map" or kind.endswith("*"):
        field.label = FieldDescriptorProto.LABEL_REPEATED


def _classes() -> Mapping[str, Any]:
    pool = DescriptorPool()  # our own: others may load the same file
    pool.Add(file_descriptor())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


CLASSES: Final = _classes()
"""The messages' classes, by name."""
