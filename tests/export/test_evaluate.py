"""Tiles, coarse input and the table, with downscalers whose scores are known."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import IO

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from wdm_export.evaluate import TilePlace, coarsen, evaluate
from wdm_export.evaluation import Evaluation
from wdm_export.gallery import Gallery
from wdm_export.score_table import ScoreTable
from wdm_runtime.errors import EngineError, InputError
from wdm_runtime.field import PrecipField, Source
from wdm_runtime.grid import Grid, interpolate
from wdm_runtime.presets import FAST, PRESETS, Preset
from wdm_runtime.skill import find_tiles

TILE, FACTOR = 64, 10


@dataclass(frozen=True)
class Sample:
    time_index: int
    member: int
    rate_mm_h: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Oracle:
    """Returns the truth of a valid time, north first, plus ``spread`` times the member's number.

    Cells that are not wanted hold NaN, as they may.
    """

    truths: dict[str, npt.NDArray[np.float32]]
    spread: float = 0.0
    factor: int = FACTOR

    def downscale(
        self,
        field: PrecipField,
        *,
        members: int,
        seed: int,
        preset: Preset = PRESETS[FAST],
        consistency: str = "none",
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> Iterator[Sample]:
        assert field.grid.north_first and len(field.valid_times) == 1
        rate = self.truths[field.valid_times[0]]
        rate = rate[: field.grid.shape[0] * FACTOR, : field.grid.shape[1] * FACTOR]
        assert wanted is not None and wanted.shape == rate.shape
        for member in range(members):
            yield Sample(0, member, np.where(wanted, rate + self.spread * member, np.nan))


class Bicubic(Oracle):
    """Downscales by the baseline itself."""

    def downscale(self, field: PrecipField, *, members: int, **_: object) -> Iterator[Sample]:
        for member in range(members):
            fine = interpolate(field.rate_mm_h[0], FACTOR)
            yield Sample(0, member, np.where(fine < 0.1, np.float32(0), fine))


def showers(seed: int, shape: tuple[int, int] = (135, 207)) -> npt.NDArray[np.float32]:
    """Rain in the western 130 columns, dry ground east of it."""
    rng = np.random.default_rng(seed)
    rate = np.kron(rng.gamma(0.4, 4, (27, 42)), np.ones((5, 5)))[: shape[0], : shape[1]]
    rate[:, 130:] = 0
    return rate.astype(np.float32)


def field_of(*frames: npt.NDArray[np.float32]) -> PrecipField:
    rows, columns = frames[0].shape
    y, x = 50 - 0.01 * np.arange(float(rows)), 5 + 0.01 * np.arange(float(columns))
    grid = Grid(y, x)
    return PrecipField(
        np.stack(frames), grid, tuple(f"2022-08-09T{h:02}:00:00" for h in range(len(frames)))
    )


def truths_of(field: PrecipField) -> dict[str, npt.NDArray[np.float32]]:
    return dict(zip(field.valid_times, field.rate_mm_h, strict=True))


def test_tiles_need_rain_and_hardly_a_missing_cell() -> None:
    fine = np.zeros((250, 300), dtype=np.float32)
    fine[:100, :100] = 0.1
    fine[100:200, 100:105] = 5.0  # exactly 5 %: not more
    fine[100:200, :6] = 5.0
    fine[0:1, 100:200] = np.nan
    fine[:100, 200:300] = 3.0
    fine[0, 200:300] = np.nan  # exactly 1 %: not less
    fine[200:] = 9.0  # fills no tile
    assert find_tiles(fine, 100) == [(0, 0), (100, 0)]


def test_coarsen_keeps_the_mass_and_refining_gives_the_grid_back() -> None:
    fine = field_of(showers(0, (130, 200)), showers(1, (130, 200)))
    coarse = coarsen(fine, FACTOR)
    assert coarse.rate_mm_h.shape == (2, 13, 20) and coarse.rate_mm_h.dtype == np.float32
    assert coarse.rate_mm_h.mean() == pytest.approx(fine.rate_mm_h.mean(), rel=1e-5)
    assert coarse.valid_times == fine.valid_times
    again = coarse.grid.refined(FACTOR)
    assert again.y == pytest.approx(fine.grid.y) and again.x == pytest.approx(fine.grid.x)


def test_coarsen_leaves_partial_blocks_out_and_averages_what_is_valid() -> None:
    fine = field_of(np.ones((135, 207), dtype=np.float32))
    fine.rate_mm_h[0, :10, :10] = np.nan
    fine.rate_mm_h[0, :10, 10:15] = np.nan
    fine.rate_mm_h[0, 130:] = fine.rate_mm_h[0, :, 200:] = 99
    coarse = coarsen(fine, FACTOR)
    assert coarse.grid.shape == (13, 20)
    assert np.isnan(coarse.rate_mm_h[0, 0, 0])
    assert np.unique(coarse.rate_mm_h[0].ravel()[1:]).tolist() == [1.0]
    with pytest.raises(InputError, match="at least 10"):
        coarsen(field_of(np.ones((9, 40), dtype=np.float32)), FACTOR)


def test_an_oracle_is_perfect_on_every_tile_of_every_time() -> None:
    dry = np.zeros((135, 207), dtype=np.float32)
    field = field_of(showers(0), dry, showers(1))
    lines: list[str] = []
    result = evaluate(
        Oracle(truths_of(field)), [field], members=3, seed=1, tile_px=TILE, on_progress=lines.append
    )
    # 135 x 207 holds 2 x 3 tiles of 64; the eastern column of them is dry or nearly so.
    firsts = [(0, 0), (0, 64), (64, 0), (64, 64)]
    assert result.places == tuple(
        TilePlace(time, *first)
        for time in ("2022-08-09T00:00:00", "2022-08-09T02:00:00")
        for first in firsts
    )
    assert result.cells == 8 * TILE**2
    names = ["bicubic", "one member", "median of 3 members", "mean of 3 members"]
    assert [row.name for row in result.rows] == names
    for row in result.rows[1:]:
        assert row.metrics.mae_mm_h == 0 and row.metrics.csi["5"] == 1
        assert row.metrics.percentile_error_mm_h == {"95": 0, "99": 0, "99.9": 0}
        assert row.metrics.consistency_max_mm_h < 1e-5
        assert row.crps_over_bicubic_mae == 0
    assert result.rows[0].metrics.mae_mm_h > 0.1
    assert len(lines) == 6 and lines[2] == "2022-08-09T00:00:00: member 3 of 3, 4 tiles"


def test_the_ensemble_row_has_the_ensemble_metrics() -> None:
    field = field_of(showers(0))
    result = evaluate(Oracle(truths_of(field), spread=1.0), [field], 3, seed=1, tile_px=TILE)
    base, one, median, mean = result.rows
    assert median.metrics.mae_mm_h == pytest.approx(1, rel=1e-5) and median.ensemble is None
    assert one.metrics.mae_mm_h == 0 and one.ensemble is None and base.ensemble is None
    assert mean.metrics.mae_mm_h == pytest.approx(1, rel=1e-5)
    assert mean.ensemble is not None and mean.ensemble_tiles is not None
    # Truth 0, members 0, 1, 2: mean error 1, pairs 4 / 6, variance 1, error of the mean 1.
    assert mean.ensemble.fair_crps_mm_h == pytest.approx(1 - 4 / 6, rel=1e-5)
    assert mean.ensemble.spread_skill == pytest.approx(np.sqrt(4 / 3), rel=1e-5)
    assert sum(mean.ensemble.rank_histogram[2:]) == 0
    assert mean.crps_over_bicubic_mae == pytest.approx((1 / 3) / base.metrics.mae_mm_h, rel=1e-5)
    assert mean.ensemble_tiles.crps.shape == mean.tiles.ssim.shape == (4,)


def test_a_downscaler_that_is_bicubic_scores_as_bicubic() -> None:
    field = field_of(showers(0))
    result = evaluate(Bicubic({}), [field], 1, seed=0, tile_px=TILE)
    base, one = result.rows
    assert repr(base.metrics) == repr(one.metrics)  # == would fail on scores that are NaN
    assert one.crps_over_bicubic_mae == 1


@pytest.mark.parametrize("edge", [0, 8, 62])
def test_tiles_that_scores_cannot_be_had_of_are_refused(edge: int) -> None:
    with pytest.raises(InputError, match=f"tiles of {edge} cells; expected a multiple of 4"):
        evaluate(Bicubic({}), [field_of(showers(0))], 1, seed=0, tile_px=edge)


def test_south_first_fields_give_the_same_tiles_and_scores() -> None:
    north = field_of(showers(0))
    flipped = replace(north.grid, y=north.grid.y[::-1])
    south = replace(north, rate_mm_h=north.rate_mm_h[:, ::-1], grid=flipped)
    oracle = Oracle(truths_of(north), spread=0.5)
    a, b = (evaluate(oracle, [field], 2, seed=0, tile_px=TILE) for field in (north, south))
    assert a.places == b.places and a.to_dict() == b.to_dict()


def test_missing_truth_is_excluded_for_all_forecasts_alike() -> None:
    rate = showers(0)
    field = field_of(rate.copy())
    field.rate_mm_h[0, 3, 5:25] = np.nan  # 20 cells of one tile, no whole block
    result = evaluate(Oracle({field.valid_times[0]: rate}), [field], 2, seed=0, tile_px=TILE)
    assert result.cells == 4 * TILE**2 - 20
    assert {int(row.tiles.cells.sum()) for row in result.rows} == {result.cells}
    assert result.rows[1].metrics.mae_mm_h == 0


def test_cells_that_read_a_missing_coarse_cell_are_missing() -> None:
    rate = showers(0)
    field = field_of(rate.copy())
    field.rate_mm_h[0, 60:70, 140:150] = np.nan  # a block east of the wet tiles
    reached = np.isnan(interpolate(coarsen(field, FACTOR).rate_mm_h[0], FACTOR))
    truth = {field.valid_times[0]: rate}
    for tile_px, tiles in ((TILE, 2), (2 * TILE, 1)):
        # The same cells are more than 1 % of two small tiles, and less of a large one.
        lost = reached[:128, :128].sum()
        assert 2 * 0.01 * TILE**2 < lost < 0.01 * (2 * TILE) ** 2
        result = evaluate(Oracle(truth), [field], 1, seed=0, tile_px=tile_px)
        assert len(result.places) == tiles
        assert result.cells == tiles * tile_px**2 - (lost if tiles == 1 else 0)


def test_a_downscaler_that_leaves_cells_empty_is_refused() -> None:
    field = field_of(showers(0))
    holes = field.rate_mm_h[0].copy()
    holes[70, 7:9] = np.nan
    with pytest.raises(EngineError, match=r"2 cells of the tile at \(64, 0\)"):
        evaluate(Oracle({field.valid_times[0]: holes}), [field], 1, seed=0, tile_px=TILE)


class Damaged:
    """Frames of which one cannot be decoded."""

    def __init__(self, rates: npt.NDArray[np.float32], damaged: int) -> None:
        self.rates, self.damaged, self.shape = rates, damaged, rates.shape

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        if index == self.damaged:
            raise InputError("damaged.nc: cannot be read; expected rates. Fetch it again.")
        return self.rates[index]


def test_a_file_whose_rates_cannot_be_read_is_left_out_whole() -> None:
    first, second, third = (field_of(showers(n), showers(n + 1)) for n in (0, 3, 6))
    times = tuple(f"2022-08-10T{hour:02}:00:00" for hour in range(6))
    first, second, third = (
        replace(field, valid_times=times[2 * n : 2 * n + 2])
        for n, field in enumerate((first, second, third))
    )
    damaged = replace(
        second, rate_mm_h=Damaged(second.rate_mm_h, 1), source=Source(path="damaged.nc")
    )
    oracle = Oracle(truths_of(first) | truths_of(second) | truths_of(third), spread=0.5)
    told: list[tuple[str, str]] = []

    def on_unreadable(error: InputError, path: str) -> None:
        told.append((str(error), path))

    def score(*fields: PrecipField, lax: bool = False) -> Evaluation:
        with Gallery() as gallery:
            found = evaluate(
                oracle, fields, 3, seed=2, tile_px=TILE, gallery=gallery,
                on_unreadable=on_unreadable if lax else None,
            )  # fmt: skip
            kept = gallery.get(len(found.places) - 1)
            assert np.array_equal(kept["truth"], tile_of(found, third if lax else fields[-1]))
        return found

    with pytest.raises(InputError, match="damaged"):
        score(first, damaged, third)
    found, expected = score(first, damaged, third, lax=True), score(first, third)
    assert found.to_dict() == expected.to_dict() and found.places == expected.places
    assert found.tiles_csv() == expected.tiles_csv() and found.to_csv() == expected.to_csv()
    assert len(told) == 1 and told[0][0].startswith("damaged.nc") and told[0][1] == "damaged.nc"


def tile_of(found: Evaluation, field: PrecipField) -> npt.NDArray[np.float32]:
    place = found.places[-1]
    rates = field.frame(field.valid_times.index(place.valid_time))
    return rates[place.row : place.row + TILE, place.column : place.column + TILE]


def test_rates_wait_on_disk_for_the_percentiles_and_are_gone_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = []

    def kept() -> IO[bytes]:
        files.append(tempfile.TemporaryFile())  # noqa: SIM115
        return files[-1]

    monkeypatch.setattr("wdm_export.scoreboard.tempfile", SimpleNamespace(TemporaryFile=kept))
    field = field_of(showers(0))
    oracle = Oracle(truths_of(field), spread=0.3)
    found = evaluate(oracle, [field], 2, seed=0, tile_px=TILE)
    assert len(files) == 1 + len(found.rows) and all(file.closed for file in files)
    rates = field.frame(0)[:, :128][:128].ravel() + np.float32(0.3) * np.float32(0.5)
    expected = np.percentile(rates, 99) - np.percentile(field.frame(0)[:128, :128], 99)
    assert found.rows[-1].metrics.percentile_error_mm_h["99"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="no tile"):
        evaluate(oracle, [field_of(np.zeros((135, 207), np.float32))], 2, seed=0, tile_px=TILE)
    assert all(file.closed for file in files)


def test_unusable_input_is_refused() -> None:
    field = field_of(np.zeros((135, 207), dtype=np.float32))
    with pytest.raises(InputError, match=r"no tile to score.*larger or wetter fields"):
        evaluate(Oracle({}), [field], 1, seed=0, tile_px=TILE)
    disc = showers(0)
    y, x = np.mgrid[: disc.shape[0], : disc.shape[1]]
    disc[np.hypot(y - 64, x - 64) > 70] = np.nan  # the corners of every tile, as a radar's
    says = r"no tile to score.*4 places have rain enough, but missing.*coarsen FINE .*--crop ROW,"
    with pytest.raises(InputError, match=says):
        evaluate(Oracle({}), [field_of(disc)], 1, seed=0, tile_px=TILE)
    with pytest.raises(InputError, match="expected at least 1"):
        evaluate(Oracle({}), [field], 0, seed=0)


def test_the_result_is_strict_json_with_flat_rows_and_the_table_has_every_forecast() -> None:
    field = field_of(showers(0))
    result = evaluate(
        Oracle(truths_of(field)), [field], 2, seed=4, way=Preset(steps=9), tile_px=TILE
    )
    content = result.to_dict()
    text = json.dumps(content, allow_nan=False)  # a perfect PSNR is infinite
    assert content["tiles"] == 4 and content["seed"] == 4 and content["steps"] == 9
    assert len({tuple(row) for row in content["rows"]}) == 1
    assert not any(isinstance(v, (dict, list)) for row in content["rows"] for v in row.values())
    assert json.loads(text)["metrics"]["mean of 2 members"]["rank_histogram"]
    rates, edge = field.frame(0), TILE
    tiles = [rates[p.row : p.row + edge, p.column : p.column + edge] for p in result.places]
    assert content["truth"]["p99.9 [mm/h]"] == pytest.approx(np.percentile(tiles, 99.9))
    assert content["truth"]["wet fraction"] == pytest.approx(np.mean(np.array(tiles) >= 0.1))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ScoreTable(result))
    shown = console.export_text()
    assert "…" not in shown
    for row in result.rows:
        assert row.name in shown.replace("\n", " ") or row.name.split(" of ")[0] in shown
        assert shown.count(f"{row.metrics.mae_mm_h:.3f}") > 0
    for word in ("PSNR", "CSI 20 mm/h", "RAPSD 8-16 km", "spread/skill:", "consistency:"):
        assert word in shown
