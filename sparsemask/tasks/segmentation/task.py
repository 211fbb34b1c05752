"""Semantic segmentation: pixel cross-entropy, mean IoU over one confusion matrix, drawings of the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.engine import distributed
from sparsemask.errors import UseError, say
from sparsemask.tasks.dense.task import IGNORE, DenseTask, resize
from sparsemask.tasks.segmentation.class_weights import AUTO, median_frequency, read_weights, spell_weights
from sparsemask.tasks.segmentation.scores import ConfusionMeter, SegmentationScores, by_class, class_table
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.label_map import LabelMap


class SegmentationTask(DenseTask):
    """Segmentation of the images that the configuration names."""

    primary = "miou"
    output = "classes"
    label_map: LabelMap | None = None
    _weights: torch.Tensor | None = None
    reads_indices = reads_voc = weighs_classes = True
    sample_folder = staticmethod(datasets.sample_folder)

    def __init__(self, config: RunConfig):
        super().__init__(config)
        if config.data.label_map:
            self._read_map()
        self.classes = self.class_names()
        self.n_class = self.n_output = len(self.classes)
        if (given := config.data.class_weights) and type(self).loss is not SegmentationTask.loss:
            raise UseError(f"--class_weights {given}: task '{config.data.task}' has a loss of its own")
        if given and given != AUTO:
            self._settle_weights(read_weights(given, self.classes))

    def _read_map(self) -> None:
        """Put the map of --label_map into the configuration, in place of its file, and its number of classes."""
        data = self._config.data
        self.label_map = LabelMap.read(data.label_map)
        self.label_map.check_ignored(data.ignore_index)
        count = len(self.label_map.names)
        if data.n_class not in (count, type(data)().n_class):
            raise UseError(f"--n_class {data.n_class}: --label_map has {count} classes")
        self._config = self._config.replace(label_map=self.label_map.text(), n_class=count)

    def _settle_weights(self, weights: np.ndarray) -> None:
        """Put the classes' weights in the loss into the configuration."""
        self._config = self._config.replace(class_weights=spell_weights(weights))
        self._weights = torch.from_numpy(weights)

    def check(self) -> None:
        """See :meth:`DenseTask.check`; weights of classes that are to be counted are."""
        super().check()
        if self.config.data.class_weights == AUTO:
            counted = median_frequency(self.train_data)
            self._settle_weights(counted.weights)
            if distributed.rank() == 0:
                say(counted.words(self.classes))

    def class_names(self) -> list[str]:
        """The names of the classes, one an output channel."""
        if self.label_map is not None and not self._config.data.class_names:
            return list(self.label_map.names)
        return datasets.class_names(self._config.data)

    def label_settings(self) -> dict[str, Any]:
        """What a data set needs to know of the labels."""
        ignored = self.config.data.ignore_index
        common = {"n_class": self.n_class, "classes": self.classes, "ignore_index": ignored}
        return common if self.label_map is None else {**common, "label_map": self.label_map}

    def class_colours(self, own: np.ndarray | None) -> np.ndarray | None:
        """See :meth:`DenseTask.class_colours`."""
        if own is None or self.label_map is None:
            return own
        numbers = list(self.label_map.numbers)
        return own[numbers] if max(numbers) < len(own) else None

    def label_description(self) -> dict[str, Any]:
        """See :meth:`DenseTask.label_description`."""
        return {"ignore_index": self.config.data.ignore_index, "label_map": self.label_map}

    def layout(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        """Raise a UseError: there is no public layout of segmentation alone."""
        raise UseError("--data_root is for the layouts of other tasks; segmentation has --voc_root, or --im_path")

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """(image, label) paths of the "training" or the "eval" set that the configuration names."""
        root = self.config.data.data_root
        return self.layout(Path(root), split) if root else datasets.pairs(self.config.data, split)

    def dataset(self, pairs: list[tuple[Path, Path]], **settings) -> SegmentationDataset:
        """Images with their class indices."""
        return SegmentationDataset(pairs, **self.label_settings(), **settings)

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (N,H,W): its labelled pixels, each with its class's weight."""
        if self._weights is None:
            return super().count(target)
        pixels = torch.bincount(target[target != IGNORE].flatten().cpu(), minlength=self.n_class)
        return float(pixels.double() @ self._weights)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the pixel cross-entropy, classes weighed as --class_weights says.

        `output` (N,C,h,w) is resized to `target` (N,H,W), in which 255 is ignored.
        """
        logits = resize(output, target.shape[-2:])
        kind = torch.promote_types(logits.dtype, torch.float32)
        weights = None if self._weights is None else self._weights.to(logits.device, kind)
        return F.cross_entropy(logits.to(kind), target, weights, ignore_index=IGNORE, reduction="sum")

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
