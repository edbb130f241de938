"""Members in eight orientations: the same network, seen from eight sides."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import edit_manifest

from wdm_runtime import Downscaler, downscale
from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import condition, look_at
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.noise import NoiseSource
from wdm_runtime.orientation import AS_IT_IS, ORIENTATIONS, restored, turned
from wdm_runtime.presets import Preset
from wdm_runtime.sampling import Draw, Sampling

TIME = "2022-08-09T15:00:00"
FACTOR = 8  # divides a tile: a padded border would lie on another side of the turned field
EVERY = range(ORIENTATIONS)


class TurnedNoise(NoiseSource):
    """The noise that the field as it is would get, turned with the field."""

    orientation = AS_IT_IS

    def draw(self, *address):
        return turned(super().draw(*address), self.orientation)


def rain(cells):
    values = np.random.default_rng(3).gamma(0.5, 6.0, (cells, cells)).astype(np.float32)
    values[values < 0.5] = 0
    return values


def drawn(downscaler, coarse, orientation, noise):
    """One member of a field that is one whole tile, in an orientation."""
    manifest = replace(downscaler.manifest, factor=FACTOR)
    frame = look_at(np.ascontiguousarray(coarse), manifest)
    assert len(frame.tiling.tiles) == 1
    sampling = Sampling(
        manifest,
        downscaler.engine,
        downscaler._transforms,
        1,
        downscaler.fused,
        Preset("second-order", 3).plan(manifest.schedule),
        (0, 0),
        "none",
        None,
    )
    (member,) = sampling.run([Draw(frame, 0, 0, noise, orientation)])
    return member.rate_mm_h


@pytest.mark.parametrize("orientation", EVERY)
def test_what_is_turned_is_restored(orientation):
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(restored(turned(values, orientation), orientation), values)


def test_no_two_orientations_are_alike():
    values = np.arange(9).reshape(3, 3)
    assert len({turned(values, orientation).tobytes() for orientation in EVERY}) == ORIENTATIONS


@pytest.mark.parametrize("engine, fused", [("ort-cpu", 0), ("ort-cpu", 1), ("openvino", 0)])
@pytest.mark.parametrize("orientation", EVERY)
def test_a_member_in_an_orientation_is_that_of_the_turned_field(tiny, orientation, engine, fused):
    """Rain and noise turned by hand, drawn as they are and turned back, give the same rain.

    The arrays that an engine gets of a transposed tile are not C-contiguous.
    """
    if engine == "openvino":
        pytest.importorskip("openvino")
    options = EngineOptions(fused_step=bool(fused))
    with Downscaler.open(tiny, engine, "fp32", options) as downscaler:
        coarse = rain(downscaler.manifest.tile_px // FACTOR)
        found = drawn(downscaler, coarse, orientation, NoiseSource(1, TIME, 0))
        noise = TurnedNoise(1, TIME, 0)
        object.__setattr__(noise, "orientation", orientation)
        by_hand = drawn(downscaler, turned(coarse, orientation), AS_IT_IS, noise)
    np.testing.assert_allclose(found, restored(by_hand, orientation), rtol=1e-3, atol=1e-3)
    assert found.max() > 1


def test_members_go_through_all_orientations(tiny, field, monkeypatch):
    """With one noise for all, eight members differ, and the ninth is the first again."""
    monkeypatch.setattr(downscale, "noise_of", lambda seed, time, *_: NoiseSource(seed, time, 0))
    with Downscaler.open(tiny, "ort-cpu") as downscaler:
        samples = list(downscaler.downscale(field, members=ORIENTATIONS + 1, steps=2))
    first = [sample.rate_mm_h for sample in samples if sample.time_index == 0]
    assert len({rate.tobytes() for rate in first}) == ORIENTATIONS
    np.testing.assert_array_equal(first[-1], first[0])


def test_members_are_drawn_as_the_field_lies_by_a_network_that_knows_no_other(
    tiny_copy, field, monkeypatch
):
    monkeypatch.setattr(downscale, "noise_of", lambda seed, time, *_: NoiseSource(seed, time, 0))
    edit_manifest(tiny_copy, turns=False)
    with Downscaler.open(tiny_copy, "ort-cpu") as downscaler:
        assert json.loads(downscaler.manifest.to_json())["turns"] is False
        first, second, *_ = downscaler.downscale(field, members=2, steps=2)
    np.testing.assert_array_equal(first.rate_mm_h, second.rate_mm_h)


@pytest.mark.parametrize("orientation", EVERY)
def test_the_condition_is_at_its_place_in_every_orientation(tiny, orientation):
    """Means over blocks have no orientation: there the coefficients are the same, at all places."""
    manifest = Bundle.open(tiny).manifest
    with Downscaler.open(tiny, "ort-cpu") as downscaler:
        frame = look_at(rain(11)[:, :9], manifest)
        dwt, _ = downscaler._transforms
        given = condition(frame, manifest, dwt, orientation)
        as_it_is = condition(frame, manifest, dwt)
    np.testing.assert_allclose(given.coeffs[0], as_it_is.coeffs[0], atol=1e-5)
    if orientation != AS_IT_IS:
        assert np.abs(given.coeffs[1:] - as_it_is.coeffs[1:]).max() > 0.1
