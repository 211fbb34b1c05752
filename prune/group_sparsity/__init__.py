"""Prune groups of weights to a mask file: one threshold for all matrices that meets a target.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.4. The target is a fraction of the plain network's
multiply-adds or parameters, or (not in the paper) of its milliseconds on this device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask import devices, flags, spaces, tasks
from sparsemask import report as page
from sparsemask.config import RunConfig, flag
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError, say
from sparsemask.families import PruningFamily
from sparsemask.files import output_path, sha256, write_json
from sparsemask.masks import groups as files
from sparsemask.masks import npz
from sparsemask.options import Parser, factor, natural, positive
from sparsemask.pictures.hinge import draw_tradeoff
from sparsemask.prune.group_sparsity import curve as group_curve
from sparsemask.prune.group_sparsity.budget import Choice, choose_groups
from sparsemask.prune.group_sparsity.scores import SCORES, elimination_order
from sparsemask.prune.measuring import with_search
from sparsemask.runs import Run, origin_note, say_pruned
from sparsemask.spaces.group_sparsity import records
from sparsemask.spaces.group_sparsity.compression.compress import FOLDS
from sparsemask.spaces.group_sparsity.options import CountingSection
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.spaces.group_sparsity.space import HingeSpace
from sparsemask.tables import format_count, table
from sparsemask.timing import NOISE
from sparsemask.weights import load_strictly

_RULE = ("target", "by", "remain", "same_ratio", "merge", "relative", "scores", "fold")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPruningSection(CountingSection):
    """Rules for the groups that are kept, and the evaluation of the pruned network."""

    title = "groups of weights"
    relative: bool = flag(
        False,
        help="compare a set's norms over their mean (default: as they are, as published, which spares large weights)",
    )
    scores: str = flag(
        "norms",
        choices=SCORES,
        help="what groups are compared by: their norms, or (of residual blocks) the training loss as they are left out "
        "one after another (default: norms)",
    )
    score_batches: int = flag(4, positive, help="training batches of --scores loss (default: 4)")
    fold: str = flag("exact", choices=FOLDS, help="constants of removed channels (default: exact)")
    batch: int = flag(1, positive, help="inputs at once when time is measured (default: 1)")
    compiled: bool = flag(False, help="time is measured of compiled networks")
    eval_limit: int = flag(0, natural, help="only the first pictures, 0: all (default: 0)")
    bn_reestimate: int = flag(
        8,
        natural,
        help="training batches from which the pruned network's batch norms are taken anew before it is evaluated, as "
        "retraining will; 0: only as it is (default: 8)",
    )
    curve: Sequence[float] | None = flag(
        None,
        factor,
        nargs="+",
        help="also prune to these shares, evaluate each, and draw quality over cost (tradeoff.png)",
    )


class GroupPruning(PruningFamily):
    """One threshold on the norms of all groups."""

    def add_options(self, parser: Parser) -> None:
        """Flags of making groups hard."""
        flags.add_data(parser, spaces.get(parser.get_default("space")))
        flags.add_device(parser)
        parser.add_section("family", GroupPruningSection)

    def prune(self, config: RunConfig, given: Mapping, run: Run | None) -> None:
        """Write the mask of a search run, or of any of its checkpoints, and report cost and quality."""
        path = run.last if run else Path(config.run.checkpoint)
        out = output_path(config.run.out or f"mask{npz.SUFFIX}", npz.SUFFIX, "a mask of groups of weights is")
        state = checkpoint.load(path, config.network.space)
        if "network" not in state:
            raise UseError(f"{path}: not a checkpoint of a search (a retrained network is pruned already)")
        space = spaces.get(config.network.space)
        recipe = {**space.config(state["network"]), "fold": config.family.fold}
        hinged = space.structure(recipe)
        network, reduction = hinged.network, hinged.reduction
        load_strictly(network, state["model"], path)
        network.eval()
        config = _as_searched(config, given, state["config"], space)
        task = tasks.get(config.data.task, config)
        where = devices.arithmetic(config.device.gpu, config.device.type)
        measured = (task, config, where)
        by_norm = config.family.scores == "norms"
        scores = None if by_norm else elimination_order(hinged, *measured)
        choice = choose_groups(hinged, recipe, config, where, scores)
        small, mask = _pruned(space, hinged, recipe, choice, path)
        entries = records.entries(reduction, mask.kept, mask.merged)
        metrics = {"searched": group_curve.metrics(network, *measured), "pruned": group_curve.metrics(small, *measured)}
        if config.family.bn_reestimate:
            metrics["batch norms adapted"] = group_curve.adapted(small, *measured)
        curve = []
        if config.family.curve:
            row = {"target": config.family.target, "share": choice.ratio, **list(metrics.values())[-1]}
            curve = group_curve.follow(hinged, recipe, *measured, {config.family.target: row}, scores)
            say(group_curve.rows_text(curve, task.primary))
        ratios = {f"{name}_share": entries[name] / entries[f"{name}_dense"] for name in ("multiply_adds", "parameters")}
        mask = dataclasses.replace(mask, figures={**ratios, **choice.figures})
        for line in _report(reduction, mask, entries, choice, config):
            say(line)
        summary = "; ".join(f"{n}: {', '.join(f'{k} {v:.4f}' for k, v in f.items())}" for n, f in metrics.items())
        say(f"before retraining {summary} ({task.measured_on()})")
        note = {
            **origin_note(config, run, path, mask.sha256, _RULE),
            "step": state.get("step"),
            "threshold": mask.threshold,
            "kept_fraction": mask.kept_fraction,
            **entries,
            **choice.figures,
            **{f"{task.primary}_{name.replace(' ', '_')}": f[task.primary] for name, f in metrics.items()},
            **({"curve": curve} if curve else {}),
        }
        named = f"mask_{config.family.by}_{config.family.target:g}{npz.SUFFIX}"
        targets = [*([run.folder / named] if run else []), out]
        for target in targets:
            files.save_mask(target, mask)
            write_json(target.with_suffix(".json"), note)
        if curve:
            picture = run.pictures / "tradeoff.png" if run else out.with_name("tradeoff.png")
            points = group_curve.points(curve, task.primary, metrics["searched"][task.primary])
            say(f"curve: {draw_tradeoff(points, picture, config.family.by)}")
        if run:
            reached = {"by": config.family.by, "wanted": config.family.target, "reached": choice.ratio}
            run.note(**entries, threshold=mask.threshold, target=reached)
            records.draw_groups(run, mask.kept, reduction.norms(network), mask.threshold if by_norm else None)
            page.write_report(run)
        say_pruned(targets, run, state["config"])


def _as_searched(config: RunConfig, given: Mapping, saved: Mapping, space: HingeSpace) -> RunConfig:
    """Take what the command line does not set from the search: data, target and the rules for counting."""
    counted = ("target", "by", "remain", "same_ratio", "merge")
    numbers = ("crop_size", "scales", "n_class", "class_names")  # of tasks that label pixels
    known = {name: saved[name] for name in (*counted, *numbers) if name in saved and name not in given}
    known |= {name: saved[name] for name in ("eval_batch", "batch_size", "seed") if name in saved}
    return with_search(config, given, saved, known, space)


def _pruned(
    space: HingeSpace, hinged: Hinged, recipe: Mapping, choice: Choice, path: Path
) -> tuple[torch.nn.Module, files.GroupMask]:
    """The small network of a choice, and its mask, which says too what channels could not be removed."""
    mask = files.GroupMask(
        space=space.name,
        config=recipe,
        kept=choice.kept,
        merged=choice.merged,
        threshold=choice.threshold,
        checkpoint=str(path.resolve()),
        sha256=sha256(path),
    )
    small = space.compressed(hinged, mask)
    stays = hinged.reduction.removal.gone(mask.kept)
    stays[small.removed] = False
    return small.network, dataclasses.replace(mask, config={**recipe, "stays": stays.nonzero()[0].tolist()})


def _report(reduction: Reduction, mask: files.GroupMask, entries: dict, choice: Choice, config: RunConfig) -> list[str]:
    """The report: a table of at most 60 sets, remaining costs, and a note if the target is missed."""
    rows = [{"set": name, "kept": int(k.sum()), "of": len(k)} for name, k in mask.kept.items()]
    lines = [table(rows, {"set": "set", "kept": "kept", "of": "of"})] if len(rows) <= 60 else []
    share = lambda name: f"{format_count(entries[name])} ({entries[name] / entries[f'{name}_dense']:.1%})"
    merged = f", {len(mask.merged)} of {len(reduction.pairs)} pairs merged" if reduction.pairs else ""
    lines.append(
        f"kept {mask.kept_fraction:.1%} of the groups at threshold {mask.threshold:.4g}{merged}; multiply-adds "
        f"{share('multiply_adds')}, executed {share('multiply_adds_true')}, parameters {share('parameters')}"
    )
    if "milliseconds" in choice.figures:
        ms, dense = choice.figures["milliseconds"], choice.figures["milliseconds_dense"]
        lines.append(
            f"measured {ms:.3f} ms, plain network {dense:.3f} ms ({ms / dense:.1%}), batch {config.family.batch}"
        )
    if not choice.met:
        shortfall = f"wanted {config.family.target:.1%} of the {config.family.by}, reached {choice.ratio:.1%}"
        lines.append(f"note: {shortfall}: {_why(choice, config.family)}")
    return lines


def _why(choice: Choice, pruning: GroupPruningSection) -> str:
    """Why a target was missed, and alternatives if nothing is gained."""
    if choice.ratio <= pruning.target:
        return "no nearer step"
    if pruning.by == "milliseconds" and choice.ratio > 1 - NOISE:
        alternative = "a larger --batch" if pruning.compiled else "--compiled, a larger --batch"
        search = "a search with --variant columns or graph, at batch 1 blocks"
        return f"nothing is faster here, the plain network is kept; try {alternative}, or {search}"
    return "a share of every set stays (--remain)"


FAMILY = GroupPruning()
