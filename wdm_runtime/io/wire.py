"""Messages between processes: JSON and raw arrays, and nothing that could run code on arrival.

A message is the length of its head (4 bytes, little-endian), the head as JSON in UTF-8, and the
bytes of the arrays that the head lists as ``[dtype, shape]``, all in C order and little-endian.
What arrives is believed in nothing: not its lengths, types or shapes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LENGTH: Final = struct.Struct("<I")
MOST_HEAD_BYTES: Final = 1 << 26  # some MB a hundred thousand times; attributes are small
_TYPES: Final = frozenset(("|b1", "|i1", "|u1", *(f"<{k}{n}" for k in "iu" for n in (2, 4, 8))))
_FLOATS: Final = frozenset(("<f2", "<f4", "<f8"))
_MOST_ARRAYS: Final = 10_000
_MOST_DIMENSIONS: Final = 3


class WireError(Exception):
    """What arrived is no message."""


@dataclass(frozen=True)
class Message:
    """A head and the arrays that came with it."""

    head: dict[str, Any]
    arrays: tuple[npt.NDArray[Any], ...] = ()


def encode(head: dict[str, Any], arrays: Sequence[npt.NDArray[Any]] = ()) -> list[memoryview]:
    """The parts of a message, to be written one after the other."""
    kept = [np.asarray(a, a.dtype.newbyteorder("<"), order="C") for a in arrays]
    listed = [[a.dtype.str, list(a.shape)] for a in kept]
    text = json.dumps({**head, "arrays": listed}).encode()
    parts = [memoryview(LENGTH.pack(len(text))), memoryview(text)]
    return parts + [a.reshape(-1).view(np.uint8).data for a in kept if a.size]


def decode(read_into: Callable[[memoryview], None], most_bytes: int) -> Message:
    """Take one message.

    Parameters
    ----------
    read_into
        Fills a buffer from the other end, or raises.
    most_bytes
        How many the arrays may have together.

    Raises
    ------
    WireError
        It is no message, or has more than ``most_bytes``.
    """
    size = LENGTH.unpack(_taken(read_into, LENGTH.size))[0]
    if size > MOST_HEAD_BYTES:
        raise WireError(f"a head of {size} bytes; expected at most {MOST_HEAD_BYTES}")
    try:
        head = json.loads(_taken(read_into, size).decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"a head that is no JSON ({error})") from error
    if not isinstance(head, dict):
        raise WireError("a head that is no object")
    arrays, left = [], most_bytes
    for dtype, shape in _listed(head.pop("arrays", None)):
        left -= dtype.itemsize * math.prod(max(n, 1) for n in shape)
        if left < 0:
            raise WireError(f"arrays of more than {most_bytes} bytes")
        array: npt.NDArray[Any] = np.empty(shape, dtype)
        if array.size:
            read_into(array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return Message(head, tuple(arrays))


def _taken(read_into: Callable[[memoryview], None], size: int) -> bytes:
    buffer = bytearray(size)
    read_into(memoryview(buffer))
    return bytes(buffer)


def _listed(listed: Any) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    if not isinstance(listed, list) or len(listed) > _MOST_ARRAYS:
        raise WireError("no list of arrays")
    found = []
    for entry in listed:
        if not (
            isinstance(entry, list)
            and len(entry) == 2
            and entry[0] in _TYPES | _FLOATS
            and isinstance(entry[1], list)
            and len(entry[1]) <= _MOST_DIMENSIONS
            and all(type(n) is int and 0 <= n < 1 << 40 for n in entry[1])
        ):
            raise WireError(f"an array described as {str(entry)[:100]}")
        found.append((np.dtype(entry[0]), tuple(entry[1])))
    return found
