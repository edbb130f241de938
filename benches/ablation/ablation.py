"""Ablations and learned baselines: trained alike for the same time, scored on the same tiles.

Each variant of a group differs from the defaults of `wdm-export train` in the options given here.
It is trained, exported and evaluated with the same sampler by the commands that users have, then
its scores are kept beside its run: what is there is not done again, and a run that was interrupted
continues. Prints a table in Markdown for each group, of what has been scored so far.

Minutes are of computing, so nothing else should run. Variants whose steps cost the same can be
given as many steps instead, which a busy machine does not change. Choose days to score on that are
not in the store.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from wdm_export.checkpoint import Checkpoint

DEFAULT = "default"
Options = dict[str, str]
GROUPS: dict[str, dict[str, Options]] = {
    "model": {
        DEFAULT: {},
        "wdm1": {"--levels": "1"},
        "regression": {"--objective": "regression"},
        "pixel": {"--levels": "0"},
    },
    "tv": {
        "tv0": {"--tv-weight": "0"},
        DEFAULT: {},
        "tv1e-4": {"--tv-weight": "1e-4"},
        "tv1e-3": {"--tv-weight": "1e-3"},
    },
    "wavelet": {
        DEFAULT: {},
        "db2": {"--wavelet": "db2"},
        "bior2.2": {"--wavelet": "bior2.2"},
    },
    "width": {
        "base32": {"--base": "32"},
        DEFAULT: {},
        "base128": {"--base": "128"},
    },
    "depth": {
        "two-depths": {"--depths": "1,2"},
        DEFAULT: {},
        "one-block": {"--blocks": "1"},
        "no-attention": {"--no-attention": ""},
    },
    "crop": {
        "crop96": {"--crop": "96", "--batch": "72"},
        DEFAULT: {},
        "crop288": {"--crop": "288", "--batch": "8"},
    },
    "loss": {
        DEFAULT: {},
        "times-in-logsnr": {"--time-sampling": "logsnr"},
        "of-eps": {"--loss-target": "eps"},
        "of-x0": {"--loss-target": "x0"},
        "rain0.5": {"--rain-weight": "0.5"},
    },
    "augmentation": {
        DEFAULT: {},
        "intensity0.5": {"--intensity-spread": "0.5"},
        "no-turns": {"--no-turns": ""},
        "even-patches": {"--even-patches": ""},
    },
    "transform": {
        "offset0.01": {"--transform-offset": "0.01"},
        DEFAULT: {},
        "offset1": {"--transform-offset": "1"},
        "cube-root": {"--transform": "cube-root"},
    },
    "ema": {
        "ema.95": {"--ema-decay": "0.95"},
        "ema.98": {"--ema-decay": "0.98"},
        DEFAULT: {},
    },
    "rate": {
        "rate2e-4": {"--learning-rate": "2e-4"},
        DEFAULT: {},
        "rate1e-3": {"--learning-rate": "1e-3"},
        "linear": {"--rate-schedule": "linear"},
        "constant": {"--rate-schedule": "constant"},
    },
}
# What a variant's scores were made with.
_SETTINGS = ("minutes", "train_steps", "train_threads", "members", "sampler", "steps")
# Heading, whose score it is of "one member", the members' "mean" and "median", and its label.
SCORES = (
    ("CRPS / bicubic MAE", "mean", "CRPS / bicubic MAE"),
    ("spread/skill", "mean", "spread/skill"),
    ("PSNR of the mean [dB]", "mean", "PSNR [dB]"),
    ("SSIM", "one member", "SSIM"),
    ("CSI 1, median", "median", "CSI 1 mm/h"),
    ("CSI 5", "median", "CSI 5 mm/h"),
    ("CSI 20", "median", "CSI 20 mm/h"),
    ("2-4 km", "one member", "RAPSD 2-4 km [dB]"),
    ("4-8 km", "one member", "RAPSD 4-8 km [dB]"),
    ("8-16 km", "one member", "RAPSD 8-16 km [dB]"),
    ("16-32 km [dB]", "one member", "RAPSD 16-32 km [dB]"),
    ("speckle, dry", "one member", "speckle, dry"),
    ("speckle, heavy", "one member", "speckle, heavy"),
    ("checkerboard [dB]", "one member", "checkerboard [dB]"),
    ("over-smoothing", "one member", "over-smoothing"),
    ("p99.9 [mm/h]", "one member", "p99.9 [mm/h]"),
)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Further options go to `wdm-export evaluate`: --bbox, --engine"
    )
    parser.add_argument("store", type=Path, help="of `wdm-export prepare`")
    parser.add_argument("files", nargs="*", type=Path, help="1 km truth; none: only print")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for runs, scores")
    parser.add_argument("--group", action="append", choices=GROUPS, help="default: all")
    parser.add_argument("--only", action="append", help="a variant; default: all of the group")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each training")
    parser.add_argument("--train-steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--train-threads", type=int, help="1: two trainings at once waste less")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--sampler", default="dpm-solver-2m")
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_known_args()


def run(*command: str | Path) -> None:
    print("$ wdm-export", *command, flush=True)
    program = [sys.executable, "-c", "from wdm_export.cli import main; main()"]
    subprocess.run([*program, *map(str, command)], check=True)


def flat(options: Options) -> list[str]:
    return [word for pair in options.items() for word in pair if word]


def length(asked: argparse.Namespace) -> list[str]:
    if asked.train_steps:
        return ["--steps", str(asked.train_steps)]
    return ["--minutes", f"{asked.minutes:g}"]


def threads(asked: argparse.Namespace) -> list[str]:
    return ["--threads", str(asked.train_threads)] if asked.train_threads else []


def train(name: str, options: Options, asked: argparse.Namespace) -> Path:
    """The variant's weights, trained now unless they are there."""
    folder: Path = asked.output / name
    weights = folder / "weights.safetensors"
    if weights.exists():
        had = Checkpoint.load(weights).step
        if asked.train_steps not in (None, had):
            raise SystemExit(f"{weights}: of {had} steps; expected {asked.train_steps}.")
    else:
        begun = (folder / "checkpoint.safetensors").exists()
        # A run keeps its settings.
        how = ["--resume"] if begun else [*flat(options), *threads(asked)]
        run("train", asked.store, "-o", folder, *length(asked), *how)
    return weights


