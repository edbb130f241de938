"""The eight ways to lay a square on itself, and which of them each member is drawn in.

Rain has no preferred handedness, and training shows the network every crop flipped and transposed
at random. What it learned of one orientation still differs a little from what it learned of
another. An ensemble whose members go through all eight has less of that error in its mean, and
more of it in its spread, where it belongs.

An orientation is a number from 0 (as it is) to 7: 1 flips rows, 2 columns, 4 transposes, added up.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

ORIENTATIONS = 8
AS_IT_IS = 0

_Scalar = TypeVar("_Scalar", bound=np.generic)


def orientation_of(member: int) -> int:
    """The orientation a member is drawn in: the first as it is, the next seven in the others."""
    return member % ORIENTATIONS


def turned(values: npt.NDArray[_Scalar], orientation: int) -> npt.NDArray[_Scalar]:
    """A view of an array (..., y, x) in an orientation: flips first, then the transposition."""
    if orientation & 1:
        values = values[..., ::-1, :]
    if orientation & 2:
        values = values[..., ::-1]
    return np.swapaxes(values, -1, -2) if orientation & 4 else values


def restored(values: npt.NDArray[_Scalar], orientation: int) -> npt.NDArray[_Scalar]:
    """What `turned` made, as it was: a view of (..., y, x)."""
    if orientation & 4:
        values = np.swapaxes(values, -1, -2)
    return turned(values, orientation & 3)
