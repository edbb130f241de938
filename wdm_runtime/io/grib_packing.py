"""Packed values of GRIB2 that fit their header, checked before ecCodes, which trusts them, unpacks.

Where they do not, it ends the whole process or writes beyond its arrays. Damage that leaves the
sizes right gives wrong numbers or one of its own errors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.io.grib_products import Get

_RGB, _RGBA = b"\x02", b"\x06"  # PNG's colour types of more than one channel
_MOST_BITS = 32  # of a packed number
_BLOCKS, _MOST_INTERVAL = (8, 16, 32, 64), 4096
_CODESTREAM = b"\xff\x4f\xff\x51"  # start, and size
# After the segment's length and capabilities: image, offset, tile, offset; then of the components.
_SIZ, _SIZ_AT = struct.Struct(">8IH3B"), 8
_MOST_TILES = 65535


def check_packing(path: Path, name: str, get: Get, data: bytes) -> None:
    """Refuse packed values of another size than their header says.

    Parameters
    ----------
    name
        The product's.
    data
        The data section's content.

    Raises
    ------
    InputError
        Numbers, an image (PNG, as MRMS packs its products, or JPEG 2000), blocks of CCSDS or groups
        of complex packing that do not fit. The other packings are left to ecCodes.
    """
    packing = get("packingType")
    check = _CHECKS.get(packing)
    if check is not None and not check(get, data):
        raise InputError(
            f"{path}: '{name}' is packed as '{packing}' in {len(data)} bytes that do not fit; "
            f"expected {get('numberOfValues')} numbers of {get('bitsPerValue')} bits. Fetch the "
            "file again."
        )


def _numbers_fit(get: Get, data: bytes) -> bool:
    """Whether there are bytes for as many numbers of as many bits (template 7.0)."""
    return bool(get("numberOfValues") * get("bitsPerValue") <= 8 * len(data))


def _blocks_fit(get: Get, _: bytes) -> bool:
    """Whether the parameters are ones that CCSDS 121.0-B-3 has (template 7.42)."""
    bits, block, interval = get("bitsPerValue"), get("ccsdsBlockSize"), get("ccsdsRsi")
    return bool(bits <= _MOST_BITS and block in _BLOCKS and 0 < interval <= _MOST_INTERVAL)


def _codestream_fits(get: Get, image: bytes) -> bool:
    """Whether a JPEG 2000 image has one value for each, by its first marker segment (A.5.1)."""
    if get("bitsPerValue") == 0:
        return True
    if image[:4] != _CODESTREAM or len(image) < _SIZ.size + _SIZ_AT:
        return False
    width, height, left, top, *tile, components, depth, dx, dy = _SIZ.unpack_from(image, _SIZ_AT)
    columns, rows, tile_left, tile_top = tile
    if components != 1 or (depth & 0x7F) + 1 > _MOST_BITS or (dx, dy) != (1, 1):
        return False
    if not (columns and rows and width > left and height > top):
        return False
    tiles = -(-(width - tile_left) // columns) * -(-(height - tile_top) // rows)
    cells = (width - left) * (height - top)
    return bool(cells == get("numberOfValues") and 0 < tiles <= _MOST_TILES)


def _image_fits(get: Get, image: bytes) -> bool:
    """Whether a PNG image is whole, by its checksums, and has the header's size and depth."""
    bits = get("bitsPerValue")
    if bits == 0:  # all are equal, without an image
        return True
    width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
    depth = {_RGB: 24, _RGBA: 32}.get(image[25:26], int.from_bytes(image[24:25], "big"))
    if width * height != get("numberOfValues") or depth != -(-bits // 8) * 8:
        return False
    position, kind = 8, b""
    while kind != b"IEND":
        stop = position + 8 + int.from_bytes(image[position : position + 4], "big")
        chunk, checksum = image[position + 4 : stop], image[stop : stop + 4]
        if len(checksum) < 4 or zlib.crc32(chunk) != int.from_bytes(checksum, "big"):
            return False
        position, kind = stop + 4, chunk[:4]
    return position == len(image)


def _groups_fit(get: Get, data: bytes) -> bool:
    """Whether the groups hold as many values as there are, in as many bytes (template 7.2, 7.3).

    The references of all groups come first, then their widths, then their lengths, each from a
    whole byte on; then the values, each as wide as its group says.
    """
    groups, values = get("numberOfGroupsOfDataValues"), get("numberOfValues")
    bits = (
        get("bitsPerValue"),
        get("numberOfBitsUsedForTheGroupWidths"),
        get("numberOfBitsForScaledGroupLengths"),
    )
    extra = get("numberOfOctetsExtraDescriptors") or 0  # of spatial differencing, before all
    if groups == 0:  # all are equal
        return True
    if groups > values or max(*bits, 8 * extra) > _MOST_BITS:
        return False
    sizes = [extra * ((get("orderOfSpatialDifferencing") or 0) + 1)]
    sizes += [-(-groups * wide // 8) for wide in bits]
    _, widths_at, lengths_at, values_at = accumulate(sizes)
    if values_at > len(data):
        return False
    widths = get("referenceForGroupWidths") + _numbers(data[widths_at:], groups, bits[1])
    step = get("lengthIncrementForTheGroupLengths")
    lengths = get("referenceForGroupLengths") + step * _numbers(data[lengths_at:], groups, bits[2])
    lengths[-1] = get("trueLengthOfLastGroup")
    if widths.max() > _MOST_BITS or lengths.max() > values or lengths.sum() != values:
        return False
    return bool(8 * values_at + (widths * lengths).sum() <= 8 * len(data))


def _numbers(data: bytes, count: int, bits: int) -> npt.NDArray[np.int64]:
    """Unsigned numbers of so many bits each."""
    stored = np.frombuffer(data, np.uint8, -(-count * bits // 8))
    each = np.unpackbits(stored)[: count * bits].reshape(count, bits)
    return np.asarray(each @ (1 << np.arange(bits, dtype=np.int64)[::-1]), dtype=np.int64)


_CHECKS: dict[str, Callable[[Get, bytes], bool]] = {
    "grid_simple": _numbers_fit,
    "grid_png": _image_fits,
    "grid_jpeg": _codestream_fits,
    "grid_ccsds": _blocks_fit,
    "grid_complex": _groups_fit,
    "grid_complex_spatial_differencing": _groups_fit,
}
