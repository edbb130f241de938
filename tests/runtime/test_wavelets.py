"""The NumPy Haar packet: exactness, energy, order and sign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wdm_runtime.errors import InputError
from wdm_runtime.wavelets import WaveletSpec, dwt, idwt

LEVELS = [0, 1, 2, 3]


@pytest.mark.parametrize("levels", LEVELS)
@given(
    field=arrays(np.float64, (1, 16, 24), elements=st.floats(-1e3, 1e3, allow_nan=False, width=32))
)
def test_round_trip_and_energy(levels, field):
    spec = WaveletSpec(levels=levels)
    coeffs = dwt(field, spec)
    assert coeffs.shape == (spec.subbands, 16 // spec.stride, 24 // spec.stride)
    np.testing.assert_allclose(idwt(coeffs, spec), field, atol=1e-9)
    # orthonormal: the sum of squares is kept
    np.testing.assert_allclose((coeffs**2).sum(), (field**2).sum(), rtol=1e-9, atol=1e-9)


def test_constant_field_has_no_details():
    spec = WaveletSpec(levels=2)
    coeffs = dwt(np.full((1, 8, 8), 3.0), spec)
    np.testing.assert_allclose(coeffs[0], 3.0 * spec.stride)
    assert np.all(coeffs[1:] == 0)


@pytest.mark.parametrize(
    ("block", "subband"),
    [([[1, 1], [-1, -1]], 1), ([[1, -1], [1, -1]], 2), ([[1, -1], [-1, 1]], 3)],
)
def test_subband_order_and_sign(block, subband):
    coeffs = dwt(np.array([block], dtype=float), WaveletSpec(levels=1))
    expected = np.zeros(4)
    expected[subband] = 2.0
    np.testing.assert_array_equal(coeffs[:, 0, 0], expected)


def test_packet_splits_every_subband_in_place():
    field = np.random.default_rng(0).standard_normal((1, 16, 16))
    one = dwt(field, WaveletSpec(levels=1))
    two = dwt(field, WaveletSpec(levels=2))
    for i in range(4):
        np.testing.assert_allclose(
            two[4 * i : 4 * i + 4], dwt(one[i : i + 1], WaveletSpec("haar", 1))
        )
    assert WaveletSpec(levels=2).subband_names[:6] == ("AA", "AH", "AV", "AD", "HA", "HH")


def test_bad_shapes_and_names_are_input_errors():
    with pytest.raises(InputError, match="multiples of 4"):
        dwt(np.zeros((1, 6, 8)), WaveletSpec(levels=2))
    with pytest.raises(InputError, match="multiple of 16"):
        idwt(np.zeros((4, 2, 2)), WaveletSpec(levels=2))
    with pytest.raises(InputError, match="db7"):
        WaveletSpec("db7", 1)
