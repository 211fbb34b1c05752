"""Labels for points: crops of prepared clouds, weighted cross-entropy, votes, mean IoU over full clouds.

Networks take a :class:`sparsemask.tasks.points.clouds.batch.PointBatch` and give logits (B, C, N); targets are (B, N),
-1 ignored.
Sampling, augmentation, loss and votes as in SMPointSeg (Wang et al., "Sparse mask CNNs", TPAMI 2022) and RandLA-Net
(Hu et al., CVPR 2020). Validation while training differs from the public code: its crops are the same every time, so
that metrics of several steps are comparable.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import distributed
from sparsemask.engine.data import plainly
from sparsemask.engine.distillation import softened_divergence
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import IGNORED, CloudFile
from sparsemask.tasks.points.data import Clouds, CropSettings, EvaluationCrops, PossibilityCrops, TrainingCrops
from sparsemask.tasks.points.options import PointsData
from sparsemask.tasks.points.scores import PointScores, score_text
from sparsemask.tasks.points.voting import probabilities_of, vote
from sparsemask.tasks.protocol import Evaluation, Task
from sparsemask.tasks.segmentation.scores import ConfusionMeter, by_class
from sparsemask.VOC12.survey import LIMIT, survey

RECIPE = ("n_points", "grid", "vote_smooth")
"""Flags that say how a cloud is prepared and its crops are voted on; files of networks have them."""

_FEW_CLOUDS = 32  # looked at for classes where not all are held


@runtime_checkable
class WritesRawLabels(Protocol):
    """A task whose data set has label files of its own."""

    def raw_labels(self, prediction: np.ndarray) -> bytes:
        """Classes (N,) as a label file of the data set holds them."""


class PointsTask(Task):
    """Segment clouds. Predictions are classes (N_original,) of a cloud, int64; (N,) of one without projection.

    Attributes:
        classes: names of the classes.
        d_in: channels of a point, 6 with colours.
        title: the data in words.
        noise: metres, on the centres of crops.
        tilt: largest rotation about x and y of training crops, in degrees.
        centred: whether coordinates count from a crop's centre, not from the sensor.
        hold: whether all clouds stay in memory.
        defaults: flags that nobody has set: the published numbers.
    """

    primary = "miou"
    score_flags = ("test_area", "train_scans", "eval_scans", "grid", "n_points", "val_steps", "batch_size")
    score_flags += ("vote_smooth", "vote_until")
    items = "crops"
    n_drawn = 1
    smallest_share = 1  # a crop has enough points for batch norm
    section = PointsData

    d_in = 3
    title: str
    noise = 0.0
    tilt = 0.0
    centred = False
    hold = True
    sample_words = "the generated rooms"
    no_data = "no clouds named (--task s3dis or semantickitti, --data_root FOLDER; sparsemask prepare-points makes it)"
    defaults: dict = {}

    def __init__(self, config: RunConfig):
        if "n_points" not in config:
            raise UseError(f"--task {config.data.task} needs a network that takes points: --space smpointseg")
        super().__init__(self.resolved(config))
        self.n_output = len(self.classes)
        self._clouds: dict[str, Clouds] = {}

    @classmethod
    def resolved(cls, config: RunConfig) -> RunConfig:
        """A configuration in which every flag that is still None has the task's own value."""
        values = {**cls.defaults, "d_in": cls.d_in, "n_class": len(cls.classes)}
        return config.replace(**{n: value for n, value in values.items() if n in config and config[n] is None})

    def description(self) -> dict[str, Any]:
        """Task and classes, and how clouds are thinned out, cut and voted on: what whole clouds need."""
        chosen = {name: self.config[name] for name in RECIPE if self.config.get(name) is not None}
        return {**super().description(), **chosen}

    @staticmethod
    def sample_folder() -> Path:
        """The rooms that --sample stands for."""
        from sparsemask.synthetic.rooms import sample_folder

        return sample_folder()

    @abstractmethod
    def files(self, split: str) -> list[CloudFile]:
        """The "training" or the "eval" clouds that the configuration names."""

    @property
    @abstractmethod
    def weights(self) -> torch.Tensor:
        """(C,) weights of the classes in the loss."""

    @property
    def settings(self) -> CropSettings:
        """How crops are made."""
        config = self.config
        return CropSettings(
            config.data.n_points,
            config.network.n_neighbors,
            config.network.ratio,
            len(config.network.channels),
            self.d_in == 6,
            self.centred,
            self.tilt,
        )

    def clouds(self, split: str) -> Clouds:
        """The "training" or the "eval" clouds."""
        if split not in self._clouds:
            self._clouds[split] = Clouds(self.files(split), self.hold)
        return self._clouds[split]

    @property
    def _batch(self) -> int:
        return self.config.get("batch_size") or 1

    @cached_property
    def train_data(self) -> TrainingCrops:
        """Training crops; an epoch has --train_steps batches."""
        return self._training(self.clouds("training"), self.settings, self.config.data.train_steps * self._batch)

    def _training(self, clouds: Clouds, settings: CropSettings, length: int) -> TrainingCrops:
        return PossibilityCrops(clouds, settings, length, self.noise)

    @cached_property
    def eval_data(self) -> EvaluationCrops:
        """Validation crops."""
        length = self.config.data.val_steps * self._batch
        return EvaluationCrops(self.clouds("eval"), self.settings, length, self.noise)

    def check(self) -> None:
        """Read the first cloud of each part, cut a crop, and look at labels until every class has been seen.

        Raises:
            UseError: files are absent or do not fit, or labels have fewer than two classes.
        """
        self.eval_data[0]
        self.clouds("training")[0]
        for split in ("training", "eval"):
            self._check_labels(split)

    def _check_labels(self, split: str) -> None:
        """Refuse labels of fewer than two classes, and name the classes that never occur."""
        clouds = self.clouds(split)

        def read(number: int) -> np.ndarray:
            labels = clouds[number].labels
            return (np.full(1, IGNORED) if labels is None else labels).astype(np.uint8)  # -1 becomes 255

        title = "validation" if split == "eval" else split
        labels_survey = survey(range(len(clouds)), read, self.n_output, LIMIT if self.hold else _FEW_CLOUDS, "clouds")
        if not labels_survey.classes:
            raise UseError(
                f"no point has a class in {labels_survey.labels(title)}: {clouds.names[0]} and on are unlabelled"
            )
        if split == "training" and (single := labels_survey.single(self.classes, title)):
            raise UseError(single)
        if absent := labels_survey.absent(self.classes, title):
            warn(f"note: {absent}")

    def measured_on(self) -> str:
        """The validation data in words."""
        return self.title

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (B, N): the weights of its labelled points."""
        return float(self.weights[target[target >= 0]].sum(dtype=torch.float64))

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropy of `output` (B, C, N), weighted by class; -1 in `target` is ignored."""
        kind = torch.promote_types(output.dtype, torch.float32)
        weights = self.weights.to(output.device, kind)
        return F.cross_entropy(output.to(kind), target, weights, ignore_index=IGNORED, reduction="sum")

    def teacher_loss(
        self, output: torch.Tensor, answer: torch.Tensor, target: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Mean KL divergence over the labelled points, times `count`."""
        if answer.shape != output.shape:
            raise UseError(f"the teacher gives {tuple(answer.shape)}, expected {tuple(output.shape)}")
        values = softened_divergence(output, answer, temperature)[target >= 0]
        return values.sum() * (self.count(target) / max(1, values.numel()))

    def measure(self, model: Callable, evaluation: Evaluation) -> ConfusionMeter:
        """See :meth:`Task.measure`.

        By votes on every cloud (the first `limit`, or --vote_limit), of all original points; `quick`: of --val_steps
        batches of crops (at most `limit` crops).
        """
        meter = ConfusionMeter(self.n_output, PointScores)
        if evaluation.quick:
            self._measure_crops(model, evaluation, meter)
        else:
            self._measure_clouds(model, evaluation, meter)
        return meter

    def _measure_crops(self, model: Callable, evaluation: Evaluation, meter: ConfusionMeter) -> None:
        source, context = self.eval_data, evaluation.context
        picks = islice(source.picks(), distributed.rank(), evaluation.limit or None, distributed.world())
        for crops, labels, _, numbers in plainly(source.loader(picks, context.batch_size, context.n_worker)):
            classes = probabilities_of(model, crops, context.arithmetic).argmax(2)
            for number, prediction, truth in zip(numbers.tolist(), classes, labels, strict=True):
                meter.add(number, prediction, truth)

    def _measure_clouds(self, model: Callable, evaluation: Evaluation, meter: ConfusionMeter) -> None:
        source, chosen, context = self.eval_data, self.config.data, evaluation.context
        limited = replace(evaluation, limit=evaluation.limit or chosen.vote_limit)
        _, numbers = limited.indices(len(source.clouds))
        if evaluation.on_prediction is not None:
            for number in numbers:  # before the work, not after it
                self.check_original(source.clouds.files[number])
        for number, cloud, classes in vote(
            model, source, numbers, context.arithmetic, self.n_output, chosen.vote_smooth, chosen.vote_until,
            context.batch_size, context.n_worker,
        ):  # fmt: skip
            evaluation.predicted(number, classes)
            truth = self._truth(cloud)
            if truth is None:
                truth = np.full(len(classes), IGNORED)
            if len(truth) != len(classes):
                raise UseError(f"{cloud.name}: {len(truth)} labels for {len(classes)} points")
            meter.add(number, torch.from_numpy(classes), torch.from_numpy(truth))

    @staticmethod
    def _truth(cloud) -> np.ndarray | None:
        """Labels of the original points; of the subsampled ones where that is all there is."""
        return cloud.labels if cloud.projection is None else cloud.full_labels

    def record(self, scores: PointScores) -> dict:
        """The metrics, and the IoU of every class (None: it does not occur)."""
        iou = by_class(self.classes, scores.iou)
        return {**self.metrics(scores), "iou": iou, "points": int(scores.matrix.sum())}

    def report(self, scores: PointScores) -> str:
        """The table by class and the means."""
        return score_text(scores, list(self.classes), self.measured_on())

    def draw_scores(self, scores: PointScores, folder: Path) -> None:
        """Draw the confusion matrix."""
        from sparsemask.pictures import draw_confusion

        draw_confusion(scores.matrix, list(self.classes), folder / "confusion.png")

    @classmethod
    def pooled_text(cls, folders: list[str]) -> str:
        """The scores of several evaluations' predictions as one."""
        raise UseError("--six_fold is for --task s3dis")

    @abstractmethod
    def write(self, folder: Path, index: int, prediction: np.ndarray) -> Path:
        """Write the classes (N_original,) of validation cloud `index` below a folder; returns the file.

        Classes of a subsampled cloud's points are carried back to all; UseError where there is no way.
        """

    def check_original(self, file: CloudFile) -> None:
        """UseError where predictions for a subsampled cloud could not be carried back to all its points."""

    def sample(self, model: Callable, arithmetic: Arithmetic, index: int) -> tuple:
        """(name, xyz, colours or None, truth, prediction) of a validation crop, arrays of its points."""
        crops, labels = self.eval_data[index]
        prediction = probabilities_of(model, crops, arithmetic)[0].argmax(1)
        features = crops.features[0].numpy().T
        colours = features[:, 3:6] if self.d_in == 6 else None
        return self.eval_data.name(index), features[:, :3], colours, labels.numpy(), prediction.numpy()

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write truth | prediction of the first sample."""
        from sparsemask.pictures.point_clouds.figures import draw_clouds
        from sparsemask.pictures.point_clouds.layers import error_layer

        name, xyz, colours, truth, prediction = samples[0]
        panels = {"truth": truth, "prediction": prediction, "errors": error_layer(prediction, truth)}
        if colours is not None:
            panels = {"colours": np.rint(255 * colours).astype(np.uint8), **panels}
        draw_clouds(path, xyz, panels, list(self.classes), title=name)
