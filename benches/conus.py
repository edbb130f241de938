"""A whole MRMS CONUS frame: time, tiles, memory, and how they grow with the domain.

Averages one 1 km frame to 10 km and runs `wdm-run infer` on quarters of the domain and on all of
it, each in a process of its own, so that peak memory is that run's. Prints wall time, tiles, share
that needs none, peak memory and km2/s, and time and memory per wet tile side by side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wdm_export.coarsen import coarsen_file
from wdm_runtime.io import read_field
from wdm_runtime.machine import machine

# Each keeps the whole's north-west corner: rows and columns as shares of the domain.
DOMAINS = (("1/4", 0.5, 0.5), ("1/2", 0.5, 1.0), ("1/1", 1.0, 1.0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fine", type=Path, help="a 1 km frame, as MRMS GRIB2")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: the default; memory needs but few")
    parser.add_argument("--stats", default="none", help="as for wdm-run infer")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--only", choices=[name for name, *_ in DOMAINS], help="one domain")
    parser.add_argument("--max-memory", help="as for wdm-run infer")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    return parser.parse_args()


def box(coarse: Path, rows: float, columns: float) -> str:
    """The domain's west, south, east and north for --bbox."""
    grid = read_field(coarse).grid
    last_row, last_column = round(rows * grid.y.size) - 1, round(columns * grid.x.size) - 1
    return ",".join(
        f"{v:.4f}" for v in (grid.x[0], grid.y[last_row], grid.x[last_column], grid.y[0])
    )


def infer(coarse: Path, folder: Path, bbox: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one domain in a new process and return its latency report."""
    report = folder / "report.json"
    command = [sys.executable, "-c", "from wdm_runtime.cli import main; main()", "infer"]
    command += [str(coarse), "-o", str(folder / "out.nc"), "--overwrite", "--no-pixel-probe", "-q"]
    command += ["--members", str(options.members), "--stats", options.stats, f"--bbox={bbox}"]
    command += ["--engine", options.engine, "--report", str(report)]
    if options.steps:
        command += ["--steps", str(options.steps)]
    if options.bundle:
        command += ["--bundle", str(options.bundle)]
    if options.max_memory:
        command += ["--max-memory", options.max_memory]
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def show(results: dict[str, dict[str, Any]], console: Console) -> None:
    """One row a domain; the last column is linear growth if it stays the same."""
    table = Table("domain", "wall [s]", "tiles", "untiled", "peak [MiB]", "km2/s", "ms a tile")
    for name, report in results.items():
        evaluations = report["tiles_total"]
        table.add_row(
            name,
            f"{report['wall_s']:.1f}",
            str(evaluations // (report["steps"] * report["members"])),
            f"{report['untiled_share']:.0%}",
            f"{report['peak_rss_mib']:.0f}",
            f"{report['km2_per_s']:,.0f}",
            f"{1e3 * report['wall_s'] / evaluations:.1f}",
        )
    console.print(table)


def main() -> None:
    options = arguments()
    console = Console()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        coarse = folder / "coarse.nc"
        coarsen_file(options.fine, coarse)
        for domain, rows, columns in DOMAINS:
            if options.only in (None, domain):
                results[domain] = infer(coarse, folder, box(coarse, rows, columns), options)
    last = results[list(results)[-1]]
    console.print(
        f"{options.fine.name}; {last['engine']} {last['precision']}, {last['device']}; "
        f"{last['members']} members, {last['steps']} steps; {machine()}; {last['versions']}",
        highlight=False,
    )
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
