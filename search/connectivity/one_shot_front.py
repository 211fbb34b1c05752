"""What frames a one-shot search: its elastic network at the beginning; at the end the front of its decoders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsemask import report as page
from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.costs import measure
from sparsemask.errors import UseError
from sparsemask.families import Built
from sparsemask.files import sha256
from sparsemask.masks.decoder import save_decoder
from sparsemask.pictures import draw_architecture, draw_front
from sparsemask.report.sections import TITLES
from sparsemask.search.connectivity.front import Candidate, FrontSearch, finalists, front
from sparsemask.search.connectivity.halving import WholeScorer, entrants, halve, rungs
from sparsemask.search.connectivity.one_shot import DecoderSpace, OneShotNetwork
from sparsemask.search.connectivity.refinement import next_round, rounds
from sparsemask.search.connectivity.scoring import Scorer, search_front
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones.weights import load_backbone_weights
from sparsemask.spaces.connectivity.budget import Budget, Costs, cost_side, measured_ms, open_costs
from sparsemask.spaces.connectivity.front_files import FOLDER, Point, choose, connections, write_front
from sparsemask.spaces.connectivity.space import ConnectivityConfig
from sparsemask.tasks.protocol import HoldsOut, Task
from sparsemask.training_setup import Context


@dataclass(frozen=True)
class OneShotBuilt(Built):
    """An elastic network, and what its decoders are scored on.

    Attributes:
        decoders: the space of the decoders.
        held: the task whose validation samples are the training samples that were kept back.
    """

    decoders: DecoderSpace | None = None
    held: Task | None = None


def build_elastic(context: Context, config: RunConfig, changes: Mapping[str, Any]) -> OneShotBuilt:
    """The elastic network, and the task without the pictures that are kept back.

    Raises:
        UseError: a task that cannot keep samples back.
    """
    task = context.task
    if not isinstance(task, HoldsOut):
        raise UseError(f"--method one-shot: task '{config.data.task}' cannot keep training samples back (hold_out)")
    train, held = task.hold_out(config.family.held_out)
    options = ConnectivityConfig.from_options(config)
    strides = tuple(backbones.strides(options.backbone_name))
    space = DecoderSpace(strides, options.depth, config.family.decoder_space == "wide", config.family.first_decoder)
    settings = {"n_class": options.n_class, "in_channels": options.in_channels, "bn_momentum": options.bn_momentum}
    model = OneShotNetwork(space, options.backbone_name, **settings, **options.encoder)
    return OneShotBuilt(model, changes=changes, task=train, decoders=space, held=held)


@dataclass(frozen=True)
class _Scores:
    """The candidates with their scores, which compare within a list alone.

    Attributes:
        first: all of them, over the search's encoder.
        finals: the best of these after more steps; empty without finalists.
        refined: changes of those, scored alike.
        halved: trained whole, rung by rung.
    """

    first: list[Candidate]
    finals: list[Candidate]
    refined: list[Candidate]
    halved: list[list[Candidate]]

    @property
    def ranked(self) -> list[Candidate]:
        """Those that make the front of decoders trained alone."""
        return [*self.finals, *self.refined] or self.first


@dataclass(frozen=True)
class _Front:
    """A front that was written: its points, the one that is taken, the unit of costs, the metric."""

    points: list[Point]
    chosen: Point
    unit: Budget
    primary: str


def finish_front(context: Context, built: OneShotBuilt, result: dict) -> int:
    """Score candidates, write the front, and draw, note and say what was found.

    Raises:
        UseError: no candidate had a score, or none is within the budget.
    """
    config, run, section = context.config, context.run, context.config.family
    unit = section.budget or Budget("ms", math.inf)
    digest = sha256(run.last)
    costs = open_costs(config, run)
    search = FrontSearch(
        run.folder / FOLDER,
        built.decoders,
        lambda mask: unit.cost(costs, mask),
        section.candidates,
        config.run.seed,
        digest,
        unit.most,
    )
    context.draw_training(built.model)
    scores = _score(context, built, search)
    written = _write(context, built, scores, digest, unit, costs)
    _draw(context, built, scores, written)
    ms = _note(context, built, scores, written)
    context.announce(_lines(context, scores, written, result, ms), then="prune")
    return 0


def _score(context: Context, built: OneShotBuilt, search: FrontSearch) -> _Scores:
    """Score candidates, then the best of them with more effort, as far as the flags say."""
    config, section = context.config, context.config.family
    scorer = Scorer(built.model, built.task, built.held, config, context.arithmetic)
    search_front(search, scorer, section.front_workers, "candidates")
    first = _finite(search)
    finals = _finals(search, first, scorer, config) if section.finalists and section.tune_steps else []
    scores = _Scores(first, finals, _refined(search, finals, scorer, config) if finals else [], [])
    return replace(scores, halved=_halved(context, built, search, scores.ranked)) if section.halving else scores


def _finite(search: FrontSearch) -> list[Candidate]:
    return [candidate for candidate in search.scored() if math.isfinite(candidate.score)]


def _write(context: Context, built: OneShotBuilt, scores: _Scores, digest: str, unit: Budget, costs: Costs) -> _Front:
    """The front's files, and the mask that is taken as one of its own."""
    config, run, section = context.config, context.run, context.config.family
    whole = front(scores.halved[-1]) if scores.halved else []
    least = min((c.cost for c in whole), default=math.inf)
    points = [
        Point(c.mask, c.score, costs.predict(c.mask), int(costs.multiply_adds(c.mask)), steps)
        for steps, best in ((0, front(scores.ranked)), (section.halving_steps, whole))
        for c in best
        if steps or c.cost < least
    ]
    origin = {
        "space": config.network.space,
        "run": str(run.folder.resolve()),
        "checkpoint": str(run.last.resolve()),
        "sha256": digest,
        "backbone_name": config.network.backbone_name,
        "strides": [int(s) for s in built.model.backbone.strides],
    }
    primary = built.held.primary
    facts: dict[str, Any] = {
        "score": primary,
        "scored_on": "training pictures that were kept back",
        "unit": unit.unit,
        "tune_steps": section.tune_steps * (section.final_times if scores.finals else 1),
    }
    if scores.halved:
        facts["halving"] = [_rows(rung) for rung in scores.halved]
    points = write_front(run.folder, points, {**facts, "candidates": _rows(scores.first)}, origin)
    chosen = choose(points, section.budget)
    save_decoder(run.folder / "mask_front.npy", chosen.mask, {**origin, "connections": connections(chosen.mask)})
    return _Front(points, chosen, unit, primary)


