"""Makers of files that no answer can be had from, each written by a real library, and then some
of them damaged byte by byte. A maker takes a folder and gives the path to hand in.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import LAT, LON, RAIN, RATE, add, coordinates

HUGE = 200_000  # rows and columns: 300 GB of float64
PLANE = ("lat", "lon")
_LATLON = {"xsize": 5, "ysize": 4, "xscale": 0.1, "yscale": 0.1, "LL_lon": 5.0, "LL_lat": 50.0}

# A JPEG 2000 message with damage that its sizes do not show: ecCodes 2.50 writes beyond its arrays
# and the system ends the process. Found by benches/fuzz_inputs.py.
CRASHING = base64.b85decode(
    b"M^Z^b|Nqef000000004P0000L0RUnE00aO52j&O~3;+NC0ssI2NCN->000yK00006|NsC0|NsC0|NsC0|Ns90000"
    b"F5000C400030|Ns9307tL@O%9MS0{gSj08=Rt00D-e00D-e00000A_M>c000I70RMmh0003100001|NsC0|NsC0|"
    b"Ns90000*S0000K04M+e004jv000mG0RI3000svC0002J2meq1Q2;3b000001poj51ONa400000000001poj51ONa"
    b"4000000004m0RjI~01N;C009631Oxy9|6BkHK!Avdkcfzo|6~9q00BdCWnpw>WFTUBAWv{*Zc0!^M<8}(a&u{KZX"
    b"hx)H7+v$kN^q*00000NB{x<lh6Dx5D7F#Kf(V%0HFV10CE3BfPeyj3tU|X3&;K#3m^DkJb&Uqzz1@uraue+7}chr"
    b"Ck2w(El_{|**7;gHv"
)


def netcdf(
    folder: Path,
    values: Any = RAIN,
    dimensions: tuple[str, ...] = ("time", *PLANE),
    lat: Any = LAT,
    lon: Any = LON,
    hours: Any = (0, 1),
    form: Any = "NETCDF4",
    name: str = "rain",
    dtype: Any = "f4",
    time: dict[str, Any] | None = None,
    sizes: dict[str, int] | None = None,
    **attributes: Any,
) -> Path:
    """Two hours of rain; an attribute that is None is left out, ``time`` changes the time's."""
    path = folder / "in.nc"
    with netCDF4.Dataset(path, "w", format=form) as dataset:
        coordinates(dataset, np.asarray(lat), np.asarray(lon), hours)
        dataset["time"].setncatts(time or {})
        for dimension, size in (sizes or {}).items():
            dataset.createDimension(dimension, size)
        kept = {key: value for key, value in (RATE | attributes).items() if value is not None}
        add(dataset, name, values, dimensions, dtype, **kept)
    return path


def amounts(folder: Path, bounds: Any = None, **options: Any) -> Path:
    """Two sums in mm, with bounds of the time if they are given."""
    path = netcdf(folder, units="mm", standard_name=None, name="tp", **options)
    if bounds is not None:
        with netCDF4.Dataset(path, "a") as dataset:
            dataset.createDimension("nv", 2)
            dataset["time"].bounds = "time_bnds"
            add(dataset, "time_bnds", bounds, ("time", "nv"), "f8")
    return path


