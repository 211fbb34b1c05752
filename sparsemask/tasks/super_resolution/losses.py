"""The terms of --loss: distances of images, as sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Sum of absolute differences of images (N, 3, H, W)."""
    return (output - target).abs().sum()


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences of images (N, 3, H, W)."""
    return (output - target).square().sum()


def fft(output: Tensor, target: Tensor) -> Tensor:
    """L1 distance of the orthonormal spectra of images (N, 3, H, W), over real and imaginary parts.

    It is scaled to a sum over as many values as the images have. After Cho et al., Rethinking coarse-to-fine approach
    in single image deblurring, ICCV 2021, arXiv 2108.05054, section 3.3.
    """
    spectrum = torch.view_as_real(torch.fft.rfft2(output - target, norm="ortho"))
    return spectrum.abs().sum() * (target.numel() / spectrum.numel())


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"L1": l1, "MSE": mse, "FFT": fft}
