"""Retraining of networks with fixed fine-grained masks, and their evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from sparsemask import runs, spaces, tasks, training_setup
from sparsemask.command_lines import spoken
from sparsemask.config import RunConfig, Section, flag
from sparsemask.costs import format_count
from sparsemask.engine import Method, checkpoint, data, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, describe, say
from sparsemask.families import Built, Restored, RetrainingFamily
from sparsemask.masks import npz
from sparsemask.masks import spatial as files
from sparsemask.options import Parser, adopted, natural, rate
from sparsemask.retrain.masked_network import NETWORK, share
from sparsemask.retrain.sparse_conv.table import evaluation_text, record
from sparsemask.retrain.trained import prediction_writer, read_source, ready, record_evaluation, shortfall
from sparsemask.spaces.backbones import as_saved
from sparsemask.spaces.pretrained import distill_flag, open_teacher, teacher_flag, temperature_flag
from sparsemask.spaces.protocols import HasFastForm, HasViews
from sparsemask.spaces.sparse_conv.mask_costs import PAYING, leave_paying, masks_flag
from sparsemask.spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks, set_threshold
from sparsemask.spaces.sparse_conv.measuring import Watch
from sparsemask.spaces.sparse_conv.plan import known_plans
from sparsemask.spaces.sparse_conv.planning import Planner, unmask
from sparsemask.spaces.sparse_conv.records import conclude, evaluate_kept
from sparsemask.sparse import available_backends, repeatable, set_backend
from sparsemask.training_setup import Context
from sparsemask.weights import bare_state, load_strictly, read_checkpoint

UNMASKED = "unmasked.safetensors"


class MasksFixed(Method):
    """Training of the weights with hard masks; channel logits and mask branches are frozen."""

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """All that is not frozen, at --lr."""
        return [
            {"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": config.training.lr}
        ]

    def evaluate(self, model: torch.nn.Module, task, arithmetic, config: RunConfig) -> dict:
        """The task's metrics, and the kept fraction, which changes with the features that masks are predicted from."""
        return evaluate_kept(model, task, arithmetic, config)


class Start(NamedTuple):
    """A mask, the checkpoint that holds its weights, and the configuration with the network's hyperparameters."""

    masks: files.FineMasks
    path: Path
    config: RunConfig


def _start(config: RunConfig, given: Mapping) -> Start:
    """Resolve mask and weights from flags; UseError if they do not fit."""
    source = config.family.mask_path
    if source is None:
        raise UseError(f"--mask_path is missing: a mask file ({spoken('prune')} writes one)")
    masks = files.load_masks(source)
    if masks.space != config.network.space:
        raise UseError(f"{source}: a mask of space '{masks.space}', not of '{config.network.space}'")
    if masks.task != config.data.task:
        raise UseError(f"{source}: a mask for --task {masks.task}, not {config.data.task}")
    if named := config.network.pretrained_model or config.family.search_checkpoint:
        path = Path(named)
    else:
        if masks.checkpoint is None or not Path(masks.checkpoint).exists():
            raise UseError(f"the checkpoint of {source} is gone ({masks.checkpoint}): --search_checkpoint FILE")
        path = Path(masks.checkpoint)
    masks.check_weights(path, str(source))
    return Start(masks, path, with_network(config, given, masks.config, source))


def with_network(config: RunConfig, given: Mapping, network: Mapping, source: object) -> RunConfig:
    """Set a network's hyperparameters in a configuration.

    Args:
        config: of the command.
        given: the flags that the user named on the command line.
        network: hyperparameters by flag; unknown ones are ignored.
        source: where they come from, for errors.

    Raises:
        UseError: the command line contradicts them.
    """
    return adopted(config, given, {name: value for name, value in network.items() if name in config}, source)


def _choose_backend(model: torch.nn.Module, name: str) -> None:
    set_backend(model, name)
    reason = available_backends().get(name)
    if reason is not None and not torch.cuda.is_available():
        raise UseError(f"--backend {name}: not available here: {reason}")


def _calls(space, model: torch.nn.Module, config: RunConfig) -> dict:
    """Arguments of :class:`Watch` for calls in tiles or over flips; empty for plain calls."""
    if not isinstance(space, HasViews):
        if config.evaluation.flips:
            raise UseError(f"--flips is not for space '{config.network.space}'")
        return {}
    views = {"tile": config.views.tile, "ensemble": config.evaluation.flips}
    if not any(views.values()):
        return {}
    dense = functools.partial(space.run_dense, model, ensemble=config.evaluation.flips)
    return {"run": functools.partial(space.run, model, **views), "run_dense": dense}


