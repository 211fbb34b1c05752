"""Scores of decoders with the weights of a trained elastic network, and the processes that share them out."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections.abc import Iterator

import torch

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.engine.method import cumulative
from sparsemask.finite import NotFiniteError
from sparsemask.ops.dispatch import repeatable
from sparsemask.processes import begin_helper, helper_context
from sparsemask.search.connectivity.front import FrontSearch
from sparsemask.search.connectivity.one_shot import AnyMask, OneShotNetwork
from sparsemask.tasks.protocol import EvaluationContext, Task

BATCHES = 4  # training batches from which batch norms are re-estimated


class Scorer:
    """Scores decoders by the task's primary metric on training samples that were kept back.

    The encoder's features of all samples are computed once. Scores depend on nothing but the weights and the samples.

    Args:
        model: trained; its weights stay as they are.
        task: its training samples re-estimate batch norms.
        held: its validation samples are those that were kept back.
        config: of the run.
        arithmetic: device and precision.
    """

    def __init__(self, model: OneShotNetwork, task: Task, held: Task, config: RunConfig, arithmetic: Arithmetic):
        self.model, self.held, self.frozen = model, held, config.training.freeze_bn
        self.context = EvaluationContext(arithmetic=arithmetic)
        training, seed = config.training, config.run.seed + 1
        sampler = data.step_sampler(task.train_data, training.batch_size, 0, BATCHES, seed, 0, 1, 1, None)
        loader = data.training_loader(task.train_data, sampler, seed, 0)
        with contextlib.closing(data.plainly(loader)) as batches:
            self.batches = [images.to(arithmetic.device, arithmetic.parameters) for images, _ in batches]
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

    @torch.no_grad()
    def __call__(self, mask: AnyMask) -> float:
        """The score; 0 where the outputs are not finite."""
        model, arithmetic = self.model, self.context.arithmetic
        model.chosen = mask
        with repeatable():
            if not self.frozen:
                model.decoders.train()
                with cumulative(model.decoders), arithmetic.context():
                    for images in self.batches:
                        model(images)
            try:
                scores = self.held.evaluate(model, self.context, quick=True)
            except NotFiniteError:
                return 0.0
        value = self.held.metrics(scores)[self.held.primary]
        return float(value) if math.isfinite(value) else 0.0


def search_front(search: FrontSearch, scorer: Scorer, workers: int) -> None:
    """Score candidates until there are enough, in several processes at once.

    Args:
        search: says which and how many.
        scorer: gives scores.
        workers: processes, this one among them; on a CPU alone, and where processes can be forked.
    """
    forks = "fork" in multiprocessing.get_all_start_methods() and scorer.context.arithmetic.device.type == "cpu"
    count = workers if forks else 1
    with _threads(max(1, len(os.sched_getaffinity(0)) // count) if count > 1 else torch.get_num_threads()):
        helpers = []
        if count > 1:
            scorer(search.space.largest())  # now all features are there, and shared by the processes
            context = helper_context("fork")
            helpers = [context.Process(target=_help, args=(search, scorer), daemon=True) for _ in range(count - 1)]
        try:
            for helper in helpers:
                helper.start()
            search.work(scorer)
            for helper in helpers:
                helper.join()
        finally:
            for helper in helpers:
                if helper.pid is not None and helper.is_alive():
                    helper.kill()


def _help(search: FrontSearch, scorer: Scorer) -> None:
    """A helper process: its candidates are taken up by others if it ends."""
    begin_helper()
    search.work(scorer)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
