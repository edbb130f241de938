"""A bundle: a folder with manifest.json, ONNX graphs and a model card, all hashed.

The manifest is the only place for each fact of a model. It is read strictly: a key too many or too
few, a newer schema or a file whose SHA-256 differs is a BundleError, before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from wdm_runtime.diffusion import PREDICTIONS, VPSchedule
from wdm_runtime.errors import BundleError, InputError, WdmError
from wdm_runtime.precision import PrecisionCheck
from wdm_runtime.transform import PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

SCHEMA_VERSION = 2  # 2: `domain`
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"  # see `wdm_runtime.selftest`
DEFAULT_BUNDLE = "wdm2-mrms"
# What each graph is for. The pixel graphs serve the latency comparison only; `step` is the
# sampler's update, which is no graph by itself but continues a score graph: `engines.step`.
GRAPH_ROLES = ("score_fp32", "score_fp16", "step", "dwt", "idwt", "pixel_fp32", "pixel_fp16")
REQUIRED_ROLES = ("score_fp32", "dwt", "idwt")
_OPTIONAL = {"optional": True}  # of a key: bundles without it are older, not damaged
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of a graph's input or output; a text is a dynamic size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle and what it must hash to."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphEntry(FileEntry):
    """An ONNX graph with its tensors in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Domain:
    """Where a model is at home: the fine spacing and the latitudes of what it was trained on.

    ``spacing_km`` counts 0.01 degrees as 1 km; ``latitudes`` are the southern and northern edge
    [degrees].
    """

    spacing_km: float
    latitudes: tuple[float, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "latitudes", tuple(self.latitudes))  # JSON has lists
        numbers = (self.spacing_km, *self.latitudes)
        fits = len(numbers) == 3 and all(map(math.isfinite, numbers)) and self.spacing_km > 0
        if not fits or not -90 <= numbers[1] < numbers[2] <= 90:
            raise InputError(
                f"The training domain has spacing {self.spacing_km} km and latitudes "
                f"{self.latitudes}; expected a positive spacing, and the southern and northern "
                "latitude between -90 and 90. Correct the domain."
            )


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime knows of a model.

    ``tile_px`` is the fine size of the tiles the score graph takes; ``domain`` is what the model
    was trained on; ``residual_scale`` standardises the coefficients that are diffused,
    ``condition_scale`` those of the interpolated coarse field; ``precision_check`` is the only key
    that may be missing.
    """

    schema_version: int
    name: str
    licence: str
    factor: int
    tile_px: int
    domain: Domain
    wavelet: WaveletSpec
    transform: PrecipTransform
    schedule: VPSchedule
    prediction: str
    residual_scale: SubbandScale
    condition_scale: SubbandScale
    graphs: dict[str, GraphEntry]
    files: tuple[FileEntry, ...]
    training: dict[str, Any]
    scores: dict[str, Any] = field(default_factory=dict)
    precision_check: PrecisionCheck | None = field(default=None, metadata=_OPTIONAL)

    def to_json(self) -> str:
        """The text of manifest.json."""
        values = asdict(self)
        if self.precision_check is None:
            del values["precision_check"]
        return json.dumps(values, indent=1) + "\n"

    def check(self) -> None:
        """Cross-field consistency; a ValueError names what is wrong."""
        subbands = self.wavelet.subbands
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is '{self.prediction}', expected {PREDICTIONS}")
        if self.factor < 2 or self.tile_px < self.wavelet.stride:
            raise ValueError(f"factor {self.factor} or tile {self.tile_px} is too small")
        if self.tile_px % self.wavelet.stride:
            raise ValueError(f"tile {self.tile_px} is no multiple of {self.wavelet.stride}")
        for scale in (self.residual_scale, self.condition_scale):
            if len(scale.mean) != subbands:
                raise ValueError(f"{len(scale.mean)} subband scales, expected {subbands}")
        missing = set(REQUIRED_ROLES) - set(self.graphs)
        unknown = set(self.graphs) - set(GRAPH_ROLES)
        if missing or unknown:
            raise ValueError(f"graphs missing {sorted(missing)}, unknown {sorted(unknown)}")
        for entry in (*self.graphs.values(), *self.files):
            if not _FILE_NAME.fullmatch(entry.file):
                raise ValueError(f"file name '{entry.file}' is not a plain name")


def _build(kind: Any, value: Any, where: str) -> Any:
    """Plain JSON values to the annotated type, or a ValueError that says where it fails."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        record = next(filter(is_dataclass, arguments), None)
        if record is not None:
            return _build(record, value, where)
        if not isinstance(value, tuple(arguments)) or isinstance(value, bool):
            raise ValueError(f"{where} is {value!r}, expected {kind}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {type(value).__name__}, expected a list")
        return tuple(_build(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {type(value).__name__}, expected an object")
        return {k: _build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}, expected an object")
    optional = {f.name for f in fields(kind) if f.metadata == _OPTIONAL} - set(value)
    names = [f.name for f in fields(kind) if f.name not in optional]
    missing, unknown = set(names) - set(value), set(value) - set(names)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {sorted(missing)}, unknown {sorted(unknown)}")
    hints = typing.get_type_hints(kind)
    built = {n: _build(hints[n], value[n], f"{where}.{n}" if where else n) for n in names}
    return kind(**built)


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
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Open a bundle, by default the one that comes with the package.

        Raises
        ------
        BundleError
            No manifest there, or it is malformed, incomplete, inconsistent or too new.
        """
        path = default_bundle() if path is None else Path(path)
        manifest_path = path / MANIFEST_NAME
        try:
            raw = manifest_path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{path}: has no readable {MANIFEST_NAME} ({error.strerror}); expected a bundle "
                "folder. Check --bundle or build one with 'wdm-export build'."
            ) from error
        try:
            values = json.loads(raw)
            version = values.get("schema_version") if isinstance(values, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise BundleError(
                    f"{manifest_path}: schema version is {version}; this version reads up to "
                    f"{SCHEMA_VERSION}. Upgrade wdm-edge."
                )
            manifest: Manifest = _build(Manifest, values, "")
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
        """The bytes of a graph, after comparing size and hash with the manifest.

        Raises
        ------
        BundleError
            The bundle has no such graph, or the file is missing or altered.
        """
        if role not in self.manifest.graphs:
            raise BundleError(
                f"{self.path}: has no graph '{role}', only {', '.join(self.manifest.graphs)}. "
                "Choose another --precision or export the bundle again."
            )
        return self._read(self.manifest.graphs[role])

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
        for entry in (*self.manifest.graphs.values(), *self.manifest.files):
            self._read(entry)

    def _read(self, entry: FileEntry) -> bytes:
        path = self.path / entry.file
        try:
            if path.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{path}: has {path.stat().st_size} bytes; the manifest expects "
                    f"{entry.bytes}. Fetch or export the bundle again."
                )
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); the manifest expects it. "
                "Fetch or export the bundle again."
            ) from error
        if sha256(data) != entry.sha256:
            raise BundleError(
                f"{path}: SHA-256 is {sha256(data)[:12]}...; the manifest expects "
                f"{entry.sha256[:12]}.... Fetch or export the bundle again."
            )
        return data


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
