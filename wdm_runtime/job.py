"""One file in, one file out: reads, selects, plans, samples and writes, as `wdm-run infer` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wdm_runtime.consistency import DEFAULT_CONSISTENCY, check_mode
from wdm_runtime.downscale import Downscaler, Sample
from wdm_runtime.errors import InputError, whole
from wdm_runtime.field import PrecipField
from wdm_runtime.input_hash import hash_of
from wdm_runtime.io import read_field
from wdm_runtime.io.reader import ReaderProcess
from wdm_runtime.io.units import parse_period
from wdm_runtime.io.writer import EnsembleWriter
from wdm_runtime.machine import available_bytes, processor, resident_bytes
from wdm_runtime.manifest import Manifest
from wdm_runtime.plan import Plan
from wdm_runtime.presets import Preset, chosen
from wdm_runtime.select import (
    check_spacing,
    outside_training,
    select_box,
    select_times,
    snap_cells,
)
from wdm_runtime.settings import Settings
from wdm_runtime.statistics import MemberStore, StatisticsSpec
from wdm_runtime.stepping import StepTime
from wdm_runtime.suspect import DEFAULT_POLICY, check_policy
from wdm_runtime.tally import Suspects, Tally
from wdm_runtime.version import version

STATS = ("none", "also", "only")
_USABLE = 0.9  # of the memory that is free: the system and the file cache want some


@dataclass(frozen=True)
class Outcome:
    """What a run did; the counts as in `wdm_runtime.latency.Report`."""

    plan: Plan
    way: Preset
    steps: tuple[StepTime, ...]
    fp32_reruns: int
    suspects: Suspects
    area_km2: float

    @property
    def fused_steps(self) -> int:
        """Steps in which the engine did the sampler's update."""
        return sum(step.fused for step in self.steps)


def load(
    input: Path, settings: Settings, manifest: Manifest, reader: ReaderProcess | None = None
) -> PrecipField:
    """Read a file and select from it, as the settings say.

    Parameters
    ----------
    manifest
        Of the bundle that will refine it: a box snaps to its coefficients.
    reader
        Stays open as long as the field is used; None takes the one all calls share.

    Raises
    ------
    InputError, MissingDependencyError
        Also where nothing of what is selected has a value.
    """
    hours = parse_period(settings.accumulation)
    read = reader.read_field if reader else read_field
    found = read(input, settings.variable, hours)
    if settings.time is not None:
        found = select_times(found, settings.time)
    if settings.bbox is not None:
        found = select_box(found, settings.bbox, snap_cells(manifest))
    if settings.time is not None or settings.bbox is not None:
        _check_valid(found)  # as reading checked the whole of it
    return found


def _check_valid(selected: PrecipField) -> None:
    """Refuse times or a box without rain that is known: the output would be missing throughout."""
    frames = len(selected.valid_times)
    if not any(np.isfinite(selected.frame(index)).any() for index in range(frames)):
        rows, columns = selected.grid.shape
        raise InputError(
            f"{selected.source.path}: has no valid value in the {frames} x {rows} x {columns} "
            "cells (time, y, x) that were selected; expected at least one. Choose another --time "
            "or --bbox."
        )


def settled(settings: Settings, presets: Mapping[str, Preset]) -> Settings:
    """Defaults filled in, so that an output says what was done under any later default.

    Raises
    ------
    InputError
        An unknown name, or a number out of range.
    """
    if settings.stats not in STATS:
        raise InputError(
            f"--stats got '{settings.stats}'; expected one of {', '.join(STATS)}. Correct it."
        )
    if whole("members", settings.members) < 1:
        raise InputError(f"Got {settings.members} members; expected at least 1. Set --members.")
    check_mode(settings.consistency or DEFAULT_CONSISTENCY)
    check_policy(settings.on_suspect or DEFAULT_POLICY)
    StatisticsSpec.parse(settings.quantiles, settings.thresholds)
    way = _way(settings, presets)
    return replace(
        settings,
        steps=way.steps,
        sampler=way.sampler,
        noise_scale=way.noise_scale,
        time_grid=way.time_grid,
        consistency=settings.consistency or DEFAULT_CONSISTENCY,
        on_suspect=settings.on_suspect or DEFAULT_POLICY,
    )


def _way(settings: Settings, presets: Mapping[str, Preset]) -> Preset:
    return chosen(
        presets,
        settings.preset,
        settings.sampler,
        settings.steps,
        settings.noise_scale,
        settings.time_grid,
    )


def check(
    coarse: PrecipField,
    target: Path,
    settings: Settings,
    manifest: Manifest,
    overwrite: bool = False,
) -> None:
    """Refuse what no engine could do, before one is opened: on a GPU that may take minutes.

    Raises
    ------
    InputError, OutputError, MissingDependencyError
        The model is of another spacing, or the output cannot be had as asked for.
    """
    factor, spacing_km = manifest.factor, manifest.domain.spacing_km
    check_spacing(coarse, spacing_km, factor, settings.assume_factor)
    _writer(coarse, target, settings, factor, {}, overwrite)


def _writer(
    coarse: PrecipField,
    target: Path,
    settings: Settings,
    factor: int,
    attributes: dict[str, Any],
    overwrite: bool,
) -> EnsembleWriter:
    return EnsembleWriter(
        target,
        coarse,
        factor,
        settings.members,
        attributes,
        overwrite,
        settings.units,
        _statistics(settings),
        settings.stats != "only",
    )


