"""A bundle: a folder with manifest.json, ONNX graphs and a model card, all hashed.

The manifest is the only place for each fact of a model. It is read strictly: a key too many or too
few, a newer schema or a file whose SHA-256 differs is a BundleError, before anything is parsed.
A folder may come from anywhere: no more is read than declared, and nothing outside of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from wdm_runtime.errors import BundleError, WdmError
from wdm_runtime.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    STEP_ROLE,
    FileEntry,
    Manifest,
)
from wdm_runtime.onnx_gate import check_graph
from wdm_runtime.onnx_weights import with_weights
from wdm_runtime.plain_file import parse_json, read_plain
from wdm_runtime.records import build
from wdm_runtime.signing import check_signature, required_key

DEFAULT_BUNDLE = "wdm2-mrms"
MAX_MANIFEST_BYTES = 4 << 20


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; `sha256` identifies it, since the manifest holds every other hash."""

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str | Path | None = None, key: Path | None = None) -> Bundle:
        """Open a bundle, by default the one that comes with the package.

        Parameters
        ----------
        path
            The folder.
        key
            The public key it has to be signed for; by default that of the environment variable
            ``WDM_REQUIRE_SIGNATURE``, and where that is not set none.

        Raises
        ------
        BundleError
            No manifest there, or it is malformed, incomplete, inconsistent or too new, or not
            signed as it has to be.
        InputError, MissingDependencyError
            The key cannot be used.
        """
        return cls._open(path, key or required_key())

    @classmethod
    def own(cls, path: Path) -> Bundle:
        """Open a bundle that this process has just written or is to sign, so not signed yet.

        What a user names to be run is for `open`.

        Raises
        ------
        BundleError
            As for `open`.
        """
        return cls._open(path, None)

    @classmethod
    def _open(cls, path: str | Path | None, key: Path | None) -> Bundle:
        path = default_bundle() if path is None else Path(path)
        manifest_path = path / MANIFEST_NAME
        try:
            raw = read_plain(manifest_path, MAX_MANIFEST_BYTES)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path}: has no readable {MANIFEST_NAME} ({_reason(error)}); expected a bundle "
                "folder. Check --bundle or build one with 'wdm-export build'."
            ) from error
        if key is not None:
            check_signature(raw, path, key)
        try:
            if len(raw) > MAX_MANIFEST_BYTES:
                raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
            values = parse_json(raw)
            version = values.get("schema_version") if isinstance(values, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise BundleError(
                    f"{manifest_path}: schema version is {version}; this version reads up to "
                    f"{SCHEMA_VERSION}. Upgrade wdm-edge."
                )
            manifest: Manifest = build(Manifest, values, "")
            manifest.check()
        except BundleError:
            raise
        except (ValueError, RecursionError, WdmError) as error:
            raise BundleError(
                f"{manifest_path}: is not a valid manifest ({error}). "
                "Fetch or export the bundle again."
            ) from error
        return cls(path, manifest, sha256(raw))

    def graph(self, role: str) -> bytes:
        """The bytes of a graph with its weights, after comparing sizes and hashes.

        Raises
        ------
        BundleError
            The bundle has no such graph, or the file is missing or altered, or is no graph that
            `check_graph` lets through.
        """
        if role not in self.manifest.graphs:
            raise BundleError(
                f"{self.path}: has no graph '{role}', only {', '.join(self.manifest.graphs)}. "
                "Choose another --precision or export the bundle again."
            )
        entry = self.manifest.graphs[role]
        path = str(self.path / entry.file)
        held = {other.file: other for other in self.manifest.graphs.values() if other != entry}
        data = with_weights(
            self._read(entry), path, lambda file: self._read(held[file]) if file in held else None
        )
        check_graph(data, path, tail=role == STEP_ROLE)
        return data

    def file(self, name: str) -> bytes:
        """The bytes of another file, after comparing size and hash with the manifest.

        Raises
        ------
        BundleError
            The manifest has no such file, or it is missing or altered.
        """
        for entry in self.manifest.files:
            if entry.file == name:
                return self._read(entry)
        raise BundleError(
            f"{self.path}: has no file '{name}', only "
            f"{', '.join(entry.file for entry in self.manifest.files)}. Export the bundle again."
        )

    def verify(self) -> None:
        """Check every file of the bundle."""
        for role in self.manifest.graphs:
            self.graph(role)
        for entry in self.manifest.files:
            self._read(entry)

    def _read(self, entry: FileEntry) -> bytes:
        path = self.path / entry.file
        try:
            data = read_plain(path, entry.bytes)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path}: cannot be read ({_reason(error)}); the manifest expects it. "
                "Fetch or export the bundle again."
            ) from error
        if len(data) != entry.bytes:
            more = "more than " if len(data) > entry.bytes else ""
            raise BundleError(
                f"{path}: has {more}{min(len(data), entry.bytes)} bytes; the manifest expects "
                f"{entry.bytes}. Fetch or export the bundle again."
            )
        if sha256(data) != entry.sha256:
            raise BundleError(
                f"{path}: SHA-256 is {sha256(data)[:12]}...; the manifest expects "
                f"{entry.sha256[:12]}.... Fetch or export the bundle again."
            )
        return data


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def rewritten(path: Path, digest: str, signed: bool) -> str:
    """Says a bundle's SHA-256 after its manifest changed, and where it was signed what to do."""
    line = f"Wrote it into {path}, whose sha256 is now {digest}"
    if signed:
        line += f". Its signature was of the old one and is gone: wdm-export sign {path}"
    return line


def default_bundle() -> Path:
    """The shipped bundle: inside an installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent
    for models in (package / "models", package.parent / "models"):
        if (models / DEFAULT_BUNDLE / MANIFEST_NAME).is_file():
            return models / DEFAULT_BUNDLE
    raise BundleError(
        f"The shipped bundle '{DEFAULT_BUNDLE}' is not beside the package at {package}; expected "
        "it in a wheel or a clone. Install the wheel again or name a bundle with --bundle."
    )
