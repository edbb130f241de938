"""Packed values of GRIB2 that fit their header, checked before ecCodes, which trusts them, unpacks.

Where they do not, it ends the whole process or writes beyond its arrays. Damage that leaves the
sizes right gives wrong numbers or one of its own errors.
"""

from __future__ import annotations

import zlib
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.io.grib_header import Get

_RGB, _RGBA = b"\x02", b"\x06"  # PNG's colour types of more than one channel
_MOST_BITS = 32  # of a packed number


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
        A PNG image, as MRMS packs its products, or groups of complex packing that do not fit. The
        other packings are left to ecCodes.
    """
    packing = get("packingType")
    fits = True
    if packing == "grid_png":
        fits = _image_fits(get, data)
    elif packing in ("grid_complex", "grid_complex_spatial_differencing"):
        fits = _groups_fit(get, data)
    if not fits:
        raise InputError(
            f"{path}: '{name}' is packed as '{packing}' in {len(data)} bytes that do not fit; "
            f"expected {get('numberOfValues')} numbers of {get('bitsPerValue')} bits. Fetch the "
            "file again."
        )


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
