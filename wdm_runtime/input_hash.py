"""The hash of an input, by which an output knows what it was made from."""

from __future__ import annotations

import hashlib
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
