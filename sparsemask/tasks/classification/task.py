"""Classification of images by cross-entropy; top-1 and top-5 accuracy.

Networks take images float32 (N, 3, H, W), normalised, and give logits (N, C). Where images lie:
:mod:`sparsemask.tasks.classification.layouts`. Small images train as is usual on CIFAR: four black pixels around, a
crop at random, mirrored at random (He et al., CVPR 2016, section 4.2; so in Hinge, Li et al., CVPR 2020); larger ones:
shorter side resized, a crop at random, mirrored; the middle is validated.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine.data import Listed, make_loader, plainly, say_how_read
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError
from sparsemask.files import write_text
from sparsemask.tasks.classification.data import Cut, FilePictures, HeldPictures, Part, data_set
from sparsemask.tasks.classification.layouts import LabelledPictures, find_pictures
from sparsemask.tasks.classification.options import STATISTICS, ClassificationData
from sparsemask.tasks.classification.scores import TOP, ClassificationMeter, ClassificationScores
from sparsemask.tasks.protocol import Evaluation, Task
from sparsemask.tasks.segmentation.scores import by_class

_LARGE = 224  # side of what networks take of images that are not small


class ClassificationTask(Task):
    """Classify images. Predictions are logits (C,)."""

    primary = "top1"
    score_flags = ("n_class", "image_size", "resize", "normalise")
    views = ("flips",)
    n_drawn = 24
    sample_words = "drawn shapes"
    no_data = "no pictures named (--data_root CIFAR's archive or folder, .npz files, or class folders)"
    section = ClassificationData

    def __init__(self, config: RunConfig):
        super().__init__(config)
        root = self.sample_folder() if config.data.sample else config.data.data_root
        if not root:
            raise UseError("no pictures: give --data_root, or --sample")
        self.pictures: LabelledPictures = find_pictures(root)
        n_classes = len(self.pictures.classes)
        self.n_output = config["n_class"] or n_classes
        if self.n_output < n_classes:
            raise UseError(f"--n_class {self.n_output}: {self.pictures.title} has {n_classes} classes")
        self.classes = [*self.pictures.classes, *(str(k) for k in range(n_classes, self.n_output))]
        self.cut = self._cut(self.pictures.training)
        self._train = data_set(self.pictures.training, self.cut)
        self._eval = data_set(self.pictures.validation, self.cut)

    @staticmethod
    def sample_folder() -> Path:
        """The images that --sample stands for, drawn on first use."""
        from sparsemask.synthetic.classification import sample

        return sample()

    def _cut(self, part: Part) -> Cut:
        config = self.config
        if part.held:
            height, width = part.pictures.shape[1:3]
            if part.pictures.shape[1:] != self.pictures.validation.pictures.shape[1:]:
                raise UseError(f"{self.pictures.title}: training and validation pictures are not of one size")
            if config.data.image_size and (height, width) != (config.data.image_size, config.data.image_size):
                raise UseError(
                    f"--image_size {config.data.image_size}: {self.pictures.title} has pictures of {width}x{height}"
                )
        size = config.data.image_size or _LARGE
        name = config.data.normalise if config.data.normalise != "auto" else "cifar" if part.held else "imagenet"
        mean, std = STATISTICS[name]
        return Cut(mean, std, size, config.data.resize or round(size * 8 / 7), config.data.pad, not config.data.no_flip)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, 3, H, W) of what networks take."""
        part = self.pictures.training
        return (1, 3, *(part.pictures.shape[1:3] if part.held else (self.cut.size,) * 2))

    @property
    def train_data(self) -> HeldPictures | FilePictures:
        """Training images."""
        return self._train

    @property
    def eval_data(self) -> HeldPictures | FilePictures:
        """Validation images."""
        return self._eval

    def check(self) -> None:
        """Read the first image of each part; print notes on what is unusual."""
        if not self.config.data.sample:
            warn(f"pictures: {self.pictures.summary()}")
        for split, source in (("training", self.train_data), ("validation", self.eval_data)):
            source.load(0)
            if not source.part.held:
                say_how_read(split, source.part.pictures[0])
        if len(np.unique(self.pictures.training.labels)) < 2:
            raise UseError(f"{self.pictures.title}: one class alone has training pictures: nothing to tell apart")
        for split, part in (("training", self.pictures.training), ("validation", self.pictures.validation)):
            absent = [name for k, name in enumerate(self.classes) if not (part.labels == k).any()]
            if absent:
                rest = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
                warn(f"note: no {split} pictures of {len(absent)} classes ({', '.join(absent[:5])}{rest})")

    def measured_on(self) -> str:
        """The validation images in words."""
        return "drawn shapes" if self.config.data.sample else self.pictures.title

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (N,): its number of images."""
        return target.numel()

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropies of logits (N, C) and classes (N,)."""
        self._fits(output)
        kind = torch.promote_types(output.dtype, torch.float32)
        return F.cross_entropy(output.to(kind), target, reduction="sum")

    def teacher_loss(
        self, output: torch.Tensor, answer: torch.Tensor, target: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """T²·KL(softmax(teacher / T) ‖ softmax(network / T)), summed over the images."""
        self._fits(answer)
        return super().teacher_loss(output, answer, target, temperature)

    def _fits(self, output: torch.Tensor) -> None:
        if output.ndim != 2 or output.shape[1] != self.n_output:
            shape = f"{tuple(output.shape)}"
            raise UseError(f"the network gives {shape} where {self.measured_on()} has {self.n_output} classes")

    @torch.no_grad()
    def predict(
        self, model: Callable, images: torch.Tensor, arithmetic: Arithmetic, flips: bool = False
    ) -> torch.Tensor:
        """Logits float32 (N, C) on the CPU of images (N, 3, H, W); flips: log of the mean over both sides."""
        views = [arithmetic.run(model, view) for view in ((images, images.flip(-1)) if flips else (images,))]
        for view in views:
            self._fits(view)
        if not flips:
            return views[0].float().cpu()
        # In logarithms: a probability too small for float32 stays above zero.
        logs = torch.stack([view.float().log_softmax(1) for view in views])
        return (logs.logsumexp(0) - math.log(len(views))).cpu()

    def measure(self, model: Callable, evaluation: Evaluation) -> ClassificationMeter:
        """See :meth:`Task.measure`; `quick` makes no difference."""
        source, context = self.eval_data, evaluation.context
        _, indices = evaluation.indices(len(source))
        workers = 0 if source.part.held else context.n_worker
        loader = make_loader(Listed(source, indices), workers, batch_size=context.batch_size)
        meter, numbers = ClassificationMeter(self.n_output), iter(indices)
        for images, target in plainly(loader):
            logits = self.predict(model, images, context.arithmetic, evaluation.flips)
            meter.add(logits, target)
            for row in logits:
                evaluation.predicted(next(numbers), row)
        return meter

    def record(self, scores: ClassificationScores) -> dict:
        """The metrics, of how many images, and the accuracy of each class."""
        accuracy = by_class(self.classes, scores.recall)
        return {**self.metrics(scores), "pictures": scores.count, "accuracy": accuracy}

    def report(self, scores: ClassificationScores) -> str:
        """The table by class (of a hundred at most), and a line of the metrics."""
        lines = [scores.text(self.classes), ""] if len(self.classes) <= 100 else []
        return "\n".join([*lines, f"{scores.summary()}  ({self.measured_on()}, {scores.count} pictures)"])

    def draw_scores(self, scores: ClassificationScores, folder: Path) -> None:
        """Draw the confusion matrix (of forty classes at most), and the accuracy by class."""
        from sparsemask.pictures import draw_confusion
        from sparsemask.pictures.classification import draw_accuracy

        if len(self.classes) <= 40:
            draw_confusion(scores.matrix, self.classes, Path(folder) / "confusion.png")
        draw_accuracy(self.classes, scores.recall, scores.top1, Path(folder) / "accuracy.png")

    def write(self, folder: Path, index: int, prediction: torch.Tensor) -> Path:
        """Write the prediction of a validation image into a folder as a .csv of one row; returns the file."""
        path = Path(folder) / f"{self.eval_data.name(index)}.csv"
        self.save(path, {index: prediction})
        return path

    def save(self, path: Path, predictions: Mapping[int, torch.Tensor]) -> None:
        """Write a .csv of predictions: name, truth, then the first five classes and their probabilities.

        Args:
            predictions: logits (C,) by number of the validation image.
        """
        path = Path(path)
        if path.suffix.lower() != ".csv":
            raise UseError(f"{path}: predictions are written as .csv")
        text = io.StringIO()
        top = min(TOP, self.n_output)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["picture", "truth", *(f"{column}{k + 1}" for k in range(top) for column in ("class", "share"))]
        )
        for index, logits in sorted(predictions.items()):
            best = self.best(logits, top)
            truth = self.classes[int(self.eval_data.part.labels[index])]
            cells = [cell for name, share in best for cell in (name, f"{share:.4f}")]
            writer.writerow([self.eval_data.name(index), truth, *cells])
        write_text(path, text.getvalue())

    def best(self, logits: torch.Tensor, top: int) -> list[tuple[str, float]]:
        """(class, probability) of the `top` likeliest classes of logits (C,)."""
        shares = logits.double().softmax(0).topk(top)
        return [(self.classes[k], p) for k, p in zip(shares.indices.tolist(), shares.values.tolist(), strict=True)]

    def sample(self, model: Callable, arithmetic: Arithmetic, index: int) -> tuple:
        """(image uint8 (H, W, 3), truth, [(class, probability), ...]) of a validation image."""
        image, truth = self.eval_data[index]
        logits = self.predict(model, image[None], arithmetic)[0]
        return self.cut.picture(image), self.classes[int(truth)], self.best(logits, min(3, self.n_output))

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the grid of images with truth and prediction."""
        from sparsemask.pictures.classification import draw_predictions

        draw_predictions(samples, path)
