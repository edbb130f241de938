"""What engines share whose launches are of a fixed number of tiles at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.engine import REPORT
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import TensorSpec

Array = npt.NDArray[np.float32]
Specs = tuple[TensorSpec, ...]
Result = TypeVar("Result")


def fixed_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """A tensor's shape with its free batch, the only free size there may be, filled in.

    Raises
    ------
    EngineError
        Another size than the first is free.
    """
    if any(isinstance(size, str) for size in spec.shape[1:]):
        raise EngineError(
            f"Tensor '{spec.name}' has shape {spec.shape}; expected no free size but the first. "
            "Choose --engine ort-cpu for this graph."
        )
    return tuple(batch if isinstance(size, str) else size for size in spec.shape)


def fixed_specs(specs: Specs, batch: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, data type and shape of tensors for a batch, as the manifest says."""
    return [(spec.name, spec.dtype, fixed_shape(spec, batch)) for spec in specs]


def count_tiles(feeds: Mapping[str, Array], inputs: Specs, batch: int, version: str) -> int:
    """The number of tiles of a call. Assigning to a buffer would broadcast a wrong shape.

    Parameters
    ----------
    feeds, inputs
        A call's arrays by name, and what they have to be.
    batch
        The number of tiles where no input has a free size.
    version
        Who refuses them.

    Raises
    ------
    EngineError
        There is none, or names or shapes are wrong.
    """
    batches = {
        feeds[spec.name].shape[0]
        for spec in inputs
        if spec.name in feeds and isinstance(spec.shape[0], str) and feeds[spec.name].ndim
    }
    tiles = batches.pop() if len(batches) == 1 else batch
    got = {name: value.shape for name, value in feeds.items()}
    expected = {spec.name: fixed_shape(spec, tiles) for spec in inputs}
    if got != expected or tiles < 1:
        raise EngineError(
            f"{version} failed on inputs {got}; expected {expected}. Hand in those, or {REPORT}."
        )
    return tiles


def run_in_launches(
    feeds: Mapping[str, Array],
    inputs: Specs,
    output: TensorSpec,
    batch: int,
    version: str,
    host: Mapping[str, Array],
    launch: Callable[[], Array],
) -> Array:
    """A call of any number of tiles, a launch for each batch of them.

    Parameters
    ----------
    feeds, inputs, output
        The call's arrays by name, what they have to be, and what comes out.
    batch
        Tiles a launch.
    version
        Who refuses a call.
    host
        Where a launch takes its inputs from.
    launch
        Runs once and gives the output of a whole batch, which may be written again by the next.

    Returns
    -------
    The output, the caller's own.

    Raises
    ------
    EngineError
        As for `count_tiles`.
    """
    tiles = count_tiles(feeds, inputs, batch, version)
    result = np.empty(fixed_shape(output, tiles), dtype=output.dtype)
    for first in range(0, tiles, batch):
        rows = slice(first, min(first + batch, tiles))
        for spec in inputs:
            if isinstance(spec.shape[0], str):
                host[spec.name][: rows.stop - first] = feeds[spec.name][rows]
            else:
                host[spec.name][...] = feeds[spec.name]
        result[rows] = launch()[: rows.stop - first]
    return result


def check_states(x: Array, condition: Array, inputs: Specs, batch: int, version: str) -> None:
    """Refuse states (n, c, h, w) and conditions that are not those of 1 to ``batch`` tiles.

    Raises
    ------
    EngineError
        Shapes are wrong; ``version`` says who refuses them.
    """
    expected = (len(x), *inputs[0].shape[1:])
    if x.shape != expected or condition.shape != expected or not 0 < len(x) <= batch:
        raise EngineError(
            f"{version} failed on states {x.shape} and conditions {condition.shape}; expected up "
            f"to {batch} of {expected[1:]}. Hand in those, or {REPORT}."
        )


def check_answers(
    run: Callable[[Mapping[str, Array]], Array],
    inputs: Specs,
    batch: int,
    error: Callable[[str], EngineError],
) -> Array:
    """Run with inputs that differ in one tensor at a time; what the first run gave.

    Kernels that read or write another address than ours would answer too, but wrongly.

    Raises
    ------
    EngineError
        An answer is not finite, or does not follow an input; made by ``error`` of what is wrong.
    """
    random = np.random.default_rng(0)
    shapes = {spec.name: fixed_shape(spec, batch) for spec in inputs}
    first, other = (
        {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    answer = run(first)
    if not np.isfinite(answer).all():
        raise error("gives values that are not finite for")
    for changed in shapes:
        if np.array_equal(run({**first, changed: other[changed]}), answer):
            raise error(f"gives the same for every '{changed}' in")
    return answer


def same_answers(one: Array, other: Array) -> bool:
    """Whether two ways of running the same kernels agree."""
    return np.allclose(one, other, rtol=1e-2, atol=1e-3)
