"""The training loss: Tweedie's estimate, score matching, and what total variation sees."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wdm_export.crops import Coefficients  # noqa: E402
from wdm_export.filter_banks import named_wavelet  # noqa: E402
from wdm_export.losses import amplitudes, target_weight, total_variation, training_loss  # noqa: E402
from wdm_runtime.diffusion import VPSchedule, denoised_from_v  # noqa: E402
from wdm_runtime.transform import PrecipTransform  # noqa: E402

WEIGHT = 1e-2


def process(x0, seed=0):
    """x, eps, t and the exact v of clean coefficients at random times."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(len(x0), generator=generator, dtype=x0.dtype)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    alpha, sigma = amplitudes(t)
    return alpha * x0 + sigma * eps, eps, t, alpha * eps - sigma * x0


def clean(subbands=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((5, subbands, 9, 7), generator=generator, dtype=torch.float64)


def variation(values):
    """Mean absolute difference of neighbours, vertical plus horizontal, in plain NumPy."""
    values = np.asarray(values)
    return np.abs(np.diff(values, axis=2)).mean() + np.abs(np.diff(values, axis=3)).mean()


def test_amplitudes_are_the_schedule_of_the_runtime():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = amplitudes(t)
    assert alpha.shape == (11, 1, 1, 1)
    expected = [(VPSchedule.alpha(float(s)), VPSchedule.sigma(float(s))) for s in t]
    np.testing.assert_allclose(torch.stack((alpha, sigma)).reshape(2, 11).T, expected, atol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1)


@pytest.mark.parametrize("seed", range(3))
def test_an_exact_v_leaves_no_matching_and_the_variation_of_the_truth(seed):
    x0 = clean()
    x, eps, t, v = process(x0, seed)
    loss, matching = training_loss(v, x, x0, eps, t, WEIGHT)
    assert float(matching) == 0
    # Only a Tweedie estimate that equals x0 gives x0's own variation, at every time.
    assert float(loss) == pytest.approx(WEIGHT * variation(x0[:, 1:]), rel=1e-9)


def test_tweedie_is_the_one_of_the_sampler():
    x0 = clean()
    x, _, t, v = process(x0)
    for i in range(len(x0)):
        alpha, sigma = VPSchedule.alpha(float(t[i])), VPSchedule.sigma(float(t[i]))
        denoised = denoised_from_v(
            x[i].float().numpy(), v[i].float().numpy(), np.float32(alpha), np.float32(sigma)
        )
        np.testing.assert_allclose(denoised, x0[i], atol=2e-6)


def test_the_approximation_is_never_smoothed():
    x0 = clean()
    x0[:, 1:] = torch.arange(15.0)[None, :, None, None]  # constant details
    x, eps, t, v = process(x0)
    assert variation(x0[:, :1]) > 1
    loss, _ = training_loss(v, x, x0, eps, t, WEIGHT)
    assert float(loss) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("subband", [1, 7, 15])
def test_every_detail_is_smoothed(subband):
    x0 = torch.zeros(5, 16, 9, 7, dtype=torch.float64)
    x0[:, subband] = clean()[:, 0]
    x, eps, t, v = process(x0)
    loss, _ = training_loss(v, x, x0, eps, t, WEIGHT)
    assert float(loss) == pytest.approx(WEIGHT * variation(x0[:, 1:]), rel=1e-9)


def test_a_wrong_v_costs_its_mean_square():
    x0 = clean()
    x, eps, t, v = process(x0)
    error = clean(seed=9)
    loss, matching = training_loss(v + error, x, x0, eps, t, 0.0)
    assert float(matching) == pytest.approx(float((error**2).mean()), rel=1e-9)
    assert float(loss) == float(matching)


def test_weights_count_errors_where_they_are_and_the_matching_part_has_none():
    x0 = clean()
    x, eps, t, v = process(x0)
    error = clean(seed=9)
    weights = torch.zeros(5, 1, *x0.shape[2:], dtype=torch.float64)
    weights[..., 2, 3] = 7.0
    loss, matching = training_loss(v + error, x, x0, eps, t, 0.0, weights)
    there = 7 * float((error[..., 2, 3] ** 2).sum()) / error.numel()
    assert float(loss) == pytest.approx(there, rel=1e-9)
    assert float(matching) == pytest.approx(float((error**2).mean()), rel=1e-9)


@pytest.mark.parametrize(("name", "levels"), [("haar", 2), ("db2", 2), ("haar", 0)])
def test_weights_follow_the_coarse_rain_and_fit_the_coefficients(name, levels):
    wavelet = named_wavelet(name, levels)
    coefficients = Coefficients(wavelet, PrecipTransform())
    edge = 48 + 2 * wavelet.margin * wavelet.stride
    rain = torch.full((2, 1, edge, edge), 1.0)
    rain[1] = 2 * 1.1 - 0.1  # twice as much with the offset of 0.1 mm/h
    residual, _ = coefficients(rain, rain)
    weights = coefficients.weights(rain, 0.5)
    assert weights.shape == (2, 1, *residual.shape[2:])
    assert weights[0].unique().tolist() == pytest.approx([1.0])
    assert float(weights[1].mean()) == pytest.approx(2**0.5, rel=1e-5)
    assert bool((coefficients.weights(rain, 0.0) == 1).all())


def test_the_variation_is_of_the_estimate_not_of_the_truth():
    x0 = clean()
    x, eps, t, v = process(x0)
    error = clean(seed=9)
    _, sigma = amplitudes(t)
    loss, matching = training_loss(v + error, x, x0, eps, t, WEIGHT)
    expected = variation((x0 - sigma * error)[:, 1:])  # D = x0 - sigma (v_hat - v)
    assert float(loss - matching) == pytest.approx(WEIGHT * expected, rel=1e-9)


def test_weight_zero_turns_it_off_and_the_pixel_model_has_none():
    x0 = clean()
    x, eps, t, v = process(x0)
    loss, _ = training_loss(v, x, x0, eps, t, 0.0)
    assert float(loss) == 0
    pixels = clean(subbands=1)
    x, eps, t, v = process(pixels)
    loss, _ = training_loss(v, x, pixels, eps, t, WEIGHT)
    assert float(loss) == 0


def test_the_weight_does_not_depend_on_the_size_of_crops():
    field = torch.kron(torch.arange(8.0)[:, None] % 2, torch.ones(1, 8))[None, None]
    wide = field.tile(1, 3, 4, 4)
    assert float(total_variation(field)) == pytest.approx(1.0)
    assert float(total_variation(wide)) == pytest.approx(float(total_variation(field)))


def test_variation_pulls_the_gradient_towards_smooth_details():
    x0 = clean().float()
    x, eps, t, v = process(x0)
    v_hat = v.clone().requires_grad_()
    training_loss(v_hat, x, x0, eps, t, WEIGHT)[0].backward()
    assert v_hat.grad is not None and torch.isfinite(v_hat.grad).all()
    assert v_hat.grad[:, 0].abs().max() == 0 and v_hat.grad[:, 1:].abs().max() > 0


def test_the_loss_of_another_target_is_the_error_of_that_target():
    x0, eps, v_hat = torch.randn(3, 4, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    alpha, sigma = amplitudes(t)
    x = alpha * x0 + sigma * eps
    expected = {
        "v": (v_hat - (alpha * eps - sigma * x0)).square().mean(),
        "eps": (sigma * x + alpha * v_hat - eps).square().mean(),
        "x0": (alpha * x - sigma * v_hat - x0).square().mean(),
    }
    for target, error in expected.items():
        loss, matching = training_loss(v_hat, x, x0, eps, t, 0.0, target_weight(t, target))
        torch.testing.assert_close(loss, error)
        torch.testing.assert_close(matching, expected["v"])
