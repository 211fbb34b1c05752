"""Semantic segmentation: pixel cross-entropy, mean IoU over one confusion matrix, drawings of the predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.errors import UseError
from sparsemask.tasks.dense.task import IGNORE, DenseTask
from sparsemask.tasks.dense.views import resize
from sparsemask.tasks.segmentation.scores import ConfusionMeter, SegmentationScores, by_class, class_table
from sparsemask.VOC12.dataset import SegmentationDataset


class SegmentationTask(DenseTask):
    """Segmentation of the images that the configuration names."""

    primary = "miou"
    output = "classes"
    reads_indices = reads_voc = True
    sample_folder = staticmethod(datasets.sample_folder)

    def __init__(self, config: RunConfig):
        super().__init__(config)
        self.classes = self.class_names()
        self.n_class = self.n_output = len(self.classes)

    def class_names(self) -> list[str]:
        """The names of the classes, one an output channel."""
        return datasets.class_names(self._config.data)

    def layout(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        """Raise a UseError: there is no public layout of segmentation alone."""
        raise UseError("--data_root is for the layouts of other tasks; segmentation has --voc_root, or --im_path")

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """(image, label) paths of the "training" or the "eval" set that the configuration names."""
        root = self.config.data.data_root
        return self.layout(Path(root), split) if root else datasets.pairs(self.config.data, split)

    def dataset(self, pairs: list[tuple[Path, Path]], **settings) -> SegmentationDataset:
        """Images with their class indices."""
        ignored = self.config.data.ignore_index
        return SegmentationDataset(pairs, self.n_class, self.classes, ignore_index=ignored, **settings)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the pixel cross-entropy; `output` (N,C,h,w) is resized to `target` (N,H,W), 255 is ignored."""
        logits = resize(output, target.shape[-2:])
        kind = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(kind), target, ignore_index=IGNORE, reduction="sum")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the classes."""
        return logits.softmax(1)

    def decide(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The likeliest class."""
        return probabilities.argmax(1)

    @torch.no_grad()
    def predict(self, model, images, arithmetic, flips=False, scales=(1.0,)) -> torch.Tensor:
        """(N,H,W) classes of images (N,3,H,W); see :meth:`DenseTask.predict`."""
        if flips or tuple(scales) != (1.0,):
            return super().predict(model, images, arithmetic, flips, scales)
        logits = arithmetic.run(model, images)
        with arithmetic.context():  # of one view the logits decide: no softmax
            return resize(logits, images.shape[-2:]).argmax(1)

    def meter(self, quick: bool) -> ConfusionMeter:
        """A confusion matrix."""
        return ConfusionMeter(self.n_class)

    def record(self, scores: SegmentationScores) -> dict:
        """The metrics, and the IoU of every class (None: it occurs nowhere)."""
        return {**self.metrics(scores), "iou": by_class(self.classes, scores.iou)}

    def report(self, scores: SegmentationScores) -> str:
        """The table by class, the absent classes, and the means."""
        lines = [class_table(scores, self.classes)]
        absent = scores.absent(self.classes)
        if absent:
            lines.append(f"absent from these pictures: {', '.join(absent)}")
        if not scores.matrix.any():
            lines.append("no pixel of these pictures has a label: there is nothing to score")
        lines.append(f"mIoU {scores.miou:.4f}  pixel accuracy {scores.pixel_accuracy:.4f}  ({scores.count} pictures)")
        return "\n".join(lines)

    def draw_scores(self, scores: SegmentationScores, folder: Path) -> None:
        """Draw the confusion matrix."""
        from sparsemask.pictures import draw_confusion

        draw_confusion(scores.matrix, self.classes, folder / "confusion.png")

    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write class indices in colours."""
        from sparsemask.pictures import save_prediction

        save_prediction(path, prediction.numpy().astype(np.uint8), self.palette)

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the image | truth | prediction grid."""
        from sparsemask.pictures.predictions import draw_predictions

        draw_predictions(samples, path, self.classes, self.palette)