def keep_plans(planner: Planner) -> None:
    """Say what a planner found, and write it beside the weights; a folder that may not be written is said in a line."""
    for line in planner.lines():
        say(line)
    try:
        planner.save()
    except OSError as error:
        distributed.warn(f"plans not written: {describe(error) or error}")


def _unmask(restored: Restored, task, space, context: tasks.EvaluationContext) -> None:
    """Drop masks that save no time within --unmask; the network without them goes to the run's folder, or here."""
    config, model, where = restored.config, restored.model, restored.arithmetic
    bound, name = config.family.unmask, task.primary

    def quality(network: torch.nn.Module) -> float:
        with repeatable():
            scores = task.evaluate(network, context, limit=config.evaluation.eval_limit, quick=True)
        return float(task.metrics(scores)[name])

    inputs, _ = data.collate(task.eval_data, [task.eval_data[0]])
    inputs = inputs.to(where.device, where.parameters)
    found = unmask(model, inputs, quality, bound)
    if found.before is None:
        say(f"--unmask {bound:g}: no mask costs more time than it saves")
        return
    if not found.modules:
        say(f"--unmask {bound:g}: no mask that costs time can go within that ({name} {found.before:.4f})")
        return
    path = Path(UNMASKED) if restored.run is None else restored.run.folder / UNMASKED
    space.save(path, found.network, space.masks_of(found.network))
    say(
        f"without the masks of {', '.join(found.modules)}: {name} {found.after:.4f} instead of {found.before:.4f} "
        f"(--unmask {bound:g}); {path}"
    )
    planner = Planner(space, found.network, path)
    planner.see(inputs)
    keep_plans(planner)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConvRetrainingSection(Section):
    """The mask, and the weights that it was made from."""

    title = "fine-grained masks"
    mask_path: str | None = flag(help="mask file (.npz), as prune/prune.py writes it")
    search_checkpoint: str | None = flag(help="the checkpoint the mask was made from (default: where it lay then)")
    masks: str = masks_flag("before the training")
    teacher: str = teacher_flag()
    distill: float = distill_flag()
    temperature: float = temperature_flag()


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConvEvaluationSection(Section):
    """The masks, and how the network is computed and timed."""

    title = "fine-grained masks"
    mask_path: str | None = flag(help="mask file (.npz) of these weights (default: their argmax)")
    backend: str = flag("auto", help="of the sparse convolutions (default: auto)")
    rounds: int = flag(5, natural, help="timed calls of each input, 0: none (default: 5)")
    unmask: float | None = flag(
        None, rate, help="also drop masks that save no time, as far as the task's metric falls by at most this"
    )


