"""The model card: a bundle's manifest as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from wdm_export.config import TrainConfig
from wdm_export.score_table import definitions, digits, truth_line
from wdm_export.sources import day_of
from wdm_runtime.diffusion import LOGSNR
from wdm_runtime.manifest import Manifest
from wdm_runtime.precision import PrecisionCheck
from wdm_runtime.presets import Preset

# Of a training's settings, those that a card names only where they are something else.
_USUALLY_DEFAULT = (
    *("objective", "time_sampling", "loss_target", "intensity_spread", "even_days", "turns"),
    *("rate_schedule", "ema_decay"),
)
_MOST_DAYS = 100  # that are named one by one


def model_card(manifest: Manifest) -> str:
    """The card's text, from the manifest alone."""
    training = manifest.training
    south, north = manifest.domain.latitudes
    lines = [
        f"# {manifest.name}",
        "",
        f"Conditional diffusion model in the {manifest.wavelet.name} wavelet domain "
        f"({manifest.wavelet.levels} levels) that refines precipitation rates by a factor of "
        f"{manifest.factor}. Method: Yi et al., arXiv 2507.01354. "
        f"Written by `wdm-export export`; licence {manifest.licence}.",
        "",
        "## Training",
        f"- {training['parameters'] / 1e6:.2f} M parameters; {training['steps']} steps in "
        f"{training['seconds'] / 60:.0f} minutes",
        *(_run_line(run) for run in training["runs"]),
        f"- {_fields_and_days(training['sources'])}",
        f"- Of rates it sees the {manifest.transform.name} of rate + "
        f"{manifest.transform.offset_mm_h:g} mm/h",
        f"- Cells of {manifest.domain.spacing_km:g} km between latitudes {south:g} and {north:g}",
        "",
        "## Limits",
        "- Trained on the storm days above and on nothing else; other climates, seasons and radar "
        "networks are extrapolation.",
        f"- Rates below {manifest.transform.dry_threshold_mm_h} mm/h are no rain: what is drawn "
        "there is set to 0 or, by default, gathered in other cells of its block.",
        "- The pixel graphs are untrained: they serve the latency comparison only.",
        "- No graph has been run on a GPU by the project.",
        "",
        "## Reduced precision",
        *_precision_lines(manifest.precision_check),
        "",
        "## Scores",
    ]
    if not manifest.scores:
        return "\n".join([*lines, "Not evaluated yet: run `wdm-export evaluate`.", ""])
    scores = manifest.scores
    lines += [f"{scores['tiles']} tiles of {', '.join(scores['files'])}; `{scores['command']}`", ""]
    scale, grid = scores.get("noise_scale", 1.0), scores.get("time_grid", LOGSNR)
    way = Preset(scores["sampler"], scores["steps"], scale, grid)
    drawn = any(scores.get("intervals", {}).values())
    brackets = f" In brackets: 95 % of {scores['bootstrap_draws']} bootstrap draws of the tiles."
    lines += [
        f"On {scores['engine']} in {scores['precision']}: {way}.{brackets if drawn else ''} What "
        "each score is stands below the table.",
        "",
    ]
    if scores.get("notes"):
        lines += [*(f"- {note}" for note in scores["notes"]), ""]
    names = [row["forecast"] for row in scores["rows"]]
    lines += ["| " + " | ".join(("score", *names)) + " |", "|" + "---|" * (len(names) + 1)]
    for label in scores["rows"][0]:
        if label != "forecast":
            cells = [
                _cell(row[label], scores.get("intervals", {}).get(row["forecast"], {}).get(label))
                for row in scores["rows"]
            ]
            lines.append("| " + " | ".join((label, *cells)) + " |")
    truth = [truth_line(scores["truth"])] if scores.get("truth") else []  # not in older manifests
    return "\n".join([*lines, "", *(f"- {line}" for line in (*definitions(names), *truth)), ""])


def _fields_and_days(sources: Sequence[dict[str, Any]]) -> str:
    days: Counter[str] = Counter()
    for source in sources:
        days[day_of(source)] += source.get("fields", 1)
    ordered = sorted(days)
    named = ", ".join(f"{day} ({days[day]})" for day in ordered)
    if len(days) > _MOST_DAYS:
        named = f"{ordered[0]} to {ordered[-1]}"
    scales: Counter[int] = Counter()
    for source in sources:
        if "augment_scale" in source:
            scales[source["augment_scale"]] += source.get("fields", 1)
    means = "".join(
        f", of {count} also their means of {n} x {n} cells" for n, count in sorted(scales.items())
    )
    return f"{days.total()} fields of {len(days)} storm days{means}: {named}"


def _run_line(run: dict[str, Any]) -> str:
    settings = run["training"]
    line = (
        f"- {run['step']} steps of {settings['batch']} crops of {settings['crop_px']} x "
        f"{settings['crop_px']} cells in {run['seconds'] / 60:.0f} minutes; learning rate "
        f"{settings['learning_rate']:g}, total-variation weight {settings['tv_weight']:g}, "
        f"rain weight {settings.get('rain_weight', 0):g}, seed "
        f"{settings['seed']}"
    )
    for name in _USUALLY_DEFAULT:
        usual = getattr(TrainConfig, name)
        if settings.get(name, usual) != usual:
            line += f", {name.replace('_', ' ')} {settings[name]}"
    if not run["curve"]:
        return f"{line}; no loss curve is kept"
    points = ", ".join(f"{loss:.3f} ({step})" for step, loss in run["curve"])
    return f"{line}. Mean loss up to a step: {points}"


def _precision_lines(check: PrecisionCheck | None) -> list[str]:
    if check is None:
        return ["Not measured yet: run `wdm-export check` with files of real rain."]
    peak, norm = check.ranges.largest[0], check.ranges.norm_input
    lines = [
        f"The {check.tiles} wettest tiles of {', '.join(check.files)}, {check.members} members, "
        f"{check.way}; `{check.command}`",
        "",
        f"- fp16: the largest of {check.ranges.tensors} tensors reaches {peak.largest:.1f} "
        f"({peak.op} of {peak.part}), of norms' inputs {norm.largest:.1f}; fp16 holds 65504",
    ]
    lines += [
        f"- {run.precision} against fp32 with the same noise ({run.engine}): mean difference "
        f"{run.mean_difference_mm_h:.2g}, largest {run.max_difference_mm_h:.2g} mm/h at a mean "
        f"rate of {run.mean_rate_mm_h:.2f} mm/h, {run.spread_share:.2%} of the spread between "
        f"members; spectrum within {max(map(abs, run.spectrum_db.values()), default=0):.2g} dB"
        for run in check.runs
    ]
    return lines + [f"- {name}: not measured. {why}" for name, why in check.not_measured.items()]


def _cell(value: float | None, limits: Sequence[float] | None) -> str:
    """A score as the table shows it; one that is undefined or does not apply is a dash."""
    return digits(value) + (f" ({', '.join(map(digits, limits))})" if limits else "")