def _rows(candidates: Sequence[Candidate]) -> list[list[float]]:
    return [[c.cost, c.score, connections(c.mask)] for c in candidates]


def _draw(context: Context, built: OneShotBuilt, scores: _Scores, written: _Front) -> None:
    """The network that is taken, and the front among the candidates whose scores compare with it."""
    pictures, backbone = context.run.pictures, built.model.backbone
    draw_architecture(written.chosen.mask, pictures / "architecture.png", backbone.strides, backbone.channels)
    unit, chosen, budget = written.unit.unit, written.chosen, context.config.family.budget
    if scores.halved:  # scores after other trainings do not compare
        shown, others = [p for p in written.points if p.steps], list(itertools.chain(*scores.halved))
        rest = "others that were trained whole, most of them for fewer steps"
    elif scores.finals:
        shown, others, rest = written.points, [*scores.first, *scores.ranked], "others, fewer steps"
    else:
        shown, others, rest = written.points, scores.first, "all candidates"
    draw_front(
        [(p.cost(unit), p.score) for p in shown],
        [(c.cost, c.score) for c in others],
        pictures / "front.png",
        "predicted milliseconds" if unit == "ms" else "multiply-adds",
        TITLES.get(written.primary, written.primary),
        [Path(p.file).stem for p in shown],
        shown.index(chosen) if chosen in shown else None,
        None if budget is None else budget.most,
        rest,
    )