def written(name: str, content: bytes) -> Any:
    """A maker of a file with these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def folder_with_files(folder: Path) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "readme.txt").write_text("rain")
    return folder / "in"


def truncated(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def rain_with(*places: Any, value: float) -> Any:
    values = RAIN.copy()
    for place in places:
        values[place] = value
    return values


def two_variables(folder: Path) -> Path:
    path = netcdf(folder)
    with netCDF4.Dataset(path, "a") as dataset:
        add(dataset, "snow", **RATE)
    return path


def with_attribute(**attributes: Any) -> Any:
    """A maker of rain that gets attributes after its numbers."""

    def make(folder: Path) -> Path:
        path = netcdf(folder)
        with netCDF4.Dataset(path, "a") as dataset:
            dataset["rain"].setncatts(attributes)
        return path

    return make


def without_variables(folder: Path) -> Path:
    with netCDF4.Dataset(folder / "in.nc", "w") as dataset:
        dataset.title = "nothing"
    return folder / "in.nc"


def without_coordinates(folder: Path) -> Path:
    with netCDF4.Dataset(folder / "in.nc", "w") as dataset:
        for name, size in zip(("time", *PLANE), RAIN.shape, strict=True):
            dataset.createDimension(name, size)
        add(dataset, "rain", **RATE)
    return folder / "in.nc"


def curvilinear(folder: Path) -> Path:
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    return _on_planes(folder, (4, 5), lat + 0.02 * lon, lon - 0.02 * lat, RAIN[0])


def huge_curvilinear(folder: Path) -> Path:
    return _on_planes(folder, (HUGE, HUGE))


def _on_planes(folder: Path, shape: tuple[int, int], *numbers: Any) -> Path:
    """Rain on (j, i) with lat and lon of two dimensions, without numbers if none are given."""
    names = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}, "rain": RATE}
    with netCDF4.Dataset(folder / "in.nc", "w") as dataset:
        for dimension, size in zip("ji", shape, strict=True):
            dataset.createDimension(dimension, size)
        for index, (name, attributes) in enumerate(names.items()):
            variable = dataset.createVariable(name, "f4", ("j", "i"), zlib=True)
            variable.setncatts(attributes)
            if numbers:
                variable[:] = numbers[index]
    return folder / "in.nc"


def huge(folder: Path) -> Path:
    """Some kB that declare 200,000 x 200,000 cells and hold none."""
    centres = 1e-4 * np.arange(HUGE)
    with netCDF4.Dataset(folder / "in.nc", "w") as dataset:
        coordinates(dataset, centres, centres, hours=[0])
        dataset.createVariable("rain", "f4", ("time", *PLANE), zlib=True).setncatts(RATE)
    return folder / "in.nc"


def huge_zarr(folder: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "in.zarr"), mode="w")
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        axis = group.create_array(
            name, data=1e-4 * np.arange(HUGE), attributes={"units": units}, dimension_names=(name,)
        )
        assert axis.shape == (HUGE,)
    group.create_array(
        "rain",
        shape=(HUGE, HUGE),
        chunks=(1000, 1000),
        dtype="f4",
        fill_value=0.0,
        attributes=RATE,
        dimension_names=PLANE,
    )
    return folder / "in.zarr"


def damaged_zarr(folder: Path) -> Path:
    """A store whose array says it has a type that does not exist."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "in.zarr"), mode="w")
    group.create_array("rain", data=RAIN, dimension_names=("time", *PLANE), attributes=RATE)
    metadata = folder / "in.zarr" / "rain" / "zarr.json"
    values = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(values | {"data_type": "float77"}))
    return folder / "in.zarr"


def unknown_filter(folder: Path) -> Path:
    """Chunks that say they went through an HDF5 filter that nobody has."""
    h5py = pytest.importorskip("h5py")
    path = netcdf(folder)
    with h5py.File(path, "a") as file:
        attributes = dict(file["rain"].attrs)
        del file["rain"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk(RAIN.shape)
        creation.set_filter(499, h5py.h5z.FLAG_OPTIONAL, ())  # 256-511: for testing only
        space = h5py.h5s.create_simple(RAIN.shape)
        h5py.h5d.create(file.id, b"rain", h5py.h5t.IEEE_F32LE, space, creation)
        data = file["rain"]
        data.id.write_direct_chunk((0, 0, 0), RAIN.astype("<f4").tobytes(), 0)
        for name in ("units", "standard_name"):
            data.attrs[name] = attributes[name]
        for axis, name in enumerate(("time", *PLANE)):
            data.dims[axis].attach_scale(file[name])
    return path


def huge_chunk(folder: Path) -> Path:
    """A small field in a chunk of 40 million times, which is unpacked as a whole."""
    return _chunked(folder, (40_000_000, 1, 1))


def deflate_bomb(folder: Path) -> Path:
    """A chunk of 160 bytes whose packed stream, of 2 MB, unpacks to 2 GB."""
    h5py = pytest.importorskip("h5py")
    path = _chunked(folder, (1, 4, 5))
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 24)
    stream = b"".join(packer.compress(zeros) for _ in range(128)) + packer.flush()
    with h5py.File(path, "a") as file:
        file["rain"].id.write_direct_chunk((0, 0, 0), stream)
    return path


