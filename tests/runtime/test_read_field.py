"""Which reader takes a file: told by what is in it, not by what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import LAT, LON, RAIN, RATE, add, coordinates, rain_file

from wdm_runtime.errors import InputError, MissingDependencyError, WdmError
from wdm_runtime.io import read_field
from wdm_runtime.io.netcdf import is_odim


class TestContent:
    @pytest.mark.parametrize(
        "form", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
    )
    @pytest.mark.parametrize("name", ["rain.grib2", "rain.zarr", "rain"])
    def test_netcdf_under_any_name(self, tmp_path: Path, form: Any, name: str) -> None:
        path = tmp_path / name
        with netCDF4.Dataset(path, "w", format=form) as dataset:
            coordinates(dataset)
            add(dataset, "rain", **RATE)
        np.testing.assert_array_equal(read_field(path).load(), RAIN)

    @pytest.mark.parametrize("content", [b"", b"rain,1,2\n" * 200, b"\0" * 4096])
    @pytest.mark.parametrize("name", ["in.nc", "in.grib2"])
    def test_no_known_format(self, tmp_path: Path, content: bytes, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read .*expected NetCDF, GRIB2") as caught:
            read_field(path)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("content", [b"GRIB junk", b"\x1f\x8b junk"])
    def test_grib_under_any_name(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "in.nc"
        path.write_bytes(content)
        with pytest.raises((InputError, MissingDependencyError), match="GRIB"):
            read_field(path)

    def test_missing_folder_and_remote(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no.nc", "https://example.org/rain.nc", "s3://bucket/rain.zarr"):
            with pytest.raises(InputError, match="no such file"):
                read_field(path)

    def test_odim_is_told_from_netcdf(self, tmp_path: Path) -> None:
        by_name, by_groups = tmp_path / "name.nc", tmp_path / "groups.nc"
        with netCDF4.Dataset(by_name, "w") as dataset:
            dataset.Conventions = "ODIM_H5/V2_3"
        with netCDF4.Dataset(by_groups, "w") as dataset:
            for group in ("what", "where", "dataset1"):
                dataset.createGroup(group)
        assert is_odim(by_name) and is_odim(by_groups)
        assert not is_odim(rain_file(tmp_path / "rain.nc"))


class TestFaults:
    """Nothing faulty becomes rain or dry ground."""

    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    def test_infinities(self, tmp_path: Path, value: float) -> None:
        values = RAIN.copy()
        values[1, 2, :3] = value
        path = rain_file(tmp_path / "in.nc", values=values)
        with pytest.raises(
            InputError, match=r"'rain' has 3 infinite numbers in its 40.*_FillValue"
        ):
            read_field(path)

    def test_infinities_declared_missing(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0, 0, 0] = np.inf
        path = rain_file(tmp_path / "in.nc", values=values, missing_value=np.float32(np.inf))
        assert np.argwhere(np.isnan(read_field(path).load())).tolist() == [[0, 0, 0]]

    def test_negative_rain(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0, 0, :2] = -0.25, -0.7
        with pytest.raises(InputError, match=r"'rain' has 2 negative .* down to -0\.7 mm h-1"):
            read_field(rain_file(tmp_path / "in.nc", values=values))

    def test_more_than_this_machine_can_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        many = np.arange(300_000)
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset, many * 1e-4, many * 1e-4, hours=[0])
            dataset.createVariable("rain", "f4", ("time", "lat", "lon")).setncatts(RATE)
        with pytest.raises(InputError, match=r"'rain' has .* 300000 x 300000 cells.*MiB"):
            read_field(path)

    def test_a_time_that_comes_twice(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, hours=[3, 3])
            add(dataset, "rain", **RATE)
        with pytest.raises(InputError, match="'time' has the time 2022-08-09T18:00:00 2 times"):
            read_field(tmp_path / "in.nc")

    def test_coordinates_that_are_no_numbers(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, size in (("lat", 4), ("lon", 5)):
                dataset.createDimension(name, size)
                names = dataset.createVariable(name, str, (name,))
                names[:] = np.array([f"{name}{index}" for index in range(size)], dtype=object)
            add(dataset, "rain", RAIN[0], ("lat", "lon"), **RATE)
        with pytest.raises(WdmError, match=r"in\.nc"):
            read_field(tmp_path / "in.nc")


class TestProjected:
    @pytest.mark.parametrize("units", ["m", "km"])
    @pytest.mark.parametrize("dimensions", [("time", "y", "x"), ("x", "y", "time")])
    def test_grid_mapping_and_units(
        self, tmp_path: Path, units: str, dimensions: tuple[str, ...]
    ) -> None:
        scale = 1e3 if units == "m" else 1.0
        y, x = -10 * scale * np.arange(4), 400 * scale * np.arange(5)
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, y, x, names=("time", "y", "x"))
            for name in "yx":
                standard_name = f"projection_{name}_coordinate"
                dataset[name].setncatts({"units": units, "standard_name": standard_name})
            dataset.createVariable("crs", "i4").grid_mapping_name = "polar_stereographic"
            values = RAIN.transpose([("time", "y", "x").index(d) for d in dimensions])
            add(dataset, "rain", values, dimensions, grid_mapping="crs: x y", **RATE)
            add(dataset, "lat", RAIN[0], ("y", "x"), units="degrees_north")
        found = read_field(tmp_path / "in.nc")
        np.testing.assert_array_equal(found.load(), RAIN)
        np.testing.assert_array_equal(found.grid.x, x)  # steps of 400 are no turns of the Earth
        np.testing.assert_array_equal(found.grid.y, y)
        assert found.grid.attributes[0]["units"] == units and not found.grid.is_latlon
        mapping = found.source.grid_mapping
        assert mapping is not None and mapping.name == "crs"
        assert mapping.attributes == {"grid_mapping_name": "polar_stereographic"}

    @pytest.mark.parametrize("variable", [None, "image1/image_data"])
    def test_knmis_own_hdf5_is_named(self, tmp_path: Path, variable: str | None) -> None:
        """Its pixels have no units and no coordinates: all of that is in groups of its own."""
        h5py = pytest.importorskip("h5py")
        path = tmp_path / "RAD_NL25_RAC_MFBS_5min.h5"
        with h5py.File(path, "w") as file:
            file["image1/image_data"] = np.arange(20, dtype=np.uint16).reshape(4, 5)
            calibration = file.create_group("image1/calibration")
            calibration.attrs["calibration_formulas"] = np.bytes_("GEO = 0.01 * PV + 0.0")
            file.create_group("overview").attrs["products_missing"] = np.bytes_("none")
            place = file.create_group("geographic/map_projection")
            place.attrs["projection_proj4_params"] = np.bytes_("+proj=stere +lat_0=90")
        with pytest.raises(InputError, match=r"KNMI's own HDF5.*Convert it to ODIM_H5 or CF"):
            read_field(path, variable)


class TestPlanes:
    @pytest.mark.parametrize("order", [("j", "i"), ("i", "j")])
    def test_repeated_rows_and_columns_are_a_grid(
        self, tmp_path: Path, order: tuple[str, str]
    ) -> None:
        lat, lon = np.meshgrid(LAT, LON, indexing="ij")
        turned = (lambda a: a) if order == ("j", "i") else np.transpose
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, size in (("j", 4), ("i", 5)):
                dataset.createDimension(name, size)
            add(dataset, "XLAT", turned(lat), order, units="degrees_north")
            add(dataset, "XLONG", turned(lon), order, units="degrees_east")
            add(dataset, "rain", RAIN[0], ("j", "i"), coordinates="XLAT XLONG", **RATE)
        found = read_field(tmp_path / "in.nc")
        assert found.grid.names == ("XLAT", "XLONG")
        np.testing.assert_allclose(found.grid.y, LAT, atol=1e-5)  # float32
        np.testing.assert_allclose(found.grid.x, LON, atol=1e-5)
        np.testing.assert_array_equal(found.load()[0], RAIN[0])

    def test_a_rotated_plane_is_refused(self, tmp_path: Path) -> None:
        lat, lon = np.meshgrid(LAT, LON, indexing="ij")
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, size in (("y", 4), ("x", 5)):
                dataset.createDimension(name, size)
            add(dataset, "lat", lat + 0.05 * lon, ("y", "x"), units="degrees_north")
            add(dataset, "lon", lon - 0.05 * lat, ("y", "x"), units="degrees_east")
            add(dataset, "rain", RAIN[0], ("y", "x"), **RATE)
        with pytest.raises(InputError, match=r"'lat' varies along both.*Regrid"):
            read_field(tmp_path / "in.nc")

    @pytest.mark.parametrize(
        ("tilt", "drift", "indexed", "says"),
        [
            (0.0, 0.0, False, None),
            (0.05, 0.0, False, "'XLAT' varies along both of its dimensions"),
            (0.0, 0.3, False, "'XLAT' varies along 'Time'"),
            (0.0, 0.3, True, "'XLAT' varies along 'Time'"),
        ],
    )
    def test_wrfs_planes_of_every_time_are_looked_at(
        self, tmp_path: Path, tilt: float, drift: float, indexed: bool, says: str | None
    ) -> None:
        lat, lon = np.meshgrid(LAT, LON, indexing="ij")
        moved = drift * np.arange(2)[:, None, None]
        plane = ("Time", "south_north", "west_east")
        path = tmp_path / "wrfout"
        with netCDF4.Dataset(path, "w") as dataset:
            for name, size in zip(plane, RAIN.shape, strict=True):
                dataset.createDimension(name, size)
            add(dataset, "XLAT", moved + lat + tilt * lon, plane, units="degree_north")
            add(dataset, "XLONG", 0 * moved + lon - tilt * lat, plane, units="degree_east")
            add(dataset, "rain", RAIN, plane, **RATE)
            for name, size in zip(plane[1:], RAIN.shape[1:], strict=True):
                if indexed:  # a nest that moves is no grid, though its cells have numbers
                    add(dataset, name, np.arange(size), (name,))
        if says is None:
            np.testing.assert_allclose(read_field(path).grid.y, LAT, atol=1e-5)
            return
        with pytest.raises(InputError, match=rf"{says}.*Regrid"):
            read_field(path)


class TestFormatsThatStateAllOfIt:
    """What is asked of them must be what they hold."""

    def grib(self, path: Path) -> Path:
        eccodes = pytest.importorskip("eccodes")
        handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        for key, value in {
            **{"discipline": 0, "parameterCategory": 1, "parameterNumber": 52},
            **{"Ni": 5, "Nj": 4, "iDirectionIncrementInDegrees": 0.1},
            **{"latitudeOfFirstGridPointInDegrees": 50.3, "jDirectionIncrementInDegrees": 0.1},
            **{"latitudeOfLastGridPointInDegrees": 50.0, "longitudeOfLastGridPointInDegrees": 5.4},
            **{"longitudeOfFirstGridPointInDegrees": 5.0, "bitsPerValue": 16},
        }.items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, RAIN[0].ravel() / 3600)
        with path.open("wb") as file:
            eccodes.codes_write(handle, file)
        eccodes.codes_release(handle)
        return path

    def test_another_variable(self, tmp_path: Path) -> None:
        path = self.grib(tmp_path / "in.nc")
        name = read_field(path).source.variable
        np.testing.assert_allclose(read_field(path, name).load()[0], RAIN[0], atol=1e-3)
        with pytest.raises(InputError, match=f"holds '{name}'.*; expected 'snow'.*--variable"):
            read_field(path, "snow")

    def test_another_period(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"is a rate .*got an accumulation of 1 h"):
            read_field(self.grib(tmp_path / "in.nc"), accumulation_h=1)

    def test_odim(self, tmp_path: Path) -> None:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "in.nc", "w") as file:
            file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        with pytest.raises(InputError, match=r"ODIM|COMP"):
            read_field(tmp_path / "in.nc")
