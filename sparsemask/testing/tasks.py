"""The contract of a task as tests.

A new task's test is one class::

    from sparsemask.testing.tasks import TaskContract

    class TestRare(TaskContract):
        def make_task(self, folder):
            return Rare(labelled_options(im_path="img", gt_path="gt", training_list="train.txt", eval_list="val.txt"))
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsemask import flags
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.errors import UseError
from sparsemask.finite import NotFiniteError
from sparsemask.options import Parser
from sparsemask.tasks.classification.task import ClassificationTask
from sparsemask.tasks.dense.task import DenseTask
from sparsemask.tasks.points.task import PointsTask
from sparsemask.tasks.protocol import VIEWS, EvaluationContext, HoldsOut, Scores, ScoresBySample, Task
from sparsemask.tasks.stereo.task import StereoTask
from sparsemask.tasks.super_resolution.task import SuperResolutionTask

CPU = Arithmetic(torch.device("cpu"))
_SEED = 5


class TaskContract:
    """Tests of one task. Derive it, name the class ``Test...`` and give `make_task`.

    Attributes:
        loss_is_sum: whether the loss of a batch is the sum of its samples' losses; not where it looks at the batch.
    """

    loss_is_sum = True

    def make_task(self, folder: Path) -> Task:
        """The task on two or more training samples and one or more validation samples, small ones.

        Args:
            folder: an empty folder that data may be written to.
        """
        raise NotImplementedError

    def make_model(self, task: Task) -> nn.Module:
        """A network that the task can train and score; random weights will do."""
        return tiny_network(task)

    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        """The task, data read for the first time."""
        folder = tmp_path / "data"
        folder.mkdir()
        return self.make_task(folder)

    @pytest.fixture
    def model(self, task: Task) -> nn.Module:
        """The network, in training mode."""
        torch.manual_seed(_SEED)
        return self.make_model(task).train()

    def test_it_says_what_it_is(self, task: Task):
        """Attributes have the types that callers rely on."""
        assert isinstance(task, Task) and isinstance(task.primary, str)
        assert isinstance(task.n_output, int) and task.n_output >= 1 and task.smallest_share >= 1
        assert isinstance(task.items, str) and isinstance(task.reads_voc, bool)
        assert all(isinstance(name, str) for name in (*task.data_flags, *task.score_flags, *task.classes))
        assert task.data_flags and set(task.views) <= set(VIEWS)
        assert task.input_shape is None or all(isinstance(side, int) for side in task.input_shape)
        assert task.no_data is None or not task.no_data.endswith(".")
        assert task.measured_on()

    def test_its_configuration_cannot_be_replaced(self, task: Task):
        """What a task was made from stays."""
        with pytest.raises(AttributeError):
            task.config = None

    def test_its_data_pass_its_check(self, task: Task):
        """`check` accepts what it should; sources are what the engine takes."""
        task.check()
        assert isinstance(task.train_data, data.DataSource) and len(task.train_data) > 0
        assert isinstance(task.eval_data, data.EvaluationSource) and len(task.eval_data) > 0
        assert all(isinstance(task.eval_data.name(k), str) for k in range(min(3, len(task.eval_data))))

    def test_samples_that_are_kept_back_are_not_trained_on(self, task: Task):
        """Where training samples can be kept back: none of them is trained on, none of validation is among them."""
        if not isinstance(task, HoldsOut):
            pytest.skip("cannot keep samples back")
        whole, validation = task.train_data, task.eval_data  # read before, as a search does
        train, held = task.hold_out(0.5)
        assert len(train.train_data) + len(held.eval_data) == len(whole) and 0 < len(train.train_data) < len(whole)
        sources = train.train_data, held.eval_data, whole
        if all(isinstance(source, data.FileSource) for source in sources):
            trained, kept, every = ({tuple(map(str, pair)) for pair in source.pairs} for source in sources)
            assert not trained & kept and trained | kept == every
        assert task.train_data is whole and task.eval_data is validation is train.eval_data
        same_tensors(task.eval_data[0], task.eval_data[0])

    def test_batches_depend_on_seed_and_step_alone(self, task: Task):
        """A stream that begins at step 2 gives what one from the beginning gives there."""
        batches, later = self._batches(task, 0, 4), self._batches(task, 2, 4)
        assert len(batches) == 4 and len(later) == 2
        for (inputs, targets), again in zip(batches[2:], later, strict=True):
            assert len(inputs) == len(targets)
            same_tensors((inputs, targets), again)

    def _batches(self, task: Task, start: int, stop: int) -> list[tuple]:
        sampler = data.step_sampler(task.train_data, max(2, task.smallest_share), start, stop, _SEED)
        assert len(sampler) == stop - start
        return list(data.plainly(data.training_loader(task.train_data, sampler, _SEED, 0)))

    def test_its_loss_trains(self, task: Task, model: nn.Module):
        """A finite scalar of the right type, divided by a count that adds up, with gradients for every parameter."""
        [(inputs, target)] = self._batches(task, 0, 1)
        output = model(inputs)
        loss, count = task.loss(output, target), task.count(target)
        assert loss.ndim == 0 and loss.dtype == torch.float32 and math.isfinite(loss.item()) and count >= 0
        for convert in (Tensor.double, Tensor.bfloat16):  # what networks give in other arithmetic
            assert task.loss(mapped(output, convert), target).dtype in (torch.float32, torch.float64)
        parts = range(len(target))
        assert sum(task.count(target[k : k + 1]) for k in parts) == pytest.approx(count, rel=1e-5)
        if self.loss_is_sum:
            losses = [
                task.loss(mapped(output, lambda item, k=k: item[k : k + 1]), target[k : k + 1]).item() for k in parts
            ]
            assert sum(losses) == pytest.approx(loss.item(), rel=1e-4)
        loss.backward()
        assert all(bool(torch.isfinite(item.grad).all()) for item in model.parameters() if item.requires_grad)

    def test_an_evaluation_is_whole_and_repeats(self, task: Task, model: nn.Module):
        """Scores say how many samples they are of, every one of them was predicted, and metrics hold the primary."""
        predicted: list[int] = []
        scores = task.evaluate(model, here(), on_prediction=lambda index, _: predicted.append(index))
        assert isinstance(scores, Scores) and not model.training
        assert predicted == list(range(scores.count)) and scores.count > 0
        metrics = task.metrics(scores)
        assert task.primary in metrics and all(isinstance(value, float) for value in metrics.values())
        same_metrics(metrics, task.metrics(task.evaluate(model, here())), 0.0)
        same_metrics(metrics, task.metrics(task.evaluate(model, here(batch_size=2))), 1e-4)
        assert task.evaluate(model, here(), limit=1).count == 1

    def test_a_quick_evaluation_gives_the_same_metrics(self, task: Task, model: nn.Module):
        """By name; values may be rough."""
        quick = task.evaluate(model, here(), quick=True)
        assert quick.count > 0 and task.metrics(quick).keys() == task.metrics(task.evaluate(model, here())).keys()

    @pytest.mark.parametrize("view", VIEWS)
    def test_views_are_averaged_or_refused(self, task: Task, model: nn.Module, view: str):
        """What `views` does not name is a UseError."""
        views = {"flips": True} if view == "flips" else {"scales": (0.75, 1.0)}
        if view in task.views:
            assert task.evaluate(model, here(), limit=1, **views).count == 1
        else:
            with pytest.raises(UseError, match=view):
                task.evaluate(model, here(), **views)

    def test_scores_can_be_printed_kept_and_drawn(self, task: Task, model: nn.Module, tmp_path: Path):
        """Text, JSON and images."""
        scores = task.evaluate(model, here())
        assert task.report(scores).strip() and str(scores.protocol)
        kept = json.loads(json.dumps(task.record(scores)))
        assert isinstance(kept, dict) and kept
        if scores.confusion is not None:
            assert scores.confusion.shape == (len(task.classes),) * 2
        if isinstance(scores, ScoresBySample):
            assert len(scores.rows()) == scores.count + 1 and scores.columns and "\n" not in scores.summary()
        (tmp_path / "scores").mkdir()
        task.draw_scores(scores, tmp_path / "scores")
        assert [path for path in (tmp_path / "scores").iterdir() if path.stat().st_size > 0]
        samples = task.samples(model, CPU, 2)
        assert 0 < len(samples) <= 2
        task.draw(samples, tmp_path / "samples.png")
        assert (tmp_path / "samples.png").stat().st_size > 0

    def test_predictions_become_files(self, task: Task, model: nn.Module, tmp_path: Path):
        """One below the folder for each sample."""
        written: list[Path] = []
        write = lambda index, prediction: written.append(task.write(tmp_path / "out", index, prediction))
        count = task.evaluate(model, here(), on_prediction=write).count
        assert len(set(written)) == count and all(path.stat().st_size > 0 for path in written)
        assert all(path.is_relative_to(tmp_path / "out") for path in written)

    def test_outputs_that_are_not_finite_are_refused(self, task: Task, model: nn.Module):
        """By full and quick evaluation and by samples."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        for call in (
            lambda: task.evaluate(model, here()),
            lambda: task.evaluate(model, here(), quick=True),
            lambda: task.samples(model, CPU, 1),
        ):
            with pytest.raises(NotFiniteError):
                call()


