"""What `wdm-export check` shows of a precision check besides its limits."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from wdm_runtime.precision import PrecisionCheck, Ranges

LARGEST_SQUARE = 65504**0.5  # a kernel that squares in fp16 holds no more


def peaks_table(ranges: Ranges) -> Table:
    """The largest tensors."""
    table = Table(title=f"the largest of {ranges.tensors} fp16 tensors, computed in fp32")
    for heading in ("tensor", "made by", "part"):
        table.add_column(heading)
    table.add_column("largest", justify="right")
    for peak in ranges.largest:
        table.add_row(peak.tensor, peak.op, peak.part, f"{peak.largest:.1f}")
    return table


def remarks(check: PrecisionCheck) -> Iterator[str]:
    """Norms, then each precision in mm/h and dB, and what was not measured."""
    norm = check.ranges.norm_input
    fits = norm.largest < LARGEST_SQUARE
    verdict = "fits fp16" if fits else "does not fit fp16: kernels have to sum squares in fp32"
    yield (
        f"norms: the largest input is {norm.largest:.1f} ({norm.tensor}, {norm.part}); its square "
        f"{verdict}"
    )
    for run in check.runs:
        bands = ", ".join(f"{band} km {db:+.3f}" for band, db in run.spectrum_db.items())
        cells = ", ".join(
            f"{rate} mm/h {run.cells[rate]} ({count})" for rate, count in run.cells_fp32.items()
        )
        yield (
            f"{run.precision} ({run.engine}): mean difference {run.mean_difference_mm_h:.4f}, "
            f"largest {run.max_difference_mm_h:.3f} mm/h at a mean rate of "
            f"{run.mean_rate_mm_h:.2f}, largest {run.largest_rate_mm_h:.1f} mm/h; spectrum [dB] "
            f"{bands}; wet {run.wet_fraction:.4f} ({run.wet_fraction_fp32:.4f} in fp32); cells "
            f"above {cells}"
        )
    for precision, why in check.not_measured.items():
        yield f"{precision}: not measured. {why}"
