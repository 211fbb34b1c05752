"""A network's scores of images: over mirrored and rescaled copies, at the images' size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.devices import Arithmetic


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, as published; skipped when the size is right already."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def average_views(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    arithmetic: Arithmetic,
    probabilities: Callable[[Tensor], Tensor],
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Mean over copies of images of what a network says of them.

    Args:
        model: gives logits (N, C, h, w).
        images: (N, 3, H, W).
        arithmetic: device and precision.
        probabilities: what is averaged, of float32 logits (N, C, H, W).
        flips: average over mirrored copies too.
        scales: average over copies enlarged by these factors.

    Returns:
        (N, C, H, W).
    """
    size = (images.shape[-2], images.shape[-1])
    total = torch.zeros((), device=images.device)
    for scale in scales:
        scaled = images
        if scale != 1.0:
            to = [max(1, round(s * scale)) for s in size]
            scaled = F.interpolate(images, size=to, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flips else (False,):
            logits = arithmetic.run(model, scaled.flip(-1) if mirrored else scaled)
            logits = resize(logits.flip(-1) if mirrored else logits, size)
            total = total + probabilities(logits.float())
    return total / (len(scales) * (1 + flips))
