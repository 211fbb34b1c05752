"""The training loop of all families; a :class:`Method` holds what a family adds, a task what depends on the data."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsemask.engine import checkpoint, data, distributed, randomness
from sparsemask.engine.averaging import WeightAverage
from sparsemask.engine.callbacks import Callback, TrainingStep
from sparsemask.engine.interrupt import Interrupt
from sparsemask.engine.method import Method, batch_norms, learning_rate_factor, reestimate, set_momentum, set_training
from sparsemask.engine.records import JsonLines, Progress
from sparsemask.errors import UseError, say
from sparsemask.finite import NotFiniteError
from sparsemask.ops.dispatch import repeatable
from sparsemask.runs import Run
from sparsemask.tasks.protocol import Task
from sparsemask.tracking.trackers import Trackers
from sparsemask.weight_files import check_finite

if TYPE_CHECKING:
    from sparsemask.flags import TrainingSection


def steps(training: TrainingSection, length: int) -> tuple[int, int]:
    """(steps of the run, steps of an epoch) for a training list of `length` images."""
    epoch = math.ceil(length / training.batch_size)
    return training.max_iter or (training.max_epoch or 1) * epoch, epoch


class Fit:
    """One run of the loop. Use :func:`fit`."""

    def __init__(
        self, model, method: Method, task: Task, config, run: Run, arithmetic, extra: dict, state: dict | None,
        callbacks: Sequence[Callback] = (), trackers: Trackers | None = None,
    ):  # fmt: skip
        self.model, self.method, self.task, self.config, self.run = model, method, task, config, run
        self.arithmetic, self.extra, self.callbacks = arithmetic, extra, tuple(callbacks)
        self.trackers = trackers or Trackers()
        self.rank, self.world = distributed.rank(), distributed.world()
        training = config.training
        share, rest = divmod(training.batch_size, self.world * training.accumulate)
        if rest:
            raise UseError(
                f"--batch_size {training.batch_size} cannot be shared by {self.world} process(es) "
                f"in {training.accumulate} part(s): it must be a multiple of {self.world * training.accumulate}"
            )
        # An image can be one pixel at the deepest layer, which has no variance; a task may know that it has more.
        if share < task.smallest_share and not training.freeze_bn and batch_norms(model):
            raise UseError(
                f"{share} picture in each forward pass: batch norm needs 2 or more; raise --batch_size or --freeze_bn"
            )
        self.max_iter, self.epoch = steps(training, len(task.train_data))
        method.steps = self.max_iter
        model.to(arithmetic.device, arithmetic.parameters)
        if method.teacher is not None:
            method.teacher.network.to(arithmetic.device, arithmetic.parameters)
        if (momentum := config.get("bn_momentum")) is not None:  # networks without batch norm lack the flag
            set_momentum(model, momentum)
        self.optimizers = method.optimizers(model, config)
        self.base = [group["lr"] for group in self.groups]
        self.scaler = arithmetic.scaler()
        self.step, self.best = 0, {}
        self.sampler, self.planned = None, (state or {}).get("data")  # of the run's batches, and what it goes on from
        self.spent, self.began = 0.0, time.monotonic()  # seconds: before a resume, and since
        self.interrupt, self.leaving, self.stopped = Interrupt(), False, False
        randomness.seed_all(config.run.seed)
        self.average = WeightAverage(model, training.ema) if training.ema else None
        if state is not None:
            self._restore(state)
        distributed.copy_from_first(model)
        if self.average is not None and state is None:
            self.average.restart()

    def _restore(self, state: dict) -> None:
        try:
            check_finite(state["model"], self.run.last)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                trained = state["average"]["trained"]
                check_finite(trained, self.run.last)
                self.average.restore(state["average"]["updates"], trained)
            for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
                checkpoint.load_optimizer(optimizer, saved)
            self.scaler.load_state_dict(state["scaler"])
            self.method.restore(state.get("method") or {})
            randomness.restore(state["random"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise UseError(f"{self.run.last}: does not fit the network of its configuration ({error})") from None
        self.step, self.best = state["step"], dict(state["best"])
        self.spent = float(state.get("seconds", 0.0))

    @property
    def groups(self) -> list[dict]:
        """The optimizers' parameter groups as they are now: loading a state replaces them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def seconds(self) -> float:
        """Time spent on the run, all its resumed parts together."""
        return self.spent + time.monotonic() - self.began

    def save(self, path: Path | None = None) -> None:
        """Write a checkpoint, unless the network is no longer finite. With --ema its network is the averaged one."""
        self._check_finite()
        with self._averaged():
            if self.average is not None:
                self._check_finite()
            if self.rank == 0:
                self._write(path or self.run.last)
        distributed.barrier()

    def _check_finite(self) -> None:
        distributed.average_buffers(self.model)
        if not checkpoint.finite(self.model):
            raise NotFiniteError(f"the weights are no longer finite after step {self.step}; {self._kept()}")

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the network has the weights that are evaluated and saved: with --ema their moving average."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _write(self, path: Path) -> None:
        if not self.run.config.exists():
            raise UseError(f"{self.run.folder}: the run's folder was taken away while it ran; nothing is saved")
        state = {
            "model": self.model.state_dict(),
            "optimizer": [optimizer.state_dict() for optimizer in self.optimizers],
            "scheduler": {"name": self.config.training.schedule, "step": self.step, "max_iter": self.max_iter},
            "scaler": self.scaler.state_dict(),
            "method": self.method.state(),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            **self.extra,
        }
        if self.average is not None:
            state["average"] = {"updates": self.average.updates, "trained": self.average.weights}
        planned = self.planned if self.sampler is None else self.sampler.state(self.step)
        if planned is not None:
            state["data"] = planned
        checkpoint.save(path, state)

    def _kept(self) -> str:
        last = self.run.last
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint had been written yet"
        return f"{kept}; a lower --lr or a --warmup usually helps"

    def _sampler(self, start: int, stop: int, seed: int, state: dict | None = None) -> data.BatchSampler:
        training, source = self.config.training, self.task.train_data
        return data.step_sampler(
            source,
            training.batch_size,
            start,
            stop,
            seed,
            self.rank,
            self.world,
            training.accumulate,
            state,
            training.repeat_augment,
        )

    def batches(self):
        """The batches of the steps to come, from loader processes; to be closed."""
        config = self.config
        self.sampler = self._sampler(self.step, self.max_iter, config.run.seed, self.planned)
        cuda = self.arithmetic.device.type == "cuda"
        return data.plainly(
            data.training_loader(
                self.task.train_data,
                self.sampler,
                config.run.seed,
                config.data.n_worker,
                pin=cuda,
                total=self.max_iter * config.training.batch_size,
            )
        )

    def _to(self, images):
        return images.to(self.arithmetic.device, self.arithmetic.parameters, non_blocking=True)

    def train_step(self, parts: list) -> dict:
        """Forward and backward over the parts of one batch, one update; returns the step's metrics."""
        training = self.config.training
        factor = learning_rate_factor(
            training.schedule,
            self.step,
            self.max_iter,
            training.gamma,
            training.milestones,
            training.warmup,
            self.epoch,
        )
        for group, base in zip(self.groups, self.base, strict=True):
            group["lr"] = base * factor
        self.method.before_step(self.model, self.step)
        task = self.task.at(self.step / self.max_iter)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        device = self.arithmetic.device
        counted = sum(task.count(target) for _, target in parts)
        counted = distributed.total(torch.tensor(float(counted), dtype=torch.float64, device=device)).clamp(min=1)
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        metrics: dict = {}
        for images, target in parts:
            with self.arithmetic.context():
                images = self._to(images)
                output = self.model(images)
                target = target.to(device, non_blocking=True)
                loss = self.method.loss(self.model, task, images, output, target)
                loss = loss / counted.to(loss.dtype)
                penalty, metrics = self.method.penalty(self.model, self.step)
            sums[0] += loss.detach()
            if penalty is not None:
                penalty = penalty / (len(parts) * self.world)
                sums[1] += penalty.detach()
                loss = loss + penalty
            self.scaler.scale(loss).backward()
        # Processes must leave after the same step, whichever of them was told to stop.
        sums[2] = float(self.interrupt.asked)
        self.leaving = distributed.total(sums)[2].item() > 0
        if not bool(torch.isfinite(sums).all()):
            raise NotFiniteError(f"the loss is no longer finite at step {self.step + 1}; {self._kept()}")
        parameters = [p for group in self.groups for p in group["params"]]
        distributed.sum_gradients(parameters)
        # Connection weights that are held still have no gradients, and the scaler takes no optimizer without any.
        moving = [
            optimizer
            for optimizer in self.optimizers
            if any(p.grad is not None for g in optimizer.param_groups for p in g["params"])
        ]
        if training.clip:
            for optimizer in moving:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, training.clip)
        self.method.before_update(self.model, self.groups)
        for optimizer in moving:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.method.after_step(self.model)
        if self.average is not None:
            self.average.restart() if self.method.jumped else self.average.update()
        self.step += 1
        task_loss, added, _ = sums.tolist()
        row = {"step": self.step, "loss": task_loss + added}
        if metrics:
            row["loss_task"] = task_loss
        return {**row, **metrics, "lr": self.groups[0]["lr"]}

    def evaluate(self) -> dict:
        """Validation metrics of the network as it is saved, batch-norm statistics re-estimated if asked for."""
        with self._averaged():
            return self._evaluate()

    def _evaluate(self) -> dict:
        training, seed = self.config.training, self.config.run.seed + 1
        if training.bn_reestimate and not training.freeze_bn:
            sampler = self._sampler(0, training.bn_reestimate, seed)
            loader = data.training_loader(self.task.train_data, sampler, seed, self.config.data.n_worker)
            self.method.before_step(self.model, -1)
            with contextlib.closing(data.plainly(loader)) as batches:
                reestimate(self.model, (self._to(images) for images, _ in batches))
        distributed.average_buffers(self.model)
        try:
            result = self.method.evaluate(self.model, self.task, self.arithmetic, self.config)
        except NotFiniteError as error:
            raise NotFiniteError(f"validation after step {self.step}: {error}; {self._kept()}") from None
        set_training(self.model, training.freeze_bn)
        return result

    def run_all(self, title: str) -> dict:
        """Train to the end; returns the last validation metrics."""
        training, main = self.config.training, self.rank == 0
        interval = training.eval_interval or self.epoch
        records = JsonLines(self.run.metrics, self.step) if main else None
        history = JsonLines(self.run.history, self.step) if main else None
        progress = Progress(self.max_iter, self.step, title, main)
        result: dict = dict(self.best.get("latest", {}))
        set_training(self.model, training.freeze_bn)
        try:
            with self.interrupt, repeatable(), contextlib.closing(self.batches()) as batches:
                while self.step < self.max_iter and not self.method.finished and not self.is_ended(interval):
                    row = self.train_step(list(itertools.islice(batches, training.accumulate)))
                    self.sampler.consumed(self.step)
                    displayed = {"loss": row["loss"], **self.method.metrics(self.model)}
                    due = self.step % interval == 0 or self.step == self.max_iter
                    if due:
                        result = self.evaluate()
                        row.update({f"val_{k}": v for k, v in result.items() if isinstance(v, float)})
                        self._remember(result)
                    if self.task.primary in result:
                        displayed[self.task.primary] = result[self.task.primary]
                    if main and (due or self.step % training.log_interval == 0):
                        row_of_all = {**row, **self.method.metrics(self.model)}
                        records.add(row_of_all)
                        remembered = self.method.history(self.model)
                        if remembered:
                            history.add({"step": self.step, **remembered})
                        self.trackers.scalars(row_of_all)
                        if due:
                            self._track(remembered, self.step // interval)
                    progress.update(self.step, displayed)
                    self._tell({**row, **displayed}, result if due else None)
                    if self.stopped and not due:
                        result = self.evaluate()
                        self._remember(result)
                    if due or self.stopped or self.step % training.checkpoint_interval == 0:
                        self.save()
                    if self.leaving and self.step < self.max_iter and not self.method.finished:
                        self.save()
                        self.interrupt.leave(f"step {self.step} is saved; go on with --resume {self.run.folder}")
        finally:
            progress.close()
            for file in (records, history):
                if file is not None:
                    file.close()
        if self.average is not None:  # whoever finishes the run finds the network as it is saved
            self.average.exchange()
        if main:
            if self.step < self.max_iter and self.is_ended(interval):
                why = "as a callback wished" if self.stopped else f"{self._patience()} without a better one"
                say(f"training ended after step {self.step} of {self.max_iter}: {why}", sys.stderr)
            self.run.note(seconds=round(self.seconds))
        return result

    def is_ended(self, interval: int) -> bool:
        """Whether the training ends here before its last step: a callback says so, or --patience is at its end.

        Args:
            interval: steps between validations.
        """
        patience, best = self.config.training.patience, self.best.get("step")
        return self.stopped or bool(patience and best is not None and self.step - best >= patience * interval)

    def _patience(self) -> str:
        count = self.config.training.patience
        return f"{count} validation{'s' * (count != 1)} of {self.task.primary}"

    def _tell(self, metrics: dict, validation: dict | None) -> None:
        """Call the callbacks; every process calls its own, and all end where one of them says so."""
        if not self.callbacks:
            return
        told = TrainingStep(self.step, self.max_iter, metrics, validation, self.seconds, self.run.folder)
        answers = [bool(callback(told)) for callback in self.callbacks]
        votes = torch.tensor(float(any(answers)), device=self.arithmetic.device)
        self.stopped = distributed.total(votes).item() > 0

    def _track(self, history: dict, validation: int) -> None:
        """Tell the trackers of the weights, and of sample predictions at every so many-th validation."""
        if not self.trackers:
            return
        self.trackers.weights(self.model, history)
        every = self.config.run.track_samples
        if not every or validation % every or self.step == self.max_iter:  # at the end the run draws them itself
            return
        random = randomness.states()
        try:
            with tempfile.TemporaryDirectory(prefix="sparsemask-") as folder:
                path = Path(folder, "samples.png")
                self.task.draw(self.task.samples(self.model, self.arithmetic), path)
                self.trackers.pictures([path])
        finally:
            randomness.restore(random)
            set_training(self.model, self.config.training.freeze_bn)

    def _remember(self, result: dict) -> None:
        """Keep the newest metrics in the checkpoint, and the best network beside it."""
        value = result.get(self.task.primary)
        self.best["latest"] = {k: v for k, v in result.items() if isinstance(v, (int, float, str))}
        if value is not None and value > self.best.get("value", -math.inf):
            self.best.update(value=value, step=self.step)
            self.save(self.run.best)


def fit(
    model,
    method: Method,
    task: Task,
    config,
    run: Run,
    arithmetic,
    extra: dict,
    state: dict | None = None,
    callbacks: Sequence[Callback] = (),
    trackers: Trackers | None = None,
) -> dict:
    """Train `model` on `task`.

    A killed run that is continued from its checkpoint ends in the same weights as an uninterrupted one, bit for bit on
    a CPU with the same number of threads.

    Args:
        model: the network, on its device.
        method: what the family adds to the training steps.
        task: data, loss and metrics.
        config: of the run.
        run: its folder, where checkpoints and metrics are written.
        arithmetic: device and precision.
        extra: what checkpoints hold beside the training state (space, config, mask).
        state: a checkpoint to go on from; None: a new run.
        callbacks: called after every step, see :mod:`sparsemask.engine.callbacks`.
        trackers: told metrics, weights and samples; None: nobody is.

    Returns:
        The metrics of the last evaluation, by name.

    Raises:
        UseError: a loss or weights that are not finite, or a checkpoint of another network.
    """
    loop = Fit(model, method, task, config, run, arithmetic, extra, state, callbacks, trackers)
    title = run.folder.name
    if loop.step == 0:
        loop.save()
    return loop.run_all(title)


def fit_unrecorded(model, method: Method, task: Task, config, run: Run, arithmetic) -> dict:
    """Train `model` as :func:`fit` does, by this process alone, and evaluate it once, at the end; nothing is written.

    Args:
        model: the network; other arguments are :func:`fit`'s.
        run: whose folder error messages name.

    Returns:
        The metrics of the evaluation, by name.

    Raises:
        NotFiniteError: a loss, weights or outputs that are not finite.
    """
    with distributed.alone():
        loop = Fit(model, method, task, config, run, arithmetic, {}, None)
        set_training(model, config.training.freeze_bn)
        with repeatable(), contextlib.closing(loop.batches()) as batches:
            for _ in range(loop.max_iter):
                loop.train_step(list(itertools.islice(batches, config.training.accumulate)))
        with repeatable():
            return loop.evaluate()
