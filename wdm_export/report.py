"""The report of an evaluation: one HTML file with everything inside, CSV and JSON beside it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from wdm_export import report_figures as figures
from wdm_export.evaluation import HEADLINE, Evaluation, ForecastRow
from wdm_export.gallery import Gallery
from wdm_export.score_table import (
    bootstrap_line,
    definitions,
    digits,
    shown,
    truth_line,
)
from wdm_runtime.errors import OutputError
from wdm_runtime.io.atomic import check_apart, check_destination, write_text
from wdm_runtime.records import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_NAME, SCORES_NAME, TILES_NAME = "report.html", "scores.csv", "tiles.csv"
SPECTRA_NAME, JSON_NAME = "spectra.csv", "scores.json"
_NAMES = (SCORES_NAME, TILES_NAME, SPECTRA_NAME, JSON_NAME, REPORT_NAME)
_MAP_DPI = 110
_PAGE = Path(__file__).with_name("report.html")
# Which way is better, by the beginning of a label; the rest is best at 0.
_HIGHER = ("PSNR", "SSIM", "CSI", "POD", "FSS")
_ONE = ("bias", "spread/skill", "total", "speckle")


def make_folder(folder: Path, others: Iterable[Path | None] = ()) -> None:
    """Make the report's folder before hours are spent on its contents.

    Parameters
    ----------
    folder
        Made if it is not there, with those above it.
    others
        What the command reads: a report is not written into a folder among it.

    Raises
    ------
    OutputError
        It cannot be made, or a file of the report not written there.
    """
    files = [folder / name for name in _NAMES]
    others = tuple(others)
    for file in files:
        check_apart(file, others)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made ({error.strerror}). Choose another folder with --report."
        ) from error
    for file in files:
        check_destination(file, overwrite=True)


def write_report(folder: Path, evaluation: Evaluation, gallery: Gallery, command: str) -> None:
    """Write ``report.html``, ``scores.csv``, ``tiles.csv``, ``spectra.csv`` and ``scores.json``.

    Parameters
    ----------
    folder
        An existing folder; files of these names are replaced.
    evaluation, gallery
        The scores, and the tiles' fields that were kept while they were computed.
    command
        The command line, shown in the report.
    """
    write_text(folder / SCORES_NAME, evaluation.to_csv())
    write_text(folder / TILES_NAME, evaluation.tiles_csv())
    write_text(folder / SPECTRA_NAME, evaluation.spectra_csv())
    write_text(folder / JSON_NAME, to_json(evaluation.to_dict()))
    write_text(folder / REPORT_NAME, page(evaluation, gallery, command))


def page(evaluation: Evaluation, gallery: Gallery, command: str) -> str:
    """The report's HTML."""
    look = figures.styles(evaluation.rows)
    charts = [
        ("Spectra", figures.spectra(evaluation, look), _SPECTRA),
        ("Thresholds and intensities", figures.thresholds(evaluation, look), _THRESHOLDS),
    ]
    if figures.of_ensembles(evaluation.rows):
        charts += [
            ("Reliability", figures.reliability(evaluation.rows, look), _RELIABILITY),
            ("Ranks", figures.ranks(evaluation.rows, look), _RANKS),
            ("Spread and skill", figures.spread_skill(evaluation.rows, look), _SPREAD),
        ]
    model = evaluation.rows[-1]
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(str(evaluation.settings.get("bundle", "Evaluation"))),
        facts=_facts(evaluation),
        command=html.escape(command),
        cards=_cards(model, evaluation),
        tiles="".join(_tile(evaluation, gallery, *chosen) for chosen in _chosen(evaluation)),
        charts="".join(_chart(*chart) for chart in charts),
        main=_table(evaluation, list(HEADLINE)),
        full=_table(evaluation, list(filter(shown, model.labelled()))),
        bootstrap=html.escape(bootstrap_line(evaluation)),
        truth=html.escape(truth_line(evaluation.truth)),
        definitions="".join(
            f"<li><b>{html.escape(name)}</b>{html.escape(':' + text)}</li>"
            for name, _, text in (
                line.partition(":") for line in definitions([row.name for row in evaluation.rows])
            )
        ),
    )


_SPECTRA = (
    "Mean over the tiles of the radially averaged power of z = log10(rate + 0.1) + 1; the bands of "
    "the table are shaded in turn. A mean of members is smoother than any of them by design."
)
_THRESHOLDS = (
    "Pooled over all cells. Beyond 50 mm/h there are few events: see the intervals; a score "
    "without one rests on a tile or two."
)
_RELIABILITY = (
    "Points on the diagonal: of the cells given a probability, that share had the event. Dotted: "
    f"how often it happens at all. Probabilities given to under {figures.LEAST_CELLS} cells are "
    "left out."
)
_RANKS = (
    "Flat if the truth might be one more member; high ends say that members are too alike. Cells "
    "in which all members are the truth, mostly dry ones, are left out."
)
_SPREAD = "On the diagonal the members differ from each other as the truth does from their mean."


