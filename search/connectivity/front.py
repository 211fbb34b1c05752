"""The front of a one-shot search: which decoders give the best score for what they cost.

Candidates are scored on training pictures that were kept back (:mod:`sparsemask.search.connectivity.scoring`).
NSGA-II (Deb et al. 2002, as Optuna has it) goes on from named decoders and random ones of all sizes; every second
proposal is a decoder of the front with one or two changes, since few generations are affordable. The study lies in the
run's folder as an Optuna journal, so that a killed search goes on, and several processes take candidates from it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from sparsemask import locks
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import OPERATIONS, POINTWISE, DecoderMask, as_decoder, decoder_mask
from sparsemask.search.connectivity.one_shot import AnyMask, DecoderSpace
from sparsemask.search.studies.backend import open_journal
from sparsemask.search.studies.front import pareto
from sparsemask.spaces.connectivity.named_masks import named_mask

_DIRECTIONS = ("maximize", "minimize")
_WAIT = 0.2  # seconds between two looks at candidates that other processes have
_STEP = 0.05  # of the range of scores: candidates nearer than that to a cheaper one are no finalists of its front
_SLACK = 1.25  # candidates of more than this many budgets are not scored
_CHANGES = 3  # parameters of a candidate that mutate, on average; many are of stages that it does not use
_SEEDS = 0.5  # of the candidates; the sampler proposes the others
_NEIGHBOURS = 0.5  # of the proposals
_TRIALS = 6  # at most, for each candidate that is to be scored


class Encoding:
    """Decoders as the parameters of an Optuna trial.

    Args:
        space: of the decoders. Of the published one a parameter is a connection; of the wider one also the output
            stage, every stage's operation and width, and the context block.
    """

    def __init__(self, space: DecoderSpace):
        self.space, length = space, len(space.strides)
        self.outputs = [i for i, stride in enumerate(space.strides) if stride <= 16] or [length - 1]
        self._connections = {
            f"{i} from {'EU'[kind]}{j}": (i, j, kind)
            for i in range(length)
            for j in range(i + 1)
            for kind in (DOWN, UP)
        }
        self.distributions: dict[str, CategoricalDistribution] = {
            name: CategoricalDistribution([False, True]) for name in self._connections
        }
        if space.wide:
            self.distributions["output"] = CategoricalDistribution(self.outputs)
            self.distributions["context"] = CategoricalDistribution([False, True])
            for i in range(length):
                self.distributions[f"operation {i}"] = CategoricalDistribution(list(range(len(OPERATIONS))))
                self.distributions[f"width {i}"] = CategoricalDistribution(list(space.widths))

    def decode(self, params: Mapping[str, Any]) -> AnyMask:
        """The decoder of a trial's parameters; what could not be built is mended."""
        length, space = len(self.space.strides), self.space
        takes = np.zeros((length, length, 2), bool)
        for name, place in self._connections.items():
            takes[place] = params[name]
        output = params["output"] if space.wide else length - 1
        takes[output + 1 :] = False
        for stage in range(output):  # stages without inputs give none
            if not takes[stage].any():
                takes[:, stage + 1, UP] = False
        if not takes[output].any():
            takes[output, output, DOWN] = True
        operations, widths = [POINTWISE] * length, [space.widths[-1]] * length
        if space.wide:
            operations = [params[f"operation {i}"] for i in range(length)]
            widths = [params[f"width {i}"] for i in range(length)]
        mask = decoder_mask(takes, operations, widths, bool(params.get("context", False)))
        return mask if space.wide else mask.connections

    def encode(self, mask: AnyMask) -> dict[str, Any]:
        """The parameters of a decoder; what its unused stages would be is the cheapest."""
        connections = mask.connections if isinstance(mask, DecoderMask) else mask
        params: dict[str, Any] = {name: bool(connections[place]) for name, place in self._connections.items()}
        if self.space.wide:
            decoder = as_decoder(mask, self.space.widths[-1])
            params |= {"output": decoder.output, "context": bool(decoder.context)}
            for i, width in enumerate(decoder.widths.tolist()):
                nearest = min(self.space.widths, key=lambda known, width=width: abs(known - width))
                params |= {f"operation {i}": int(decoder.operations[i]), f"width {i}": nearest}
        return params

    def neighbour(self, mask: AnyMask, rng: np.random.Generator) -> dict[str, Any]:
        """The parameters of a decoder with one or two changes of what it uses."""
        params = self.encode(mask)
        for _ in range(rng.integers(1, 3)):
            kinds = self.in_use(params)
            names = kinds[rng.integers(len(kinds))]
            name = names[rng.integers(len(names))]
            others = [c for c in self.distributions[name].choices if c != params[name]]
            if others:
                params[name] = others[rng.integers(len(others))]
        return params

    def in_use(self, params: Mapping[str, Any]) -> list[list[str]]:
        """Names of the parameters that a decoder depends on, kind by kind."""
        mask = self.decode(params)
        decoder = as_decoder(mask, self.space.widths[-1])
        live = set(decoder.stages)
        deepest = min(decoder.deepest, *live)
        # A stage takes end points that are computed anyway, one deeper, the mean, and stages in use.
        near = [
            name
            for name, (i, j, kind) in self._connections.items()
            if i in live and (j >= deepest - 1 if kind == DOWN else j == 0 or j - 1 in live)
        ]
        if not self.space.wide:
            return [near]
        every = [[f"{what} {i}" for i in sorted(live)] for what in ("operation", "width")]
        return [near, *every, ["output"], ["context"]]

    def seeds(
        self,
        seed: int,
        count: int,
        within: Callable[[AnyMask], bool] = lambda mask: True,
        fits: Callable[[AnyMask], bool] = lambda mask: True,
    ) -> list[AnyMask]:
        """Named decoders, and random ones of all sizes.

        Args:
            seed: of the random ones.
            count: how many, at most.
            within: what all of them are.
            fits: named decoders of the wider space are as wide as they can be with it, where they can.
        """
        rng, strides = np.random.default_rng(seed), self.space.strides
        names = ("unet-3x3", "fpn", "unet", "sparseacn", "dense") if self.space.wide else ("unet", "sparseacn", "dense")
        masks: list[AnyMask] = []
        for name in names:
            mask = named_mask(name, len(strides), strides=strides)
            if self.space.wide:
                decoder = as_decoder(mask, self.space.widths[-1])
                if decoder.output not in self.outputs:
                    continue
                forms = [replace_widths(decoder, width) for width in reversed(self.space.widths)]
                mask = next(filter(fits, forms), forms[0])
            masks.append(mask)
        tries = (self.space.random(rng) for _ in range(50 * count))
        return list(itertools.islice(filter(within, itertools.chain(masks, tries)), count))


