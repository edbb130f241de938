"""The training loss: score matching in its v form, plus total variation of the details."""

from __future__ import annotations

import math

from torch import Tensor


def amplitudes(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the cosine schedule at t (b,), shaped (b, 1, 1, 1)."""
    angle = 0.5 * math.pi * t[:, None, None, None]
    return angle.cos(), angle.sin()


def total_variation(coeffs: Tensor) -> Tensor:
    """Anisotropic total variation of (b, c, h, w), averaged over all elements.

    Averaged like the score-matching term, so that its weight does not depend on the crop's size.
    """
    vertical = (coeffs[..., 1:, :] - coeffs[..., :-1, :]).abs().mean()
    horizontal = (coeffs[..., :, 1:] - coeffs[..., :, :-1]).abs().mean()
    return vertical + horizontal


def training_loss(
    v_hat: Tensor, x: Tensor, x0: Tensor, eps: Tensor, t: Tensor, tv_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean (v - v_hat)^2 + tv_weight * TV(detail subbands of the Tweedie estimate).

    Parameters
    ----------
    v_hat
        The network's output at (x, t), (b, s, h, w).
    x, x0, eps
        Noisy and clean coefficients and the noise between them, (b, s, h, w).
    t
        Times (b,).
    tv_weight
        lambda of Yi et al. (arXiv 2507.01354); 0 leaves the term out.

    Returns
    -------
    The loss and its score-matching part.
    """
    alpha, sigma = amplitudes(t)
    matching = (v_hat - (alpha * eps - sigma * x0)).square().mean()
    if tv_weight == 0 or x.shape[1] == 1:  # the pixel model has no detail subbands
        return matching, matching
    denoised = alpha * x - sigma * v_hat
    return matching + tv_weight * total_variation(denoised[:, 1:]), matching
