"""Prune connection weights to a connectivity mask by :mod:`sparsemask.spaces.connectivity.prune_rules`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsemask.config import RunConfig, flag
from sparsemask.errors import UseError, say
from sparsemask.families import PruningFamily
from sparsemask.files import output_path, sha256
from sparsemask.masks import save_mask
from sparsemask.masks.decoder import save_decoder
from sparsemask.options import Parser, fraction
from sparsemask.pictures import draw_architecture
from sparsemask.plugins import is_own
from sparsemask.runs import Run, origin_note, say_pruned
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.budget import Budget, BudgetSection, Costs, cost_text, of_flags, open_costs
from sparsemask.spaces.connectivity.budget_rules import prune_to_budget
from sparsemask.spaces.connectivity.front_files import FOLDER, Point, choose, connections, read_front
from sparsemask.spaces.connectivity.mask_source import mask_lines, origin
from sparsemask.spaces.connectivity.prune_rules import PruneReport, prune_connectivity, prune_report
from sparsemask.weights import bare_state, config_of, read_checkpoint

__all__ = ["FAMILY", "prune_connectivity", "prune_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivityPruningSection(BudgetSection):
    """Rules for the connections that are kept."""

    title = "connectivity"
    inherited_last = True
    thres: float = flag(0.001, fraction, help="keep weights above it (default: 0.001)")
    keep_duplicate: bool = flag(False, help="do not merge stages with the same inputs")
    keep_subset: bool = flag(False, help="do not remove stages that another one covers")
    repeat: bool = flag(False, help="clean until nothing changes (published: once)")


class ConnectivityPruning(PruningFamily):
    """Threshold, reachability, cleaning."""

    def add_options(self, parser: Parser) -> None:
        """Flags of pruning connectivity weights; the names are the public script's."""
        parser.add_section("family", ConnectivityPruningSection)

    def prune(self, config: RunConfig, given: Mapping, run: Run | None) -> None:
        """Write the mask of a search run, or of any checkpoint, with its report and drawing."""
        path = run.last if run else Path(config.run.checkpoint)
        out = output_path(config.run.out or "mask.npy", ".npy", "a connectivity mask is")
        state = read_checkpoint(path)
        if state.get("space", config.network.space) != config.network.space:
            raise UseError(f"{path}: a checkpoint of space '{state['space']}', not of '{config.network.space}'")
        if config_of(state).get("method") == "one-shot":
            _from_front(config, state, run, path, out)
            return
        weights, budget = _stage_weights(bare_state(state, path), path), _budget(config, state)
        rules = not config.family.keep_duplicate, not config.family.keep_subset, config.family.repeat
        report: PruneReport
        if budget is None:
            report = prune_report(weights, config.family.thres, *rules)
        else:
            costs = _costs(budget, state, run)
            budget = budget.resolved(costs)
            budget.check(costs)
            report = prune_to_budget(weights, config.family.thres, budget, costs, *rules)
        for line in report.lines():
            print(line)
        if report.problem:
            raise UseError(f"no mask written: {report.problem}")
        backbone_name = config_of(state).get("backbone_name")
        strides = _strides(backbone_name, len(report.mask))
        for line in mask_lines(report.mask, strides):
            print(line)
        note = {
            **origin_note(config, run, path, sha256(path), ("thres", "keep_duplicate", "keep_subset", "repeat")),
            "step": state.get("step", state.get("iter")),
            "connections": report.connections,
            "smallest_kept": report.smallest_kept,
            "largest_dropped": report.largest_dropped,
            "backbone_name": backbone_name,
            "strides": strides,
        }
        name = f"mask_thres_{config.family.thres:g}"
        if budget is not None:
            name += f"_{budget.name}"
            note["budget"] = {"unit": budget.unit, "most": budget.most, "predicted": report.cost}
        targets = [*([run.folder / f"{name}.npy"] if run else []), out]
        for target in targets:
            save_mask(target, report.mask, note)
        if run:
            draw_architecture(report.mask, run.pictures / f"{name}.png", strides)
        say_pruned(targets, run, config_of(state))


