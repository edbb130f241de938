"""The hash of an input, by which an output knows what it was made from, and finding it again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from wdm_runtime.errors import InputError

_HASH_BYTES = 1 << 20


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of the files below a folder (a Zarr store) and their names.

    Raises
    ------
    InputError
        It cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            if file is not path:
                digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(_HASH_BYTES):
                    digest.update(block)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected the input file. Fetch it again."
        ) from error
    return digest.hexdigest()


def find_input(output: Path, named: str, expected: str | None, given: Path | None = None) -> Path:
    """The input an output was made from, told by its SHA-256.

    Parameters
    ----------
    output
        The output.
    named
        The input's path as the output says it; a relative one counted from the run's folder.
    expected
        The SHA-256 that the output says; None takes the first file found.
    given
        Where the input is now; None looks where the output says, from the current folder and from
        the output's own, and then for its name alone in both.

    Raises
    ------
    InputError
        It is not there, or is another.
    """
    path, folders = Path(named), (Path.cwd(), output.absolute().parent)
    looked = [given] if given else [f / p for p in (path, Path(path.name)) for f in folders]
    there = Path.exists if given else _is_readable
    found = [place for place in dict.fromkeys(looked) if there(place)]
    if not found:
        places = " nor ".join(f"'{place}'" for place in dict.fromkeys(looked))
        raise InputError(
            f"{output}: was made from '{path.name}', found neither at {places}; expected it "
            "there. Name the file with --input."
        )
    for place in found:  # newer ones of that name are others
        if expected is None or hash_of(place) == expected:
            return place
    raise InputError(
        f"{found[0]}: has the SHA-256 {hash_of(found[0])}; expected {expected}, the input "
        f"{output} was made from. Name the right file with --input."
    )


def _is_readable(place: Path) -> bool:
    """Another user's folder may be closed while a copy lies beside the output."""
    try:
        return place.exists() and os.access(place, os.R_OK)
    except OSError:
        return False
