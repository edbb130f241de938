"""What holds of an output in any format, and of one that is not finished."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from output_files import (
    FACTOR,
    PROVENANCE,
    VALID_TIMES,
    amount_field,
    contents,
    every_library,
    flux_field,
    rate_field,
    rates,
    write_one,
    write_output,
)

from wdm_runtime.errors import InputError, MissingDependencyError, OutputError
from wdm_runtime.io import read_field
from wdm_runtime.io.writer import EnsembleWriter

FORMATS = (".nc", ".nc4", ".cdf", ".zarr", ".grib2", ".grb2")


libraries = every_library


class TestEveryFormat:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_the_name_decides_the_format(self, tmp_path: Path, suffix: str) -> None:
        path = write_output(tmp_path / f"out{suffix.upper()}", rate_field())
        if path.is_dir():
            assert (path / ".zmetadata").is_file()
        else:
            magic = b"GRIB" if suffix.startswith(".gr") else b"\x89HDF"
            assert path.read_bytes()[:4] == magic

    @pytest.mark.parametrize("suffix", [".nc", ".zarr"])
    @pytest.mark.parametrize("make", [rate_field, amount_field, flux_field])
    def test_our_own_reader_gives_it_back(self, tmp_path: Path, suffix: str, make: Any) -> None:
        field = make()
        found = read_field(write_one(tmp_path / f"out{suffix}", field))
        assert found.valid_times == VALID_TIMES
        assert (found.source.units, found.source.period_h) == (
            field.source.units,
            field.source.period_h,
        )
        np.testing.assert_allclose(found.frame(1), rates(field, 1, 0), rtol=1e-6)
        np.testing.assert_allclose(found.grid.y, field.grid.refined(FACTOR).y)

    @pytest.mark.parametrize("name", ["out", "out.tif", "out.nc.gz"])
    def test_other_names_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"suffix '.*'; expected one of \.nc, .*\.zarr"):
            write_output(tmp_path / name, rate_field())

    @pytest.mark.parametrize("suffix", [".nc", ".zarr", ".grib2"])
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_exception_leaves_the_older_output_alone(
        self, tmp_path: Path, suffix: str, error: type[BaseException]
    ) -> None:
        path = write_output(tmp_path / f"out{suffix}", rate_field())
        before = contents(path)
        with (
            pytest.raises(error),
            EnsembleWriter(path, rate_field(), FACTOR, 1, PROVENANCE, overwrite=True) as writer,
        ):
            writer.write(0, 0, rates(rate_field(), 0, 0))
            assert len(list(tmp_path.iterdir())) == 2
            raise error
        assert contents(path) == before and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("suffix", [".nc", ".zarr", ".grib2"])
    def test_incomplete_outputs_never_appear(self, tmp_path: Path, suffix: str) -> None:
        with (
            pytest.raises(OutputError, match="3 of 4 frames were never written"),
            EnsembleWriter(tmp_path / f"out{suffix}", rate_field(), FACTOR, 2, {}) as writer,
        ):
            writer.write(0, 0, rates(rate_field(), 0, 0))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("suffix", [".nc", ".zarr", ".grib2"])
    def test_an_output_that_appeared_meanwhile_is_kept(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"out{suffix}"
        with (
            pytest.raises(OutputError, match=r"exists already|appeared while"),
            EnsembleWriter(path, rate_field(times=1), FACTOR, 1, {}) as writer,
        ):
            writer.write(0, 0, rates(rate_field(), 0, 0))
            write_output(tmp_path / f"other{suffix}", rate_field()).rename(path)
            before = contents(path)
        assert contents(path) == before and len(list(tmp_path.iterdir())) == 1

    def test_members_must_miss_the_same_cells(self, tmp_path: Path) -> None:
        with (
            pytest.raises(OutputError, match="member 1 of time 0 misses other cells"),
            EnsembleWriter(tmp_path / "out.nc", rate_field(), FACTOR, 2, {}) as writer,
        ):
            writer.write(0, 0, rates(rate_field(), 0, 0))
            writer.write(0, 1, np.zeros((30, 40)))

    def test_nothing_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="neither members nor statistics"):
            EnsembleWriter(tmp_path / "out.nc", rate_field(), FACTOR, 2, {}, keep_members=False)

    @pytest.mark.parametrize(
        ("suffix", "module", "extra"), [(".zarr", "zarr", "xarray"), (".grib2", "eccodes", "grib")]
    )
    def test_the_extra_is_named(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        suffix: str,
        module: str,
        extra: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingDependencyError, match=rf"'\.\[{extra}\]' in the clone"):
            write_output(tmp_path / f"out{suffix}", rate_field())
        assert not list(tmp_path.iterdir())
