"""Semantic segmentation: pixel cross-entropy, mean IoU over one confusion matrix, pictures of the predictions."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sparsemask import datasets
from sparsemask.engine import data, distributed
from sparsemask.tasks.metrics import SegmentationScores, confusion
from VOC12.dataset import SegmentationDataset

IGNORE = 255


class SegmentationTask:
    """Segmentation of the pictures that the options name."""

    primary = "miou"

    def __init__(self, options: argparse.Namespace):
        self.n_class = options.n_class
        self.classes = datasets.class_names(options)
        self._options = options
        self._train = self._eval = None

    def _dataset(self, which: str) -> SegmentationDataset:
        o, more = self._options, {}
        if o.scales:
            more["scales"] = tuple(o.scales)
        pairs = datasets.pairs(o, which)
        return SegmentationDataset(
            pairs, self.n_class, self.classes, crop_size=o.crop_size, training=which == "training", **more
        )

    @property
    def train_data(self) -> SegmentationDataset:
        """Training pictures."""
        if self._train is None:
            self._train = self._dataset("training")
        return self._train

    @property
    def eval_data(self) -> SegmentationDataset:
        """Validation pictures."""
        if self._eval is None:
            self._eval = self._dataset("eval")
        return self._eval

    def check(self) -> None:
        """Read both lists; UseError for what is absent."""
        _ = self.train_data, self.eval_data

    def count(self, target: torch.Tensor) -> int:
        """Labelled pixels in a batch (N,H,W)."""
        return int((target != IGNORE).sum())

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the pixel cross-entropy; `output` (N,C,h,w) is resized to `target` (N,H,W), 255 is ignored."""
        logits = resize(output, target.shape[-2:])
        kind = logits.dtype if logits.dtype == torch.float64 else torch.float32
        return F.cross_entropy(logits.to(kind), target, ignore_index=IGNORE, reduction="sum")

    @torch.no_grad()
    def scores(
        self,
        model: torch.nn.Module,
        arithmetic,
        options: argparse.Namespace,
        limit: int = 0,
        flips: bool = False,
        scales: tuple[float, ...] = (1.0,),
        each=None,
    ) -> SegmentationScores:
        """Confusion matrix of `model` on the validation pictures (the first `limit`), over all processes.

        flips, scales: average the probabilities over mirrored and rescaled copies. each(index, prediction): called
        with every picture's (H,W) prediction, padding removed.
        """
        source = self.eval_data
        indices = np.arange(len(source))[: limit or None][distributed.rank() :: distributed.world()]
        batch = getattr(options, "eval_batch_size", 1)
        loader = data.evaluation_loader(source, indices, batch, options.n_worker)
        matrix = torch.zeros(self.n_class, self.n_class, dtype=torch.int64)
        model.eval()
        done = 0
        for groups in data.plainly(loader):
            for images, target in groups:
                images = images.to(arithmetic.device, arithmetic.parameters)
                prediction = predict(model, images, arithmetic, flips, scales).cpu()
                matrix += confusion(prediction, target, self.n_class)
                for one in prediction:
                    if each is not None:
                        each(int(indices[done]), self._unpad(int(indices[done]), one))
                    done += 1
        matrix = distributed.total(matrix.to(arithmetic.device)).cpu()
        return SegmentationScores(matrix.numpy())

    def evaluate(self, model, arithmetic, options, limit: int = 0) -> dict:
        """Figures for the training loop."""
        scores = self.scores(model, arithmetic, options, limit)
        return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}

    def _unpad(self, index: int, padded: torch.Tensor) -> torch.Tensor:
        """Cut the centred padding off a (H, W) map of a validation picture."""
        with Image.open(self.eval_data.pairs[index][0]) as picture:  # the header alone is read
            width, height = picture.size
        top, left = ((have - size) // 2 for have, size in zip(padded.shape, (height, width), strict=True))
        return padded[top : top + height, left : left + width]

    def samples(self, model, arithmetic, options, n: int = 6) -> list[tuple]:
        """(picture, truth, prediction) of `n` validation pictures spread over the list."""
        source, found = self.eval_data, []
        model.eval()
        for index in np.unique(np.linspace(0, len(source) - 1, min(n, len(source))).astype(int)):
            images = source[int(index)][0][None].to(arithmetic.device, arithmetic.parameters)
            with torch.no_grad():
                prediction = predict(model, images, arithmetic)[0].cpu()
            picture, truth = source.load(int(index))
            found.append((picture, truth, self._unpad(int(index), prediction).numpy()))
        return found

    def draw(self, samples: list[tuple], path) -> None:
        """Write the picture | truth | prediction grid."""
        from sparsemask.pictures.predictions import draw_predictions
        from VOC12.palette import VOC_COLOURS

        draw_predictions(samples, path, self.classes, VOC_COLOURS)


def resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with aligned corners, as published; skipped when the size is right already."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def predict(
    model: torch.nn.Module,
    images: torch.Tensor,
    arithmetic,
    flips: bool = False,
    scales: tuple[float, ...] = (1.0,),
) -> torch.Tensor:
    """(N,H,W) classes of a batch of images (N,3,H,W)."""
    size = images.shape[-2:]
    if not flips and tuple(scales) == (1.0,):
        with arithmetic.context():
            return resize(model(images), size).argmax(1)
    total = torch.zeros((), device=images.device)
    for scale in scales:
        scaled = images
        if scale != 1.0:
            to = [max(1, round(s * scale)) for s in size]
            scaled = F.interpolate(images, size=to, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flips else (False,):
            with arithmetic.context():
                logits = model(scaled.flip(-1) if mirrored else scaled)
            logits = resize(logits.flip(-1) if mirrored else logits, size)
            total = total + logits.float().softmax(1)
    return total.argmax(1)