def _from_front(config: RunConfig, state: dict, run: Run | None, path: Path, out: Path) -> None:
    """Write the mask of a one-shot search's front that a budget asks for."""
    if run is None:
        raise UseError(f"{path}: of a one-shot search, whose masks lie in its run's folder; name the run by --run")
    points, budget = read_front(run.folder), _budget(config, state)
    if budget is not None and budget.relative:
        budget = budget.resolved(_costs(budget, state, run))
    chosen = choose(points, budget)
    print(f"front: {len(points)} masks; {run.folder / FOLDER / chosen.file}: {_priced(chosen)}")
    backbone_name = config_of(state).get("backbone_name")
    strides = _strides(backbone_name, len(chosen.mask))
    for line in mask_lines(chosen.mask, strides):
        print(line)
    note = {
        **origin_note(config, run, path, sha256(path), ("thres",)),
        "step": state.get("step"),
        "connections": connections(chosen.mask),
        "backbone_name": backbone_name,
        "strides": strides,
        "front": chosen.file,
        "score": chosen.score,
        "predicted_ms": chosen.ms,
        "multiply_adds": chosen.multiply_adds,
    }
    if budget is not None:
        note["budget"] = {"unit": budget.unit, "most": budget.most, "predicted": chosen.cost(budget.unit)}
    name = f"mask_front_{Path(chosen.file).stem}"
    targets = [run.folder / f"{name}.npy", out]
    for target in targets:
        save_decoder(target, chosen.mask, note)
    draw_architecture(chosen.mask, run.pictures / f"{name}.png", strides)
    say_pruned(targets, run, config_of(state))


def _priced(point: Point) -> str:
    """What a point of a front scores and costs."""
    ms = "" if point.ms is None else f"{cost_text(point.ms, 'ms')} predicted, "
    return f"score {point.score:.4f}, {ms}{cost_text(point.multiply_adds, 'multiply-adds')}"


def _budget(config: RunConfig, state: dict) -> Budget | None:
    """The budget of the command line, else that of the search, which it then says."""
    given, searched = config.family.budget, of_flags(config_of(state))
    if given is None and searched is not None:
        say(f"the search's budget: {searched.flag}")
    return given or searched


def _costs(budget: Budget, state: dict, run: Run | None) -> Costs:
    """The costs by which a search reckoned, or those of this machine."""
    saved = config_of(state)
    if missing := [n for n in ("backbone_name", "crop_size", "depth", "n_class") if saved.get(n) is None]:
        raise UseError(f"{budget.flag}: the checkpoint does not say {', '.join(missing)} of its search")
    return open_costs(saved, run, training=False, unit=budget.unit)


def _strides(backbone_name: str | None, n_features: int) -> list[int] | None:
    """The strides of the search's backbone; None if they are unknown, which does not prevent pruning."""
    strides = None
    if is_own(backbone_name):
        try:
            strides = backbones.strides(backbone_name)
        except UseError as error:
            say(f"note: the mask is written without its features' strides: {error}", sys.stderr)
            return None
    with contextlib.suppress(UseError):
        return origin({"backbone_name": backbone_name, "strides": strides}, n_features)[1]
    return None


def _stage_weights(state: dict, path: Path) -> list[np.ndarray]:
    """The raw weights of the stages, deepest first, from a supernet's state dict."""
    weights = {}
    for key, value in state.items():
        match = re.fullmatch(r"decoders\.Decoders_(\d+)\._weight_", key)
        if match:
            value = value.detach() if value.dtype == torch.float64 else value.detach().float()
            weights[int(match[1])] = value.numpy()
    if not weights or sorted(weights) != list(range(len(weights))):
        raise UseError(f"{path}: no connection weights in it; take the checkpoint of a search, not of a retraining")
    return [weights[i] for i in range(len(weights))]


FAMILY = ConnectivityPruning()
