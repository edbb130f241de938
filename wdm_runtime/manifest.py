"""What a bundle says of itself: the records of manifest.json, and what they must agree on."""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import asdict, dataclass, field
from typing import Any

from wdm_runtime.diffusion import PREDICTIONS, VPSchedule
from wdm_runtime.errors import InputError
from wdm_runtime.precision import PrecisionCheck
from wdm_runtime.presets import Preset
from wdm_runtime.records import OPTIONAL, shown
from wdm_runtime.signing import SIGNATURE_NAME
from wdm_runtime.transform import PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

SCHEMA_VERSION = 3  # 2: `domain`; 3: graphs may share weights, see `onnx_weights`
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"  # see `wdm_runtime.golden`
# What each graph is for. The pixel graphs serve the latency comparison only; `step` is the
# sampler's update, which is no graph by itself but continues a score graph: `engines.step`.
GRAPH_ROLES = ("score_fp32", "score_fp16", "step", "dwt", "idwt", "pixel_fp32", "pixel_fp16")
STEP_ROLE = "step"
REQUIRED_ROLES = ("score_fp32", "dwt", "idwt")
MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
_MAX_SIZE = 1 << 20  # of a tile, a factor or a tensor's axis
_FILE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
# Names that some systems open as devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    that were fitted to this model; ``turns`` says whether training showed the network every
    orientation, as members are drawn in. ``precision_check``, ``presets``, true ``turns`` and, of
    Haar, the wavelet's ``filters`` may be missing.
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
    precision_check: PrecisionCheck | None = field(default=None, metadata=OPTIONAL)
    presets: dict[str, Preset] = field(default_factory=dict, metadata=OPTIONAL)
    turns: bool = field(default=True, metadata=OPTIONAL)

    @property
    def tile_cells(self) -> int:
        """Coarse cells along an axis of the largest domain that one tile covers."""
        return (self.tile_px - 2 * self.wavelet.margin * self.wavelet.stride) // self.factor

    @property
    def coefficient_cells(self) -> int:
        """The fewest coarse cells along an axis that are whole wavelet coefficients."""
        return self.wavelet.stride // math.gcd(self.wavelet.stride, self.factor)

    def to_json(self) -> str:
        """The text of manifest.json."""
        values = asdict(self)
        for optional in ("precision_check", "presets"):
            if not values[optional]:
                del values[optional]
        if self.turns:
            del values["turns"]
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
            raise ValueError(f"graphs missing {sorted(missing)}, unknown {shown(unknown)}")
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
