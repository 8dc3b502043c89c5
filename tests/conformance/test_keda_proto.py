"""The messages we speak to KEDA are those of the `.proto` file, as its compiler reads it."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from gateway.scale.keda_messages import CLASSES, file_descriptor
from tests.keda_client import a_ref, stubs


def test_the_table_is_what_the_compiler_makes_of_the_file() -> None:
    compiled = FileDescriptorProto()
    stubs()[0].DESCRIPTOR.CopyToProto(compiled)
    ours = file_descriptor()
    for message in (*compiled.message_type, *ours.message_type):
        for field in (
            *message.field,
            *(each for nest in message.nested_type for each in nest.field),
        ):
            field.ClearField("json_name")  # the compiler leaves it to whoever reads
    assert ours == compiled


def test_fields_have_keda_s_numbers() -> None:
    """Taken down from KEDA's own file, so that a slip in ours would show."""
    ref = b"\x0a\x01n\x12\x02ns\x1a\x0a\x0a\x05model\x12\x01m"
    told = CLASSES["ScaledObjectRef"].FromString(ref)
    assert (told.name, told.namespace, dict(told.scalerMetadata)) == ("n", "ns", {"model": "m"})
    value = CLASSES["MetricValue"](metricName="x", metricValue=2, metricValueFloat=1.5)
    assert value.SerializeToString() == b"\x0a\x01x\x10\x02\x19\0\0\0\0\0\0\xf8\x3f"
    spec = CLASSES["MetricSpec"](metricName="x", targetSize=2, targetSizeFloat=1.5)
    assert spec.SerializeToString() == b"\x0a\x01x\x10\x02\x19\0\0\0\0\0\0\xf8\x3f"
    asked = CLASSES["GetMetricsRequest"](
        scaledObjectRef=CLASSES["ScaledObjectRef"](name="n"), metricName="x"
    )
    assert asked.SerializeToString() == b"\x0a\x03\x0a\x01n\x12\x01x"
    assert CLASSES["IsActiveResponse"](result=True).SerializeToString() == b"\x08\x01"


def test_what_one_side_writes_the_other_reads() -> None:
    ref = a_ref(model="Qwen/Qwen3-0.6B", target="2")
    assert dict(CLASSES["ScaledObjectRef"].FromString(ref.SerializeToString()).scalerMetadata) == {
        "model": "Qwen/Qwen3-0.6B",
        "target": "2",
    }
