"""Statistics in an output: blocks of rows in any order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from output_files import FACTOR, MEMBERS, SPEC, blocks, flux_field, rate_field, rates, write_output

from wdm_runtime.errors import OutputError
from wdm_runtime.io.writer import EnsembleWriter
from wdm_runtime.statistics import StatisticsSpec


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_statistics_are_those_of_the_members(tmp_path: Path, suffix: str, keep: bool) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    field = flux_field()
    path = write_output(tmp_path / f"out{suffix}", field, statistics=SPEC, keep_members=keep)
    members = np.stack([rates(field, 1, m) for m in range(MEMBERS)]).astype(np.float64)
    opened = xarray.open_zarr(path) if suffix == ".zarr" else xarray.open_dataset(path)
    with opened as dataset:
        assert ("pr" in dataset, "realization" in dataset.dims) == (keep, keep)
        found = {name: dataset[f"pr_{name}"] for name in
                 ("mean", "standard_deviation", "quantile", "exceedance")}  # fmt: skip
        for name, expected in (
            ("mean", members.mean(axis=0)),
            ("standard_deviation", members.std(axis=0, ddof=1)),
            ("quantile", np.quantile(members, SPEC.quantiles, axis=0)),
        ):
            np.testing.assert_allclose(found[name][1] * 3600, expected, rtol=1e-5)
            assert found[name].attrs["standard_name"] == "precipitation_flux"
            assert found[name].attrs["units"] == "kg m-2 s-1"
        exceedance = found["exceedance"]
        assert exceedance.attrs["units"] == "1" and "standard_name" not in exceedance.attrs
        missing = np.isnan(members[0])
        for level, share in zip(SPEC.thresholds_mm_h, exceedance[1].values, strict=True):
            np.testing.assert_array_equal(
                share, np.where(missing, np.nan, (members >= level).mean(axis=0))
            )
        assert found["quantile"].dims == ("time", "quantile", "y", "x")
        assert exceedance.dims == ("time", "threshold", "y", "x")
        np.testing.assert_allclose(dataset["threshold"] * 3600, SPEC.thresholds_mm_h)
        np.testing.assert_array_equal(dataset["quantile"], SPEC.quantiles)
        methods = "area: mean time: mean realization: "
        assert found["mean"].attrs["cell_methods"] == methods + "mean"
        assert found["standard_deviation"].attrs["cell_methods"] == methods + "standard_deviation"


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    spec = StatisticsSpec(quantiles=(), thresholds_mm_h=())
    path = write_output(tmp_path / "out.nc", rate_field(), statistics=spec, keep_members=False)
    with netCDF4.Dataset(path) as dataset:
        assert {"rain_mean", "rain_standard_deviation"} <= set(dataset.variables)
        assert not {"quantile", "threshold", "rain", "realization"} & set(dataset.variables)


def test_a_missing_row_of_statistics_fails(tmp_path: Path) -> None:
    field = rate_field(times=1)
    with (
        pytest.raises(OutputError, match="7 of 30 rows of statistics were never written, first"),
        EnsembleWriter(
            tmp_path / "out.nc", field, FACTOR, MEMBERS, {}, statistics=SPEC, keep_members=False
        ) as writer,
    ):
        for block in blocks(field, 0, SPEC):
            if block.first_row != 7:
                writer.write_statistics(0, block)
    assert not list(tmp_path.iterdir())


def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    field = rate_field(times=1)
    block = blocks(field, 0, SPEC)[-1]
    narrow = blocks(rate_field(3, 3), 0, SPEC)[-1]
    quantiles = replace(block, quantiles_mm_h=block.quantiles_mm_h[:1])
    thresholds = replace(block, exceedance=block.exceedance[:1])
    for time, wrong in (
        (1, block),
        (0, replace(block, first_row=-1)),
        (0, replace(block, first_row=24)),
        (0, narrow),
        (0, quantiles),
        (0, thresholds),
    ):
        with (
            pytest.raises(OutputError, match="got statistics of time"),
            EnsembleWriter(
                tmp_path / "out.nc", field, FACTOR, MEMBERS, {}, statistics=SPEC
            ) as writer,
        ):
            writer.write_statistics(time, wrong)
    with (
        pytest.raises(OutputError, match="got statistics of time"),
        EnsembleWriter(tmp_path / "out.nc", field, FACTOR, MEMBERS, {}) as writer,
    ):
        writer.write_statistics(0, block)
    assert not list(tmp_path.iterdir())