def replace_widths(mask: DecoderMask, width: int) -> DecoderMask:
    """A decoder all of whose stages have as many channels."""
    return decoder_mask(mask.connections, mask.operations, [width] * len(mask), mask.context)


class Proposals:
    """Candidates: those that NSGA-II proposes, from a copy of the study in memory, and neighbours of the front.

    Args:
        search: whose decoders they are.
    """

    def __init__(self, search: FrontSearch):
        self._encoding = search.encoding
        self._distributions = self._encoding.distributions
        self._size = max(4, min(40, search.candidates // 4))
        self._study = optuna.create_study(directions=_DIRECTIONS)
        self._known: set[int] = set()

    def __call__(self, done: Sequence[FrozenTrial], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Propose a candidate.

        Args:
            done: all that are scored.
            seed: of this one.

        Returns:
            Its parameters, and what the sampler must know of it later.
        """
        for trial in done:
            if trial.number not in self._known:
                self._known.add(trial.number)
                self._study.add_trial(trial)
        self._study.sampler = _Sampler(
            self._distributions,
            population_size=self._size,
            mutation_prob=min(0.5, _CHANGES / len(self._distributions)),
            seed=seed % 2**32,
        )
        trial = self._study.ask(self._distributions)
        attributes = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        self._study.tell(trial, state=TrialState.FAIL)
        rng = np.random.default_rng(seed % 2**32)
        if done and rng.random() < _NEIGHBOURS:
            best = [done[i] for i in pareto([(t.values[0], t.values[1]) for t in done])]
            chosen = best[rng.integers(len(best))]
            return self._encoding.neighbour(self._encoding.decode(chosen.params), rng), dict(attributes)
        return trial.params, dict(attributes)


class _Sampler(optuna.samplers.NSGAIISampler):
    """NSGA-II over parameters that are known from the beginning."""

    def __init__(self, distributions: dict[str, CategoricalDistribution], **options: Any):
        super().__init__(**options)
        self._distributions = distributions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """All parameters."""
        return dict(self._distributions)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A decoder that was scored.

    Attributes:
        mask: the decoder.
        score: the task's primary metric.
        cost: in the search's unit.
    """

    mask: AnyMask
    score: float
    cost: float


@dataclass(frozen=True)
class FrontSearch:
    """Many candidates of one trained network.

    Attributes:
        folder: of the front in the run's folder; the study lies in it.
        space: of the decoders.
        cost: predicts what a decoder costs.
        candidates: how many are scored.
        seed: of the search.
        identity: of the weights and pictures that scores hold for; a study of others is begun anew.
        most: what candidates should not cost much more than, in the unit of `cost`.
        given: the candidates, all of them; none: they are drawn and proposed.
    """

    folder: Path
    space: DecoderSpace
    cost: Callable[[AnyMask], float]
    candidates: int
    seed: int
    identity: str
    most: float = math.inf
    given: tuple[AnyMask, ...] = ()

    @property
    def encoding(self) -> Encoding:
        """Of its decoders."""
        return Encoding(self.space)

    @property
    def _journal(self) -> Path:
        return self.folder / "study.journal"

    def _lock(self) -> locks.Lock:
        return locks.acquire(self.folder / "study.lock")

    def _open(self) -> optuna.Study:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.create_study(
            study_name="front",
            storage=open_journal(self._journal),
            directions=_DIRECTIONS,
            sampler=optuna.samplers.RandomSampler(),  # candidates come with their parameters
            load_if_exists=True,
        )

    def prepare(self) -> int:
        """Make the study, or open it; the number of candidates that it has already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            study = self._open()
            if study.user_attrs.get("identity", self.identity) != self.identity:
                self._journal.unlink()
                study = self._open()
            if "identity" not in study.user_attrs:
                _, attributes = Proposals(self)([], self.seed)  # those of a first generation
                count = max(8, round(_SEEDS * self.candidates))
                for mask in self.given or self.encoding.seeds(self.seed, count, self._within, self._fits):
                    study.add_trial(self._waiting(self.encoding.encode(mask), attributes))
                study.set_user_attr("identity", self.identity)  # last: a study without it was killed while it was made
            return _different(study)

    def work(self, evaluate: Callable[[AnyMask], float], told: Callable[[int], None] = lambda number: None) -> None:
        """Score candidates until there are enough; several processes may do so at once.

        Args:
            evaluate: gives a decoder's score.
            told: is called with the number of different decoders that are scored, by all processes, after each of
                this one's.
        """
        study, encoding, proposals = self._open(), self.encoding, Proposals(self)
        owner = f"{os.getpid()}.{time.monotonic_ns()}"
        path = self.folder / f"{owner}.worker"
        alive = locks.acquire(path)
        try:
            while True:
                with self._lock():
                    trial, enough = self._claim(study, owner, proposals)
                if enough:
                    return
                if trial is None:
                    time.sleep(_WAIT)  # the last ones are with other processes, one of which may die
                    continue
                mask = encoding.decode(trial.params)
                if not self._within(mask):
                    study.tell(trial, state=TrialState.PRUNED)
                    continue
                packed = mask_key(mask)
                known = next((t for t in _complete(study) if t.user_attrs["mask"] == packed), None)
                values = list(known.values) if known else [evaluate(mask), self.cost(mask)]
                trial.set_user_attr("mask", packed)
                study.tell(trial, values)
                told(_different(study))
        finally:
            path.unlink(missing_ok=True)
            alive.release()

    def _within(self, mask: AnyMask) -> bool:
        return self.cost(mask) <= _SLACK * self.most

    def _fits(self, mask: AnyMask) -> bool:
        return self.cost(mask) <= self.most

    def _claim(self, study: optuna.Study, owner: str, proposals: Proposals) -> tuple[optuna.Trial | None, bool]:
        """A candidate to score, and whether there are enough."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not locks.is_held(self.folder / f"{trial.user_attrs.get('owner')}.worker"):
                # What a dead process had is taken over as it is: in its place, so that what follows is the same.
                taken = optuna.trial.Trial(study, trial._trial_id)
                taken.set_user_attr("owner", owner)
                return taken, False
        trials = study.get_trials(deepcopy=False)
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        tried = len(done) + sum(trial.state == TrialState.PRUNED for trial in trials)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        different = len({trial.user_attrs["mask"] for trial in done})
        enough = different >= self.candidates or tried >= _TRIALS * self.candidates
        if enough or different + running >= self.candidates:
            return None, enough
        if not any(trial.state == TrialState.WAITING for trial in trials):
            study.add_trial(self._waiting(*proposals(done, self.seed * 1_000_003 + tried + running)))
        trial = study.ask(self.encoding.distributions)
        trial.set_user_attr("owner", owner)
        return trial, False

    def _waiting(self, params: dict[str, Any], attributes: dict[str, Any]) -> FrozenTrial:
        """A candidate to be taken up: with all its parameters at once, each of which were else a write of its own."""
        distributions = self.encoding.distributions
        return optuna.create_trial(
            state=TrialState.WAITING, params=params, distributions=distributions, system_attrs=attributes
        )

    def among(self, masks: Sequence[AnyMask], name: str, scores: str = "") -> FrontSearch:
        """A search of given decoders alone, in a folder of its own within this one's.

        Args:
            masks: the decoders.
            name: of the folder.
            scores: what scores hold for, beside the weights and pictures of this search.
        """
        digest = hashlib.sha256("".join(mask_key(mask) for mask in masks).encode()).hexdigest()
        identity = " ".join(filter(None, (self.identity, scores, digest)))
        given = tuple(masks)
        return replace(self, folder=self.folder / name, given=given, candidates=len(given), identity=identity)

    def scored(self) -> list[Candidate]:
        """Every different decoder that was scored."""
        found = {trial.user_attrs["mask"]: trial for trial in _complete(self._open())}
        encoding = self.encoding
        return [Candidate(encoding.decode(t.params), *map(float, t.values)) for t in found.values()]


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _different(study: optuna.Study) -> int:
    """The number of different decoders that are scored."""
    return len({trial.user_attrs["mask"] for trial in _complete(study)})


def mask_key(mask: AnyMask) -> str:
    """Equal for equal decoders of one space."""
    if isinstance(mask, DecoderMask):
        return mask.packed().numpy().tobytes().hex()
    return np.packbits(mask).tobytes().hex()


def finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best candidates: the front, then the front of what is left, and so on; of the last one at even distances,
    beginning with its best.

    Of candidates in a row that hardly differ in score a front gives the cheapest alone: those of little worth are many,
    and would leave no room for some that are beaten by a hair.
    """
    left, chosen = list(candidates), []
    scores = [candidate.score for candidate in left]
    step = _STEP * (max(scores) - min(scores)) if left else 0.0
    while left and len(chosen) < count:
        layer: list[Candidate] = []
        for i in pareto([(c.score, c.cost) for c in left]):
            if not layer or left[i].score > layer[-1].score + step:
                layer.append(left[i])
        left = [c for c in left if all(c is not other for other in layer)]
        room = count - len(chosen)
        chosen += layer if len(layer) <= room else [layer[-1 - i * len(layer) // room] for i in reversed(range(room))]
    return chosen


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing beats in score and cost, the cheapest first; of equal ones one."""
    chosen = [candidates[i] for i in pareto([(c.score, c.cost) for c in candidates])]
    return [c for n, c in enumerate(chosen) if not n or (c.score, c.cost) != (chosen[n - 1].score, chosen[n - 1].cost)]
