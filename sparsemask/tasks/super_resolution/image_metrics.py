"""PSNR and SSIM of images as published for super-resolution: on luma or RGB, shaved, of whole-numbered values.

All take images of 0 to 255, float or integer, (C, H, W) or (1, C, H, W) with C = 3, or C = 1 for luma itself, and
compute in float64. They quantise nothing: published figures are of quantised images, see :func:`quantise`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sparsemask.errors import UseError

PEAK = 255.0
_LUMA = (65.738, 129.057, 25.064)  # ITU-R BT.601, studio range: over 256 for values of 0 to 255
_OFFSET = 16.0
_RGB_SHAVE = 6  # more pixels than the scale, where RGB is scored


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Values as an 8-bit image would hold them, in the tensor's own type: clamped to 0 to 255 and rounded."""
    return images.clamp(0, PEAK).round() if images.is_floating_point() else images.clamp(0, int(PEAK))


def psnr(sr: torch.Tensor, hr: torch.Tensor, scale: float, benchmark: bool = True) -> float:
    """Peak signal-to-noise ratio in dB of one image; infinite for equal ones.

    Args:
        sr: the image, values 0 to 255.
        hr: the truth, of the same shape.
        scale: ceil(scale) pixels are left out on each side.
        benchmark: luma, as published for Set5, Set14, B100, Urban100 and Manga109; else the mean over RGB, six
            pixels more left out, as published for DIV2K's validation images.

    Raises:
        UseError: images of different or impossible shapes, or of nothing but rim.
    """
    sr, hr = _checked(sr, hr)
    difference = (sr - hr) / PEAK
    if benchmark and len(difference) == 3:
        difference = _weighted(difference, 256)[None]
    error = _shaved(difference, scale, benchmark).pow(2).mean().item()
    return -10 * math.log10(error) if error else math.inf


def ssim(sr: torch.Tensor, hr: torch.Tensor, scale: float, benchmark: bool = True, divisor: int = 255) -> float:
    """Structural similarity of the luma of one image, at most 1.

    Gaussian windows of 11 x 11 pixels, sigma 1.5, where they lie inside (Wang et al., "Image quality assessment: from
    error visibility to structural similarity", 2004, section III.C); K1 = 0.01, K2 = 0.03, L = 255.

    Args:
        sr: as for :func:`psnr`.
        hr: as for :func:`psnr`.
        scale: as for :func:`psnr`.
        benchmark: as for :func:`psnr`, but for the border alone; luma is compared either way.
        divisor: of the luma weights. 255 is what the public code of SMSR uses here, and its published results with
            it, although these weights belong over 256 (and its PSNR has them so); 256 is the consistent choice.

    Raises:
        UseError: as :func:`psnr`, another divisor, or less than one window is left.
    """
    from skimage.metrics import structural_similarity

    if divisor not in (255, 256):
        raise UseError(f"SSIM divisor {divisor}: 255 (as published) or 256 (consistent with PSNR)")
    predicted, true = (_shaved(_luma(image, divisor), scale, benchmark)[0].numpy() for image in _checked(sr, hr))
    if min(predicted.shape) < 11:
        raise UseError(f"{predicted.shape[1]}x{predicted.shape[0]} pixels without the rim: SSIM needs at least 11x11")
    return float(
        structural_similarity(
            predicted, true, data_range=PEAK, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def _luma(image: torch.Tensor, divisor: int) -> torch.Tensor:
    return image if len(image) == 1 else _weighted(image, divisor)[None] + _OFFSET


def _weighted(image: torch.Tensor, divisor: int) -> torch.Tensor:
    return torch.tensordot(image.new_tensor(_LUMA), image, 1) / divisor


def _checked(*images: torch.Tensor | np.ndarray) -> list[torch.Tensor]:
    """The images as float64 (C, H, W) on the CPU."""
    tensors = [torch.as_tensor(image).detach().to("cpu", torch.float64) for image in images]
    tensors = [image[0] if image.ndim == 4 and len(image) == 1 else image for image in tensors]
    shapes = [tuple(image.shape) for image in tensors]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][0] not in (1, 3):
        raise UseError(
            f"pictures to compare must be of one shape, (3, H, W) or (1, H, W), not {shapes[0]}, {shapes[1]}"
        )
    return tensors


def _shaved(image: torch.Tensor, scale: float, benchmark: bool) -> torch.Tensor:
    """The image without its rim."""
    rim = math.ceil(scale) + (0 if benchmark else _RGB_SHAVE)
    if min(image.shape[-2:]) <= 2 * rim:
        raise UseError(f"{image.shape[-1]}x{image.shape[-2]} pixels: nothing is left without a rim of {rim}")
    return image[..., rim : image.shape[-2] - rim, rim : image.shape[-1] - rim]
