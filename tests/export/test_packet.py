"""The training-side packet transform against the runtime's NumPy pair and PyWavelets."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pywt = pytest.importorskip("pywt")

from wdm_export.filter_banks import named_wavelet  # noqa: E402
from wdm_export.packet import WaveletPacket  # noqa: E402
from wdm_runtime import wavelets  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.wavelets import WaveletSpec  # noqa: E402

LEVELS = (0, 1, 2)
NAMES = ("haar", "db2", "db4", "bior2.2", "sym4")
LIMIT = 2e-6


@pytest.fixture
def fields():
    return np.random.default_rng(0).standard_normal((3, 1, 24, 40), dtype=np.float32)


def pywavelets(field, name, levels):
    """The packet by PyWavelets: (cA, cH, cV, cD), each split again in place."""
    if levels == 0:
        return [field]
    low, details = pywt.dwt2(field, name, mode="periodization")
    return [leaf for band in (low, *details) for leaf in pywavelets(band, name, levels - 1)]


def node_path_packet(field, name, levels):
    """The packet by PyWavelets' own tree, subbands in the order a, h, v, d."""
    tree = pywt.WaveletPacket2D(field, name, mode="periodization", maxlevel=levels)
    paths = [""]
    for _ in range(levels):
        paths = [path + letter for path in paths for letter in "ahvd"]
    return [tree[path].data for path in paths]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_numpys_and_pywavelets(name, levels, fields):
    spec = named_wavelet(name, levels)
    coeffs = WaveletPacket(spec)(torch.from_numpy(fields)).numpy()
    assert coeffs.shape == (3, spec.subbands, 24 // spec.stride, 40 // spec.stride)
    for field, got in zip(fields, coeffs, strict=True):
        np.testing.assert_allclose(got, wavelets.dwt(field, spec), atol=LIMIT)
        np.testing.assert_allclose(got, np.stack(pywavelets(field[0], name, levels)), atol=LIMIT)
        if levels:
            tree = np.stack(node_path_packet(field[0].astype(np.float64), name, levels))
            np.testing.assert_allclose(got, tree, atol=LIMIT)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_inverse_is_numpys_and_undoes_the_forward(name, levels, fields):
    spec = named_wavelet(name, levels)
    packet = WaveletPacket(spec)
    shape = (2, spec.subbands, 6, 5)
    coeffs = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    back = packet.inverse(torch.from_numpy(coeffs)).numpy()
    assert back.shape == (2, 1, 6 * spec.stride, 5 * spec.stride)
    for one, got in zip(coeffs, back, strict=True):
        np.testing.assert_allclose(got, wavelets.idwt(one, spec), atol=LIMIT)
    there = packet(torch.from_numpy(fields))
    np.testing.assert_allclose(packet.inverse(there).numpy(), fields, atol=LIMIT)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", ["haar", "db2", "db4", "sym4"])
def test_orthogonal_filters_keep_energy_and_a_constant_has_no_details(name, levels, fields):
    spec = named_wavelet(name, levels)
    packet = WaveletPacket(spec)
    coeffs = packet(torch.from_numpy(fields))
    assert float(coeffs.square().sum()) == pytest.approx(float((fields**2).sum()), rel=1e-5)
    flat = packet(torch.full((1, 1, 16, 16), 2.5))
    assert flat[:, 0].numpy() == pytest.approx(2.5 * spec.stride, rel=1e-6)
    assert flat[:, 1:].abs().sum() == pytest.approx(0, abs=1e-4)


def test_gradients_flow_back_to_the_field():
    packet = WaveletPacket(WaveletSpec(levels=2))
    field = torch.randn(1, 1, 16, 16, requires_grad=True)
    packet(field).square().sum().backward()
    # orthonormal: the gradient of the energy is twice the field
    np.testing.assert_allclose(field.grad, 2 * field.detach(), atol=1e-5)


def test_every_discrete_wavelet_of_pywavelets_but_one_is_its_own_in_the_runtime():
    """Of 'dmey' the filters are an approximation that loses 0.2 %."""
    field = np.random.default_rng(2).standard_normal((1, 12, 20))
    refused = []
    for name in pywt.wavelist(kind="discrete"):
        try:
            spec = named_wavelet(name, 2)
        except InputError as error:
            assert "perfect reconstruction" in str(error)
            refused.append(name)
            continue
        coeffs = wavelets.dwt(field, spec)
        np.testing.assert_allclose(coeffs, pywavelets(field[0], name, 2), atol=1e-11)
        np.testing.assert_allclose(wavelets.idwt(coeffs, spec), field, atol=1e-9)
    assert refused == ["dmey"]


@pytest.mark.parametrize("name", ["db", "DB2", "morl", "", "db2 "])
def test_a_name_that_pywavelets_has_not_says_what_it_has(name):
    with pytest.raises(InputError, match=r"--wavelet got .*bior1.1 to bior6.8.*haar.*sym2 to sym"):
        named_wavelet(name, 2)
    with pytest.raises(InputError, match="9 levels"):
        named_wavelet("db2", 9)
