"""Engines against the bundle's golden inputs and outputs, on the machine that has the engines."""

from __future__ import annotations

import io
import json
import math
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import GOLDEN_NAME, Bundle
from wdm_runtime.doctor import Diagnosis, diagnose
from wdm_runtime.engines import AUTO, Engine, open_engine, select, survey
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import BundleError, WdmError

Array = npt.NDArray[np.float32]
# Largest difference over the golden output's largest value. The shipped network gave 5e-6, 7e-4 and
# 2e-2 on CPUs, an untrained one 5e-2 in bf16; GPUs sum in another order and, in fp16, round between
# other kernels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
# What NumPy and zipfile say of a file that is no archive of arrays, or a crafted one.
_NO_ARCHIVE = (
    *(ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error),
)
_MAX_TIMES = 64
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f(?P<size>[248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]{0,40})\), \} *\n",
    re.DOTALL,
)
_CALLS = 10
_BATCH = 3


@dataclass(frozen=True)
class Golden:
    """Inputs of the score graph and what the trained network gives for them, in fp32.

    x, condition (1, c, h, w); t (k); v (k, c, h, w), one for each time.
    """

    x: Array
    condition: Array
    t: Array
    v: Array


@dataclass(frozen=True)
class Check:
    """One engine in one precision.

    ``difference``: largest over all golden outputs, relative to the largest value;
    ``batch_difference``: the same between tiles in a batch and alone. Times are of one call with
    one tile, after warm-up. ``plain_ms``: median without a CUDA graph, for engines that have them.
    ``problem`` says why it failed.
    """

    engine: str
    precision: str
    device: str | None
    library: str | None
    open_s: float | None
    difference: float | None
    batch_difference: float | None
    tolerance: float
    p50_ms: float | None
    p95_ms: float | None
    cuda_graph: bool | None
    plain_ms: float | None
    notes: tuple[str, ...]
    problem: str | None

    @property
    def passed(self) -> bool:
        """Whether it does what the bundle says."""
        return self.problem is None


@dataclass(frozen=True)
class SelfTest:
    """What `wdm-run selftest` found, with the machine it was found on."""

    bundle: str
    bundle_sha256: str
    checks: tuple[Check, ...]
    machine: Diagnosis

    @property
    def passed(self) -> bool:
        """Whether every engine did what the bundle says."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The report to attach to a bug."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=1) + "\n"


def read_golden(bundle: Bundle) -> Golden:
    """The bundle's golden file.

    Raises
    ------
    BundleError
        It has none, or one that is damaged or of another network.
    """
    data = bundle.file(GOLDEN_NAME)
    tile = bundle.manifest.graphs["score_fp32"].inputs[0].shape[1:]
    try:
        x, condition, t, v = _arrays(data, tile)
    except _NO_ARCHIVE as error:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: is no golden file ({error}); expected arrays "
            f"{', '.join(Golden.__annotations__)}. Export the bundle again."
        ) from error
    times = len(t) if t.ndim == 1 else 0
    got, expected = [a.shape for a in (x, condition, v)], [(1, *tile)] * 2 + [(times, *tile)]
    if got != expected or not times:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: has shapes {got}; expected {expected}. Export the "
            "bundle again."
        )
    return Golden(x, condition, t, v)


def _arrays(data: bytes, tile: tuple[int | str, ...]) -> list[Array]:
    """The golden arrays; no more is unpacked of any than the tile and some times may take."""
    limit = 4096 + 8 * _MAX_TIMES * math.prod(size for size in tile if isinstance(size, int))
    arrays = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in Golden.__annotations__:
            with archive.open(f"{name}.npy") as file:
                raw = file.read(limit + 1)
            if len(raw) > limit:
                raise ValueError(f"'{name}' has more than {limit} bytes")
            array = _array(raw)
            if not (array.ndim <= 4 and np.isfinite(array).all()):
                raise ValueError(f"'{name}' has {array.ndim} axes or values that are not finite")
            arrays.append(array)
    return arrays


def _array(raw: bytes) -> Array:
    """A .npy file as `numpy.savez` writes floats; NumPy's reader evaluates the header."""
    header = _NPY_HEADER.match(raw)
    if header is None:
        raise ValueError("an array is not one of floats in NumPy's format 1.0")
    values = np.frombuffer(raw, f"<f{int(header['size'])}", offset=header.end())
    shape = [int(size) for size in header["shape"].split(b",") if size.strip()]
    return values.reshape(shape).astype(np.float32)


