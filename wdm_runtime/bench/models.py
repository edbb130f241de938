"""What `wdm-run bench` compares: score networks, each with all that makes a field of its answers.

The pixel model is the bundle's own with the identity in place of the wavelets: the same condition,
sampler, steps, tiles and consistency step run around it, on a state of single cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import look_at
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.engines import Choice, Engine, open_graph, open_transforms
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import BundleError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.manifest import Manifest
from wdm_runtime.noise import NoiseSource
from wdm_runtime.presets import Preset
from wdm_runtime.sampling import Draw, Sampling
from wdm_runtime.transform import SubbandScale
from wdm_runtime.wavelets import WaveletSpec

Array = npt.NDArray[np.float32]

PIXEL = "pixel"
_VALID_TIME = "2022-06-15T12:00:00"
_PACKED = WaveletSpec(levels=2)


@dataclass(frozen=True)
class Model:
    """A score network: ``prefix`` + precision is its graph's role, ``manifest`` what is around."""

    name: str
    bundle: Bundle
    manifest: Manifest
    prefix: str

    def has(self, choice: Choice) -> bool:
        """Whether there is a graph of the precision that an engine takes."""
        return self.prefix + choice.graph in self.bundle.manifest.graphs

    def open_score(self, choice: Choice, options: EngineOptions) -> WatchedEngine:
        """The score network; values that are not finite are an EngineError."""
        role = self.prefix + choice.graph
        score = open_graph(self.bundle, role, choice.kind, choice.precision, options)
        return WatchedEngine(score, None, options.note)

    def open_transforms(self, choice: Choice, options: EngineOptions) -> tuple[Engine, Engine]:
        """The wavelet transform and its inverse; of the pixel model the identity."""
        if self.manifest.wavelet.levels:
            return open_transforms(self.bundle, choice.kind, options)
        dwt, idwt = (NumpyTransform(role, self.manifest.wavelet) for role in ("dwt", "idwt"))
        return dwt, idwt


def wavelet_name(manifest: Manifest) -> str:
    """The paper's name of a model of so many levels."""
    return f"WDM-{manifest.wavelet.levels}" if manifest.wavelet.levels else PIXEL


def models_of(bundle: Bundle, against: Sequence[Bundle]) -> list[Model]:
    """The bundle's model first, then its pixel model, if it has one, then other bundles' models.

    Raises
    ------
    BundleError
        Another bundle's tiles or factor differ, so that times would be of different work.
    """
    manifest = bundle.manifest
    models = [Model(manifest.name, bundle, manifest, "score_")]
    if any(role.startswith("pixel_") for role in manifest.graphs):
        flat = SubbandScale((0.0,), (1.0,))
        pixel = replace(
            manifest, wavelet=WaveletSpec(levels=0), residual_scale=flat, condition_scale=flat
        )
        models.append(Model(PIXEL, bundle, pixel, "pixel_"))
    for other in against:
        got = other.manifest
        if (got.tile_px, got.factor) != (manifest.tile_px, manifest.factor):
            raise BundleError(
                f"{other.path}: has tiles of {got.tile_px} cells and factor {got.factor}; expected "
                f"{manifest.tile_px} and {manifest.factor} as {manifest.name} has, so that both do "
                "the same work. Choose another bundle for --against."
            )
        known = {model.name for model in models}
        name = str(other.path) if got.name in known else got.name
        models.append(Model(name, other, got, "score_"))
    return models


@dataclass(frozen=True)
class _PixelNoise(NoiseSource):
    """As many normals as there are cells, wherever they lie.

    The stream gives eight subbands of one place at a time, so that a state of one channel would
    pay for eight times the noise it needs.
    """

    def draw(
        self,
        step: int,
        subbands: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        covered: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        """As `NoiseSource.draw`, at other addresses."""
        shape = (subbands, rows[1] - rows[0], columns[1] - columns[0])
        places = -(-int(np.prod(shape)) // _PACKED.subbands)
        drawn = super().draw(step, _PACKED.subbands, (0, 1), (0, places))
        return drawn.ravel()[: int(np.prod(shape))].reshape(shape)


def one_tile(
    manifest: Manifest,
    score: Engine,
    transforms: tuple[Engine, Engine],
    way: Preset,
) -> Array:
    """One member of a coarse field that is one tile, from rates to rates (y, x) [mm h-1]."""
    frame = look_at(tile_field(manifest).frame(0), manifest)
    source = NoiseSource if manifest.wavelet.levels else _PixelNoise
    draw = Draw(frame, 0, 0, source(0, _VALID_TIME, 0))
    factors = way.plan(manifest.schedule)
    mode = DEFAULT_CONSISTENCY
    sampling = Sampling(manifest, score, transforms, 1, None, factors, (0, 0), mode, None)
    (member,) = sampling.run([draw])
    return member.rate_mm_h


def tile_field(manifest: Manifest) -> PrecipField:
    """A coarse field that is one tile, all of it seeded rain; no time depends on the rates."""
    cells = manifest.tile_cells
    rates = np.random.default_rng(0).gamma(0.5, 4.0, (1, cells, cells)).astype(np.float32)
    rates += np.float32(0.1)
    axis = 0.1 * np.arange(cells, dtype=np.float64)
    attributes = ({"units": "degrees_north"}, {"units": "degrees_east"})
    return PrecipField(rates, Grid(axis[::-1], axis, attributes=attributes), (_VALID_TIME,))
