"""Whether a NetCDF-3 ("classic") file is whole.

The library reads the lost part of a truncated one as zeros, which would pass for dry ground.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO


def check_classic_length(path: Path) -> None:
    """Refuse a truncated NetCDF-3 file; files in other formats pass unread.

    Raises
    ------
    ValueError
        The file is shorter than its header says, or the header itself is incomplete.
    """
    with path.open("rb") as file:
        if file.read(3) != b"CDF":
            return
        try:
            expected_bytes = _classic_length(file)
        except (struct.error, KeyError, IndexError) as error:
            raise ValueError("the header is incomplete") from error
    size_bytes = path.stat().st_size
    if size_bytes < expected_bytes:
        raise ValueError(f"{size_bytes} bytes of {expected_bytes}, it is truncated")


def _classic_length(file: BinaryIO) -> int:
    """Bytes up to the end of the last value, as the header has it (NUG, classic format)."""
    count, offset = {1: (">I", ">I"), 2: (">I", ">Q"), 5: (">Q", ">Q")}[file.read(1)[0]]
    item_bytes = dict(enumerate((1, 1, 2, 4, 4, 8, 1, 2, 4, 8, 8), start=1))

    def number(form: str = count) -> int:
        return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

    def skip(size_bytes: int) -> None:
        file.seek(_padded(size_bytes), 1)

    def skip_attributes() -> None:
        number(">I")
        for _ in range(number()):
            skip(number())
            skip(item_bytes[number(">I")] * number())

    records = number()
    if records == 2 ** (8 * struct.calcsize(count)) - 1:  # a stream that was never closed
        records = 0
    lengths, ends, per_record = [], [0], []
    number(">I")
    for _ in range(number()):
        skip(number())
        lengths.append(number())
    skip_attributes()
    number(">I")
    for _ in range(number()):
        skip(number())
        shape = [lengths[number()] for _ in range(number())]
        skip_attributes()
        item = item_bytes[number(">I")]
        number()
        begin = number(offset)
        if shape and shape[0] == 0:
            per_record.append((begin, item * math.prod(shape[1:])))
        else:
            ends.append(begin + item * math.prod(shape))
    # Records interleave; a single record variable goes without padding.
    stride = sum(_padded(b) for _, b in per_record) if len(per_record) > 1 else 0
    stride = stride or sum(b for _, b in per_record)
    if records:
        ends += [begin + (records - 1) * stride + length for begin, length in per_record]
    return max(ends)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 4) * 4
