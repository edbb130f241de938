"""A reader and writer of protobuf's wire format that know every field they may meet.

Another field, another wire type, or more of a field than the table says is refused, so that no
parser behind it can read more, or something else, than was looked at. The nesting is the
caller's: nothing recurses. Payloads are looked at in place, and their number is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types


class Refused(ValueError):
    """What is wrong with a message."""


class Field(NamedTuple):
    """A field's name, wire type, and how many a message may have of it."""

    name: str
    wire: int
    most: int


Table: TypeAlias = Mapping[int, Field]
Message: TypeAlias = Mapping[str, list[Any]]


def table(**fields: tuple[int, ...]) -> Table:
    """A message's fields as ``name=(number, wire type)``, and how many where not one."""
    return {
        number: Field(name, wire, most[0] if most else 1)
        for name, (number, wire, *most) in fields.items()
    }


def read_message(data: memoryview, table: Table, what: str) -> Message:
    """The fields of one message: whole numbers, views of bytes, and nothing that is not known."""
    found: dict[str, list[Any]] = defaultdict(list)
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        field = table.get(tag >> 3)
        if field is None or field.wire != tag & 7:
            raise Refused(f"{what} has field {tag >> 3} of wire type {tag & 7}")
        value, at = _READERS[field.wire](data, at)
        values = found[field.name]
        if len(values) == field.most:
            raise Refused(f"{what} has more than {field.most} of '{field.name}'")
        values.append(value)
    return found


def write_message(message: Message, table: Table) -> bytes:
    """The bytes of a message as `read_message` gives it."""
    parts: list[bytes | memoryview] = []
    for number, field in table.items():
        for value in message.get(field.name, ()):
            parts.append(_varint_bytes(number << 3 | field.wire))
            if field.wire == VARINT:
                parts.append(_varint_bytes(value))
                continue
            if field.wire == BYTES:
                parts.append(_varint_bytes(len(value)))
            parts.append(value)
    return b"".join(parts)


def _varint_bytes(value: int) -> bytes:
    rest, parts = value % (1 << 64), bytearray()
    while rest >= 0x80:
        parts.append(rest & 0x7F | 0x80)
        rest >>= 7
    parts.append(rest)
    return bytes(parts)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number as protobuf's int64 has it, and where the next one begins."""
    value = shift = 0
    for byte in data[at : at + 10]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value - (1 << 64) if value >> 63 else value, at + shift // 7
    raise Refused("a number is cut short, or has more than 64 bits")


def _bytes(data: memoryview, at: int) -> tuple[memoryview, int]:
    size, at = _varint(data, at)
    if not 0 <= size <= len(data) - at:
        raise Refused("a field is longer than what holds it")
    return data[at : at + size], at + size


def _fixed32(data: memoryview, at: int) -> tuple[memoryview, int]:
    if len(data) - at < 4:
        raise Refused("a number is cut short")
    return data[at : at + 4], at + 4


_READERS: dict[int, Callable[[memoryview, int], tuple[Any, int]]] = {
    VARINT: _varint,
    BYTES: _bytes,
    FIXED32: _fixed32,
}