def _chunked(folder: Path, chunks: tuple[int, ...]) -> Path:
    with netCDF4.Dataset(folder / "in.nc", "w") as dataset:
        coordinates(dataset, hours=[0])
        dataset.createDimension("run", None)
        rain = dataset.createVariable("rain", "f8", ("run", *PLANE), zlib=True, chunksizes=chunks)
        rain.setncatts(RATE)
        rain[0, 0, 0] = RAIN[0, 0, 0]  # packing chunks that are refused anyway takes a minute
    return folder / "in.nc"


def gzip_bomb(folder: Path) -> Path:
    """GRIB2, and then 1 GB of zeros in 1 MB."""
    with gzip.open(folder / "in.grib2.gz", "wb", compresslevel=9) as file:
        file.write(grib_message())
        for _ in range(64):
            file.write(bytes(1 << 24))
    return folder / "in.grib2.gz"


def huge_jpeg(folder: Path) -> Path:
    """A message of 4 x 5 cells whose image says that it has 60,000 x 60,000."""
    message = bytearray(grib_message(packingType="grid_jpeg", bitsPerValue=16))
    at = message.index(b"\xff\x4f\xff\x51") + 8
    message[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return written("in.grib2", bytes(message))(folder)


def grib(folder: Path, *changes: dict[str, Any]) -> Path:
    """A message of MRMS's PrecipRate for each change of its keys."""
    messages = [grib_message(**change) for change in changes or ({},)]
    (folder / "in.grib2").write_bytes(b"".join(messages))
    return folder / "in.grib2"


def grib_message(values: Any = RAIN[0], sample: str = "regular_ll_sfc_grib2", **keys: Any) -> bytes:
    eccodes = pytest.importorskip("eccodes")
    rows, columns = np.shape(values)
    product = {"discipline": 209, "parameterCategory": 6, "parameterNumber": 1}
    grid = {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": 50.35,
        "latitudeOfLastGridPointInDegrees": 50.35 - 0.1 * (rows - 1),
        "longitudeOfFirstGridPointInDegrees": 5.05,
        "longitudeOfLastGridPointInDegrees": 5.05 + 0.1 * (columns - 1),
        "iDirectionIncrementInDegrees": 0.1,
        "jDirectionIncrementInDegrees": 0.1,
    }
    grid = {} if "regular" not in sample else grid
    handle = eccodes.codes_grib_new_from_samples(sample)
    try:
        for key, value in (product | grid | {"dataDate": 20220809} | keys).items():
            eccodes.codes_set(handle, key, value)
        if grid:
            eccodes.codes_set_values(handle, np.asarray(values, float).ravel())
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)


def grib_gzipped(folder: Path) -> Path:
    """Whole in its head, damaged in its middle."""
    content = bytearray(gzip.compress(grib_message(RAIN[0])))
    content[len(content) // 2] ^= 0xFF
    (folder / "in.grib2.gz").write_bytes(content)
    return folder / "in.grib2.gz"


def netcdf_gzipped(folder: Path) -> Path:
    return written("in.nc.gz", gzip.compress(netcdf(folder).read_bytes()))(folder)


def odim(folder: Path, kind: str = "COMP", quantity: str | None = "RATE", **where: Any) -> Path:
    """An ODIM_H5 file on a grid of 0.1 degrees."""
    h5py = pytest.importorskip("h5py")
    place = _LATLON | {"projdef": "+proj=longlat +datum=WGS84"} | where
    with h5py.File(folder / "in.h5", "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        what = {"object": kind, "date": "20220809", "time": "150000"}
        scaling = {"gain": 0.5, "offset": 0.0, "nodata": 255.0, "undetect": 0.0}
        layer = scaling | ({"quantity": quantity} if quantity else {})
        for group, attributes in (
            ("what", what),
            ("where", place),
            ("dataset1/data1/what", layer),
        ):
            node = file.create_group(group)
            for name, value in attributes.items():
                if value is not None:
                    node.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        file["dataset1/data1"].create_dataset("data", data=np.ones((4, 5), np.uint8))
    return folder / "in.h5"


def huge_odim(folder: Path) -> Path:
    """Some kB that declare 200,000 x 200,000 cells and hold none."""
    path = odim(folder, xsize=HUGE, ysize=HUGE, xscale=1e-4, yscale=1e-4)
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        del file["dataset1/data1/data"]
        file["dataset1/data1"].create_dataset("data", (HUGE, HUGE), np.uint8, chunks=(1000, 1000))
    return path
