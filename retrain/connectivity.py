"""Retraining and evaluation of connectivity networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sparsemask import masks, run_summary, runs, spaces, tasks, training_setup
from sparsemask import report as page
from sparsemask.config import RunConfig, Section, flag
from sparsemask.costs import format_count, measure
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, say
from sparsemask.families import Built, Restored, RetrainingFamily
from sparsemask.options import Parser
from sparsemask.pictures import draw_architecture
from sparsemask.retrain.connectivity_start import SLIM, form_of, grouped, inherited_state, resolve_grouped
from sparsemask.retrain.evaluation import prediction_writer, record_evaluation
from sparsemask.retrain.load_trained import read_source, ready
from sparsemask.retrain.shortfall import shortfall
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.carry import PUBLIC, fit_mask
from sparsemask.spaces.connectivity.named_masks import available_masks, is_named, named_mask, unknown_mask
from sparsemask.spaces.connectivity.shared import save_network
from sparsemask.spaces.encoder import encoder_weights
from sparsemask.training_setup import Context
from sparsemask.weights import load_strictly, load_weights

FCN, VOC_MASK = "fcn", "sparsemask-voc"


def read_mask(path: str | None) -> np.ndarray | str:
    """Read the mask that --mask_path names.

    Returns:
        Bool (L, L, 2) of a file, else the name of a named mask or "fcn".

    Raises:
        UseError: no path, an unreadable file or an unknown name.
    """
    if path is None:
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one) or a named mask")
    if path == FCN:
        return FCN
    if Path(path).suffix == ".npy" or Path(path).exists():
        return masks.load_mask(path)
    if not is_named(path):
        raise unknown_mask(path, FCN)
    return path


class Fitted(NamedTuple):
    """A mask for the backbone of a configuration.

    Attributes:
        mask: bool (L, L, 2), or "fcn", the baseline without a decoder.
        note: its origin, for the json note.
        lines: report of carrying it to the backbone.
        config: the configuration, with the values that the mask determines.
    """

    mask: np.ndarray | str
    note: dict
    lines: list[str]
    config: RunConfig


def fitted_mask(config: RunConfig, given: Mapping) -> Fitted:
    """Read the mask of a configuration and carry it to its backbone if necessary.

    Args:
        config: names mask and backbone.
        given: the flags that the user named on the command line.

    Raises:
        UseError: mask and backbone do not fit.
    """
    path = config.family.mask_path
    if grouped(config):
        mask, config = resolve_grouped(config, given)
        return Fitted(mask, {"backbone_name": config.network.backbone_name}, [], config)
    name, mask = config.network.backbone_name, read_mask(path)
    if isinstance(mask, np.ndarray):
        note = masks.mask_note(path)
    elif mask == VOC_MASK:
        mask, note = named_mask(mask, 9), {"backbone_name": PUBLIC}
    else:
        strides = backbones.strides(name)
        mask = mask if mask == FCN else named_mask(mask, len(strides), config.run.seed)
        return Fitted(mask, {"backbone_name": name, "strides": strides}, [], config)
    return Fitted(*fit_mask(mask, note, name, path), config)


def _mask_of(state: dict) -> np.ndarray | str:
    mask = state.get("mask")
    return mask.numpy() if isinstance(mask, torch.Tensor) else str(mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivityMaskSection(Section):
    """Which mask."""

    title = "connectivity network"
    mask_path: str | None = flag(
        help=f"mask file, or a named mask: {', '.join(available_masks())}, or the baseline {FCN}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivityRetrainingSection(ConnectivityMaskSection):
    """Which mask, and the initial weights."""

    ft_model: str | None = flag(help="fine-tune: weights of the whole network", group="where the weights start")
    inherit: str = flag(
        "none",
        choices=("none", "encoder", "all"),
        help="take the encoder, or all kept connections too, from the search (default: none, the pretrained encoder)",
        group="where the weights start",
    )
    search_checkpoint: str | None = flag(
        help="checkpoint to inherit from (default: the mask's own)", group="where the weights start"
    )


class ConnectivityRetraining(RetrainingFamily[Built, Restored]):
    """Small networks of searched, named and foreign masks."""

    verb = "retrain"

    def add_eval_options(self, parser: Parser) -> None:
        """Flags that both verbs of this family have."""
        parser.add_section("family", ConnectivityMaskSection)

    def add_options(self, parser: Parser) -> None:
        """Flags of retraining."""
        parser.add_section("family", ConnectivityRetrainingSection)

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Check mask and weights; a mask of groups determines the network's hyperparameters."""
        fitted = fitted_mask(config, given)
        if fitted.lines and config.family.inherit != "none":
            raise UseError(f"--inherit {config.family.inherit}: the mask's search had another encoder; leave it out")
        if config.family.ft_model:
            load_weights(config.family.ft_model)
        return fitted.config

    def build(self, context: Context) -> Built:
        """Build the small network; its checkpoints hold its mask."""
        config, run = context.config, context.run
        space = spaces.get(config.network.space)
        if context.state is not None:
            mask = _mask_of(context.state)
            return Built(space.network(mask, config), {"mask": context.state["mask"]})
        mask, note, lines, _ = fitted_mask(config, context.given)
        for line in lines:
            context.say(line)
        seed_all(config.run.seed)  # what is not inherited is drawn
        start = config.family.ft_model or (config.family.mask_path if grouped(config) else None)
        state = None
        if start:
            state = load_weights(start) if config.family.ft_model else spaces.get(SLIM).start(start)
        inherited = inherited_state(context, mask, note) if state is None else None
        weights, changes = encoder_weights(context) if inherited is None and state is None else (None, {})
        seed_all(config.run.seed)
        if isinstance(mask, np.ndarray):
            if context.main:
                masks.save_mask(run.folder / "mask.npy", mask, {**note, "mask_path": str(config.family.mask_path)})
            changes["mask_path"] = str(run.folder / "mask.npy")
        named = state if state is not None else inherited
        if named is not None:
            changes |= form_of(config, mask, named)
        model = space.network(mask, config.replace(**changes))
        if state is not None:
            load_strictly(model, state, start)
            context.say(f"fine-tuning {start}")
        elif inherited is not None:
            model.load_state_dict({**model.state_dict(), **inherited})
        elif weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
        return Built(model, {"mask": mask if isinstance(mask, str) else torch.from_numpy(mask)}, changes)

    def method(self, context: Context, built: Built) -> Method:
        """Plain training."""
        return Method()

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Write the network as safetensors, measure and draw it."""
        config, run, model = context.config, context.run, built.model
        mask = _mask_of(built.extra)
        fcn = isinstance(mask, str)
        cost = measure(model, (1, 3, config.data.crop_size, config.data.crop_size))
        save_network(run.folder / "network.safetensors", model, config, config["n_class"])
        run.note(
            network="network.safetensors",
            connections=None if fcn else masks.count_connections(mask),
            strides=[int(s) for s in model.backbone.strides],
            channels=[int(c) for c in model.backbone.channels],
            **page.cost_entries(cost, config.data.crop_size),
        )
        run_summary.draw_training(context, model)
        if not fcn:
            draw_architecture(mask, run.pictures / "architecture.png", model.backbone.strides, model.backbone.channels)
        label = "fcn" if fcn else f"{masks.count_connections(mask)} connections"
        line = (
            f"retrained: {run_summary.metric_text(context, result)}; {label}, "
            f"{format_count(cost.parameters)} parameters, {format_count(cost.multiply_adds)} multiply-adds, "
            f"{cost.milliseconds:.1f} ms at {config.data.crop_size}x{config.data.crop_size}"
        )
        run_summary.announce(context, [line, shortfall(context, result)], ["network.safetensors"])
        run_summary.announce_next(context, "eval")
        return 0

    def restore(self, parser: Parser, given: dict, run: runs.Run | None) -> Restored:
        """Load the network of a run, or of any weights file with --mask_path."""
        # The run's limit was for validation while training; here it is for the asking.
        source = read_source(parser, given, run, ("eval_limit",))
        config, saved = source.config, source.saved
        if source.state is not None:
            for name in ("task", "backbone_name", "depth"):
                if config[name] != saved.get(name):
                    raise UseError(f"--{name} {config[name]}: the run has {saved.get(name)}")
            config = config.replace(**{name: saved.get(name) for name in (*forms.names(), "widths")})
            mask, weights = _mask_of(source.state), source.state["model"]
        else:
            weights = load_weights(source.path)
            mask, _, _, config = fitted_mask(config, source.given)
            config = config.replace(**form_of(config, mask, weights))
        where = training_setup.device(config)
        training_setup.prepare(config)
        config = tasks.get(config.data.task, config).config
        if source.state is not None and config.data.n_class != saved.get("n_class"):
            raise UseError(f"--n_class {config.data.n_class}: the run has {saved.get('n_class')}")
        model = spaces.get(config.network.space).network(mask, config)
        load_strictly(model, weights, source.path)
        return Restored(config, ready(model, where), where, run, mask)

    def evaluate(self, restored: Restored) -> int:
        """Print the task's report; write predictions if requested, and the scores into the run's folder."""
        config, model, where = restored.config, restored.model, restored.arithmetic
        task = tasks.get(config.data.task, config)
        views = {"flips": config.evaluation.flips, "scales": tuple(config.evaluation.eval_scales)}
        write, context = (
            prediction_writer(task, config.evaluation.out),
            tasks.EvaluationContext.from_config(where, config),
        )
        scores = task.evaluate(model, context, limit=config.evaluation.eval_limit, **views, on_prediction=write)
        if distributed.rank():
            return 0
        say(task.report(scores))
        if config.evaluation.out:
            say(f"predictions in {config.evaluation.out}")
        record_evaluation(restored, task, scores, {"eval": {**task.record(scores), "pictures": scores.count}})
        return 0

    def load_run(self, run: runs.Run) -> torch.nn.Module:
        """Load the network of the run's last checkpoint."""
        state = checkpoint.load(run.last)
        model = spaces.get(state["space"]).network(_mask_of(state), state["config"])
        load_strictly(model, state["model"], run.last)
        return model.eval()


FAMILY = ConnectivityRetraining()
