"""Labels for points: crops of prepared clouds, weighted cross-entropy, votes, mean IoU over full clouds.

Networks take a :class:`sparsemask.tasks.points.clouds.batch.PointBatch` and give logits (B, C, N); targets are (B, N),
-1 ignored.
Sampling, augmentation, loss and votes as in SMPointSeg (Wang et al., "Sparse mask CNNs", TPAMI 2022) and RandLA-Net
(Hu et al., CVPR 2020). Validation while training differs from the public code: its crops are the same every time, so
that figures of several steps compare.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import distributed
from sparsemask.engine.data import plainly
from sparsemask.errors import UseError
from sparsemask.tasks.evaluation import set_evaluation, shared_indices, summed
from sparsemask.tasks.notes import warn
from sparsemask.tasks.points.clouds.cloud import IGNORED, CloudFile
from sparsemask.tasks.points.data import (
    Clouds,
    CropSettings,
    EvaluationCrops,
    PossibilityCrops,
    TrainingCrops,
)
from sparsemask.tasks.points.options import PointsData
from sparsemask.tasks.points.scores import PointScores, count_matches, score_text
from sparsemask.tasks.points.voting import probabilities_of, vote
from sparsemask.tasks.protocol import EvaluationContext, Task
from sparsemask.VOC12.survey import LIMIT, survey

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
        self._made: dict = {}

    @classmethod
    def resolved(cls, config: RunConfig) -> RunConfig:
        """A configuration in which every flag that is still None has the task's own value."""
        own = {**cls.defaults, "d_in": cls.d_in, "n_class": len(cls.classes)}
        return config.replace(**{n: value for n, value in own.items() if n in config and config[n] is None})

    @staticmethod
    def sample_folder() -> Path:
        """The rooms that --sample stands for."""
        from sparsemask.tasks.points.synthetic_rooms import sample_folder

        return sample_folder()

    @abstractmethod
    def files(self, which: str) -> list[CloudFile]:
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

    def _once(self, name: str, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def clouds(self, which: str) -> Clouds:
        """The "training" or the "eval" clouds."""
        return self._once(which, lambda: Clouds(self.files(which), self.hold))

    @property
    def _batch(self) -> int:
        return self.config.get("batch_size") or 1

    @property
    def train_data(self) -> TrainingCrops:
        """Training crops; an epoch has --train_steps batches."""
        length = self.config.data.train_steps * self._batch
        return self._once("train", lambda: self._training(self.clouds("training"), self.settings, length))

    def _training(self, clouds: Clouds, settings: CropSettings, length: int) -> TrainingCrops:
        return PossibilityCrops(clouds, settings, length, self.noise)

    @property
    def eval_data(self) -> EvaluationCrops:
        """Validation crops."""
        length = self.config.data.val_steps * self._batch
        return self._once("crops", lambda: EvaluationCrops(self.clouds("eval"), self.settings, length, self.noise))

    def check(self) -> None:
        """Read the first cloud of each part, cut a crop, and look at labels until every class has been seen.

        Raises UseError for what is absent or does not fit, and for labels that teach nothing.
        """
        self.eval_data[0]
        self.clouds("training")[0]
        for which in ("training", "eval"):
            self._check_labels(which)

    def _check_labels(self, which: str) -> None:
        """Refuse labels that teach nothing, and name the classes that never occur."""
        clouds = self.clouds(which)

        def read(number: int) -> np.ndarray:
            labels = clouds[number].labels
            return (np.full(1, IGNORED) if labels is None else labels).astype(np.uint8)  # -1 becomes 255

        words = "validation" if which == "eval" else which
        found = survey(range(len(clouds)), read, self.n_output, LIMIT if self.hold else _FEW_CLOUDS, "clouds")
        if not found.classes:
            raise UseError(f"no point has a class in {found.labels(words)}: {clouds.names[0]} and on are unlabelled")
        if which == "training" and (single := found.single(self.classes, words)):
            raise UseError(single)
        if absent := found.absent(self.classes, words):
            warn(f"note: {absent}")

    def measured_on(self) -> str:
        """The validation data in words."""
        return self.title

    def count(self, target: torch.Tensor) -> float:
        """What the loss of a batch (B, N) is to be divided by: the weights of its labelled points."""
        return float(self.weights[target[target >= 0]].sum(dtype=torch.float64))

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropy of `output` (B, C, N), weighted by class; -1 in `target` is ignored."""
        kind = output.dtype if output.dtype == torch.float64 else torch.float32
        weights = self.weights.to(output.device, kind)
        return F.cross_entropy(output.to(kind), target, weights, ignore_index=IGNORED, reduction="sum")

    @torch.no_grad()
    def evaluate(
        self,
        model: Callable,
        context: EvaluationContext,
        *,
        limit: int = 0,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        on_prediction: Callable[[int, np.ndarray], None] | None = None,
        quick: bool = False,
    ) -> PointScores:
        """See :meth:`Task.evaluate`.

        By votes on every cloud (the first `limit`, or --vote_limit), of all original points; `quick`: of --val_steps
        batches of crops (at most `limit` crops).
        """
        self.check_views(flips, scales)
        set_evaluation(model)
        rows = self._crops(model, context, limit) if quick else self._clouds(model, context, limit, on_prediction)
        n_class, count = self.n_output, 0
        matrix = np.zeros((n_class, n_class), np.int64)
        with contextlib.closing(rows):  # and with it the loader's processes
            for samples, truth, prediction in rows:
                count += samples
                matrix += count_matches(truth, prediction, n_class)
        total = summed(torch.from_numpy(np.append(matrix, count)), context.arithmetic).numpy()
        return PointScores(total[:-1].reshape(n_class, n_class), int(total[-1]))

    def _crops(
        self, model: Callable, context: EvaluationContext, limit: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(crops, truth, prediction) of batches of validation crops."""
        source = self.eval_data
        mine = islice(source.picks(), distributed.rank(), limit or None, distributed.world())
        for crops, labels, _, _ in plainly(source.loader(mine, context.batch_size, context.n_worker)):
            found = probabilities_of(model, crops, context.arithmetic).argmax(2)
            yield len(labels), labels.numpy().ravel(), found.numpy().ravel()

    def _clouds(
        self, model: Callable, context: EvaluationContext, limit: int, on_prediction: Callable | None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(1, truth, prediction) of each validation cloud; nothing to compare where a cloud has no labels."""
        source, chosen = self.eval_data, self.config.data
        _, mine = shared_indices(len(source.clouds), limit or chosen.vote_limit)
        if on_prediction is not None:
            for number in mine:  # before the work, not after it
                self.check_original(source.clouds.files[number])
        for number, cloud, found in vote(
            model, source, mine, context.arithmetic, self.n_output, chosen.vote_smooth, chosen.vote_until,
            context.batch_size, context.n_worker,
        ):  # fmt: skip
            if on_prediction is not None:
                on_prediction(number, found)
            truth = self._truth(cloud)
            if truth is None:
                truth = np.full(len(found), IGNORED)
            if len(truth) != len(found):
                raise UseError(f"{cloud.name}: {len(truth)} labels for {len(found)} points")
            yield 1, truth, found

    @staticmethod
    def _truth(cloud) -> np.ndarray | None:
        """Labels of the original points; of the thinned-out ones where that is all there is."""
        return cloud.labels if cloud.projection is None else cloud.full_labels

    def record(self, scores: PointScores) -> dict:
        """The metrics, and the IoU of every class (None: it does not occur)."""
        iou = {c: None if np.isnan(v) else float(v) for c, v in zip(self.classes, scores.iou, strict=True)}
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

        Classes of a thinned-out cloud's points are carried back to all; UseError where there is no way.
        """

    def check_original(self, file: CloudFile) -> None:
        """UseError where predictions for a thinned-out cloud could not be carried back to all its points."""

    @torch.no_grad()
    def samples(self, model: Callable, arithmetic: Arithmetic, n: int = 1) -> list[tuple]:
        """(name, xyz, colours or None, truth, prediction) of `n` validation crops, arrays of their points."""
        found, source = [], self.eval_data
        set_evaluation(model)
        for key in range(min(n, len(source))):
            crops, labels = source[key]
            prediction = probabilities_of(model, crops, arithmetic)[0].argmax(1)
            features = crops.features[0].numpy().T
            colours = features[:, 3:6] if self.d_in == 6 else None
            found.append((source.name(key), features[:, :3], colours, labels.numpy(), prediction.numpy()))
        return found

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write truth | prediction of the first sample."""
        from sparsemask.pictures.point_clouds.figures import draw_clouds
        from sparsemask.pictures.point_clouds.layers import error_layer

        name, xyz, colours, truth, prediction = samples[0]
        panels = {"truth": truth, "prediction": prediction, "errors": error_layer(prediction, truth)}
        if colours is not None:
            panels = {"colours": np.rint(255 * colours).astype(np.uint8), **panels}
        draw_clouds(path, xyz, panels, list(self.classes), title=name)