def labelled_options(**given: object) -> RunConfig:
    """Configuration of a task on images with labels: the flags' defaults, crops of 48 pixels, no loader processes.

    Args:
        given: other values, by the flags' names without dashes.
    """
    parser = Parser("search")
    flags.add_data(parser)
    values = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return parser.resolve({"n_worker": 0, "crop_size": 48, **values})


def here(batch_size: int = 1) -> EvaluationContext:
    """An evaluation on the CPU in this process."""
    return EvaluationContext(arithmetic=CPU, batch_size=batch_size)


class _Network(nn.Module):
    """One layer in front of what a task's outputs look like."""

    def __init__(self, layer: nn.Module, before, after):
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, inputs):
        return self.after(self.layer(self.before(inputs)))


def tiny_network(task: Task) -> nn.Module:
    """A network of one layer for a task derived from one of the package's.

    Raises:
        TypeError: a task of another kind, whose test gives its own network (`TaskContract.make_model`).
    """
    same = lambda value: value
    if isinstance(task, DenseTask):
        return _Network(nn.Conv2d(3, task.n_output, 3, padding=1), same, same)
    if isinstance(task, SuperResolutionTask):
        scale = task.config.data.scale
        return _Network(nn.Conv2d(3, 3, 1), same, lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
    if isinstance(task, PointsTask):
        return _Network(nn.Conv1d(task.d_in, task.n_output, 1), lambda batch: batch.features, same)
    if isinstance(task, StereoTask):
        most = task.config.network.maxdisp
        return _Network(nn.Conv2d(3, 1, 3, padding=1), lambda pair: pair.left, lambda x: most * x[:, 0].sigmoid())
    if isinstance(task, ClassificationTask):
        return _Network(nn.Linear(3, task.n_output), lambda images: images.mean((2, 3)), same)
    raise TypeError(f"{type(task).__name__}: no network is known for it; override TaskContract.make_model")


def mapped(output: Any, function) -> Any:
    """A tensor, or each of a sequence of them, through a function."""
    return function(output) if isinstance(output, Tensor) else [function(item) for item in output]


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in sequences and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []


def same_tensors(first: Any, second: Any) -> None:
    """Assert that two samples or batches hold the same tensors, of which there are some."""
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    assert len(pairs) >= 2 and all(torch.equal(a, b) for a, b in pairs)


def same_metrics(first: dict[str, float], second: dict[str, float], tolerance: float) -> None:
    """Assert that two evaluations gave the same metrics, NaN where the other is NaN."""
    assert first.keys() == second.keys()
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=tolerance, atol=tolerance)
