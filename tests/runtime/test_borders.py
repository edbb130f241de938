"""Wavelets longer than Haar's at the borders of a domain: nothing comes around."""

from dataclasses import replace

import numpy as np
import pytest
from filter_banks import BANKS, spec_of

from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import (
    condition,
    covered_cells,
    finish,
    grid_shape,
    interpolated,
    look_at,
)
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.orientation import AS_IT_IS, ORIENTATIONS
from wdm_runtime.transform import SubbandScale
from wdm_runtime.wavelets import dwt, idwt

NAMES = ["haar", *BANKS]


@pytest.fixture(params=NAMES)
def manifest(tiny, request):
    """The tiny bundle's on another wavelet, with coefficients as they are."""
    flat = SubbandScale((0.0,) * 16, (1.0,) * 16)
    return replace(
        Bundle.open(tiny).manifest,
        wavelet=spec_of(request.param),
        residual_scale=flat,
        condition_scale=flat,
    )


def transforms(manifest):
    return (NumpyTransform(role, manifest.wavelet) for role in ("dwt", "idwt"))


def condition_of(coarse, manifest):
    forward, _ = transforms(manifest)
    frame = look_at(coarse, manifest)
    return frame, condition(frame, manifest, forward)


def rain(shape, seed=0):
    return np.random.default_rng(seed).gamma(0.5, 4.0, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 2), (3, 31), (13, 17), (20, 9)])
def test_no_residual_is_the_interpolated_field_up_to_the_borders(manifest, shape):
    coarse = rain(shape) + np.float32(0.5)
    coarse[0, -1] = 90.0  # against drizzle at the opposite borders
    frame, given = condition_of(coarse, manifest)
    assert given.coeffs.shape == (16, *frame.tiling.shape)
    _, inverse = transforms(manifest)
    rate = finish(frame, given, np.zeros_like(given.coeffs), manifest, inverse)
    smooth = interpolated(coarse, manifest.factor)
    expected = manifest.transform.inverse(manifest.transform.forward(smooth))
    assert rate.shape == smooth.shape
    np.testing.assert_allclose(rate, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, ORIENTATIONS))
def test_no_residual_is_the_interpolated_field_in_every_orientation(manifest, orientation):
    frame = look_at(rain((13, 17)) + np.float32(0.5), manifest)
    forward, inverse = transforms(manifest)
    rates = []
    for way in (AS_IT_IS, orientation):
        given = condition(frame, manifest, forward, way)
        rates.append(finish(frame, given, np.zeros_like(given.coeffs), manifest, inverse))
    np.testing.assert_allclose(rates[1], rates[0], rtol=2e-5, atol=1e-5)


def test_rain_at_one_border_leaves_the_coefficients_at_the_other_alone(manifest):
    coarse = rain((24, 30))
    changed = coarse.copy()
    changed[-1], changed[:, -1] = 80.0, 80.0
    before, after = (condition_of(values, manifest)[1].coeffs for values in (coarse, changed))
    np.testing.assert_array_equal(after[:, :50, :60], before[:, :50, :60])
    assert np.abs(after - before).max() > 1


def test_details_at_a_border_are_no_larger_than_those_of_a_field_that_goes_on(manifest):
    """A slope across the domain: as a periodic field it would fall off a cliff at the border."""
    slope = np.geomspace(0.5, 50.0, 30, dtype=np.float32)[None, :].repeat(20, axis=0)
    _, given = condition_of(slope, manifest)
    details = np.abs(given.coeffs[1:]).max(axis=(0, 1))
    assert details.max() < 3 * details[20:40].max()
    # What the same grid would hold without its margins, as the periodic transform alone gives it.
    z = manifest.transform.forward(interpolated(slope, manifest.factor))
    periodic = np.abs(dwt(z[None], manifest.wavelet)[1:]).max(axis=(0, 1))
    assert manifest.wavelet.margin == 0 or periodic.max() > 10 * periodic[20:40].max()


def test_a_coefficient_of_the_margin_reaches_the_border_and_one_beyond_would_not(manifest):
    coarse, margin = rain((24, 30)) + np.float32(1), manifest.wavelet.margin
    frame, given = condition_of(coarse, manifest)
    _, inverse = transforms(manifest)
    assert frame.tiling.shape == grid_shape((240, 300), manifest)
    assert frame.tiling.shape == (60 + 2 * margin, 75 + 2 * margin)
    residual = np.zeros_like(given.coeffs)
    plain = finish(frame, given, residual, manifest, inverse)
    residual[:, 0] = 1.0
    moved = finish(frame, given, residual, manifest, inverse) != plain
    assert moved[: 4 * margin or 4].any() and not moved[8 * margin + 4 :].any()


def test_cells_are_covered_if_all_their_coefficients_are(manifest):
    coarse = rain((40, 40)) + np.float32(1)
    wanted = np.zeros((400, 400), bool)
    wanted[195:230, :60] = True
    frame = look_at(coarse, manifest, wanted)
    covered = covered_cells(frame, manifest)
    assert covered[wanted].all() and not frame.complete and not covered.all()
    forward, inverse = transforms(manifest)
    given = condition(frame, manifest, forward)
    noise = np.random.default_rng(1).standard_normal(given.coeffs.shape).astype(np.float32)
    whole = finish(frame, given, noise, manifest, inverse)
    part = finish(frame, given, noise * frame.tiling.covered, manifest, inverse)
    np.testing.assert_array_equal(part[covered], whole[covered])
    assert (part != whole)[~covered].any()


def test_a_domain_of_the_largest_size_that_one_tile_covers(manifest):
    cells = manifest.tile_cells
    for more in (0, 1):
        frame = look_at(rain((cells + more,) * 2) + np.float32(1), manifest)
        assert (len(frame.tiling.tiles) == 1) is (more == 0)


def test_haars_grid_is_the_domain_itself(tiny):
    manifest = Bundle.open(tiny).manifest
    coarse = rain((20, 30))
    frame, given = condition_of(coarse, manifest)
    z = manifest.transform.forward(interpolated(coarse, manifest.factor))
    np.testing.assert_array_equal(given.coeffs, dwt(z[None], manifest.wavelet))
    back = idwt(given.coeffs, manifest.wavelet)[0]
    np.testing.assert_allclose(back, z, atol=2e-6)
    assert frame.tiling.shape == (50, 75)
