"""The training-side wavelet packet transform, by pytorch_wavelets."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from wdm_runtime.wavelets import WaveletSpec

with warnings.catch_warnings():
    # pytorch_wavelets 1.3.0 imports pkg_resources, whose deprecation is not our user's business.
    warnings.filterwarnings("ignore", message="pkg_resources", category=UserWarning)
    from pytorch_wavelets import DWTForward, DWTInverse


class WaveletPacket(nn.Module):
    """Forward and inverse packet transform with the runtime's subband order.

    Fields are (b, 1, y, x) with sizes in multiples of the stride, coefficients
    (b, subbands, y / stride, x / stride). A level of fewer cells than its filters have taps would
    wrap around more than once, which pytorch_wavelets does not.
    """

    def __init__(self, spec: WaveletSpec) -> None:
        super().__init__()
        self.spec = spec
        bank, mode = spec.bank, "periodization"
        self.analysis = DWTForward(J=1, wave=(bank.dec_lo, bank.dec_hi), mode=mode)
        self.synthesis = DWTInverse(wave=(bank.rec_lo, bank.rec_hi), mode=mode)

    def forward(self, field: Tensor) -> Tensor:
        """(b, 1, y, x) -> coefficients."""
        for _ in range(self.spec.levels):
            low, (high,) = self.analysis(field)
            field = torch.cat((low[:, :, None], high), dim=2).flatten(1, 2)
        return field

    def inverse(self, coeffs: Tensor) -> Tensor:
        """Coefficients -> (b, 1, y, x)."""
        for _ in range(self.spec.levels):
            grouped = coeffs.unflatten(1, (-1, 4))
            coeffs = self.synthesis((grouped[:, :, 0], [grouped[:, :, 1:]]))
        return coeffs
