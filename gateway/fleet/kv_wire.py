"""KV-cache events as they come over the wire, read.

Asked: what does this message say? Any frames at all give a Message or ValueError, any payload
BlockEvents or ValueError; what we do not know (keys, kinds of event) is passed over.

A message is (topic, number, payload), live, and ("", topic, number, payload) replayed; engines
before vLLM 0.26, and SGLang, replay without the topic. The number counts batches from 0, in 8
bytes; 2^64 - 1 marks the end of a replay. A payload is msgpack [time, events, rank]. An event is a
map (vLLM from 0.24 on) or a list of the same fields in their order (before it, and SGLang).

Block hashes come as integers or as whole digests: both are reduced to their low 64 bits, as engines
do by default. Source: vLLM 0.32, distributed/kv_events.py.

An engine that is busy tells of thousands of blocks a second, and evicts each by an event of its
own. So batches as vLLM writes them by default are decoded in one go; token ids stay as they came
until they are looked at (`TokenIds`); and removals in a row, of one medium, are told as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from gateway.fleet.token_ids import TokenIds
from gateway.kv_cache import BlockEvent, BlockHash, BlocksCleared, BlocksRemoved, BlocksStored

END_OF_REPLAY: Final = 2**64 - 1

_NUMBER_BYTES: Final = 8
_LOW_64: Final = 2**64 - 1
_GPU: Final = "GPU"

_Hash = int | bytes
_Size = Annotated[int, msgspec.Meta(ge=1)]
_Group = Annotated[int, msgspec.Meta(ge=0)]
_Plain = Annotated[int, msgspec.Meta(ge=0)]
"""A hash that is its own low 64 bits: integers are no longer on the wire."""


class Message(msgspec.Struct, frozen=True):
    """One batch, its events not yet read, or the end of a replay."""

    number: int
    payload: bytes

    @property
    def is_end(self) -> bool:
        """The replay is over; there is no batch in it."""
        return self.number == END_OF_REPLAY


class _Stored(msgspec.Struct, tag="BlockStored", gc=False):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    token_ids: msgspec.Raw
    block_size: _Size
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[object] | None = None
    group_idx: _Group | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: list[_Hash]
    medium: str | None = None
    group_idx: _Group | None = None


class _PlainStored(_Stored, tag="BlockStored", gc=False):
    block_hashes: list[_Plain]  # type: ignore[assignment]  # only ever decoded


class _PlainRemoved(_Removed, tag="BlockRemoved", gc=False):
    block_hashes: list[_Plain]  # type: ignore[assignment]


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _StoredList(msgspec.Struct, tag="BlockStored", array_like=True):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    token_ids: msgspec.Raw
    block_size: _Size
    lora_id: int | None = None
    medium: str | None = None
    lora_name: object = None  # in some versions of SGLang other things stand here
    extra_keys: object = None


class _RemovedList(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[_Hash]
    medium: str | None = None


class _ClearedList(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


class _Batch(msgspec.Struct, array_like=True):
    time: float
    events: list[msgspec.Raw]


class _PlainBatch(msgspec.Struct, array_like=True):
    time: float
    events: list[_PlainStored | _PlainRemoved | _Cleared]


class _Unnamed(msgspec.Struct):
    type: str


_PLAIN = msgspec.msgpack.Decoder(_PlainBatch)
_BATCH = msgspec.msgpack.Decoder(_Batch)
_MAP = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_LIST = msgspec.msgpack.Decoder(_StoredList | _RemovedList | _ClearedList)
_MAP_KIND = msgspec.msgpack.Decoder(_Unnamed)
_LIST_KIND = msgspec.msgpack.Decoder(list[object])
_KNOWN: Final = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})


def read_message(frames: Sequence[bytes]) -> Message:
    """A message, live or replayed. Raises ValueError where it is neither."""
    if len(frames) < 2:
        raise ValueError(f"a message of {len(frames)} frames")
    number, payload = frames[-2:]
    if len(number) != _NUMBER_BYTES:
        raise ValueError(f"a number of {len(number)} bytes")
    return Message(int.from_bytes(number, "big"), payload)


def replay_request(first: int) -> tuple[bytes, bytes]:
    """What a DEALER sends to be told every batch that is kept from number `first` on."""
    return b"", first.to_bytes(_NUMBER_BYTES, "big")


def read_batch(payload: bytes) -> list[BlockEvent]:
    """The events of a batch, in their order. Raises ValueError where it cannot be read."""
    try:
        return _read_plain(payload)
    except msgspec.ValidationError:
        pass  # there is something in it that needs a closer look
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a batch of events: {error}") from error
    try:
        events = []
        for raw in _BATCH.decode(payload).events:
            event = _read_event(raw)
            if event is not None:
                events.append(event)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a batch of events: {error}") from error
    return events


def _read_plain(payload: bytes) -> list[BlockEvent]:
    """Of maps of known kinds with integers for hashes. Raises msgspec's errors, and ValueError."""
    events: list[BlockEvent] = []
    removed: list[BlockHash] | None = None  # by the event told last, if that is a removal
    medium, group = _GPU, 0
    for event in _PLAIN.decode(payload).events:
        if type(event) is _PlainRemoved:
            of = event.medium or _GPU, event.group_idx or 0
            if removed is None or of != (medium, group):
                medium, group = of
                removed = event.block_hashes
                events.append(BlocksRemoved(removed, medium, group))
            else:
                removed += event.block_hashes
            continue
        removed = None
        if isinstance(event, _Stored):
            events.append(_stored(event))
        else:
            events.append(BlocksCleared())
    return events