def selftest(bundle: Bundle, engine: str, options: EngineOptions) -> Iterator[Check]:
    """Check one engine in all its precisions, or with ``"auto"`` all that work here.

    Raises
    ------
    EngineError, MissingDependencyError
        The engine that was asked for cannot be had.
    BundleError
        The bundle has no golden file.
    """
    golden = read_golden(bundle)
    if engine == AUTO:
        found = [(f.kind, p) for f in survey() for p in f.precisions]
    else:
        select(engine)
        found = [(f.kind, p) for f in survey() for p in f.precisions if f.kind == engine]
    for kind, precision in found:
        yield _check(bundle, golden, kind, precision, options)


def report(bundle: Bundle, checks: list[Check]) -> SelfTest:
    """The checks with the bundle and machine they were made on."""
    return SelfTest(bundle.manifest.name, bundle.sha256, tuple(checks), diagnose())


def _check(
    bundle: Bundle, golden: Golden, kind: str, precision: str, options: EngineOptions
) -> Check:
    notes: list[str] = []
    options = replace(options, note=notes.append)
    check = Check(
        kind, precision, None, None, None, None, None, TOLERANCES[precision], None, None, None,
        None, (), None,
    )  # fmt: skip
    try:
        check = _measured(bundle, golden, check, options)
    except WdmError as error:  # what failed is the result
        check = replace(check, problem=str(error))
    return replace(check, notes=tuple(notes))


def _measured(bundle: Bundle, golden: Golden, check: Check, options: EngineOptions) -> Check:
    began = time.perf_counter()
    engine = _open(bundle, check, options)
    try:
        replays = getattr(engine, "replays", None)
        check = replace(
            check,
            device=engine.device,
            library=engine.version,
            open_s=round(time.perf_counter() - began, 3),
            cuda_graph=replays,
            difference=_difference(engine, golden),
            batch_difference=_batch_difference(engine, golden),
        )
        p50, p95 = _latency(engine, golden)
    finally:
        engine.close()
    check = replace(check, p50_ms=p50, p95_ms=p95)
    if replays:
        plain = _open(bundle, check, replace(options, cuda_graph=False))
        try:
            check = replace(check, plain_ms=_latency(plain, golden)[0])
        finally:
            plain.close()
    return replace(check, problem=_problem(check))


def _open(bundle: Bundle, check: Check, options: EngineOptions) -> Engine:
    role = f"score_{select(check.engine, check.precision).graph}"
    entry = bundle.manifest.graphs[role]
    return open_engine(bundle.graph(role), entry, check.engine, check.precision, options)


def _problem(check: Check) -> str | None:
    for what, got in (
        ("the golden outputs", check.difference),
        ("itself in a batch", check.batch_difference),
    ):
        if got is None or not got <= check.tolerance:  # NaN fails too
            return f"differs from {what} by {got:.1e}; expected at most {check.tolerance:.0e}"
    return None


def _feeds(golden: Golden, x: Array, t: float) -> dict[str, Array]:
    condition = np.repeat(golden.condition, len(x), axis=0)
    return {"x": x, "condition": condition, "t": np.array([t], dtype=np.float32)}


def _difference(engine: Engine, golden: Golden) -> float:
    answers = np.stack([engine.run(_feeds(golden, golden.x, t))[0] for t in golden.t])
    return float(np.abs(answers - golden.v).max() / np.abs(golden.v).max())


def _batch_difference(engine: Engine, golden: Golden) -> float:
    """Tiles that differ from each other, together and one by one."""
    x = np.concatenate([np.roll(golden.x, shift, axis=-1) for shift in range(_BATCH)])
    t = float(golden.t[0])
    together = engine.run(_feeds(golden, x, t))
    alone = np.concatenate([engine.run(_feeds(golden, tile[None], t)) for tile in x])
    return float(np.abs(together - alone).max() / np.abs(alone).max())


def _latency(engine: Engine, golden: Golden) -> tuple[float, float]:
    """Median and 95th percentile of warm calls with one tile [ms]."""
    feeds = _feeds(golden, golden.x, float(golden.t[0]))
    engine.run(feeds)
    times = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        engine.run(feeds)
        times.append(1e3 * (time.perf_counter() - began))
    p50, p95 = np.percentile(times, (50, 95))
    return round(float(p50), 3), round(float(p95), 3)