def score(name: str, options: Options, asked: argparse.Namespace, further: list[str]) -> None:
    """Train, export and evaluate a variant; its scores are written beside its run."""
    scores, report = scores_path(asked, name), asked.output / f"{name}-report"
    settings = {key: str(value) for key, value in vars(asked).items() if key in _SETTINGS}
    settings |= {"store": asked.store.name, "more": " ".join(further)}
    settings["files"] = " ".join(file.name for file in asked.files)
    if scores.exists():
        had = json.loads(scores.read_text()).get("settings", settings)  # older ones do not say
        if had != settings:
            raise SystemExit(f"{scores}: of {had}; expected {settings}. Name another folder.")
        return
    if "--objective" in options and not (asked.output / f"{DEFAULT}-bundle").exists():
        raise SystemExit(f"{name} is scored beside the members of '{DEFAULT}': score that first.")
    weights = train(name, options, asked)
    bundle, members = asked.output / f"{name}-bundle", asked.members
    against: list[str | Path] = []
    if "--objective" in options:
        # It draws nothing, so that it is no bundle: it is scored beside the default's members.
        against, members, bundle = ["--against", weights], 2, asked.output / f"{DEFAULT}-bundle"
    elif not bundle.exists():
        run("export", weights, "-o", bundle, "--name", name)
    way = ["--sampler", asked.sampler, "--steps", str(asked.steps), "--members", str(members)]
    rest = [*way, *against, "--no-rainfarm", *further]
    run("evaluate", bundle, *asked.files, *rest, "--report", report)
    with open(report / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    said = json.loads((report / "scores.json").read_text())
    found = {
        "settings": settings,
        **{key: said[key] for key in ("tiles", "files", "members", "engine", "precision")},
        "trained_steps": Checkpoint.load(weights).step,
        "minutes": None if asked.train_steps else asked.minutes,
        "scores": {
            heading: value(rows, f"regression {name}" if against else whose, label)
            for heading, whose, label in SCORES
        },
    }
    scores.write_text(json.dumps(found, indent=1) + "\n")


def scores_path(asked: argparse.Namespace, name: str) -> Path:
    return asked.output / f"{name}.json"


def value(rows: list[dict[str, str]], whose: str, label: str) -> float | None:
    """A forecast's score; None where it has none."""
    found = [
        row["value"] for row in rows if row["forecast"].startswith(whose) and row["score"] == label
    ]
    if not found:
        raise SystemExit(f"The evaluation has no score '{label}' of '{whose}'.")
    return float(found[0]) if found[0] else None


def table(group: str, asked: argparse.Namespace) -> str:
    """Markdown: a variant a row, of those that are scored."""
    lines: list[str] = []
    for name in GROUPS[group]:
        if not scores_path(asked, name).exists():
            continue
        found = json.loads(scores_path(asked, name).read_text())
        if not lines:
            headings = ["variant", "steps", *found["scores"]]
            lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        cells = ["" if v is None else f"{v:.3g}" for v in found["scores"].values()]
        lines.append(f"| {' | '.join([name, str(found['trained_steps']), *cells])} |")
    return "\n".join([f"**{group}**", "", *lines, ""])


def main() -> None:
    asked, further = arguments()
    asked.output.mkdir(parents=True, exist_ok=True)
    groups = asked.group or list(GROUPS)
    unknown = set(asked.only or ()) - {name for group in groups for name in GROUPS[group]}
    if unknown:
        raise SystemExit(f"--only got {', '.join(sorted(unknown))}, which no group asked for has.")
    for group in groups:
        for name, options in GROUPS[group].items():
            if asked.files and (not asked.only or name in asked.only):
                score(name, options, asked, further)
    for group in groups:
        print(table(group, asked))


if __name__ == "__main__":
    main()
