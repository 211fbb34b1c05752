"""A few steps of a run that is not made: how long it would take, and in how much memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from sparsemask.costs import format_count
from sparsemask.engine.loop import Fit
from sparsemask.engine.method import set_training
from sparsemask.ops.dispatch import repeatable
from sparsemask.tables import duration, seconds_text

_STEPS, _WARM = 5, 2  # timed steps, of which the first ones fill caches
_FEW = 2  # validation samples that are timed


@dataclass(frozen=True)
class Rehearsal:
    """What a run would need.

    Attributes:
        steps: of the run.
        passes: over the training samples.
        evaluations: of the validation samples while training.
        samples: validation samples of each.
        step_seconds: of one step, loading included.
        evaluation_seconds: of one evaluation.
        bytes: largest memory of this process (on a GPU: of the GPU) while it was tried.
        parameters: of the network that is trained.
    """

    steps: int
    passes: float
    evaluations: int
    samples: int
    step_seconds: float
    evaluation_seconds: float
    bytes: int
    parameters: int

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    def lines(self, config: Any, arithmetic: Any, items: str) -> list[str]:
        """The text for a person.

        Args:
            config: of the run.
            arithmetic: where it is computed.
            items: what the task's samples are called.
        """
        training, size = config.training, config.get("crop_size")
        at = f" at {size}x{size}" if size else ""
        where = f"{arithmetic.device}, {torch.get_num_threads()} thread(s)"
        if arithmetic.device.type == "cuda":
            where = torch.cuda.get_device_name(arithmetic.device)
        workers = config.data.n_worker
        beside = f", and {workers} loader process(es) beside it" if workers else ""
        return [
            f"for       {self.steps} steps of {training.batch_size} {items}{at}: {self.passes:.1f} passes; "
            f"{self.evaluations} validation(s) of {self.samples} {items}",
            f"network   {format_count(self.parameters)} parameters are trained",
            f"takes     about {duration(self.seconds)} on {where}: {seconds_text(self.step_seconds)} a step, "
            f"{seconds_text(self.evaluation_seconds)} a validation, as tried now; what follows training is not in it",
            f"memory    about {self.bytes / 1e9:.1f} GB{beside}",
        ]


def rehearse(model, method, task, config, run, arithmetic, extra: dict) -> Rehearsal:
    """Train a few steps and validate a few samples of a run; nothing is kept of it.

    Args:
        model: the network, whose weights are changed; other arguments are :func:`sparsemask.engine.loop.fit`'s.
    """
    loop = Fit(model, method, task, config, run, arithmetic, extra, None)
    training = config.training
    if arithmetic.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(arithmetic.device)
    set_training(model, training.freeze_bn)
    times = []
    with repeatable(), contextlib.closing(loop.batches()) as batches:
        for _ in range(min(_STEPS, loop.max_iter)):
            began = time.perf_counter()
            loop.train_step(list(itertools.islice(batches, training.accumulate)))
            _synchronise(arithmetic)
            times.append(time.perf_counter() - began)
        length = len(task.eval_data)
        samples = min(training.eval_limit or length, length)
        one, few = (_evaluated(loop, limit) for limit in (1, min(1 + _FEW, samples)))
    each = max(0.0, few - one) / max(1, min(_FEW, samples - 1))
    interval = training.eval_interval or loop.epoch
    return Rehearsal(
        steps=loop.max_iter,
        passes=loop.max_iter * training.batch_size / len(task.train_data),
        evaluations=math.ceil(loop.max_iter / interval),
        samples=samples,
        step_seconds=statistics.median(times[_WARM:] or times),
        evaluation_seconds=one + each * (samples - 1),
        bytes=_most_memory(arithmetic),
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


def _evaluated(loop: Fit, limit: int) -> float:
    """Seconds of an evaluation on the first samples."""
    loop.config = loop.config.replace(eval_limit=limit)
    began = time.perf_counter()
    loop.evaluate()
    _synchronise(loop.arithmetic)
    return time.perf_counter() - began


def _synchronise(arithmetic) -> None:
    if arithmetic.device.type == "cuda":
        torch.cuda.synchronize(arithmetic.device)


def _most_memory(arithmetic) -> int:
    """Bytes that were in use at most: of the GPU, else of this process."""
    if arithmetic.device.type == "cuda":
        return torch.cuda.max_memory_allocated(arithmetic.device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
