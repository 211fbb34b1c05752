"""Base class of the dense tasks: choice of the data, evaluation loop, averaging over views, samples.

A dense task adds how its files are read, its loss, how the network's output becomes a prediction, and how predictions
are scored and drawn. :class:`MapTask` is the base of those that predict one map of probabilities, shown in grey.
"""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.engine.distillation import softened_binary_divergence, softened_divergence
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError
from sparsemask.tasks import protocol
from sparsemask.tasks.dense.augmentation import Augmentation, check_name
from sparsemask.tasks.protocol import Evaluation, Task, spread_indices
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.palette import IGNORE
from sparsemask.VOC12.survey import survey


class Meter(protocol.Meter, Protocol):
    """Counts over images."""

    def add(self, index: int, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count the prediction (H, W) of validation image `index`; target (H, W), 255 ignored."""


class DenseTask(Task):
    """A label for every pixel.

    Predictions are maps (H, W) of a whole image; targets (N, H, W), 255 ignored.

    Attributes:
        reads_indices: whether labels are index PNG, in which --ignore_index marks what does not count, and of whose
            numbers --label_map makes classes.
        weighs_classes: whether the loss weighs classes by --class_weights.
        output: what outputs mean, one of :data:`sparsemask.prediction.description.OUTPUTS`; None: neither, and nothing
            but the task makes predictions of them.
    """

    data_flags = ("data_root", "voc_root", "im_path", "gt_path", "training_list", "eval_list")
    score_flags = ("ignore_index", "label_map")
    views = ("flips", "scales")
    reads_indices: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    output: ClassVar[str | None] = None

    def __init__(self, config: RunConfig):
        data = config.data
        words = [f"--ignore_index {data.ignore_index}" if data.ignore_index != IGNORE else None]
        words.append(f"--label_map {data.label_map}" if data.label_map else None)
        for what in filter(None, words if not self.reads_indices else ()):
            raise UseError(f"{what}: is for --task segmentation; other tasks' labels have their own rules")
        if data.class_weights and not self.weighs_classes:
            raise UseError(f"--class_weights {data.class_weights}: is for tasks of classes, such as segmentation")
        if data.augment:
            check_name(data.augment)
        super().__init__(config)

    @staticmethod
    def sample_folder() -> Path:
        """The images that --sample stands for, drawn on first use."""
        raise UseError("this task has no sample set: give --im_path, --gt_path, --training_list and --eval_list")

    @abstractmethod
    def layout(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        """(image, label) paths of the "training" or the "eval" set below a --data_root."""

    @abstractmethod
    def dataset(self, pairs: list[tuple[Path, Path]], **settings) -> SegmentationDataset:
        """The data set of such pairs."""

    @abstractmethod
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Values to be averaged over views of one image, from logits (N, C, H, W)."""

    @abstractmethod
    def decide(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The prediction (N, H, W)."""

    @abstractmethod
    def meter(self, quick: bool) -> Meter:
        """A new meter; `quick`: while training, where approximate metrics suffice."""

    @abstractmethod
    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write one prediction (H, W) as a PNG."""

    def write(self, folder: Path, index: int, prediction: torch.Tensor) -> Path:
        """Write the prediction of a validation image into a folder, under its name; returns the file."""
        path = Path(folder) / f"{self.eval_data.name(index)}.png"
        self.save(path, prediction)
        return path

    @cached_property
    def palette(self) -> np.ndarray:
        """Colours uint8 (number of classes, 3) in which classes are shown; those of the label files where they do."""
        from sparsemask.pictures.palette import class_palette, file_palette

        own = None
        if self.reads_indices:
            with contextlib.suppress(UseError):  # reading the label itself says what is wrong
                own = self.class_colours(file_palette(self.eval_data.pairs[0][1]))
        return class_palette(list(map(str, self.classes)), own)

    def class_colours(self, own: np.ndarray | None) -> np.ndarray | None:
        """Colours (number of classes, 3) out of a label file's palette (N, 3); None where it has not all of them."""
        return own

    def description(self) -> dict[str, Any]:
        """See :mod:`sparsemask.prediction.description`."""
        if self.output is None:
            return super().description()
        from sparsemask.prediction.description import Description

        return Description(
            classes=tuple(map(str, self.classes)),
            output=self.output,
            palette=self.palette,
            colours=self.eval_data.colours,
            input_size=self.config.data.crop_size or 1,
            task=self.config.data.task,
            **self.label_description(),
        ).entries()

    def label_description(self) -> dict[str, Any]:
        """What a network's file says of the numbers in label files, as arguments of its description."""
        return {}

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """(image, label) paths of the "training" or the "eval" set that the configuration names."""
        config = self.config
        root = self.sample_folder() if config.data.sample else config.data.data_root
        if root:
            return self.layout(Path(root), split)
        if config.data.voc_root:
            raise UseError(
                f"--voc_root has no labels for --task {config.data.task}: give --data_root, or folders and lists"
            )
        return datasets.pairs(config.data, split)

    def hold_out(self, share: float) -> tuple[DenseTask, DenseTask]:
        """See :class:`sparsemask.tasks.protocol.HoldsOut`; pictures spread over the list are kept back."""
        pairs = self.pairs("training")
        kept_back = set(spread_indices(len(pairs), max(1, round(share * len(pairs)))))
        if len(kept_back) == len(pairs):
            raise UseError(f"{len(pairs)} training picture: none can be kept back; take more pictures")
        train, held = copy.copy(self), copy.copy(self)
        train.train_data = self._dataset("training", [pair for i, pair in enumerate(pairs) if i not in kept_back])
        held.eval_data = self._dataset("eval", [pair for i, pair in enumerate(pairs) if i in kept_back])
        return train, held

    def _dataset(self, split: str, pairs: list[tuple[Path, Path]] | None = None) -> SegmentationDataset:
        config = self.config
        options: dict[str, Any] = {"scales": tuple(config.data.scales)} if config.data.scales else {}
        if config.data.augment and split == "training":
            options["transform"] = Augmentation(config.data.augment)
        pairs = self.pairs(split) if pairs is None else pairs
        return self.dataset(pairs, crop_size=config.data.crop_size, training=split == "training", **options)

    @cached_property
    def train_data(self) -> SegmentationDataset:
        """Training images."""
        return self._dataset("training")

    @cached_property
    def eval_data(self) -> SegmentationDataset:
        """Validation images."""
        return self._dataset("eval")

    def measured_on(self) -> str:
        """Description of the validation images."""
        config = self.config
        source = (
            "the sample set"
            if config.data.sample
            else config.data.data_root or config.data.voc_root or config.data.eval_list
        )
        return f"validation pictures of {Path(str(source)).name}"

    def check(self) -> None:
        """Read both lists, the first pair of each, and labels until every class has been seen.

        Says which classes never occur, and what reading changes in the first images.

        Raises:
            UseError: files are absent or of another kind, or labels hold fewer than two classes.
        """
        for split, data_set in (("training", self.train_data), ("validation", self.eval_data)):
            data_set.load(0)
            if Path(data_set.pairs[0][0]).is_file():
                data.say_how_read(split, data_set.pairs[0][0])
            self._check_labels(split, data_set)
        if self.config.data.augment:
            self.train_data.sample(0, np.random.default_rng(0))  # says what is wrong with it before a run is made

    def _check_labels(self, split: str, data_set: SegmentationDataset) -> None:
        """Refuse labels of fewer than two classes, and name the classes that never occur."""
        labels_survey = survey([label for _, label in data_set.pairs], data_set.read, data_set.n_class)
        problem = labels_survey.unlabelled(split, data_set.ignore_index)
        if split == "training":
            problem = problem or labels_survey.single(data_set.classes, split)
        if problem:
            advice = labels_survey.masks() if self.reads_indices else None
            raise UseError(f"{problem}; {advice}" if advice else problem)
        if absent := labels_survey.absent(data_set.classes, split):
            warn(f"note: {absent}")

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (N,H,W): its labelled pixels."""
        return int((target != IGNORE).sum())

    @torch.no_grad()
    def predict(
        self,
        model: Callable,
        images: torch.Tensor,
        arithmetic: Arithmetic,
        flips: bool = False,
        scales: tuple[float, ...] = (1.0,),
    ) -> torch.Tensor:
        """(N,H,W) prediction for images (N,3,H,W); flips, scales: averaged over mirrored and rescaled copies."""
        return self.decide(average_views(model, images, arithmetic, self.probabilities, flips, scales))

    def divergence(self, output: torch.Tensor, answer: torch.Tensor, temperature: float) -> torch.Tensor:
        """How far scores (N, C, H, W) are from a teacher's, (N, H, W); here of classes, by KL divergence."""
        return softened_divergence(output, answer, temperature)

    def teacher_loss(
        self, output: torch.Tensor, answer: torch.Tensor, target: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Mean divergence over the labelled pixels, times `count`; both are resized to `target` (N, H, W)."""
        if answer.ndim != 4 or answer.shape[1] != self.n_output:
            raise UseError(f"gives {tuple(answer.shape)}, expected {self.n_output} channels of every picture")
        size = target.shape[-2:]
        labelled = target != IGNORE
        values = self.divergence(resize(output, size), resize(answer, size), temperature)[labelled]
        return values.sum() * (self.count(target) / max(1, values.numel()))

    def measure(self, model: Callable, evaluation: Evaluation) -> Meter:
        """See :meth:`Task.measure`; predictions are (H, W), padding removed."""
        source, context = self.eval_data, evaluation.context
        _, indices = evaluation.indices(len(source))
        loader = data.evaluation_loader(source, indices, context.batch_size, context.n_worker)
        meter, numbers = self.meter(evaluation.quick), iter(indices)
        for images, target in chain.from_iterable(data.plainly(loader)):
            images = images.to(context.arithmetic.device, context.arithmetic.parameters)
            prediction = self.predict(model, images, context.arithmetic, evaluation.flips, evaluation.scales).cpu()
            for padded in zip(prediction, target, strict=True):
                index = next(numbers)
                labels, truth = self._unpad(index, *padded)
                meter.add(index, labels, truth)
                evaluation.predicted(index, labels)
        return meter

    def _unpad(self, index: int, *padded: torch.Tensor) -> list[torch.Tensor]:
        """Cut the centred padding off (H, W) maps of a validation image."""
        height, width = self.eval_data.size(index)
        top, left = ((have - size) // 2 for have, size in zip(padded[0].shape, (height, width), strict=True))
        return [padded_map[top : top + height, left : left + width] for padded_map in padded]

    def sample(self, model: Callable, arithmetic: Arithmetic, index: int) -> tuple:
        """(image, truth, prediction) of a validation image."""
        images = self.eval_data[index][0][None].to(arithmetic.device, arithmetic.parameters)
        prediction = self.predict(model, images, arithmetic)[0].cpu()
        image, truth = self.eval_data.load(index)
        return image, truth, self._unpad(index, prediction)[0].numpy()


class MapTask(DenseTask):
    """Predicts a probability for every pixel; trained by binary cross-entropy."""

    n_output = 1
    output = "probability"

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

    def divergence(self, output: torch.Tensor, answer: torch.Tensor, temperature: float) -> torch.Tensor:
        """See :meth:`DenseTask.divergence`; of yes and no."""
        return softened_binary_divergence(output[:, 0], answer[:, 0], temperature)

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
