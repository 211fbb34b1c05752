"""The contract of a task: data, loss, metrics and drawings.

:class:`Task` declares everything that the engine, the families and the commands use of a task, with defaults;
:class:`Scores` is what an evaluation returns. :class:`sparsemask.testing.tasks.TaskContract` tests a task against it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from sparsemask.config import RunConfig, Section, flag
from sparsemask.errors import UseError
from sparsemask.options import byte, factor, natural, positive

if TYPE_CHECKING:  # the command line asks for tasks' names and flags before torch is loaded
    import numpy as np
    import torch

    from sparsemask.devices import Arithmetic
    from sparsemask.engine.data import DataSource, EvaluationSource

VIEWS = ("flips", "scales")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection(Section):
    """Which task on which data. A task's own section derives from it, with the flags that name its data."""

    title = "data"
    task: str = flag("segmentation", help="the task, or package.module:Class (default: segmentation)")
    sample: bool = flag(False, help="use the embedded sample set, or the task's drawn one")
    n_worker: int = flag(2, natural, help="loader processes (default: 2)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData(DataSection):
    """Images with a label for every pixel."""

    voc_root: str | None = flag(help="a VOC devkit folder instead of folders and lists")
    data_root: str | None = flag(help="other tasks: an MSRA-B, ECSSD, BSDS500 or ADE20K folder")
    im_path: str | None = flag(help="folder of pictures (VOC: VOC12/data/img)")
    gt_path: str | None = flag(help="folder of labels, images of class numbers (VOC: VOC12/data/gt)")
    training_list: str | None = flag(
        help="training names, a line each, or picture and label (then without --im_path and --gt_path); with "
        "--voc_root a list's name"
    )
    eval_list: str | None = flag(help="validation names, likewise")
    n_class: int = flag(21, positive, help="number of classes (default: 21)")
    ignore_index: int = flag(
        255,
        byte,
        metavar="N",
        help="segmentation: the number in labels, 0 to 255, of pixels that do not count (default: 255)",
    )
    label_map: str | None = flag(
        metavar="FILE",
        help="segmentation: classes of the numbers in labels, a line each: NUMBER CLASS [NAME], or NUMBER ignore; "
        "or JSON",
    )
    class_names: str | None = flag(help="text file, one class name a line")
    crop_size: int | None = flag(None, positive, help="training crop and smallest evaluation size")
    scales: Sequence[float] | None = flag(None, factor, nargs="+", help="random scales of training pictures")
    augment: str | None = flag(
        metavar="MODULE:NAME",
        help="your own augmentation, before scale, crop and flip: a function of (image, label), an albumentations "
        "Compose, or transforms of torchvision.transforms.v2",
    )
    class_weights: str | None = flag(
        metavar="WEIGHTS",
        help="segmentation: weights of the classes in the loss: numbers with commas, a file of a number a line, or "
        "auto, by their frequency in the training labels",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """Where and how an evaluation runs; it changes results by rounding only.

    Args:
        arithmetic: device and precision.
        n_worker: loader processes, 0: none.
        batch_size: validation samples in one forward pass, where the task can put several together.
    """

    arithmetic: Arithmetic
    n_worker: int = 0
    batch_size: int = 1

    @classmethod
    def from_config(cls, arithmetic: Arithmetic, config: RunConfig) -> EvaluationContext:
        """The context that a command's flags ask for: --n_worker, and --eval_batch or else --eval_batch_size."""
        batch_size = config.get("eval_batch") or config.get("eval_batch_size") or 1
        return cls(arithmetic=arithmetic, n_worker=config.data.n_worker, batch_size=batch_size)


class Scores(ABC):
    """Scores of an evaluation, over all processes.

    Attributes:
        count: validation samples that were scored.
        protocol: how they were scored; its text stands behind the printed metrics.
    """

    count: int
    protocol: object = "single scale"

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Metrics by name; NaN where nothing could be measured."""

    @property
    def confusion(self) -> np.ndarray | None:
        """Confusion matrix int64 (C, C), rows truth, columns prediction; None for tasks without classes."""
        return None


@runtime_checkable
class ScoresBySample(Protocol):
    """Scores that hold a row for each sample.

    Attributes:
        columns: of the printed table, as :func:`sparsemask.tables.table` takes them.
    """

    columns: Mapping[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each sample in order, then one of their means."""

    def summary(self) -> str:
        """The means in a line."""


def json_rows(scores: ScoresBySample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(means, rows of the samples) of scores for JSON: None for NaN and infinity, the means without a name."""
    *rows, mean = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in scores.rows()
    ]
    return {key: value for key, value in mean.items() if key not in ("picture", "size")}, rows


class Meter(Protocol):
    """Counts over samples that can be summed over processes.

    Attributes:
        total: tensor of sums, replaced by the sum over all processes before `scores` is called.
    """

    total: torch.Tensor

    def scores(self) -> Scores:
        """Scores of the sums."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a call of :meth:`Task.evaluate` asks for, see there."""

    context: EvaluationContext
    limit: int
    flips: bool
    scales: tuple[float, ...]
    quick: bool
    on_prediction: Callable[[int, Any], None] | None

    def indices(self, length: int) -> tuple[int, list[int]]:
        """(samples that all processes score of `length`, numbers of this process's)."""
        from sparsemask.engine import distributed

        count = min(self.limit or length, length)
        return count, list(range(count))[distributed.rank() :: distributed.world()]

    def predicted(self, index: int, prediction: Any) -> None:
        """Hand a sample's prediction to whoever asked for it."""
        if self.on_prediction is not None:
            self.on_prediction(index, prediction)


class Task(ABC):
    """What a network is trained for and measured by.

    A task is made from the configuration of a command and reads its data on first use. Networks are called by
    ``arithmetic.run(model, inputs)``, which refuses outputs that are not finite.

    Args:
        config: of the command; its section of data is one of `section`.

    Attributes:
        section: the flags that name its data; default: those of tasks with a label for every pixel.
        primary: the metric used for model selection, larger is better; one of those that `metrics` gives.
        n_output: channels of the network's output.
        classes: names of the classes, empty for tasks without.
        items: what a validation sample is called, in the plural.
        data_flags: flags that name the data, without dashes.
        score_flags: flags beside them that change what is measured.
        reads_voc: whether VOC as ``VOC12/prepare.py`` leaves it is data for this task.
        input_shape: (1, C, H, W) of the network's inputs where all have one shape, else None.
        smallest_share: samples that batch norm needs in a forward pass.
        views: over which views of one sample `evaluate` can average, of "flips" and "scales".
        n_drawn: samples that a run draws.
        no_data: line that says no data are named, without a full stop; None: one with the first of `data_flags`.
        sample_words: what --sample stands for; None where there is none.
    """

    section: ClassVar[type[DataSection]] = LabelledData
    primary: ClassVar[str]
    n_output: int
    classes: Sequence[str] = ()
    items: ClassVar[str] = "pictures"
    data_flags: ClassVar[tuple[str, ...]] = ("data_root",)
    score_flags: ClassVar[tuple[str, ...]] = ()
    reads_voc: ClassVar[bool] = False
    input_shape: tuple[int, ...] | None = None
    smallest_share: ClassVar[int] = 2
    views: ClassVar[tuple[str, ...]] = ()
    n_drawn: ClassVar[int] = 6
    no_data: ClassVar[str | None] = None
    sample_words: ClassVar[str | None] = "drawn pictures"

    def __init__(self, config: RunConfig):
        self._config = config

    @property
    def config(self) -> RunConfig:
        """The configuration of the task, with the values that it resolved: `n_class` is `n_output`."""
        if self._config.get("n_class", self.n_output) != self.n_output:
            self._config = self._config.replace(n_class=self.n_output)
        return self._config

    # ---- data

    @staticmethod
    def sample_folder() -> Path:
        """The folder of the data of --sample, made on first use.

        Raises:
            UseError: the task has none.
        """
        raise UseError("this task has no sample set")

    @property
    @abstractmethod
    def train_data(self) -> DataSource:
        """Training samples.

        Raises:
            UseError: data that are absent or not of the task's layout.
        """

    @property
    @abstractmethod
    def eval_data(self) -> EvaluationSource:
        """Validation samples.

        Raises:
            UseError: data that are absent or not of the task's layout.
        """

    @abstractmethod
    def check(self) -> None:
        """Check the data before training, and print notes on what is unusual on standard error.

        Raises:
            UseError: data that are absent, broken, or have nothing to learn.
        """

    @abstractmethod
    def measured_on(self) -> str:
        """Description of the validation data."""

    def description(self) -> dict[str, Any]:
        """What files of its networks say of the task, as plain values by name.

        Tasks with an output for every pixel say all that :mod:`sparsemask.prediction.description` names.
        """
        return {"task": self._config.data.task, "classes": list(map(str, self.classes))}

    # ---- training

    def at(self, share: float) -> Task:
        """The task as it is trained at a share of the run's steps, in [0, 1): one with another loss, or itself."""
        return self

    @abstractmethod
    def count(self, target: torch.Tensor) -> float:
        """What the loss of a batch with these targets is divided by, summed over all processes; 0 or more."""

    @abstractmethod
    def loss(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch, summed over what `count` counts.

        Args:
            output: what the network gives in training mode.
            target: targets of the batch, on the same device.

        Returns:
            A scalar of float32 or float64, whatever precision the outputs have.

        Raises:
            UseError: outputs that do not fit the targets.
        """

    def teacher_loss(self, output: Any, answer: Any, target: torch.Tensor, temperature: float) -> torch.Tensor:
        """Distance of a batch's outputs to a teacher's, summed as `loss` is, for training with ``--teacher``.

        Default: of scores of classes (N, C), by KL divergence.

        Args:
            output: what the network gives in training mode.
            answer: what the teacher gives in evaluation mode, without gradients.
            target: targets of the batch: they say what is counted.
            temperature: of the softmaxes of scores of classes.

        Returns:
            A scalar.

        Raises:
            UseError: the task knows no such distance, or the outputs do not fit.
        """
        import torch

        from sparsemask.engine.distillation import softened_divergence

        tensors = isinstance(output, torch.Tensor) and isinstance(answer, torch.Tensor)
        if not tensors or output.ndim != 2 or answer.shape != output.shape:
            raise UseError(f"--task {self._config.data.task}: this teacher's output is no (N, C) scores of classes")
        return softened_divergence(output, answer, temperature).sum()

    # ---- evaluation

    def evaluate(
        self,
        model: Callable[..., Any],
        context: EvaluationContext,
        *,
        limit: int = 0,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        on_prediction: Callable[[int, Any], None] | None = None,
        quick: bool = False,
    ) -> Scores:
        """Scores of a network on the validation samples, over all processes; `measure` has the task's own loop.

        Args:
            model: a module, which is put into evaluation mode, or any function of the network's inputs.
            context: where and how it runs.
            limit: only the first samples, 0: all.
            flips: average over mirrored copies.
            scales: average over copies enlarged by these factors.
            on_prediction: called with the number of each of this process's samples and its prediction, as `write`
                takes it; not called where `quick` measures other samples than a full evaluation.
            quick: as while training, where approximate metrics suffice.

        Raises:
            UseError: views that the task cannot average over, outputs that do not fit.
            NotFiniteError: an output with NaN or infinite values.
        """
        from sparsemask.engine import distributed

        self.check_views(flips, scales)
        evaluation = Evaluation(
            context=context, limit=limit, flips=flips, scales=tuple(scales), quick=quick, on_prediction=on_prediction
        )
        with _evaluation_mode(model):
            meter = self.measure(model, evaluation)
        meter.total = distributed.total(meter.total.to(context.arithmetic.device)).cpu()
        return meter.scores()

    def measure(self, model: Callable[..., Any], evaluation: Evaluation) -> Meter:
        """Predict and count this process's validation samples; every task has it, or an `evaluate` of its own.

        Args:
            model: in evaluation mode; gradients are off.
            evaluation: which samples and views. `evaluation.predicted` takes every prediction.

        Returns:
            The counts, not yet summed over processes.
        """
        raise NotImplementedError(f"{type(self).__name__} needs measure, or an evaluate of its own")

    def metrics(self, scores: Scores) -> dict[str, float]:
        """The metrics that training logs and commands print, `primary` among them. Override it to add some."""
        return scores.metrics

    def record(self, scores: Scores) -> dict[str, Any]:
        """Entries of run.json for an evaluation: the metrics and further values."""
        return self.metrics(scores)

    @abstractmethod
    def report(self, scores: Scores) -> str:
        """The scores as printed, one or more lines."""

    @abstractmethod
    def draw_scores(self, scores: Scores, folder: Path) -> None:
        """Draw the scores into a folder."""

    @abstractmethod
    def write(self, folder: Path, index: int, prediction: Any) -> Path:
        """Write a prediction below a folder, under the sample's name.

        Args:
            folder: made where it is absent.
            index: number of the validation sample.
            prediction: what `evaluate` gave to `on_prediction`.

        Returns:
            The file.
        """

    def samples(self, model: Callable[..., Any], arithmetic: Arithmetic, n: int | None = None) -> list[tuple[Any, ...]]:
        """Up to `n` (None: `n_drawn`) validation samples, spread over all, with predictions, as `draw` takes them."""
        length = len(self.eval_data)
        indices = spread_indices(length, n or self.n_drawn)
        with _evaluation_mode(model):
            return [self.sample(model, arithmetic, index) for index in indices]

    def sample(self, model: Callable[..., Any], arithmetic: Arithmetic, index: int) -> tuple[Any, ...]:
        """Validation sample `index` with its prediction; every task has it, or `samples` of its own.

        Args:
            model: in evaluation mode; gradients are off.
            arithmetic: device and precision.
            index: number of the validation sample.
        """
        raise NotImplementedError(f"{type(self).__name__} needs sample, or samples of its own")

    @abstractmethod
    def draw(self, samples: list[tuple[Any, ...]], path: Path) -> None:
        """Draw samples with truth and prediction into an image file."""

    def check_views(self, flips: bool, scales: Sequence[float]) -> None:
        """Raise a UseError for views that the task cannot average over."""
        requested = {"flips": flips, "scales": tuple(scales) != (1.0,)}
        for name in VIEWS:
            if requested[name] and name not in self.views:
                raise UseError(f"evaluation cannot average over {name} for {self.items} of this task")


def spread_indices(length: int, n: int) -> list[int]:
    """Up to `n` numbers below `length`, evenly spaced from the first to the last."""
    import numpy as np

    indices: list[int] = np.unique(np.linspace(0, length - 1, min(n, length)).astype(int)).tolist()
    return indices


def _evaluation_mode(model: Callable[..., Any]) -> AbstractContextManager[None]:
    """Put a module into evaluation mode, for good, and turn gradients off in a ``with`` block."""
    import torch

    if isinstance(model, torch.nn.Module):
        model.eval()
    return torch.no_grad()


@runtime_checkable
class HoldsOut(Protocol):
    """A task that can keep a part of its training samples back, to choose among networks by them."""

    def hold_out(self, share: float) -> tuple[Task, Task]:
        """Split the training samples, the same way every time.

        Args:
            share: of the samples that is kept back, above 0 and below 1.

        Returns:
            The task with the other training samples, and one whose validation samples are those kept back.

        Raises:
            UseError: there are too few samples.
        """
