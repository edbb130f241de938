"""Baselines in one table, regions, bootstrap intervals, and the report that shows them."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from base64 import b64decode
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import FACTOR, TILE, Oracle, field_of, showers, truths_of

from wdm_export import report, score_table
from wdm_export.bootstrap import intervals
from wdm_export.evaluate import evaluate
from wdm_export.evaluation import HEADLINE, Evaluation
from wdm_export.gallery import Gallery
from wdm_export.methods import interpolations
from wdm_export.tiles import Region, centre_of
from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.presets import Preset

DRAWS = 60


class Noisy(Oracle):
    """The truth times a lognormal factor of its own for every member and cell."""

    def downscale(self, field, *, members, seed, **options):
        for sample in super().downscale(field, members=members, seed=seed, **options):
            rng = np.random.default_rng([seed, sample.member])
            factor = np.exp(0.4 * rng.standard_normal(sample.rate_mm_h.shape))
            yield replace(sample, rate_mm_h=(sample.rate_mm_h * factor).astype(np.float32))


def field():
    return field_of(showers(0, (270, 207)), showers(1, (270, 207)))


@pytest.fixture(scope="module")
def gallery():
    with Gallery() as kept:
        yield kept


@pytest.fixture(scope="module")
def result(gallery: Gallery) -> Evaluation:
    """Four members of the noisy truth and three interpolations, on 16 tiles."""
    found = evaluate(
        Noisy(truths_of(field())), [field()], 4, seed=2, tile_px=TILE,
        baselines=interpolations(FACTOR), gallery=gallery, bootstrap_draws=DRAWS,
    )  # fmt: skip
    return replace(found, settings={"bundle": "a <b>", **found.settings})


# --- one table -----------------------------------------------------------------------------------


def test_all_forecasts_are_scored_on_the_same_cells(result: Evaluation) -> None:
    names = [row.name for row in result.rows]
    drawn = ["one member", "median of 4 members", "mean of 4 members"]
    assert names == ["nearest cell", "bilinear", "bicubic", "conservative bicubic", *drawn]
    assert {int(row.tiles.cells.sum()) for row in result.rows} == {result.cells}
    ratios = {row.name: row.crps_over_bicubic_mae for row in result.rows}
    assert ratios["bicubic"] == 1 and ratios["mean of 4 members"] < ratios["one member"] < 1
    nearest = result.rows[0].metrics
    assert nearest.consistency_max_mm_h < 0.1 < result.rows[1].metrics.consistency_max_mm_h


def test_each_random_method_has_rows_of_its_own() -> None:
    from wdm_export.methods import Ensemble

    truth = Noisy(truths_of(field()))
    other = Ensemble("other", truth, Preset())
    found = evaluate(
        truth, [field()], 2, seed=2, tile_px=TILE,
        baselines=(*interpolations(FACTOR), other), bootstrap_draws=0,
    )  # fmt: skip
    named = {row.name: row for row in found.rows}
    assert "other, one member" in named and "other, mean of 2 members" in named
    for kind in ("one member", "mean of 2 members"):
        assert repr(named[kind].metrics) == repr(named[f"other, {kind}"].metrics)
    assert not any(found.intervals.values())


def test_scores_of_a_single_field_are_their_deterministic_forms(result: Evaluation) -> None:
    for row in result.rows[:5]:
        m = row.metrics
        assert m.tail_crps_mm_h["0.1"] <= m.mae_mm_h + 1e-9
        _, misses, false_alarms = row.tiles.contingency.sum(axis=0)[3]
        assert m.brier["5"] == pytest.approx((misses + false_alarms) / result.cells)
        assert m.averaged_crps_mm_h["12"] < m.averaged_crps_mm_h["4"] < m.mae_mm_h
    ensemble = result.rows[-1].ensemble
    assert ensemble is not None and ensemble.brier["5"] < result.rows[3].metrics.brier["5"]


# --- intervals -----------------------------------------------------------------------------------


def test_intervals_hold_their_score_and_narrow_with_more_tiles(result: Evaluation) -> None:
    wide = evaluate(
        Noisy(truths_of(field())), [field().at([0])], 4, seed=2, tile_px=TILE, bootstrap_draws=400
    )
    many = evaluate(
        Noisy(truths_of(field())), [field()] * 8, 4, seed=2, tile_px=TILE, bootstrap_draws=400
    )
    for label in ("CRPS [mm/h]", "CSI 5 mm/h", "SSIM", "spread/skill", "RAPSD 2-4 km [dB]"):
        (a, b), (c, d) = (e.intervals["mean of 4 members"][label] for e in (wide, many))
        assert a <= wide.rows[-1].labelled()[label] <= b
        assert d - c < 0.6 * (b - a)


def test_so_few_tiles_that_ends_would_be_single_ones_have_no_interval() -> None:
    for tiles in (3, 4):
        truth = field_of(showers(1, (40, 40 * tiles)))
        oracle = Oracle(truths_of(truth))
        found = evaluate(oracle, [truth], 1, seed=0, tile_px=40, bootstrap_draws=50)
        assert len(found.places) == tiles
        assert bool(found.intervals["bicubic"]) is (tiles == 4)
        assert ("they need 4 tiles" in score_table.bootstrap_line(found)) is (tiles == 3)


def test_a_full_disk_of_rates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    truth = field_of(showers(1))
    with pytest.raises(OutputError, match=r"cannot hold the rates.*TMPDIR"):
        evaluate(Oracle(truths_of(truth)), [truth], 1, seed=0, tile_px=40)


def test_intervals_have_the_width_of_the_standard_error() -> None:
    """Of a mean over tiles that are independent, 3.92 standard errors."""
    truths = field_of(*(showers(seed) for seed in range(12)))
    found = evaluate(
        Oracle(truths_of(truths)), [truths], 1, seed=0, tile_px=TILE, bootstrap_draws=1500
    )
    base = found.rows[0]
    low, high = found.intervals["bicubic"]["SSIM"]
    assert high - low == pytest.approx(
        3.92 * base.tiles.ssim.std() / np.sqrt(len(found.places)), rel=0.1
    )


def test_events_in_a_few_tiles_have_an_interval_and_those_in_one_have_none() -> None:
    for tiles_with_hail, known in ((1, False), (4, True)):
        rates = [np.minimum(showers(seed), 40) for seed in range(6)]  # 24 tiles of 64 cells
        for number in range(tiles_with_hail):
            rates[number][10:20, 10:20] = 120
        truths = field_of(*rates)
        found = evaluate(
            Oracle(truths_of(truths)), [truths], 1, seed=0, tile_px=TILE, bootstrap_draws=400
        )
        assert len(found.places) == 24
        assert ("bias 50 mm/h" in found.intervals["bicubic"]) is known
        assert found.rows[0].labelled()["bias 50 mm/h"] >= 0


def test_intervals_are_the_same_in_every_run_and_seeded(result: Evaluation) -> None:
    assert intervals(result.rows, DRAWS, 2) == result.intervals
    assert intervals(result.rows, DRAWS, 3) != result.intervals
    content = result.to_dict()
    assert content["bootstrap_draws"] == DRAWS and content["bootstrap_seed"] == 2
    assert set(content["intervals"]["bicubic"]) <= set(HEADLINE)


# --- regions -------------------------------------------------------------------------------------


def test_a_region_and_its_outside_share_the_tiles_and_change_none() -> None:
    whole = field()
    oracle = Oracle(truths_of(whole), spread=0.5)
    box = "5,48.5,6.5,49.5"
    parts = [
        evaluate(
            oracle, [whole], 2, seed=0, tile_px=TILE, bootstrap_draws=0,
            region=Region.parse(box, outside),
        )
        for outside in (False, True)
    ]  # fmt: skip
    everything = evaluate(oracle, [whole], 2, seed=0, tile_px=TILE, bootstrap_draws=0)
    assert 0 < len(parts[0].places) < len(everything.places)
    assert {*parts[0].places, *parts[1].places} == set(everything.places)
    assert parts[0].cells + parts[1].cells == everything.cells
    for place, ssim in zip(parts[0].places, parts[0].rows[0].tiles.ssim, strict=True):
        assert ssim == everything.rows[0].tiles.ssim[everything.places.index(place)]
        assert 48.5 <= place.centre[0] <= 49.5


def test_longitudes_come_in_either_convention_and_cross_the_dateline() -> None:
    for box in ("-125,42,-115,49", "235,42,245,49"):
        region = Region.parse(box)
        assert region and region.holds((45.0, 240.0), True) and region.holds((45.0, -120.0), True)
        assert not region.holds((45.0, 250.0), True) and not region.holds((50.0, 240.0), True)
    pacific = Region.parse("170,-10,-170,10")
    assert pacific and pacific.holds((0.0, 179.0), True) and pacific.holds((0.0, -179.0), True)
    assert not pacific.holds((0.0, 0.0), True)
    for box in ("-180,-90,180,90", "0,-90,360,90"):
        everywhere, nowhere = Region.parse(box), Region.parse(box, outside=True)
        assert everywhere and everywhere.holds((36.0, 266.0), True)
        assert nowhere and not nowhere.holds((36.0, 266.0), True)
    metres = Region.parse("0,0,1000,1000")
    assert metres and metres.holds((500.0, 360.0), False)
    assert not metres.holds((500.0, 1360.0), False)


@pytest.mark.parametrize("box", ["", "1,2,3", "a,b,c,d", "0,5,1,2", "nan,0,1,1"])
def test_a_box_that_is_none_is_refused(box: str) -> None:
    with pytest.raises(InputError, match="--bbox"):
        Region.parse(box)
    with pytest.raises(InputError, match="--outside without a box"):
        Region.parse(None, outside=True)


def test_an_empty_region_says_so() -> None:
    with pytest.raises(InputError, match="in the region"):
        evaluate(
            Oracle(truths_of(field())), [field()], 1, seed=0, tile_px=TILE,
            region=Region.parse("100,0,110,10"),
        )  # fmt: skip


def test_the_centre_is_between_the_outermost_cells() -> None:
    grid = field().grid
    assert centre_of(grid, (0, 64), 64) == pytest.approx((50 - 0.315, 5 + 0.64 + 0.315))


# --- the report ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Everything a browser would fetch or run, and the table's lines."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def folder(result: Evaluation, gallery: Gallery, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("report")
    report.write_report(target, result, gallery, "wdm-export evaluate 'a <b>' truth.nc")
    return target


def test_the_page_holds_everything_it_shows(folder: Path, result: Evaluation) -> None:
    text = (folder / report.REPORT_NAME).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in text
    assert len(page.sources) == page.tags.count("img") == 3 + 5  # three tiles, five charts
    assert all(source.startswith("data:image/") for source in page.sources)
    for source in page.sources:
        data = b64decode(source.partition("base64,")[2])
        assert data.startswith(b"\x89PNG") or b"<svg" in data[:1000]
    assert "a &lt;b&gt;" in text and "a <b>" not in text
    for word in (*(row.name for row in result.rows), "Best tile", "Worst tile", "95 % interval"):
        assert word in text
    for line in score_table.DEFINITIONS:
        head = line.partition(":")[0]
        assert (f"<li><b>{head}</b>" in text) is (head not in ("dressed bicubic", "RainFARM"))


def test_of_two_tiles_none_is_between_the_best_and_the_worst(
    result: Evaluation, gallery: Gallery
) -> None:
    two = np.arange(2)
    rows = tuple(row.redrawn(two) for row in result.rows)
    few = replace(
        result, rows=rows, places=result.places[:2], truth_spectra=result.truth_spectra[:2],
        intervals=intervals(rows, 0, 0),
    )  # fmt: skip
    text = report.page(few, gallery, "")
    assert "Best tile" in text and "Worst tile" in text and "Median tile" not in text
    assert ".." not in text.partition("No intervals")[2].partition("</p>")[0]


def test_the_best_and_worst_tiles_are(folder: Path, result: Evaluation) -> None:
    text = (folder / report.REPORT_NAME).read_text(encoding="utf-8")
    shown = [float(value) for value in re.findall(r"CRPS is ([0-9.]+) of bicubic", text)]
    crps = result.rows[-1].ensemble_tiles.crps / result.reference.tiles.absolute_error
    assert shown == pytest.approx([crps.min(), np.sort(crps)[len(crps) // 2], crps.max()], abs=6e-4)


def test_the_gallery_gives_back_what_was_put_in(result: Evaluation, gallery: Gallery) -> None:
    truth = truths_of(field())[result.places[-1].valid_time]
    place = result.places[-1]
    at = np.s_[place.row : place.row + TILE, place.column : place.column + TILE]
    kept = gallery.get(len(result.places) - 1)
    assert list(kept) == [
        "coarse input", "truth", "bicubic", "member 0", "member 1", "mean of 4",
        "probability of at least 5 mm/h",
    ]  # fmt: skip
    assert np.array_equal(kept["truth"], truth[at])
    assert set(np.unique(kept["probability of at least 5 mm/h"])) <= {0, 0.25, 0.5, 0.75, 1}
    assert gallery.get(999) == {}


def test_csv_and_json_say_what_the_table_says(folder: Path, result: Evaluation) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / report.SCORES_NAME).read_text())))
    found = {(line["forecast"], line["score"]): line for line in lines}
    for row in result.rows:
        for label, value in row.labelled().items():
            line = found[row.name, label]
            if value is None or not np.isfinite(value):
                assert line["value"] == ""
            else:
                assert float(line["value"]) == pytest.approx(value, rel=1e-5, abs=1e-12)
    crps = found["mean of 4 members", "CRPS [mm/h]"]
    assert float(crps["low"]) < float(crps["value"]) < float(crps["high"])
    tiles = list(csv.DictReader(io.StringIO((folder / report.TILES_NAME).read_text())))
    assert len(tiles) == len(result.rows) * len(result.places)
    columns = {"RAPSD 2-4 km [dB]": "rapsd_2_4_km_db", "checkerboard [dB]": "checkerboard_db"}
    for row in result.rows:
        own = [line for line in tiles if line["forecast"] == row.name]
        for label, column in {**columns, "PSNR [dB]": "psnr_db", "SSIM": "ssim"}.items():
            mean = np.mean([float(line[column]) for line in own])
            assert mean == pytest.approx(row.labelled()[label], rel=1e-4), label
        rain = sum(float(line["truth_mm_h"]) * int(line["cells"]) for line in own)
        assert rain == pytest.approx(row.tiles.total[:, 1].sum(), rel=1e-4)
    content = json.loads((folder / report.JSON_NAME).read_text())
    assert content["tiles"] == len(result.places) and len(content["rows"]) == len(result.rows)


def test_json_has_what_the_diagrams_of_ensembles_show(folder: Path, result: Evaluation) -> None:
    content = json.loads((folder / report.JSON_NAME).read_text())
    ensemble = content["metrics"]["mean of 4 members"]
    chance = np.arange(5) / 4
    for threshold, counts in ensemble["reliability"].items():
        cells, events = np.array(counts["cells"]), np.array(counts["events"])
        assert cells.sum() == content["cells"]
        brier = (cells * chance**2 - 2 * chance * events + events).sum() / cells.sum()
        assert brier == pytest.approx(ensemble["brier"][threshold], rel=1e-6)
    classes = ensemble["spread_classes"]
    cells = np.array(classes["cells"])
    known = cells > 0
    variance = np.array(classes["variance_mm2_h2"], dtype=float)[known] @ cells[known]
    row = result.rows[-1]
    assert row.ensemble_tiles is not None
    assert variance == pytest.approx(row.ensemble_tiles.variance.sum(), rel=1e-6)
    assert len(cells) == len(classes["edges_mm_h"]) + 1
    assert 0 < cells.sum() <= content["cells"]


def test_spectra_average_to_the_bands_scores(folder: Path, result: Evaluation) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / report.SPECTRA_NAME).read_text())))
    assert float(lines[-1]["wavelength_km"]) == 2 and float(lines[0]["wavelength_km"]) == TILE
    for row in result.rows:
        for low, high in ((2, 4), (4, 8)):
            ratios = [
                float(line[f"{row.name} [dB]"])
                for line in lines
                if low <= float(line["wavelength_km"]) < high
            ]
            score = row.metrics.spectrum_db[f"{low}-{high}"]
            assert np.mean(ratios) == pytest.approx(score, rel=1e-3, abs=1e-3)


def test_one_member_of_one_tile_still_has_a_report(tmp_path: Path) -> None:
    single = field_of(showers(0, (70, 70)))
    with Gallery() as kept:
        found = evaluate(Noisy(truths_of(single)), [single], 1, 0, tile_px=TILE, gallery=kept)
        report.write_report(tmp_path, found, kept, "wdm-export evaluate")
    text = (tmp_path / report.REPORT_NAME).read_text()
    assert text.count("<img") == 1 + 2 and "No intervals" in text and "nan" not in text


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        report.make_folder(tmp_path / "file" / "report")


def test_no_report_is_written_into_a_folder_that_is_read(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for folder in (bundle, bundle / "report"):
        with pytest.raises(OutputError, match=r"lies in .*bundle.*reads or writes"):
            report.make_folder(folder, [bundle])
    assert not any(bundle.iterdir())
