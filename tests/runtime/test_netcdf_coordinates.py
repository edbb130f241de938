"""Where the cells of NetCDF files lie: which coordinates count, their bounds and grid mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import HOURS, LAT, LON, RAIN, RATE, add, coordinates, write_all

from wdm_runtime.io.netcdf import read_netcdf

DEGREES = {"y": {"units": "degrees_north"}, "x": {"units": "degrees_east"}}
METRES = 1e4 * np.arange(5.0)


def plane_file(
    path: Path,
    axes: dict[str, tuple[Any, dict[str, Any]]],
    others: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]],
    **attributes: Any,
) -> Path:
    """Rain over two dimensions, each with the coordinate of its name, and other variables."""
    with netCDF4.Dataset(path, "w") as dataset:
        for name, (values, described) in axes.items():
            dataset.createDimension(name, len(values))
            add(dataset, name, values, (name,), "f8", **described)
        for name, (values, dimensions, described) in others.items():
            add(dataset, name, values, dimensions, "f8", **described)
        add(dataset, "rain", RAIN[0], tuple(axes), **{**RATE, **attributes})
    return path


def bounded_file(path: Path, lat: Any, lon: Any, lat_edges: Any, lon_edges: Any) -> Path:
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset, lat, lon)
        dataset.createDimension("nv", 2)
        for name, edges in (("lat", lat_edges), ("lon", lon_edges)):
            dataset[name].bounds = f"{name}_bnds"
            add(dataset, f"{name}_bnds", edges, (name, "nv"), "f8")
        add(dataset, "rain", **RATE)
    return path


def edges(centres: np.ndarray) -> np.ndarray:
    return np.stack([centres - 0.05, centres + 0.05], axis=1)


class TestBounds:
    @pytest.mark.parametrize("at", [-0.05, 0.05, -0.02])
    @pytest.mark.parametrize("lat", [LAT, LAT[::-1]])
    def test_centres_are_the_middles_of_the_cells(
        self, tmp_path: Path, at: float, lat: np.ndarray
    ) -> None:
        path = bounded_file(tmp_path / "in.nc", lat + at, LON + at, edges(lat), edges(LON))
        grid = read_netcdf(path).grid
        np.testing.assert_allclose(grid.y, lat, atol=1e-9)
        np.testing.assert_allclose(grid.x, LON, atol=1e-9)

    def test_the_output_covers_what_the_input_covers(self, tmp_path: Path) -> None:
        path = bounded_file(tmp_path / "in.nc", LAT - 0.05, LON - 0.05, edges(LAT), edges(LON))
        write_all(tmp_path / "out.nc", read_netcdf(path))
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            for name, centres in (("lat", LAT), ("lon", LON)):
                covered = dataset[f"{name}_bnds"][:]
                np.testing.assert_allclose(
                    [covered.min(), covered.max()], [centres[0] - 0.05, centres[-1] + 0.05]
                )

    def test_cells_over_the_dateline(self, tmp_path: Path) -> None:
        lon = np.array([179.75, 179.85, 179.95, 180.05, 180.15])
        turned = (edges(lon) + 180) % 360 - 180  # 179.9, -180
        west = (lon - 0.05 + 180) % 360 - 180
        path = bounded_file(tmp_path / "in.nc", LAT, west, edges(LAT), turned)
        np.testing.assert_allclose(read_netcdf(path).grid.x, lon, atol=1e-9)

    @pytest.mark.parametrize("units", ["deg", "arc_degree", "degrees", "degree_east"])
    def test_degrees_over_greenwich_in_any_spelling(self, tmp_path: Path, units: str) -> None:
        lon = 359.75 + 0.1 * np.arange(5)
        path = bounded_file(tmp_path / "in.nc", LAT, lon % 360, edges(LAT), edges(lon) % 360)
        with netCDF4.Dataset(path, "a") as dataset:
            dataset["lon"].units = units
        np.testing.assert_allclose(read_netcdf(path).grid.x, lon, atol=1e-9)

    def test_rows_that_end_at_a_pole_stay(self, tmp_path: Path) -> None:
        lat = 90 - 0.1 * np.arange(4)
        path = bounded_file(tmp_path / "in.nc", lat, LON, np.minimum(edges(lat), 90), edges(LON))
        np.testing.assert_array_equal(read_netcdf(path).grid.y, lat)

    def test_bounds_that_are_not_the_coordinates_own_do_not_count(self, tmp_path: Path) -> None:
        beside, unknown = edges(LAT + 0.3), np.full((5, 2), np.nan)
        grid = read_netcdf(bounded_file(tmp_path / "in.nc", LAT, LON, beside, unknown)).grid
        np.testing.assert_array_equal(grid.y, LAT)
        np.testing.assert_array_equal(grid.x, LON)


class TestChoiceOfCoordinates:
    def bare(self, **described: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
        return {"y": (np.arange(4), described), "x": (np.arange(5), described)}

    @pytest.mark.parametrize("described", [{}, {"units": "1"}, {"long_name": "index"}])
    @pytest.mark.parametrize("planes", [False, True])
    def test_bare_indices_give_way_to_degrees(
        self, tmp_path: Path, described: dict[str, str], planes: bool
    ) -> None:
        lat, lon = np.meshgrid(LAT, LON, indexing="ij")
        others = {
            "lat": (lat if planes else LAT, ("y", "x") if planes else ("y",), DEGREES["y"]),
            "lon": (lon if planes else LON, ("y", "x") if planes else ("x",), DEGREES["x"]),
        }
        path = plane_file(tmp_path / "in.nc", self.bare(**described), others)
        grid = read_netcdf(path).grid
        assert grid.names == ("lat", "lon") and grid.is_latlon
        np.testing.assert_array_equal(grid.y, LAT)
        np.testing.assert_array_equal(grid.x, LON)

    def test_bare_indices_stay_beside_curved_coordinates(self, tmp_path: Path) -> None:
        others = {"lat": (RAIN[0] ** 2, ("y", "x"), DEGREES["y"])}
        assert read_netcdf(plane_file(tmp_path / "in.nc", self.bare(), others)).grid.names == (
            "y",
            "x",
        )

    def test_distances_stay_beside_degrees(self, tmp_path: Path) -> None:
        axes = {"y": (METRES[:4], {"units": "m"}), "x": (METRES, {"units": "m"})}
        others = {"lat": (LAT, ("y",), DEGREES["y"]), "lon": (LON, ("x",), DEGREES["x"])}
        assert read_netcdf(plane_file(tmp_path / "in.nc", axes, others)).grid.names == ("y", "x")

    def test_a_dimension_keeps_its_meaning(self, tmp_path: Path) -> None:
        """The latitude of a ship at each time is no y, nor the time of each scan line a time."""
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, names=("time", "y", "x"))
            for name in ("y", "x"):
                dataset[name].delncattr("units")
            add(dataset, "ship", [50.0, 51.0], ("time",), units="degrees_north")
            add(dataset, "scan", np.arange(4), ("y",), units=HOURS)
            add(dataset, "rain", dimensions=("time", "y", "x"), **RATE)
        found = read_netcdf(tmp_path / "in.nc")
        assert found.grid.names == ("y", "x") and found.source.time is not None
        assert found.source.time.name == "time"


class TestGridMapping:
    def projected(self, path: Path, grid_mapping: str, **attributes: Any) -> Path:
        axes = {"y": (METRES[:4], {"units": "m"}), "x": (METRES, {"units": "m"})}
        laea = {"grid_mapping_name": "lambert_azimuthal_equal_area", **attributes}
        others = {
            "wgs": (0, (), {"grid_mapping_name": "latitude_longitude"}),
            "laea": (0, (), laea),
        }
        return plane_file(path, axes, others, grid_mapping=grid_mapping)

    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            *(("laea", "laea"), ("/laea", "laea"), ("laea: x y", "laea"), ("laea: /x /y", "laea")),
            *(("wgs: lat lon laea: x y", "laea"), ("laea: y x wgs: lat lon", "laea")),
            *(("wgs: lat lon", None), ("gone", None), ("", None)),
        ],
    )
    def test_of_the_axes(self, tmp_path: Path, said: str, expected: str | None) -> None:
        mapping = read_netcdf(self.projected(tmp_path / "in.nc", said)).source.grid_mapping
        assert (mapping.name if mapping else None) == expected

    def test_what_places_the_coarse_cells_is_not_said_of_the_fine_ones(
        self, tmp_path: Path
    ) -> None:
        gdal = {"GeoTransform": "-5000 10000 0 -5000 0 10000", "spatial_ref": "PROJCS[]"}
        write_all(
            tmp_path / "out.nc", read_netcdf(self.projected(tmp_path / "a.nc", "laea", **gdal))
        )
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["laea"].ncattrs() == ["grid_mapping_name", "spatial_ref"]

    @pytest.mark.parametrize("named", [True, False])
    def test_a_rotated_pole_is_not_taken_for_latitude(self, tmp_path: Path, named: bool) -> None:
        axes = {"rlat": (LAT - 50, {"units": "degrees"}), "rlon": (LON, {"units": "degrees"})}
        pole = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 40.0}
        path = plane_file(
            tmp_path / "in.nc",
            axes if named else dict(zip("yx", axes.values(), strict=True)),
            {} if named else {"pole": (0, (), pole)},
            grid_mapping="pole",
        )
        write_all(tmp_path / "out.nc", read_netcdf(path))
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            y, x = dataset["rain"].dimensions[-2:]
            assert dataset[y].standard_name == "grid_latitude"
            assert dataset[x].standard_name == "grid_longitude"
            assert not any(name.startswith("geospatial") for name in dataset.ncattrs())
