"""A bundle: a folder with manifest.json, ONNX graphs and a model card, all hashed.

The manifest is the only place for each fact of a model. It is read strictly: a key too many or too
few, a newer schema or a file whose SHA-256 differs is a BundleError, before anything is parsed.
A folder may come from anywhere: no more is read than declared, and nothing outside of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from wdm_runtime.diffusion import PREDICTIONS, VPSchedule
from wdm_runtime.errors import BundleError, InputError, WdmError
from wdm_runtime.onnx_gate import check_graph
from wdm_runtime.plain_file import parse_json, read_plain
from wdm_runtime.precision import PrecisionCheck
from wdm_runtime.presets import Preset
from wdm_runtime.signing import SIGNATURE_NAME, check_signature, required_key
from wdm_runtime.transform import PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

SCHEMA_VERSION = 2  # 2: `domain`
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"  # see `wdm_runtime.selftest`
DEFAULT_BUNDLE = "wdm2-mrms"
# What each graph is for. The pixel graphs serve the latency comparison only; `step` is the
# sampler's update, which is no graph by itself but continues a score graph: `engines.step`.
GRAPH_ROLES = ("score_fp32", "score_fp16", "step", "dwt", "idwt", "pixel_fp32", "pixel_fp16")
STEP_ROLE = "step"
REQUIRED_ROLES = ("score_fp32", "dwt", "idwt")
_OPTIONAL = {"optional": True}  # of a key: bundles without it are older, not damaged
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
_MAX_SIZE = 1 << 20  # of a tile, a factor or a tensor's axis
_FILE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
# Names that some systems open as devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")

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
    ``condition_scale`` those of the interpolated coarse field; ``presets`` are ways to draw members
    that were fitted to this model. ``precision_check``, ``presets`` and, of Haar, the wavelet's
    ``filters`` may be missing.
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
    presets: dict[str, Preset] = field(default_factory=dict, metadata=_OPTIONAL)

    @property
    def tile_cells(self) -> int:
        """Coarse cells along an axis of the largest domain that one tile covers."""
        return (self.tile_px - 2 * self.wavelet.margin * self.wavelet.stride) // self.factor

    def to_json(self) -> str:
        """The text of manifest.json."""
        values = asdict(self)
        for optional in ("precision_check", "presets"):
            if not values[optional]:
                del values[optional]
        if self.wavelet.filters is None:
            del values["wavelet"]["filters"]
        return json.dumps(values, indent=1) + "\n"

    def check(self) -> None:
        """Cross-field consistency; a ValueError names what is wrong."""
        subbands = self.wavelet.subbands
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is '{self.prediction}', expected {PREDICTIONS}")
        if self.factor < 2 or self.tile_px < self.wavelet.stride:
            raise ValueError(f"factor {self.factor} or tile {self.tile_px} is too small")
        if max(self.factor, self.tile_px) > _MAX_SIZE:
            raise ValueError(f"factor {self.factor} or tile {self.tile_px} is too large")
        if self.tile_px % self.wavelet.stride:
            raise ValueError(f"tile {self.tile_px} is no multiple of {self.wavelet.stride}")
        if self.tile_px // self.wavelet.stride < self.wavelet.least_coeffs:
            raise ValueError(f"tile {self.tile_px} is too small for the filters' length")
        for scale in (self.residual_scale, self.condition_scale):
            if len(scale.mean) != subbands:
                raise ValueError(f"{len(scale.mean)} subband scales, expected {subbands}")
        missing = set(REQUIRED_ROLES) - set(self.graphs)
        unknown = set(self.graphs) - set(GRAPH_ROLES)
        if missing or unknown:
            raise ValueError(f"graphs missing {sorted(missing)}, unknown {_shown(unknown)}")
        _check_entries((*self.graphs.values(), *self.files))
        for text in (self.name, self.licence, *self.presets):
            if not (text.isprintable() and len(text) <= 200):
                raise ValueError(
                    f"a name or licence is {reprlib.repr(text)}, expected a short text"
                )


def _check_entries(entries: tuple[FileEntry, ...]) -> None:
    """Plain names, each once on any file system, with sizes and hashes that can be."""
    taken = {MANIFEST_NAME, SIGNATURE_NAME}
    for entry in entries:
        name = entry.file
        if not _FILE_NAME.fullmatch(name) or _DEVICES.fullmatch(name):
            raise ValueError(f"file name {reprlib.repr(name)} is not a plain name")
        if name.lower() in taken:
            raise ValueError(f"file name '{name}' is taken")
        taken.add(name.lower())
        if not 0 <= entry.bytes <= MAX_FILE_BYTES or not _SHA256.fullmatch(entry.sha256):
            raise ValueError(f"file '{name}' has {entry.bytes} bytes or no SHA-256")
        if isinstance(entry, GraphEntry):
            _check_tensors(entry)


def _check_tensors(entry: GraphEntry) -> None:
    if not (entry.inputs and entry.outputs):
        raise ValueError(f"graph '{entry.file}' has no inputs or no outputs")
    for spec in (*entry.inputs, *entry.outputs):
        sizes = [1 if isinstance(size, str) else size for size in spec.shape]
        if len(sizes) > 8 or not all(1 <= size <= _MAX_SIZE for size in sizes):
            raise ValueError(f"graph '{entry.file}' has a tensor of {len(sizes)} axes, {sizes[:8]}")


def _shown(names: set[str]) -> str:
    """Names in a message, which somebody else may have made long or many."""
    return reprlib.repr(sorted(names))


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
            raise ValueError(f"{where} is {reprlib.repr(value)}, expected {kind}")
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
        raise ValueError(f"{where} is {reprlib.repr(value)}, expected {kind.__name__}")
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}, expected an object")
    optional = {f.name for f in fields(kind) if f.metadata == _OPTIONAL} - set(value)
    names = [f.name for f in fields(kind) if f.name not in optional]
    missing, unknown = set(names) - set(value), set(value) - set(names)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {sorted(missing)}, unknown {_shown(unknown)}")
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
        """Open a bundle that this process has just made, and nobody can have signed yet.

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
            The bundle has no such graph, or the file is missing or altered, or is no graph that
            `check_graph` lets through.
        """
        if role not in self.manifest.graphs:
            raise BundleError(
                f"{self.path}: has no graph '{role}', only {', '.join(self.manifest.graphs)}. "
                "Choose another --precision or export the bundle again."
            )
        entry = self.manifest.graphs[role]
        data = self._read(entry)
        check_graph(data, str(self.path / entry.file), tail=role == STEP_ROLE)
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
