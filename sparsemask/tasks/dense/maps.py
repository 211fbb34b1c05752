"""Tasks whose prediction is one map of probabilities: a single output channel, shown in grey."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.tasks.dense.task import IGNORE, DenseTask, resize
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.images import decoding, grey_levels, is_deep, upright


class MapDataset(SegmentationDataset):
    """Images with labels of 0 (no), 1 (yes) and 255 (ignored)."""

    def __init__(self, pairs: list[tuple[Path, Path]], classes: tuple[str, str], **settings):
        super().__init__(pairs, 2, classes, **settings)


class MapTask(DenseTask):
    """Predicts a probability for every pixel; trained by binary cross-entropy."""

    n_output = 1

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        """Weight of every pixel of a target (N,H,W) in the loss, 0 where it is ignored; here 1 elsewhere."""
        return (target != IGNORE).float()

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (N,H,W): the sum of its weights."""
        return float(self.weights(target).sum(dtype=torch.float64))

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the binary cross-entropy; `output` (N,1,h,w) is resized to `target` (N,H,W)."""
        logits = resize(output, target.shape[-2:])[:, 0]
        kind = torch.promote_types(logits.dtype, torch.float32)
        truth, weights = (target == 1).to(kind), self.weights(target).to(kind)
        return F.binary_cross_entropy_with_logits(logits.to(kind), truth, weights, reduction="sum")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid."""
        return logits.sigmoid()

    def decide(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The probabilities themselves, (N,H,W) in [0, 1]."""
        return probabilities[:, 0]

    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write probabilities as a grey PNG, white for 1."""
        from sparsemask.pictures import save_map

        save_map(path, prediction.numpy())

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the image | truth | prediction grid."""
        from sparsemask.pictures import draw_maps

        draw_maps(samples, path)


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """A map of 0 to 255 from an image file of any mode, uint8 (H, W); 16 bits and floats are scaled like images'.

    Raises:
        UseError: a missing or broken file, or 0 and 1 where 0 and 255 are meant.
    """
    with decoding(path), Image.open(path) as image:
        image.load()
        turned = upright(image)
        grey = np.rint(grey_levels(turned)[0]).astype(np.uint8) if is_deep(turned) else np.array(turned.convert("L"))
    if grey.size and grey.max() == 1:
        raise UseError(f"{path}: its values are 0 and 1, expected 0 to 255 (white for yes)")
    return grey