def _facts(evaluation: Evaluation) -> str:
    settings = {k: v for k, v in evaluation.settings.items() if v is not None and k != "bundle"}
    facts = {"tiles": len(evaluation.places), "cells": f"{evaluation.cells:,}", **settings}
    return "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{html.escape(_words(value))}</dd>"
        "</div>"
        for name, value in facts.items()
    )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _cards(model: ForecastRow, evaluation: Evaluation) -> str:
    """The few numbers to see first: those of the ensemble, and of a member's small scales."""
    member = next(row for row in evaluation.rows if row.name == "one member")
    shown_of = (
        ("CRPS / bicubic MAE", model),
        ("spread/skill", model),
        ("CSI 5 mm/h", model),
        ("RAPSD 2-4 km [dB]", member),
    )
    cards = ""
    for label, row in shown_of:
        value, limits = row.labelled()[label], evaluation.intervals.get(row.name, {})
        if value is not None:
            cards += (
                f'<div class="card"><b>{digits(value)}</b><span>{html.escape(label)}</span>'
                f"<small>{html.escape(row.name)} {_limits(limits.get(label))}</small></div>"
            )
    return cards


def _chosen(evaluation: Evaluation) -> list[tuple[str, int, float]]:
    """Best, median and worst tile by the model's CRPS over bicubic's MAE, each tile once."""
    model = evaluation.rows[-1]
    reference = evaluation.reference.tiles
    ensemble = model.ensemble_tiles
    crps = model.tiles.absolute_error if ensemble is None else ensemble.crps
    ratio = crps / np.maximum(reference.absolute_error, 1e-9)
    order = np.argsort(ratio)
    places = {"Best": 0, "Worst": len(order) - 1, "Median": len(order) // 2}
    found: dict[int, tuple[str, int, float]] = {}
    for name, place in places.items():
        tile = int(order[place])
        found.setdefault(tile, (name, tile, float(ratio[tile])))
    return sorted(found.values(), key=lambda chosen: chosen[2])


def _tile(evaluation: Evaluation, gallery: Gallery, name: str, tile: int, ratio: float) -> str:
    place = evaluation.places[tile]
    where = ""
    if all(map(math.isfinite, place.centre)):
        where = ", centre at y {:.2f}, x {:.2f}".format(*place.centre)
    caption = (
        f"{place.valid_time}, row {place.row}, column {place.column}{where}: CRPS is {ratio:.3f} "
        "of bicubic's MAE"
    )
    return _section(f"{name} tile", _png(figures.maps(gallery.get(tile))), caption)


def _chart(title: str, figure: Figure, caption: str) -> str:
    width = "wide" if figure.get_figwidth() > 8 else "half"
    return _section(title, _svg(figure), caption, width)


def _section(title: str, image: str, caption: str, kind: str = "wide") -> str:
    title, caption = html.escape(title), html.escape(caption)
    picture = f'<img src="{image}" alt="{title}">'
    body = f"<h3>{title}</h3>{picture}<figcaption>{caption}</figcaption>"
    return f'<figure class="{kind}">{body}</figure>'


def _png(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_MAP_DPI)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _svg(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def _table(evaluation: Evaluation, labels: list[str]) -> str:
    """A line for each score, a column for each forecast; the best of a line stands out."""
    head = "".join(f"<th scope=col>{html.escape(row.name)}</th>" for row in evaluation.rows)
    columns = [row.labelled() for row in evaluation.rows]
    limits = [evaluation.intervals.get(row.name, {}) for row in evaluation.rows]
    lines = []
    for label in labels:
        values = [column[label] for column in columns]
        best = _best(label, values)
        cells = "".join(
            f"<td{' class=best' if i in best else ''}>{digits(value)}"
            f"<small>{_limits(low_high.get(label))}</small></td>"
            for i, (value, low_high) in enumerate(zip(values, limits, strict=True))
        )
        lines.append(f"<tr><th scope=row>{html.escape(label)}</th>{cells}</tr>")
    head = f"<thead><tr><th scope=col>score</th>{head}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def _best(label: str, values: list[float | None]) -> set[int]:
    """The columns that show the best number; none where all show the same."""
    aim = math.inf if label.startswith(_HIGHER) else 1.0 if label.startswith(_ONE) else 0.0
    shown = {i: digits(v) for i, v in enumerate(values)}
    known = {i: float(text) for i, text in shown.items() if text != "-"}
    distance = {i: -v if aim == math.inf else abs(v - aim) for i, v in known.items()}
    least = min(distance.values(), default=0.0)
    best = {i for i, d in distance.items() if d == least}
    return best if len(best) < len(known) else set()


def _limits(low_high: tuple[float, float] | None) -> str:
    return " to ".join(map(digits, low_high)) if low_high else ""
