"""GRIB2 messages whose headers, sizes or images lie: refused before a library believes them."""

import gzip
import tracemalloc

import numpy as np
import pytest

eccodes = pytest.importorskip("eccodes")

from grib2_messages import RAIN, message, write  # noqa: E402

from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.io.grib2 import content_of, read_grib2  # noqa: E402


def test_a_second_message_that_is_damaged_is_found_at_once(tmp_path):
    whole = message(hour=16)
    for damaged in (whole[:-10], whole[:40], whole[:16]):
        with pytest.raises(InputError, match="damaged"):
            read_grib2(write(tmp_path / "a.grib2", message(), damaged))


def test_several_fields_in_one_message_are_not_cut_to_the_first(tmp_path):
    whole = message()
    sections, position = {}, 16
    while whole[position : position + 4] != b"7777":
        length = int.from_bytes(whole[position : position + 4], "big")
        sections[whole[position + 4]] = whole[position : position + length]
        position += length
    again = b"".join(sections[number] for number in (4, 5, 6, 7))
    body = whole[16:-4] + again + b"7777"
    double = whole[:8] + (16 + len(body)).to_bytes(8, "big") + body
    with pytest.raises(InputError, match=r"holds 2 fields.*grib_copy"):
        read_grib2(write(tmp_path / "a.grib2", double))


def sized(data, rows, columns, points, values):
    """A message whose header says other sizes."""
    data = bytearray(data)
    position = 16
    while data[position : position + 4] != b"7777":
        section = data[position + 4]
        for offset, number in {3: ((6, points), (30, columns), (34, rows)), 5: ((5, values),)}.get(
            section, ()
        ):
            start = position + offset
            data[start : start + 4] = number.to_bytes(4, "big")
        position += int.from_bytes(data[position : position + 4], "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((5, 5, 20, 20), "'PrecipRate' has 5 x 5 cells of 20 points and 20 values"),
        ((4, 5, 25, 20), "4 x 5 cells of 25 points"),
        ((4, 5, 20, 25), "20 points and 25 values"),
        ((40_000, 50_000, 20, 20), "40000 x 50000 cells of 20 points"),
        ((0, 0, 0, 0), "0 x 0 cells"),
        (
            (60_000, 60_000, 3_600_000_000, 3_600_000_000),
            "'PrecipRate' has 60000 x 60000 cells.*MiB",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_found_before_anything_is_decoded(tmp_path, sizes, expected):
    path = write(tmp_path / "a.grib2", sized(message(), *sizes))
    with pytest.raises(InputError, match=expected) as caught:
        read_grib2(path)
    assert str(caught.value).startswith(str(path))


def packed(packing, values=RAIN, bits=24, **keys):
    handle = eccodes.codes_new_from_message(message(values, bitsPerValue=bits))
    try:
        eccodes.codes_set(handle, "packingType", packing)
        for key, value in keys.items():
            eccodes.codes_set(handle, key, value)
        return eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)


@pytest.mark.parametrize(
    "keys",
    [
        {"referenceForGroupWidths": 190},
        {"referenceForGroupWidths": 20},
        {"numberOfBitsUsedForTheGroupWidths": 44},
        {"numberOfGroupsOfDataValues": 400_000},
        {"trueLengthOfLastGroup": 500},
    ],
)
def test_widths_that_would_end_the_process_are_refused(tmp_path, keys):
    rain = np.tile(RAIN, (5, 5)) ** 1.5
    for index, packing in enumerate(("grid_complex", "grid_complex_spatial_differencing")):
        good = read_grib2(write(tmp_path / f"{index}.grib2", packed(packing, rain)))
        np.testing.assert_allclose(good.load()[0], rain, atol=1e-3)
    with pytest.raises(InputError, match=r"'PrecipRate' is packed as 'grid_complex' in .* do not"):
        read_grib2(write(tmp_path / "b.grib2", packed("grid_complex", rain, **keys)))


@pytest.mark.parametrize("damage", ["length", "number", "end"])
def test_images_that_would_end_the_process_are_refused(tmp_path, damage):
    rain = np.tile(RAIN, (5, 5))
    whole = packed("grid_png", rain)
    np.testing.assert_allclose(
        read_grib2(write(tmp_path / "a.grib2", whole)).load()[0], rain, atol=1e-3
    )
    data = bytearray(whole)
    at = {
        "length": data.index(b"IDAT") - 3,
        "number": data.index(b"IDAT") + 20,
        "end": data.index(b"IEND"),
    }[damage]
    data[at] ^= 0x40
    with pytest.raises(InputError, match=r"'PrecipRate' is packed as 'grid_png' in .* do not fit"):
        read_grib2(write(tmp_path / "b.grib2", bytes(data)))
    dry = read_grib2(write(tmp_path / "c.grib2", packed("grid_png", 0 * rain)))
    assert (dry.load() == 0).all()  # without an image


@pytest.mark.parametrize("bits", [8, 12, 16, 24, 32])
def test_images_of_every_depth_are_read_and_their_size_is_the_headers(tmp_path, bits):
    whole = packed("grid_png", bits=bits, values=np.tile(RAIN, (5, 5)))
    assert read_grib2(write(tmp_path / "a.grib2", whole)).grid.shape == (20, 25)
    fewer = sized(whole, 20, 25, 500, 499)  # more would be written than there is room for
    with pytest.raises(InputError, match=rf"do not fit; expected 499 numbers of {bits} bits"):
        read_grib2(write(tmp_path / "b.grib2", fewer))
    deeper = bytearray(whole)
    section = deeper.index((21).to_bytes(4, "big") + b"\x05")
    assert deeper[section + 19] == bits
    deeper[section + 19] = 200
    with pytest.raises(InputError, match=r"expected 500 numbers of 200 bits"):
        read_grib2(write(tmp_path / "c.grib2", bytes(deeper)))


def test_what_inflates_without_end_is_refused_while_it_does(tmp_path):
    bomb = write(tmp_path / "a.grib2.gz", gzip.compress(bytes(60_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.grib2\.gz: unpacks to more than .*expected"):
            content_of(bomb, most_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    whole = write(tmp_path / "b.grib2.gz", gzip.compress(message()))
    assert content_of(whole, most_bytes=len(message())) == message()


def test_a_dry_field_shrinks_as_much_as_a_bomb_and_is_read(tmp_path):
    rate = np.zeros((400, 500))
    rate[3, 4] = 7
    whole = packed("grid_simple", rate)
    small = gzip.compress(whole)
    assert len(whole) > 500 * len(small)
    found = read_grib2(write(tmp_path / "dry.grib2.gz", small)).load()
    np.testing.assert_allclose(np.sort(found[0], axis=None)[[-1, -2, 0]], [7, 0, 0], atol=1e-5)
