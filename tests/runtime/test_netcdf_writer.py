"""The ensemble's file, judged by what comes back; and that it is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import HOURS, RAIN, add, coordinates, field, rain_file, write_all

from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io.netcdf import read_netcdf
from wdm_runtime.io.writer import EnsembleWriter


def test_a_field_of_no_file_is_written_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    coarse = field()
    made = PrecipField(coarse.rate_mm_h, coarse.grid, coarse.valid_times)  # in memory: no path
    for path in (Path("out.nc"), tmp_path / "whole.nc"):
        write_all(path, made)
        assert read_netcdf(path).valid_times == made.valid_times


class TestOutput:
    def test_is_cf_and_covers_the_same_area(self, tmp_path: Path) -> None:
        coarse = field(standard_name="rainfall_rate", long_name="radar rain")
        attributes = {"seed": 7, "degraded": False, "sampler": "heun", "churn": 0.5, "big": 2**64}
        with EnsembleWriter(tmp_path / "out.nc", coarse, 10, 3, attributes) as writer:
            for time in range(2):
                for member in range(3):
                    writer.write(time, member, np.full((30, 40), time + member / 4))
            writer.set_attributes({"degraded": True})
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            rain = dataset["rain"]
            assert dataset.Conventions == "CF-1.11, ACDD-1.3" and dataset.data_model == "NETCDF4"
            assert rain.dimensions == ("time", "realization", "lat", "lon")
            assert (rain.dtype, rain._FillValue) == (np.float32, -9999)
            assert rain.chunking() == [1, 1, 30, 40] and rain.filters()["zlib"]
            assert rain.standard_name == "rainfall_rate" and rain.long_name == "radar rain"
            assert rain.units == "mm h-1" and rain.cell_methods == "area: mean"
            np.testing.assert_array_equal(rain[1, :, 0, 0], [1, 1.25, 1.5])
            assert dataset["realization"].standard_name == "realization"
            assert dataset["realization"][:].tolist() == [0, 1, 2]
            assert dataset["lat"].standard_name == "latitude" and dataset["lat"].axis == "Y"
            for name, centres in (("lat", coarse.grid.y), ("lon", coarse.grid.x)):
                bounds, half = dataset[dataset[name].bounds][:], (centres[1] - centres[0]) / 2
                np.testing.assert_allclose(bounds[0, 0], centres[0] - half)
                np.testing.assert_allclose(bounds[-1, 1], centres[-1] + half)
                np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])
                np.testing.assert_allclose(bounds.mean(axis=1), dataset[name][:])
            assert (dataset.seed, dataset.degraded, dataset.sampler) == (7, "true", "heun")
            assert dataset.churn == 0.5 and dataset.big == str(2**64)
            assert "wdm-run" in dataset.history and dataset.title and dataset.source

    def test_values_and_missing_cells_come_back(self, tmp_path: Path) -> None:
        rates = np.random.default_rng(1).gamma(0.3, 5, (6, 8)).astype(np.float32)
        rates[2:4, 5] = np.nan
        path = tmp_path / "out.nc"
        with EnsembleWriter(path, field(times=1), 2, 1, {}) as writer:
            writer.write(0, 0, rates)
        with netCDF4.Dataset(path) as dataset:
            dataset.set_auto_mask(False)
            assert (dataset["rain"][0, 0, 2:4, 5] == -9999).all()
        found = read_netcdf(path)
        np.testing.assert_array_equal(found.rate_mm_h[0], rates)  # unrounded, NaN included
        assert found.grid.north_first and found.grid.shape == (6, 8)

    def test_names_and_grid_mapping_are_carried_over(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as dataset:
            coordinates(dataset, names=("t", "northing", "easting"))
            dataset["northing"].setncatts({"units": "km", "axis": "Y", "actual_range": [0.0, 9.0]})
            dataset["easting"].setncatts({"units": "km", "axis": "X", "bounds": "elsewhere"})
            add(dataset, "crs", 0, (), "i4", grid_mapping_name="polar_stereographic", n=60.0)
            rain = {"units": "kg m-2 s-1", "grid_mapping": "crs"}
            add(dataset, "pr", RAIN / 3600, ("t", "northing", "easting"), **rain)
        write_all(tmp_path / "out.nc", read_netcdf(path))
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            rain = dataset["pr"]
            assert rain.dimensions == ("t", "realization", "northing", "easting")
            assert rain.standard_name == "precipitation_flux" and rain.units == "kg m-2 s-1"
            assert dataset[rain.grid_mapping].ncattrs() == ["grid_mapping_name", "n"]
            assert dataset["northing"].units == "km"
            assert "actual_range" not in dataset["northing"].ncattrs()
            assert dataset["easting"].bounds == "easting_bnds"
            assert dataset["t"].units == HOURS

    def test_without_source(self, tmp_path: Path) -> None:
        coarse = field()
        bare = PrecipField(coarse.rate_mm_h, coarse.grid, coarse.valid_times)
        write_all(tmp_path / "out.nc", bare)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["rainfall_rate"].standard_name == "lwe_precipitation_rate"
            assert dataset["rainfall_rate"].units == "mm h-1"

    def test_large_frames_are_chunked(self, tmp_path: Path) -> None:
        write_all(tmp_path / "out.nc", field(60, 3, times=1), factor=10)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["rain"].chunking() == [1, 1, 300, 30]

    def test_mode_follows_the_umask(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            write_all(tmp_path / "out.nc", field())
        finally:
            os.umask(old)
        assert (tmp_path / "out.nc").stat().st_mode & 0o777 == 0o640


class TestWholeOrNothing:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    @pytest.mark.parametrize("before", [b"old", None])
    def test_exception_changes_nothing(
        self, tmp_path: Path, error: type[BaseException], before: bytes | None
    ) -> None:
        path = tmp_path / "out.nc"
        if before is not None:
            path.write_bytes(before)
        with (
            pytest.raises(error),
            EnsembleWriter(path, field(), 2, 1, {}, overwrite=before is not None) as writer,
        ):
            writer.write(0, 0, np.zeros((6, 8)))
            assert len(list(tmp_path.glob(".out.nc.*.tmp"))) == 1
            raise error
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])

    def test_never_written_frame(self, tmp_path: Path) -> None:
        with (
            pytest.raises(OutputError, match="1 of 4 frames were never written, first time 1 mem"),
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 2, {}) as writer,
        ):
            for time, member in ((0, 0), (0, 1), (1, 1)):
                writer.write(time, member, np.zeros((6, 8)))
        assert not list(tmp_path.iterdir())

    def test_refuses_an_existing_file_before_any_work(self, tmp_path: Path) -> None:
        path = tmp_path / "out.nc"
        path.write_bytes(b"old")
        with pytest.raises(
            OutputError, match=r"exists already.*--overwrite or choose another name"
        ):
            EnsembleWriter(path, field(), 2, 1, {})
        assert path.read_bytes() == b"old"
        write_all(path, field(), overwrite=True)
        assert read_netcdf(path).grid.shape == (6, 8)
        assert list(tmp_path.iterdir()) == [path]

    def test_refuses_a_file_that_appeared_meanwhile(self, tmp_path: Path) -> None:
        path = tmp_path / "out.nc"
        with (
            pytest.raises(OutputError, match="appeared while"),
            EnsembleWriter(path, field(times=1), 2, 1, {}) as writer,
        ):
            writer.write(0, 0, np.zeros((6, 8)))
            path.write_bytes(b"another's")
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"another's"]

    def test_file_systems_without_hard_links(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
        path = tmp_path / "out.nc"
        write_all(path, field())
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(OutputError, match="exists already"):
            write_all(path, field())

    def test_refuses_the_input(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "in.nc")
        (tmp_path / "link.nc").symlink_to(path)
        for name in ("in.nc", "link.nc"):
            with pytest.raises(OutputError, match="which this run reads or writes too"):
                EnsembleWriter(tmp_path / name, read_netcdf(path), 2, 1, {}, overwrite=True)

    def test_refuses_missing_folders_and_odd_files(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"folder .* does not exist"):
            EnsembleWriter(tmp_path / "none" / "out.nc", field(), 2, 1, {})
        (tmp_path / "folder.nc").mkdir()
        os.mkfifo(tmp_path / "pipe.nc")
        for path in (tmp_path / "folder.nc", tmp_path / "pipe.nc"):
            with pytest.raises(OutputError, match="not a regular file"):
                EnsembleWriter(path, field(), 2, 1, {}, overwrite=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
    def test_refuses_a_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        with pytest.raises(OutputError, match="not writable"):
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
        tmp_path.chmod(0o755)

    def test_refuses_wrong_frames(self, tmp_path: Path) -> None:
        writer = EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
        with pytest.raises(OutputError, match="not open"):
            writer.write(0, 0, np.zeros((6, 8)))
        with pytest.raises(OutputError, match=r"\(3, 4\); expected \(y, x\) = \(6, 8\)"), writer:
            writer.write(0, 0, np.zeros((3, 4)))
        for position in ((2, 0), (0, 1), (-1, 0)):
            writer = EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
            with pytest.raises(OutputError, match="expected less than 2 and 1"), writer:
                writer.write(*position, np.zeros((6, 8)))
        with pytest.raises(InputError, match="0 members"):
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 0, {})
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
    def test_full_disk(self, tmp_path: Path) -> None:
        """A limit on the size of files fails writes half-way, as a full disk does."""
        code = f"""
import pathlib, resource, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from netcdf_files import field
from wdm_runtime.errors import OutputError
from wdm_runtime.io.writer import EnsembleWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
path = pathlib.Path({str(tmp_path / "out.nc")!r})
path.write_bytes(b"old")
try:
    with EnsembleWriter(path, field(20, 20, 4), 10, 1, {{}}, overwrite=True) as writer:
        for time in range(4):
            writer.write(time, 0, np.random.default_rng(time).random((200, 200)))
except OutputError as error:
    print("refused", error.__cause__ is not None)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.stdout == "refused True\n", done.stderr
        assert done.returncode == 0, done.stderr
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
