"""What a run will take before it starts: tiles, memory, time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wdm_runtime.errors import InputError

# Arrays of the padded fine domain, in float32, that live at the same time; measured with
# tracemalloc on every sampler, see tests/runtime/test_plan.py.
_ARRAYS_A_SAMPLE = 7.0  # condition twice, state, last two denoised estimates, noise, a term
_ARRAYS_ONCE = 2.5  # the result in making, and what the engine of the transforms keeps
_ARRAYS_A_CALL = 3.0  # of the tiles of an engine call: state, condition, result
_BANDS_BYTES = 12 * 2**20  # what is done band by band or tile by tile, whatever the domain
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MOST_BYTES = 1e18
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmg]i?|)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What `Downscaler.downscale` will do.

    Parameters
    ----------
    tiles
        Tiles of each frame; times members times steps they are the network's evaluations.
    members, steps
        As asked for.
    untiled_share
        Share of the domain's fine cells, over all frames, that no tile covers.
    missing
        Share of each frame's coarse cells that are missing.
    memory_bytes
        The arrays of sampling and output; the interpreter and the engine come on top.
    """

    tiles: tuple[int, ...]
    members: int
    steps: int
    untiled_share: float
    missing: tuple[float, ...]
    memory_bytes: int

    @property
    def evaluations(self) -> int:
        """Network evaluations of single tiles in the whole run."""
        return sum(self.tiles) * self.members * self.steps

    @property
    def missing_share(self) -> float:
        """Share of the coarse cells of all frames that are missing."""
        return sum(self.missing) / len(self.missing)


def sampling_bytes(padded_cells: int, samples: int, call_cells: int) -> int:
    """Memory of sampling ``samples`` states at once on a domain of that many fine cells.

    ``call_cells`` are the fine cells of the tiles of an engine call.
    """
    arrays = _ARRAYS_A_SAMPLE * samples + _ARRAYS_ONCE
    return int(4 * (padded_cells * arrays + call_cells * _ARRAYS_A_CALL)) + _BANDS_BYTES


def parse_bytes(text: str) -> int:
    """A size such as ``2GiB``, ``500 MB`` or ``1000000`` in bytes.

    Raises
    ------
    InputError
        It is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) < _MOST_BYTES:
        raise InputError(
            f"--max-memory got '{text}'; expected a size such as 2GiB or 500MB. Correct it."
        )
    return int(float(match[1]) * _SIZES[match[2].lower()])
