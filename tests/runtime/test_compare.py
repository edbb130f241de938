"""Comparing two outputs: what counts as the same, and how far apart others are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from output_files import PROVENANCE, SPEC, amount_field, rate_field, write_output

from wdm_runtime.errors import InputError
from wdm_runtime.io.compare import compare_outputs
from wdm_runtime.io.stored import read_attributes


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first, second = (
        write_output(tmp_path / name, amount_field(), statistics=SPEC) for name in ("a.nc", "b.nc")
    )
    return first, second


def test_the_same_request_written_twice_is_identical(pair: tuple[Path, Path]) -> None:
    with netCDF4.Dataset(pair[1], "a") as dataset:
        dataset.setncatts({"history": "another day", "date_created": "2001-01-01T00:00:00Z"})
    found = compare_outputs(*pair)
    assert found.identical and found.max_abs_difference_mm_h == 0 and not found.differences
    assert {"precip", "precip_quantile", "precip_validity", "lat", "time_edges", "threshold"} <= (
        set(found.variables)
    )


@pytest.mark.parametrize(
    ("name", "index", "change"),
    [
        ("precip", (1, 1, 29, 39), 0.25),
        ("precip_standard_deviation", (0, 8, 39), 0.25),
        ("precip_exceedance", (1, 2, 29, 0), 0.25),
        ("precip_validity", (0, 29, 39), -1),
        ("lat", 0, 1e-9),
        ("time_edges", (1, 0), 0.5),
    ],
)
def test_one_value_is_enough_to_differ(
    pair: tuple[Path, Path], name: str, index: tuple[int, ...], change: float
) -> None:
    with netCDF4.Dataset(pair[1], "a") as dataset:
        dataset[name][index] = dataset[name][index] + change
    found = compare_outputs(*pair)
    assert not found.identical and len(found.differences) == 1
    assert f"'{name}': 1 of " in found.differences[0]
    rain = name in ("precip", "precip_standard_deviation")
    assert found.max_abs_difference_mm_h == pytest.approx(0.25 if rain else 0, rel=1e-5)


def test_amounts_differ_by_their_rate(tmp_path: Path) -> None:
    field = amount_field()
    field = replace(field, source=replace(field.source, period_h=0.5))
    a, b = (write_output(tmp_path / name, field) for name in ("a.nc", "b.nc"))
    with netCDF4.Dataset(b, "a") as dataset:
        dataset["precip"][0, 0, 29, 39] += 0.25
    assert compare_outputs(a, b).max_abs_difference_mm_h == pytest.approx(0.5, rel=1e-5)


def test_missing_in_one_only_has_no_distance(pair: tuple[Path, Path]) -> None:
    with netCDF4.Dataset(pair[1], "a") as dataset:
        dataset["precip"][0, 0, 29, 39] = np.ma.masked
    found = compare_outputs(*pair)
    assert not found.identical and math.isnan(found.max_abs_difference_mm_h)


def test_units_shapes_and_names_are_compared(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a.nc", rate_field())
    for name, other, text in (
        ("units.nc", rate_field(units="kg m-2 s-1"), "'rain': units mm h-1 against kg m-2 s-1"),
        ("shape.nc", rate_field(3, 5), "dimensions"),
        ("name.nc", rate_field(variable="pr"), "'pr' is in name.nc only"),
    ):
        found = compare_outputs(a, write_output(tmp_path / name, other))
        assert not found.identical and any(text in line for line in found.differences)
        assert math.isnan(found.max_abs_difference_mm_h)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_attributes_come_back(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("zarr")
    attributes = read_attributes(write_output(tmp_path / f"a{suffix}", amount_field()))
    assert {name: attributes[name] for name in PROVENANCE} == PROVENANCE
    assert attributes["wdm_accumulation_h"] == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a.nc", rate_field())
    (tmp_path / "text.nc").write_text("no NetCDF")
    for name in ("text.nc", "none.nc"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read"):
            compare_outputs(a, tmp_path / name)
    pytest.importorskip("zarr")
    with pytest.raises(InputError, match=r"none.zarr: cannot be read"):
        compare_outputs(a, tmp_path / "none.zarr")
