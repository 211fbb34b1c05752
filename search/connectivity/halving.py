"""Successive halving: the last candidates are trained whole, as retraining trains them, and the better half goes on.

Over a frozen encoder scores tell good decoders from poor ones, but do not order the good ones: which of these is best
is decided by what the encoder learns under it. So the last candidates are trained together with an encoder, from the
weights that retraining starts from, by retraining's own loop, and scored on the training samples that were kept back.
Many are trained for few steps, the better half of them for twice as many, and so on (successive halving: Jamieson and
Talwalkar 2016, arXiv 1502.07943), so that every rung costs about the same; the last rung takes the mean of several
trainings. Beside the search's best the candidates are pyramids (:func:`pyramids`): what works by hand is tried too.

A rung is a front of its own, whose candidates follow from the scores of the rung before it alone: after a kill and with
any number of processes rungs are the same, and what was trained is not trained again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine.loop import fit_unrecorded
from sparsemask.engine.method import Method
from sparsemask.engine.randomness import draw_generator, seed_all
from sparsemask.finite import NotFiniteError
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, DecoderMask, decoder_mask
from sparsemask.runs import Run
from sparsemask.search.connectivity.front import Candidate, FrontSearch, mask_key
from sparsemask.search.connectivity.one_shot import AnyMask, DecoderSpace
from sparsemask.search.connectivity.scoring import CandidateScorer, finite_score
from sparsemask.tasks.protocol import Task

_ENTRANTS = 6  # stream of randomness
_FINEST = (8, 4)  # strides of the pyramids' output
_HOPEFUL = 0.8  # of the best score: what is below makes room for pyramids
_WORTHY = 0.85  # of the bound: what pyramids cost at least
_WARM = 5  # the warm-up is at most a share of 1 / _WARM of the steps


@dataclass(frozen=True)
class Rung:
    """Trainings of one length.

    Attributes:
        count: candidates.
        times: steps of a training, in those of the first rung.
        draws: trainings of each candidate.
    """

    count: int
    times: int
    draws: int


def rungs(count: int, draws: int) -> list[Rung]:
    """The rungs for so many candidates: each has half of those before it, trained twice as long, the last 3 at most.

    Args:
        count: candidates of the first rung.
        draws: trainings of each candidate of the last rung; of the others one.
    """
    found = [Rung(count, 1, 1)] if count else []
    while found and found[-1].count > 3:
        found.append(Rung(found[-1].count // 2, 2 * found[-1].times, 1))
    return [*found[:-1], *(replace(rung, draws=draws) for rung in found[-1:])]


def pyramids(space: DecoderSpace) -> Iterator[list[DecoderMask]]:
    """Decoders in the manner of the named mask `fpn`: shape by shape, each in several widths.

    A pyramid has a stage at one of the deeper end points, at which the encoder ends, and one of each stride from there
    to 8 or 4, all with a 3x3 convolution; a stage takes the end point of its place and the stage before it, the last
    one all stages. Shapes differ in the first and the last stage and in the context block. The width of the last stage
    may be less than that of the others.

    Args:
        space: of the decoders; `widths` are those that stages may have.
    """
    strides, length = space.strides, len(space.strides)
    widths = [width for width in space.widths if 2 * width >= space.depth]
    for begin, finest, context in itertools.product(range(length), _FINEST, (False, True)):
        stages = [i for i in range(begin, length) if i == begin or strides[i] != strides[i - 1]]
        stages = [i for i in stages if strides[i] >= finest]
        if len(stages) < 2 or strides[stages[-1]] != finest:
            continue
        takes = np.zeros((length, length, 2), bool)
        takes[stages, stages, DOWN] = True
        takes[stages[1:], [stage + 1 for stage in stages[:-1]], UP] = True
        takes[stages[-1], [stage + 1 for stage in stages[:-1]], UP] = True
        yield [
            decoder_mask(takes, [FULL] * length, [narrow if i == stages[-1] else wide for i in range(length)], context)
            for wide, narrow in itertools.product(widths, widths)
            if space.depth <= wide >= narrow
        ]


def entrants(search: FrontSearch, ranked: Sequence[Candidate], count: int, plain: AnyMask) -> list[AnyMask]:
    """The candidates of the first rung: the best known ones, the decoder that was trained first, and pyramids.

    Args:
        search: whose cost and bound hold; its space is that of the pyramids.
        ranked: decoders with scores, in any order.
        count: how many are wanted; there may be fewer.
        plain: a candidate where it is within the bound; without a budget pyramids cost no more than it.

    Returns:
        Different decoders within the budget. Of every shape a pyramid is the dearest that fits; those that leave much
        of the bound are left out.
    """
    most = search.most if np.isfinite(search.most) else search.cost(plain)
    known = sorted((c for c in ranked if c.cost <= search.most), key=lambda c: (-c.score, c.cost))
    near: list[AnyMask] = [plain]
    if search.space.wide:
        shapes = [[mask for mask in shape if search.cost(mask) <= most] for shape in pyramids(search.space)]
        dearest = [max(shape, key=search.cost) for shape in shapes if shape]
        dearest = [mask for mask in dearest if search.cost(mask) >= _WORTHY * most]
        order = draw_generator(search.seed, _ENTRANTS, 0).permutation(len(dearest))
        near += [dearest[number] for number in order]
    near = [mask for mask in near if search.cost(mask) <= search.most]
    best: list[AnyMask] = [c.mask for c in known if c.score >= _HOPEFUL * known[0].score]
    chosen: dict[str, AnyMask] = {}
    for masks, room in ((best, (count + 1) // 2), (near, count), ([c.mask for c in known], count)):
        for mask in masks:
            if len(chosen) < room:
                chosen.setdefault(mask_key(mask), mask)
    return list(chosen.values())


def survivors(scored: Sequence[Candidate], count: int) -> list[AnyMask]:
    """The best of a rung; of equal ones the cheaper."""
    return [c.mask for c in sorted(scored, key=lambda c: (-c.score, c.cost, mask_key(c.mask)))[:count]]


class _KeptBack(Method):
    """Trains a plain network, which is validated on the samples that were kept back."""

    def __init__(self, held: Task):
        self.held = held

    def evaluate(self, model: nn.Module, task: Task, arithmetic: Arithmetic, config: RunConfig) -> dict[str, float]:
        """Metrics on the samples that were kept back."""
        return super().evaluate(model, self.held, arithmetic, config)


class WholeScorer(CandidateScorer):
    """Scores decoders after a training of the whole network, by the loop and the settings of retraining.

    Args:
        encoder: the encoder's weights at the beginning of every training.
        task: whose training samples are trained on.
        held: its validation samples are those that were kept back.
        config: of the run.
        run: the search's.
        arithmetic: device and precision.
        steps: of a training with `times` 1.
    """

    def __init__(
        self, encoder: Mapping[str, Tensor], task: Task, held: Task, config: RunConfig, run: Run,
        arithmetic: Arithmetic, steps: int,
    ):  # fmt: skip
        self.encoder, self.task, self.held, self.config, self.run = encoder, task, held, config, run
        self.arithmetic, self.steps, self.seed = arithmetic, steps, config.run.seed

    def fill(self, mask: AnyMask) -> None:
        """Nothing: every training begins anew."""

    def _score(self, mask: AnyMask, times: int, seed: int) -> float:
        steps = times * self.steps
        # Helper processes may have no loader processes of their own.
        config = self.config.replace(
            seed=seed, max_iter=steps, warmup=min(self.config.training.warmup, steps // _WARM), eval_limit=0, n_worker=0
        )
        seed_all(seed)
        network = spaces.get(config.network.space).network(mask, config)
        network.backbone.load_state_dict(self.encoder)
        method = _KeptBack(self.held)
        try:
            metrics = fit_unrecorded(network, method, self.task, config, self.run, self.arithmetic)
        except NotFiniteError:
            return 0.0
        return finite_score(metrics[self.held.primary])


def halve(
    search: FrontSearch,
    masks: Sequence[AnyMask],
    draws: int,
    scores: str,
    score: Callable[[FrontSearch, Rung, str], object],
) -> list[list[Candidate]]:
    """Train candidates rung by rung.

    Args:
        search: whose costs hold, and in whose folder the rungs lie.
        masks: the candidates of the first rung.
        draws: trainings of each candidate of the last rung.
        scores: what scores hold for, beside the weights and pictures of the search.
        score: (candidates, rung, title) scores all of them.

    Returns:
        The candidates of each rung with their scores, the last rung's at last.
    """
    done: list[list[Candidate]] = []
    planned = rungs(len(masks), draws)
    for number, rung in enumerate(planned, 1):
        near = search.among(masks, f"halving-{number}", f"{scores} {rung.times} {rung.draws}")
        score(near, rung, f"halving {number} of {len(planned)}")
        done.append([candidate for candidate in near.scored() if np.isfinite(candidate.score)])
        masks = survivors(done[-1], planned[number].count) if number < len(planned) else []
        if not masks:
            break
    return done
