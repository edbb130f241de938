"""Tiles kept on disk until the scores say which of them are worth a look."""

from __future__ import annotations

import tempfile

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


class Gallery:
    """Fields of every tile by name, in a temporary file: memory does not grow with tiles."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._places: dict[tuple[int, str], tuple[int, tuple[int, ...]]] = {}

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, tile: int, name: str, field: Array) -> None:
        """Keep a field (y, x) of a tile, as float32."""
        self._places[tile, name] = self._file.seek(0, 2), field.shape
        self._file.write(field.astype(np.float32).tobytes())

    def get(self, tile: int) -> dict[str, npt.NDArray[np.float32]]:
        """All fields of a tile, in the order they came."""
        found = {}
        for (number, name), (offset, shape) in self._places.items():
            if number == tile:
                self._file.seek(offset)
                data = self._file.read(4 * int(np.prod(shape)))
                found[name] = np.frombuffer(data, dtype=np.float32).reshape(shape)
        return found
