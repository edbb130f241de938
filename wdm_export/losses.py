"""The training loss: score matching in its v form, plus total variation of the details."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wdm_export.config import EPS, X0, V


def amplitudes(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the cosine schedule at t (b,), shaped (b, 1, 1, 1)."""
    angle = 0.5 * math.pi * t[:, None, None, None]
    return angle.cos(), angle.sin()


def target_weight(t: Tensor, target: str) -> Tensor:
    """What an error of v counts where the loss is of another quantity, (b, 1, 1, 1).

    The noise is sigma x + alpha v and the clean coefficients are alpha x - sigma v, so their
    squared errors are alpha^2 and sigma^2 times that of v.

    Parameters
    ----------
    t
        Times (b,).
    target
        One of ``LOSS_TARGETS``.
    """
    alpha, sigma = amplitudes(t)
    return {V: torch.ones_like(alpha), EPS: alpha.square(), X0: sigma.square()}[target]


def total_variation(coeffs: Tensor) -> Tensor:
    """Anisotropic total variation of (b, c, h, w), averaged over all elements.

    Averaged like the score-matching term, so that its weight does not depend on the crop's size.
    """
    vertical = (coeffs[..., 1:, :] - coeffs[..., :-1, :]).abs().mean()
    horizontal = (coeffs[..., :, 1:] - coeffs[..., :, :-1]).abs().mean()
    return vertical + horizontal


def training_loss(
    v_hat: Tensor,
    x: Tensor,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    tv_weight: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean w (v - v_hat)^2 + tv_weight * TV(detail subbands of the Tweedie estimate).

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

    weights
        w of each place, (b, 1, h, w); 1 by default. Where they depend on condition and time alone
        the best answer stays the same at each place, and only what is learnt first changes.

    Returns
    -------
    The loss and its score-matching part, the latter with weights of 1.
    """
    alpha, sigma = amplitudes(t)
    errors = (v_hat - (alpha * eps - sigma * x0)).square()
    matching = errors.mean()
    loss = matching if weights is None else (weights * errors).mean()
    if tv_weight == 0 or x.shape[1] == 1:  # the pixel model has no detail subbands
        return loss, matching
    denoised = alpha * x - sigma * v_hat
    return loss + tv_weight * total_variation(denoised[:, 1:]), matching
