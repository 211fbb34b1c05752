"""The groups that stay for a target: counted multiply-adds or parameters, or milliseconds that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.errors import say
from sparsemask.masks.groups import GroupMask
from sparsemask.prune.group_time import Timetable
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.spaces.group_sparsity.threshold import Found, find_threshold, kept_sets

NOISE = 0.03  # of a time: as good as measuring is
_TRIES = 6  # networks built and timed for one target
_NEAR, _OVER = 0.02, 0.01  # below and above a share of milliseconds: as good as measuring is
_ROUNDS = 15


@dataclass(frozen=True)
class Choice:
    """What stays, and what that comes to."""

    kept: Mapping[str, np.ndarray]
    merged: tuple[str, ...]
    threshold: float
    ratio: float
    met: bool
    figures: dict[str, float] = field(default_factory=dict)


def choose_groups(hinged: Hinged, recipe: Mapping, config: RunConfig, where) -> Choice:
    """The groups of a hinged network that stay for --target of --by."""
    found, chosen = hinged.reduction, config.family
    norms = found.norms(hinged.network)
    if chosen.relative:
        norms = {name: values / (values.mean() or 1.0) for name, values in norms.items()}
    partners = found.partners() if chosen.same_ratio else []
    keep = lambda threshold: kept_sets(norms, threshold, chosen.remain, partners)
    if chosen.by == "milliseconds":
        return _timed(hinged, recipe, config, where, norms, keep)
    ratio = lambda threshold: found.ratio(keep(threshold), chosen.by, chosen.merge)
    best = find_threshold(ratio, chosen.target, norms.values())
    kept = keep(best.threshold)
    merged = found.merged(found.removal.gone(kept), chosen.merge)
    return Choice(found.whole(kept, merged), merged, best.threshold, best.ratio, best.met)


def _timed(hinged: Hinged, recipe: Mapping, config: RunConfig, where, norms: Mapping, keep) -> Choice:
    """Thresholds by predicted time, each network built and measured, the prediction corrected by what was measured."""
    found, chosen, space = hinged.reduction, config.family, spaces.get(config.network.space)
    shape, place = recipe["input_shape"], (chosen.batch, where.device, chosen.compiled)
    plain = space.plain(recipe)
    dense = compare_times({"plain": plain}, shape, *place)["plain"]
    table = Timetable(found, hinged.network, chosen.batch, where.device)
    predicted = table.calibrate(dense)
    say(f"plain network {dense:.3f} ms at batch {chosen.batch}; channels pay in steps of {table.step}")
    factor, best = 1.0, None
    for _ in range(_TRIES):
        ratio = lambda t, factor=factor: (
            table.predict(found.removal.gone(keep(t)), chosen.merge)[0] * factor / predicted
        )
        choice: Found = find_threshold(ratio, chosen.target, norms.values(), below=True)
        kept = keep(choice.threshold)
        if chosen.merge == "auto":
            kept = table.fill(kept, norms)
        _, merged = table.predict(found.removal.gone(kept), chosen.merge)
        kept = found.whole(kept, merged)
        small = space.compressed(hinged, GroupMask(recipe, kept, merged))
        times = compare_times({"small": small, "plain": plain}, shape, *place, rounds=_ROUNDS)
        reached = times["small"] / times["plain"]
        met = reached <= chosen.target + _OVER
        figures = {"milliseconds": times["small"], "milliseconds_dense": times["plain"], "milliseconds_share": reached}
        made = Choice(kept, merged, choice.threshold, reached, met, figures)
        if best is None or _better(made, best, chosen.target):
            best = made
        if (met and reached >= chosen.target - _NEAR) or (not met and choice.ratio > chosen.target):
            break  # as near as can be, or the share that always stays
        factor *= reached / max(ratio(choice.threshold), 1e-6)
    return _plain(found, best) if best.ratio > 1 - NOISE and not best.met else best


def _plain(found: Reduction, tried: Choice) -> Choice:
    """Everything kept, for where nothing that was tried is faster: fewer multiply-adds alone are no gain."""
    dense = tried.figures["milliseconds_dense"]
    figures = {"milliseconds": dense, "milliseconds_dense": dense, "milliseconds_share": 1.0}
    kept = {s.name: np.ones(s.count, dtype=bool) for s in found.sets}
    return Choice(kept, tuple(found.pairs), 0.0, 1.0, False, figures)


def _better(one: Choice, other: Choice, target: float) -> bool:
    """Whether a choice meets the target where the other does not, or is nearer to it."""
    if one.met != other.met:
        return one.met
    return abs(one.ratio - target) < abs(other.ratio - target)
