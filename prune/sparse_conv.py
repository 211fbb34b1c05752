"""Prune fine-grained masks to a mask file: argmax over channels, a threshold on the data masks.

The network keeps all its weights; masks select what is computed. The report gives what is kept on validation data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsemask import devices, flags, spaces, tasks
from sparsemask.config import RunConfig, Section, flag
from sparsemask.errors import UseError, say
from sparsemask.families import PruningFamily
from sparsemask.files import output_path, sha256, write_json
from sparsemask.masks import npz
from sparsemask.masks import spatial as files
from sparsemask.options import Parser, fraction, natural
from sparsemask.prune.measuring import with_search
from sparsemask.runs import Run, origin_note, say_pruned
from sparsemask.spaces.sparse_conv.masking import hard_masks, set_threshold
from sparsemask.spaces.sparse_conv.measuring import COLUMNS, Watch, module_table
from sparsemask.tables import format_count
from sparsemask.weights import bare_state, config_of, read_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConvPruningSection(Section):
    """Rule for the locations that are kept, and the number of validation inputs."""

    title = "fine-grained masks"
    thres: float = flag(0.5, fraction, help="keep a location where P(keep) is above it (default: 0.5, argmax)")
    eval_limit: int = flag(0, natural, help="only the first pictures, 0: all (default: 0)")


class SparseConvPruning(PruningFamily):
    """Argmax over channels, a threshold on the data masks."""

    def add_options(self, parser: Parser) -> None:
        """Flags of making fine-grained masks hard."""
        flags.add_data(parser, spaces.get(parser.get_default("space")))
        flags.add_device(parser)
        parser.add_section("family", SparseConvPruningSection)

    def prune(self, config: RunConfig, given: Mapping, run: Run | None) -> None:
        """Write the masks of a search run, or of any checkpoint, and report what they keep on validation data."""
        path = run.last if run else Path(config.run.checkpoint)
        out = output_path(config.run.out or f"mask{npz.SUFFIX}", npz.SUFFIX, "fine-grained masks are")
        state = read_checkpoint(path)
        if state.get("space", config.network.space) != config.network.space:
            raise UseError(f"{path}: a checkpoint of space '{state['space']}', not of '{config.network.space}'")
        space = spaces.get(config.network.space)
        network = space.build(bare_state(state, path), path, config_of(state))
        network_config = space.config_of(network)
        config = with_search(config, given, config_of(state), network_config, space)
        task = tasks.get(config.data.task, config)
        where = devices.arithmetic(config.device.gpu, config.device.type)
        set_threshold(network.to(where.device, where.parameters), config.family.thres)
        watch = Watch(space, network, where)
        context = tasks.EvaluationContext.from_config(where, config)
        scores = task.evaluate(watch, context, limit=config.family.eval_limit, quick=True)
        measured_on = f"{task.measured_on()}, {len(watch.rows)} {task.items}"
        by_module = watch.by_module()
        means = dict(zip(COLUMNS, watch.table().mean(0).tolist(), strict=True))
        masks = files.FineMasks(
            space=config.network.space,
            task=config.data.task,
            channels=hard_masks(network),
            sha256=sha256(path),
            threshold=config.family.thres,
            kept={name: module_metrics["kept"] for name, module_metrics in by_module.items()},
            kept_whole=means["kept"],
            measured_on=measured_on,
            config=network_config,
            checkpoint=str(path.resolve()),
            connectivity=space.connectivity_of(network),
        )
        metrics = {name: float(value) for name, value in task.metrics(scores).items()}
        for line in report(masks, by_module, means, metrics):
            say(line)
        note = {
            **origin_note(config, run, path, masks.sha256, ("thres",)),
            "step": state.get("step"),
            "kept_fraction": masks.mean_kept,
            "measured_on": measured_on,
            **metrics,
        }
        targets = [*([run.folder / f"mask_thres_{config.family.thres:g}{npz.SUFFIX}"] if run else []), out]
        for target in targets:
            files.save_masks(target, masks)
            write_json(target.with_suffix(".json"), note)
        say_pruned(targets, run, config_of(state))


def report(masks: files.FineMasks, by_module: dict, means: dict, metrics: dict) -> list[str]:
    """Return the report's lines: a table by module, total kept fraction, multiply-adds and metrics.

    Args:
        masks: the hard masks.
        by_module: kept locations and fraction by module.
        means: of the measurements, by column.
        metrics: of the task.
    """
    summary = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return [
        module_table(masks.channels, by_module),
        f"kept fraction {masks.mean_kept:.3f} at threshold {masks.threshold:g}; multiply-adds "
        f"{format_count(means['executed'])} of {format_count(means['dense'])} "
        f"({100 * means['executed'] / means['dense']:.0f} %); {summary} ({masks.measured_on})",
    ]


FAMILY = SparseConvPruning()
