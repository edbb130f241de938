"""The NumPy packet: exactness, energy, order and sign, and what a filter bank must be."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from filter_banks import BANKS, BIOR22, DB2, spec_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wdm_runtime.errors import InputError
from wdm_runtime.records import build
from wdm_runtime.wavelets import MAX_TAPS, FilterBank, WaveletSpec, dwt, idwt

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


# --- other filter banks --------------------------------------------------------------------------

NAMES = ["haar", *BANKS]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
@given(
    field=arrays(np.float64, (1, 16, 24), elements=st.floats(-1e3, 1e3, allow_nan=False, width=32))
)
def test_any_bank_gives_back_what_it_split(name, levels, field):
    spec = spec_of(name, levels)
    coeffs = dwt(field, spec)
    assert coeffs.shape == (spec.subbands, 16 // spec.stride, 24 // spec.stride)
    np.testing.assert_allclose(idwt(coeffs, spec), field, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(4, 4), (4, 12), (20, 8)])
def test_fields_shorter_than_the_filters_wrap_around_as_often_as_needed(name, size):
    """A field and the same laid out several times have the same coefficients."""
    spec = spec_of(name)
    field = np.random.default_rng(0).standard_normal((1, *size))
    coeffs = dwt(field, spec)
    np.testing.assert_allclose(
        dwt(np.tile(field, (1, 4, 4)), spec), np.tile(coeffs, (1, 4, 4)), atol=1e-12
    )
    np.testing.assert_allclose(idwt(coeffs, spec), field, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_moved_by_a_stride_has_its_coefficients_moved_by_one(name):
    spec = spec_of(name)
    field = np.random.default_rng(0).standard_normal((1, 24, 32))
    moved = dwt(np.roll(field, (4, -8), axis=(1, 2)), spec)
    np.testing.assert_allclose(moved, np.roll(dwt(field, spec), (1, -2), axis=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_has_no_details_and_a_slope_only_with_haar(name):
    """Two vanishing moments are what db2 and bior2.2 are for."""
    spec = spec_of(name)
    flat = dwt(np.full((1, 8, 8), 3.0), spec)
    np.testing.assert_allclose(flat[0], 3.0 * spec.stride)
    np.testing.assert_allclose(flat[1:], 0, atol=1e-12)
    y, x = np.mgrid[:40, :40].astype(float)
    details = np.abs(dwt((2 * y - x)[None], spec)[1:, 2:-2, 2:-2]).max()
    assert details > 1 if name == "haar" else details < 1e-12


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_margin_is_as_far_as_coefficients_and_cells_reach_and_no_farther(name, levels):
    spec = spec_of(name, levels)
    coeffs = np.random.default_rng(0).standard_normal((spec.subbands, 25, 25))
    middle = np.zeros_like(coeffs)
    middle[:, 12, 12] = coeffs[:, 12, 12]
    cells = np.abs(idwt(middle, spec)[0]) > 1e-12
    assert _reach(cells.reshape(25, spec.stride, 25, spec.stride).any(axis=(1, 3))) == spec.margin
    field = np.zeros((1, 25 * spec.stride, 25 * spec.stride))
    field[0].reshape(25, spec.stride, 25, spec.stride)[12, :, 12] = coeffs[0, : spec.stride, :1]
    assert _reach((np.abs(dwt(field, spec)) > 1e-12).any(axis=0)) == spec.margin


def _reach(touched):
    """Distance from the middle of what is touched along either axis."""
    return int(np.abs(np.argwhere(touched) - 12).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dec_lo": DB2.dec_lo[:-1]}, "3, 4. taps"),
        ({"dec_lo": ()}, "0, 4. taps"),
        (dict.fromkeys(asdict(DB2), ()), "0. taps"),
        (dict.fromkeys(asdict(DB2), (1.0,)), "1. taps"),
        (dict.fromkeys(asdict(DB2), (0.1,) * (MAX_TAPS + 2)), f"from 2 to {MAX_TAPS}"),
        ({"rec_hi": (float("nan"), *DB2.rec_hi[1:])}, "not finite"),
        ({"rec_hi": (float("inf"), *DB2.rec_hi[1:])}, "not finite"),
        ({"dec_lo": (1e300,) * 4}, "not finite or beyond"),
        ({"dec_lo": (DB2.dec_lo[0] + 1e-6, *DB2.dec_lo[1:])}, "by 1.0e-06"),
        ({"dec_hi": DB2.dec_hi[::-1]}, "perfect reconstruction"),
        ({"dec_lo": DB2.dec_hi, "dec_hi": DB2.dec_lo}, "perfect reconstruction"),
        ({"dec_lo": tuple(-tap for tap in DB2.dec_lo)}, "perfect reconstruction"),
        ({"rec_lo": tuple(2 * tap for tap in DB2.rec_lo)}, "perfect reconstruction"),
        ({"rec_lo": DB2.dec_lo, "rec_hi": DB2.dec_hi}, "perfect reconstruction"),
    ],
)
def test_what_is_no_filter_bank_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(DB2, **changes)


def test_low_and_high_passes_turned_about_reconstruct_and_are_refused_all_the_same():
    """Index 0 has to be the approximation."""
    with pytest.raises(InputError, match="high passes let a constant through"):
        FilterBank(DB2.dec_hi, DB2.dec_lo, DB2.rec_hi, DB2.rec_lo)


@pytest.mark.parametrize(
    ("name", "filters"), [("db2", None), ("haar", DB2), ("a b", DB2), ("", DB2), ("[red]", DB2)]
)
def test_a_name_is_a_plain_label_and_haar_alone_comes_without_filters(name, filters):
    with pytest.raises(InputError, match="Correct the wavelet's settings"):
        WaveletSpec(name, 2, filters)


@pytest.mark.parametrize("spec", [spec_of(name) for name in NAMES], ids=NAMES)
def test_a_wavelet_survives_json(spec):
    assert build(WaveletSpec, json.loads(json.dumps(asdict(spec))), "wavelet") == spec
    assert build(WaveletSpec, {"name": "haar", "levels": 1}, "wavelet") == WaveletSpec(levels=1)
    assert spec_of("bior2.2").bank == BIOR22 != DB2
