"""Scores of decoders with the weights of a trained elastic network, and the processes that share them out."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import torch

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.engine.method import cumulative
from sparsemask.engine.records import Progress
from sparsemask.finite import NotFiniteError
from sparsemask.ops.dispatch import repeatable
from sparsemask.processes import begin_helper, helper_context, usable_cores
from sparsemask.search.connectivity.front import FrontSearch
from sparsemask.search.connectivity.one_shot import AnyMask, OneShotNetwork
from sparsemask.tasks.protocol import EvaluationContext, Task
from sparsemask.timing import thread_count

BATCHES = 4  # training batches from which batch norms are re-estimated
TUNING = 24  # training batches on which decoders are tuned, in turn


class CandidateScorer(ABC):
    """Scores decoders by the task's primary metric on training samples that were kept back.

    Attributes:
        seed: of the first draw of weights.
        arithmetic: device and precision.
    """

    seed: int
    arithmetic: Arithmetic

    def __call__(self, mask: AnyMask, times: int = 1, draws: int = 1) -> float:
        """The score; 0 where the outputs are not finite.

        Args:
            mask: the decoder.
            times: factor on the steps that it is trained.
            draws: of the weights that it begins with; the mean counts.
        """
        return fmean(self._score(mask, times, self.seed + draw) for draw in range(draws))

    @abstractmethod
    def _score(self, mask: AnyMask, times: int, seed: int) -> float:
        """The score with one draw of weights."""

    @abstractmethod
    def fill(self, mask: AnyMask) -> None:
        """Compute what forked processes share; `mask`: any decoder."""


class Scorer(CandidateScorer):
    """Scores decoders over the encoder of the search, as it is.

    The encoder's features of all samples are computed once. Scores depend on nothing but the weights and the samples.
    Shared weights rank decoders by how often their parts were trained; a few steps of its own, from weights drawn anew,
    with the encoder as it is, tell a decoder's worth much better. They are few since they need the decoder alone.

    Args:
        model: trained; its weights stay as they are.
        task: its training samples re-estimate batch norms.
        held: its validation samples are those that were kept back.
        config: of the run.
        arithmetic: device and precision.
    """

    def __init__(self, model: OneShotNetwork, task: Task, held: Task, config: RunConfig, arithmetic: Arithmetic):
        self.model, self.held, self.frozen = model, held, config.training.freeze_bn
        self.arithmetic, self.context = arithmetic, EvaluationContext(arithmetic=arithmetic)
        training, seed = config.training, config.run.seed + 1
        self.task, self.steps, self.seed = task, config.family.tune_steps, config.run.seed
        self.lr, self.decay = training.lr * training.last_layer_lr_mult, training.decay
        wanted = max(BATCHES, min(TUNING, self.steps))
        sampler = data.step_sampler(task.train_data, training.batch_size, 0, wanted, seed, 0, 1, 1, None)
        loader = data.training_loader(task.train_data, sampler, seed, 0)
        device, kind = arithmetic.device, arithmetic.parameters
        with contextlib.closing(data.plainly(loader)) as batches:
            self.tuning = [(images.to(device, kind), target.to(device)) for images, target in batches]
        self.batches = [images for images, _ in self.tuning[:BATCHES]]
        self._filled = False
        model.eval()
        model.remember_end_points()
        with torch.no_grad(), arithmetic.context(), repeatable():
            if self.frozen:
                return
            model.backbone.train()
            with cumulative(model.backbone):
                for images in self.batches:
                    model.end_points(images)
            model.backbone.eval()

    def _score(self, mask: AnyMask, times: int, seed: int) -> float:
        model = self.model
        model.chosen, self._filled = mask, True
        with repeatable(), self._tuned(times * self.steps, seed), torch.no_grad():
            if not self.frozen:
                model.decoders.train()
                with cumulative(model.decoders), self.arithmetic.context():
                    for images in self.batches:
                        model(images)
            try:
                scores = self.held.evaluate(model, self.context, quick=True)
            except NotFiniteError:
                return 0.0
        return finite_score(self.held.metrics(scores)[self.held.primary])

    def fill(self, mask: AnyMask) -> None:
        """Compute the encoder's features of all samples, where none was scored yet."""
        if not self._filled:
            self(mask)

    @contextlib.contextmanager
    def _tuned(self, steps: int, seed: int) -> Iterator[None]:
        """Inside, the chosen decoder's weights are those of a short training of its own; the encoder's stay."""
        if not steps:
            yield
            return
        model, arithmetic = self.model, self.arithmetic
        parts = {name: part for name, part in model.named_children() if name != "backbone"}
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.draw_decoders_()
        parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.decay)
        model.decoders.train()
        for step in range(steps):
            images, target = self.tuning[step % len(self.tuning)]
            warm = min(1.0, (step + 1) / max(1, steps // 5))
            optimizer.param_groups[0]["lr"] = self.lr * warm * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            with arithmetic.context():
                loss = self.task.loss(model(images), target)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            for name, part in parts.items():
                part.load_state_dict(before[name])


def finite_score(value: float) -> float:
    """A metric as a score: 0 where it is not finite."""
    return float(value) if math.isfinite(value) else 0.0


def search_front(
    search: FrontSearch, scorer: CandidateScorer, workers: int, title: str, times: int = 1, draws: int = 1
) -> None:
    """Score candidates until there are enough, in several processes at once.

    Args:
        search: says which and how many.
        scorer: gives scores.
        workers: processes, this one among them; on a CPU alone, and where processes can be forked.
        title: stands before the number of those that are scored, in the lines of progress.
        times: as of :meth:`CandidateScorer.__call__`.
        draws: as of it.
    """
    progress = Progress(search.candidates, search.prepare(), title, unit="candidate")
    forks = "fork" in multiprocessing.get_all_start_methods() and scorer.arithmetic.device.type == "cpu"
    count = workers if forks else 1
    with thread_count(max(1, usable_cores() // count) if count > 1 else torch.get_num_threads()):
        helpers = []
        if count > 1:
            scorer.fill(search.space.smallest(np.random.default_rng(0)))
            context = helper_context("fork")
            helpers = [
                context.Process(target=_help, args=(search, scorer, times, draws), daemon=True)
                for _ in range(count - 1)
            ]
        try:
            for helper in helpers:
                helper.start()
            search.work(lambda mask: scorer(mask, times, draws), lambda number: progress.update(number, {}))
            for helper in helpers:
                helper.join()
        finally:
            progress.close()
            for helper in helpers:
                if helper.pid is not None and helper.is_alive():
                    helper.kill()


def _help(search: FrontSearch, scorer: CandidateScorer, times: int, draws: int) -> None:
    """A helper process: its candidates are taken up by others if it ends."""
    begin_helper()
    search.work(lambda mask: scorer(mask, times, draws))
