"""Choose the groups that meet a target: counted multiply-adds or parameters, or measured milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.errors import say
from sparsemask.masks.groups import GroupMask
from sparsemask.prune.group_sparsity.timetable import Timetable
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.spaces.group_sparsity.threshold import ThresholdResult, find_threshold, kept_sets
from sparsemask.timing import NOISE

_TRIES = 6  # networks built and timed for one target
_NEAR, _OVER = 0.02, 0.01  # accepted distance below and above a target ratio of milliseconds
_ROUNDS = 15


@dataclass(frozen=True)
class Choice:
    """Kept groups and the cost ratio that they give.

    Attributes:
        kept: by set name, bool (count,).
        merged: pairs that become one convolution.
        threshold: on the groups' norms, or scores.
        ratio: cost over the plain network's.
        met: whether the ratio meets the target.
        figures: measured times, for the mask file.
    """

    kept: Mapping[str, np.ndarray]
    merged: tuple[str, ...]
    threshold: float
    ratio: float
    met: bool
    figures: dict[str, float] = field(default_factory=dict)


def choose_groups(
    hinged: Hinged,
    recipe: Mapping,
    config: RunConfig,
    where: Arithmetic,
    scores: Mapping[str, np.ndarray] | None = None,
) -> Choice:
    """Choose the groups of a hinged network that meet --target of --by.

    Args:
        hinged: the searched network.
        recipe: its configuration.
        config: of the command.
        where: device and precision.
        scores: (count,) by set name, by which groups are compared; None: their norms.
    """
    reduction, options = hinged.reduction, config.family
    norms = reduction.norms(hinged.network) if scores is None else scores
    if options.relative:
        norms = {name: values / (values.mean() or 1.0) for name, values in norms.items()}
    partners = reduction.partners() if options.same_ratio else []
    keep = lambda threshold: kept_sets(norms, threshold, options.remain, partners)
    if options.by == "milliseconds":
        return _timed(hinged, recipe, config, where, norms, keep)
    ratio = lambda threshold: reduction.ratio(keep(threshold), options.by, options.merge)
    best = find_threshold(ratio, options.target, norms.values())
    kept = keep(best.threshold)
    merged = reduction.merged(reduction.removal.gone(kept), options.merge)
    return Choice(reduction.whole(kept, merged), merged, best.threshold, best.ratio, best.met)


def _timed(hinged: Hinged, recipe: Mapping, config: RunConfig, where: Arithmetic, norms: Mapping, keep) -> Choice:
    """Search thresholds by predicted time; each network is built and timed, and its time corrects the prediction."""
    reduction, options, space = hinged.reduction, config.family, spaces.get(config.network.space)
    shape, timing = recipe["input_shape"], (options.batch, where.device, options.compiled)
    plain = space.plain(recipe)
    dense = compare_times({"plain": plain}, shape, *timing)["plain"]
    table = Timetable(reduction, hinged.network, options.batch, where.device)
    predicted = table.calibrate(dense)
    say(f"plain network {dense:.3f} ms at batch {options.batch}; channels pay in steps of {table.step}")
    factor, best = 1.0, None
    for _ in range(_TRIES):
        ratio = lambda t, factor=factor: (
            table.predict(reduction.removal.gone(keep(t)), options.merge)[0] * factor / predicted
        )
        choice: ThresholdResult = find_threshold(ratio, options.target, norms.values(), below=True)
        kept = keep(choice.threshold)
        if options.merge == "auto":
            kept = table.fill(kept, norms)
        _, merged = table.predict(reduction.removal.gone(kept), options.merge)
        kept = reduction.whole(kept, merged)
        small = space.compressed(hinged, GroupMask(recipe, kept, merged)).network
        times = compare_times({"small": small, "plain": plain}, shape, *timing, rounds=_ROUNDS)
        reached = times["small"] / times["plain"]
        met = reached <= options.target + _OVER
        metrics = {"milliseconds": times["small"], "milliseconds_dense": times["plain"], "milliseconds_share": reached}
        candidate = Choice(kept, merged, choice.threshold, reached, met, metrics)
        if best is None or _better(candidate, best, options.target):
            best = candidate
        if (met and reached >= options.target - _NEAR) or (not met and choice.ratio > options.target):
            break  # as near as possible, or limited by the minimum keep ratio
        factor *= reached / max(ratio(choice.threshold), 1e-6)
    return _plain(reduction, best) if best.ratio > 1 - NOISE and not best.met else best


def _plain(reduction: Reduction, tried: Choice) -> Choice:
    """Keep everything, if no tried network is faster than the plain one."""
    dense = tried.figures["milliseconds_dense"]
    metrics = {"milliseconds": dense, "milliseconds_dense": dense, "milliseconds_share": 1.0}
    kept = {s.name: np.ones(s.count, dtype=bool) for s in reduction.sets}
    return Choice(kept, tuple(reduction.pairs), 0.0, 1.0, False, metrics)


def _better(candidate: Choice, best: Choice, target: float) -> bool:
    """Whether a choice meets the target and the best so far does not, or else is nearer to it."""
    if candidate.met != best.met:
        return candidate.met
    return abs(candidate.ratio - target) < abs(best.ratio - target)