def _read_event(raw: msgspec.Raw) -> BlockEvent | None:
    """None for a kind of event that we do not know. Raises msgspec's errors, and ValueError."""
    is_map = _is_map(raw)
    try:
        event = _MAP.decode(raw) if is_map else _LIST.decode(raw)
    except msgspec.ValidationError:
        if _kind(raw, is_map) in _KNOWN:
            raise
        return None
    match event:
        case _Stored():
            return _stored(event)
        case _Removed():
            return BlocksRemoved(
                _reduced(event.block_hashes), event.medium or _GPU, event.group_idx or 0
            )
        case _RemovedList():
            return BlocksRemoved(_reduced(event.block_hashes), event.medium or _GPU)
        case _StoredList():
            return _stored_list(event)
        case _:
            return BlocksCleared()


def _is_map(raw: msgspec.Raw) -> bool:
    """By the first byte of msgpack: 0x80..0x8f, 0xde and 0xdf begin maps."""
    first = memoryview(raw)[0]
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)


def _kind(raw: msgspec.Raw, is_map: bool) -> object:
    """What it calls itself. Raises msgspec's errors where it is no event at all."""
    if is_map:
        return _MAP_KIND.decode(raw).type
    listed = _LIST_KIND.decode(raw)
    if not listed or not isinstance(listed[0], str):
        raise msgspec.ValidationError("an event without a type")
    return listed[0]


def _stored(event: _Stored) -> BlocksStored:
    parent = event.parent_block_hash
    return BlocksStored(
        hashes=(
            event.block_hashes if isinstance(event, _PlainStored) else _reduced(event.block_hashes)
        ),
        parent=None if parent is None else _reduced_one(parent),
        tokens=TokenIds(event.token_ids),
        block_size=event.block_size,
        medium=event.medium or _GPU,
        group=event.group_idx or 0,
        adapter=_adapter(event.lora_name, event.lora_id),
        extra_keys=_extra_keys(event.extra_keys, len(event.block_hashes)),
        session=event.session_id,
    )


def _stored_list(event: _StoredList) -> BlocksStored:
    """What stands where an adapter's name is expected, and is none, is a key of every block."""
    name, parent, blocks = event.lora_name, event.parent_block_hash, len(event.block_hashes)
    is_name = name is None or isinstance(name, str)
    return BlocksStored(
        hashes=_reduced(event.block_hashes),
        parent=None if parent is None else _reduced_one(parent),
        tokens=TokenIds(event.token_ids),
        block_size=event.block_size,
        medium=event.medium or _GPU,
        adapter=_adapter(name, event.lora_id),
        extra_keys=_extra_keys(event.extra_keys if is_name else name, blocks),
    )


def _extra_keys(keys: object, blocks: int) -> list[object] | None:
    """One entry a block. What is not that shape is a key of every block, lest they seem plain."""
    if isinstance(keys, list):
        if not any(keys):
            return None
        if len(keys) == blocks:
            return keys
    elif not keys:
        return None
    return [[keys]] * blocks


def _adapter(name: object, number: int | None) -> str | None:
    """Where only a number is told it is the name: such blocks are not the base model's."""
    if name and isinstance(name, str):
        return name
    return None if number is None else str(number)


def _reduced(hashes: list[_Hash]) -> list[BlockHash]:
    return [_reduced_one(each) for each in hashes]


def _reduced_one(value: _Hash) -> BlockHash:
    if type(value) is int:
        return value & _LOW_64
    return int.from_bytes(value, "big") & _LOW_64  # type: ignore[arg-type]  # it is bytes then