def _statistics(settings: Settings) -> StatisticsSpec | None:
    if settings.stats == "none":
        return None
    return StatisticsSpec.parse(settings.quantiles, settings.thresholds)


def run(
    downscaler: Downscaler,
    coarse: PrecipField,
    target: Path,
    settings: Settings,
    provenance: dict[str, Any],
    overwrite: bool = False,
    max_bytes: int | None = None,
    on_plan: Callable[[Plan, str | None], None] | None = None,
    on_step: Callable[[StepTime], None] | None = None,
) -> Outcome:
    """Downscale a field into a file.

    Parameters
    ----------
    downscaler
        An open downscaler.
    coarse
        What `load` gave.
    target
        File to write; its suffix chooses the format.
    settings
        What was asked for; `settled` makes it complete.
    provenance
        Further global attributes.
    overwrite
        Whether an older file of that name may be replaced.
    max_bytes
        Memory of the whole process; None takes what is free.
    on_plan
        Called before work starts, with the plan and a note on the domain, if there is one.
    on_step
        Called after each sampler step.

    Raises
    ------
    WdmError
        Nothing is left at ``target``, or an older file as it was.
    """
    settings = settled(settings, downscaler.manifest.presets)
    spacing_km = downscaler.manifest.domain.spacing_km
    check_spacing(coarse, spacing_km, downscaler.factor, settings.assume_factor)
    budget = _budget(max_bytes)
    way = _way(settings, downscaler.manifest.presets)
    plan = downscaler.plan(coarse, settings.members, max_bytes=budget, preset=way)
    _tell(downscaler, coarse, plan, on_plan)
    tally = Tally(downscaler.engine)

    def note(step: StepTime) -> None:
        tally.steps.append(step)
        if on_step:
            on_step(step)

    samples = downscaler.downscale(
        coarse,
        settings.members,
        settings.seed,
        consistency=settings.consistency or DEFAULT_CONSISTENCY,
        noise_decorrelation_min=settings.noise_decorrelation_min,
        max_bytes=budget,
        on_step=note,
        on_suspect=settings.on_suspect or DEFAULT_POLICY,
        preset=way,
    )
    attributes = {**settings.attributes(), **provenance}
    writing = _writer(coarse, target, settings, downscaler.factor, attributes, overwrite)
    statistics = _statistics(settings)
    with ExitStack() as stack:
        writer = stack.enter_context(writing)
        store = None
        if statistics is not None:
            shape = tuple(n * downscaler.factor for n in coarse.grid.shape)
            free = max(0, budget - plan.memory_bytes)
            store = stack.enter_context(
                MemberStore(
                    settings.members,
                    (shape[0], shape[1]),
                    free,
                    target.absolute().parent,
                    statistics,
                )
            )
        for sample in samples:
            tally.take(sample)
            _keep(sample, writer, store, settings)
        writer.set_attributes(tally.attributes())
    area_km2 = coarse.grid.area_km2()
    return Outcome(plan, way, tuple(tally.steps), tally.fp32_reruns, tally.suspects, area_km2)


def _tell(
    downscaler: Downscaler,
    coarse: PrecipField,
    plan: Plan,
    on_plan: Callable[[Plan, str | None], None] | None,
) -> None:
    """Say what comes before it does, and what will be missing."""
    if on_plan:
        on_plan(plan, outside_training(coarse, downscaler.manifest.domain.latitudes))
    empty = [index for index, share in enumerate(plan.missing) if share == 1]
    if empty:
        downscaler.engine.note(
            f"{len(empty)} of {len(plan.missing)} frames will be missing throughout, first that of "
            f"{coarse.valid_times[empty[0]]}, for want of valid input."
        )


def _keep(
    sample: Sample,
    writer: EnsembleWriter,
    store: MemberStore | None,
    settings: Settings,
) -> None:
    """Write a member, and the statistics of its frame after the last one."""
    if settings.stats != "only":
        writer.write(sample.time_index, sample.member, sample.rate_mm_h)
    if store is None:
        return
    store.add(sample.member, sample.rate_mm_h)
    if sample.member == settings.members - 1:
        for block in store.blocks():
            writer.write_statistics(sample.time_index, block)


def _budget(max_bytes: int | None) -> int:
    """Memory for arrays: what is given, or free, less what this process holds already."""
    held = resident_bytes() or 0
    if max_bytes is None:
        free = available_bytes()
        return int(_USABLE * free) if free is not None else 1 << 62
    if held >= max_bytes:
        raise InputError(
            f"--max-memory got {max_bytes / 2**20:,.0f} MiB, and the engine alone holds "
            f"{held / 2**20:,.0f} MiB; expected more. Raise --max-memory."
        )
    return max_bytes - held


def provenance(downscaler: Downscaler, input: Path, command: str) -> dict[str, Any]:
    """What besides the settings decides an output's values, as global attributes."""
    return {
        "wdm_input": str(input),
        "wdm_input_sha256": hash_of(input),
        **facts(downscaler),
        "wdm_command": command,
    }


def facts(downscaler: Downscaler) -> dict[str, Any]:
    """The bundle, engine, machine and versions of a run, as global attributes."""
    return {
        "wdm_bundle": downscaler.manifest.name,
        "wdm_bundle_sha256": downscaler.bundle.sha256,
        "wdm_engine": downscaler.engine.kind,
        "wdm_engine_version": downscaler.engine.version,
        "wdm_device": downscaler.engine.device,
        "wdm_precision": downscaler.choice.precision,
        "wdm_version": version(),
        "wdm_processor": processor(),
        "wdm_numpy": np.__version__,
    }