def _note(context: Context, built: OneShotBuilt, scores: _Scores, written: _Front) -> float:
    """Measure the network that is taken and note its costs in the run; its milliseconds."""
    config, arithmetic, chosen = context.config, context.arithmetic, written.chosen
    network = spaces.get(config.network.space).network(chosen.mask, config)
    network.to(arithmetic.device, arithmetic.parameters)
    side = cost_side(config)
    cost = measure(network, (1, 3, side, side), repeats=10)
    ms = measured_ms(network, side, arithmetic.device)
    unit, backbone = written.unit, built.model.backbone
    noted = {"unit": unit.unit, "predicted": chosen.cost(unit.unit), "measured_ms": ms}
    context.run.note(
        strides=[int(s) for s in backbone.strides],
        channels=[int(c) for c in backbone.channels],
        budget=noted if math.isinf(unit.most) else {**noted, "most": unit.most},
        front={
            "points": len(written.points),
            "candidates": len(scores.first),
            "refined": len(scores.refined),
            "halved": len(scores.halved[0]) if scores.halved else 0,
            "chosen": chosen.file,
        },
        **page.cost_entries(cost, side),
    )
    return ms


def _lines(context: Context, scores: _Scores, written: _Front, result: dict, ms: float) -> list[str]:
    """What is said at the end."""
    chosen, unit = written.chosen, written.unit
    costs = f"{unit.text(chosen.cost(unit.unit))} predicted, {ms:.2f} ms measured"
    beyond = f", {len(scores.refined)} changes of the best" if scores.refined else ""
    beyond += f", {len(scores.halved[0])} of them and of pyramids trained whole" if scores.halved else ""
    why = "nearly the best" if math.isinf(unit.most) else "within the budget"
    taken = f"{chosen.file}: {written.primary} {chosen.score:.4f}, {costs}"
    metrics = context.metric_text(result)
    return [
        f"searched: {metrics} with the largest decoder; {len(scores.first)} candidates{beyond}",
        f"front: {len(written.points)} masks in {context.run.folder / FOLDER}; {why}: {taken}",
    ]


def _finals(search: FrontSearch, scored: Sequence[Candidate], scorer: Scorer, config: RunConfig) -> list[Candidate]:
    """The best candidates, scored after a longer training: few steps tell the good from the bad, not the best."""
    best = [candidate.mask for candidate in finalists(scored, config.family.finalists)]
    if not best:
        return []
    # Folders of earlier versions go on: their finals have this identity.
    final = replace(search.among(best, "finals"), identity=f"{search.identity} finals")
    _score_finals(final, scorer, config, "finalists")
    return _finite(final)


def _score_finals(search: FrontSearch, scorer: Scorer, config: RunConfig, title: str) -> None:
    """Score candidates as finalists."""
    section = config.family
    search_front(search, scorer, section.front_workers, title, section.final_times, section.final_draws)


def _refined(search: FrontSearch, finals: Sequence[Candidate], scorer: Scorer, config: RunConfig) -> list[Candidate]:
    """Changes of the best finalists and of each other, scored as the finalists were."""
    sizes = rounds(config.family.refine)
    refined: list[Candidate] = []
    for number, count in enumerate(sizes, 1):
        near = next_round(search, [*finals, *refined], number, count)
        if not near.given:
            break
        _score_finals(near, scorer, config, f"refinement {number} of {len(sizes)}")
        refined += _finite(near)
    return refined


def _halved(
    context: Context, built: OneShotBuilt, search: FrontSearch, ranked: Sequence[Candidate]
) -> list[list[Candidate]]:
    """Candidates trained whole, from the weights that retraining starts from: ImageNet's, else those of the search."""
    config, section = context.config, context.config.family
    path, name = config.network.pretrained_model, config.network.backbone_name
    start = built.model.backbone.state_dict() if path is None else load_backbone_weights(path, name).state
    search = replace(search, space=search.space.doubled())
    masks = entrants(search, ranked, section.halving, built.decoders.plain())
    last = max((rung.times for rung in rungs(len(masks), section.halving_draws)), default=1)
    steps = max(1, section.halving_steps // last)
    scorer = WholeScorer(start, built.task, built.held, config, context.run, context.arithmetic, steps)
    return halve(
        search,
        masks,
        section.halving_draws,
        f"{steps} steps",
        lambda near, rung, title: search_front(near, scorer, section.front_workers, title, rung.times, rung.draws),
    )
