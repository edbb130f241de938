"""Makes an output again from its own attributes, to show where its values came from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdm_runtime import job
from wdm_runtime.downscale import Downscaler
from wdm_runtime.errors import InputError, ParityError
from wdm_runtime.input_hash import find_input
from wdm_runtime.io.atomic import ZARR_SUFFIX
from wdm_runtime.io.compare import compare_outputs
from wdm_runtime.io.reader import ReaderProcess
from wdm_runtime.io.stored import read_attributes
from wdm_runtime.plan import Plan
from wdm_runtime.settings import Settings
from wdm_runtime.stepping import StepTime

# The processor and NumPy's version because float32 functions are rounded by instruction set.
_MAY_CHANGE_VALUES = ("version", "engine_version", "device", "precision", "processor", "numpy")


@dataclass(frozen=True)
class Record:
    """What an output says of itself: the input it was made from, checked, and all choices."""

    output: Path
    input: Path
    settings: Settings
    attributes: dict[str, Any]

    @property
    def fused_step(self) -> bool:
        """Whether the engine did the sampler's updates, where it could.

        Raises
        ------
        InputError
            The output's attribute is no number.
        """
        found = self.attributes.get("wdm_fused_steps", 0)
        try:
            return int(found) > 0
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.output}: attribute 'wdm_fused_steps' is {found!r}; expected a number. Hand "
                "in a file that 'wdm-run infer' wrote."
            ) from error

    def text(self, name: str) -> str:
        """One of its ``wdm_`` attributes.

        Raises
        ------
        InputError
            The output has no such attribute.
        """
        return _text(self.output, self.attributes, name)


def open_record(output: Path, input: Path | None = None) -> Record:
    """Read an output's attributes and find its input.

    Parameters
    ----------
    output
        A NetCDF file or Zarr store that ``wdm-run infer`` wrote.
    input
        Where the input is now; None looks as `find_input` does.

    Raises
    ------
    InputError
        The output holds no record, or its input is not found or not the same.
    """
    attributes = read_attributes(output)
    named = _text(output, attributes, "input")
    settings = Settings.from_attributes(attributes)
    found = find_input(output, named, _text(output, attributes, "input_sha256"), input)
    return Record(output, found, settings, attributes)


def repeat(
    record: Record,
    downscaler: Downscaler,
    max_bytes: int | None = None,
    on_plan: Callable[[Plan, str | None], None] | None = None,
    on_step: Callable[[StepTime], None] | None = None,
) -> str:
    """Make the output again in a temporary folder, and compare all arrays.

    Returns
    -------
    One sentence that says it matches.

    Raises
    ------
    InputError
        The bundle is not the one the output was made with.
    ParityError
        A value differs; the message says where and by how much.
    """
    bundle = record.text("bundle_sha256")
    if downscaler.bundle.sha256 != bundle:
        raise InputError(
            f"{record.output}: was made with the bundle '{record.text('bundle')}' of SHA-256 "
            f"{bundle}; got {downscaler.bundle.sha256}. Name that bundle with --bundle."
        )
    facts = job.provenance(downscaler, record.input, "wdm-run replay")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wdm-replay-"))
        # Not its own name: an output may have been renamed, and the suffix chooses the format.
        again = Path(folder) / f"again{ZARR_SUFFIX if record.output.is_dir() else '.nc'}"
        reader = stack.enter_context(ReaderProcess(max_bytes))
        coarse = job.load(record.input, record.settings, downscaler.manifest, reader)
        job.run(
            downscaler,
            coarse,
            again,
            record.settings,
            facts,
            max_bytes=max_bytes,
            on_plan=on_plan,
            on_step=on_step,
        )
        found = compare_outputs(record.output, again)
    if found.identical:
        return f"{record.output}: matches bit for bit, {len(found.variables)} arrays compared"
    then = {name: record.attributes.get(f"wdm_{name}") for name in _MAY_CHANGE_VALUES}
    changed = [
        f"{name} '{value}' then, '{facts[f'wdm_{name}']}' now"
        for name, value in then.items()
        if value is not None and str(value) != facts[f"wdm_{name}"]  # older outputs lack some
    ]
    because = f"Changed since: {'; '.join(changed)}." if changed else "Check how it was stored."
    raise ParityError(
        f"{record.output}: differs by at most {found.max_abs_difference_mm_h:.3g} mm/h from the "
        f"same run now; expected the same bits. {'; '.join(found.differences)}. {because}"
    )


def _text(output: Path, attributes: dict[str, Any], name: str) -> str:
    value = attributes.get(f"wdm_{name}")
    if value is None:
        raise InputError(
            f"{output}: has no global attribute 'wdm_{name}'; expected the record of a run. Hand "
            "in a file that 'wdm-run infer' wrote."
        )
    return str(value)