class SparseConvRetraining(RetrainingFamily[Built, Restored]):
    """Networks whose masks a search has learnt."""

    verb = "retrain"
    section, eval_section = SparseConvRetrainingSection, SparseConvEvaluationSection

    def add_eval_options(self, parser: Parser) -> None:
        """The section, and the flags of the space's views."""
        super().add_eval_options(parser)
        views = spaces.get(parser.get_default("space")).views
        if views is not None:
            parser.add_section("views", views)

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Check that mask and weights belong together; the mask determines the network's hyperparameters."""
        return _start(config, given).config

    def build(self, context: Context) -> Built:
        """Build the network with fixed masks; its checkpoints hold the masks."""
        config, run = context.config, context.run
        space = spaces.get(config.network.space)
        seed_all(config.run.seed)
        changes = {}
        if context.state is not None:
            saved = context.state["mask"]
            model = as_saved(space.supernet, config, context.state["model"])
            apply_masks(model, {k: v.numpy() for k, v in saved["channels"].items()}, saved["threshold"])
        else:
            masks, path, _ = _start(config, context.given)
            model = space.network(masks, config)
            state = space.transfer(bare_state(read_checkpoint(path), path), masks, config)
            load_strictly(model, state, path)
            apply_masks(model, masks.channels, masks.threshold)
            context.say(f"weights and masks of {path}, kept fraction {masks.mean_kept or float('nan'):.3f}")
            if context.main:
                files.save_masks(run.folder / f"searched{npz.SUFFIX}", masks)
            changes["mask_path"] = str((run.folder / f"searched{npz.SUFFIX}").resolve())
            changes["search_checkpoint"] = str(path.resolve())
            if config.family.masks == PAYING:
                leave_paying(context, model)
            channels = {k: torch.from_numpy(v) for k, v in hard_masks(model).items()}
            saved = {"channels": channels, "threshold": masks.threshold}
        fix_masks(model)
        teacher, entries = open_teacher(context)
        return Built(model, {"mask": saved, **entries}, changes, {"family": "sparse_conv"}, teacher=teacher)

    def method(self, context: Context, built: Built) -> MasksFixed:
        """Training with fixed masks."""
        return MasksFixed()

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Write network and mask file, measure and draw; 1 if skipping and multiplying give different outputs."""
        measured = conclude(context, built.model, context.run.folder / NETWORK)
        share(context, built.model, measured, built.extra["mask"]["threshold"])
        wrong = measured["milliseconds"] is None
        times = "" if wrong else f", {measured['milliseconds']:.1f} ms (dense {measured['milliseconds_dense']:.1f})"
        line = (
            f"retrained: {context.metric_text(result)}; kept fraction "
            f"{measured['kept_fraction']:.3f}, {format_count(measured['parameters'])} parameters, multiply-adds "
            f"{format_count(measured['multiply_adds'])} of {format_count(measured['multiply_adds_dense'])}{times}"
        )
        lines = [line, *measured.get("plan", []), shortfall(context, result)]
        context.announce(lines, [NETWORK, f"mask{npz.SUFFIX}"], then="eval")
        return int(wrong)

    def restore(self, parser: Parser, given: dict, run: runs.Run | None) -> Restored:
        """Load the network of a run (also a specialisation) or of a weights file; --mask_path replaces its masks."""
        space = spaces.get(given["space"])
        source = read_source(parser, given, run, ("eval_limit", "config"))
        config, state = source.config, source.state
        if state is not None:
            config = config.replace(mask_path=given.get("mask_path"))
        model = space.load(source.path).network
        if run is not None:
            model.plans = known_plans(run.folder / NETWORK, model)
        # The checkpoints of a specialisation hold weights, the threshold is a flag.
        if state is not None and state.get("verb") == "specialize":
            set_threshold(model, state["config"]["thres"])
        space.configure(model, config)
        config = with_network(config, given, space.config_of(model), source.path)
        if config.family.mask_path:
            masks = files.load_masks(config.family.mask_path)
            masks.check_weights(source.path, str(config.family.mask_path))
            apply_masks(model, masks.channels, masks.threshold)
        _choose_backend(model, config.family.backend)
        where = training_setup.device(config)
        training_setup.prepare(config)
        return Restored(config, ready(model, where), where, run)

    def evaluate(self, restored: Restored) -> int:
        """Print metrics, times of the sparse and the dense form, kept fractions and multiply-adds."""
        config, model, where = restored.config, restored.model, restored.arithmetic
        task = tasks.get(config.data.task, config)
        space = spaces.get(config.network.space)
        calls = _calls(space, model, config)
        if config.family.unmask is not None and (not model.mask_modules() or isinstance(space, HasFastForm)):
            raise UseError(f"--unmask is not for space '{config.network.space}'")
        weights = Path(config["pretrained_model"]) if restored.run is None else restored.run.folder / NETWORK
        plain = not calls and config.family.backend == "auto" and not isinstance(space, HasFastForm)
        planner = Planner(space, model, weights, found=True) if plain and config.family.rounds else None
        watch = Watch(space, model, where, config.family.rounds, planner=planner, **calls)
        context = tasks.EvaluationContext.from_config(where, config)
        write = prediction_writer(task, config.evaluation.out)
        scores = task.evaluate(watch, context, limit=config.evaluation.eval_limit, on_prediction=write)
        table, by_module = watch.table(), watch.by_module()
        if distributed.rank():
            return 0
        if watch.disagreement:
            config = config.replace(rounds=0)
        say(evaluation_text(space, model, task, scores, table, by_module, where, config))
        if planner is not None:
            keep_plans(planner)
        if config.family.unmask is not None:
            _unmask(restored, task, space, context)
        if config.evaluation.out:
            say(f"predictions in {config.evaluation.out}")
        record_evaluation(restored, task, scores, {"eval": record(task, scores, table, by_module)})
        if watch.disagreement:
            distributed.warn(f"error: {watch.disagreement}")
            return 1
        return 0

    def load_run(self, run: runs.Run) -> torch.nn.Module:
        """Load the network of a run, also of a search."""
        state = checkpoint.load(run.last)
        return spaces.get(state["space"]).load(run.last).network


FAMILY = SparseConvRetraining()
