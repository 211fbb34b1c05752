"""Connectivity networks: built from a mask, started from an encoder, evaluated, shared."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import spaces
from retrain.connectivity_start import SLIM, grouped, inherited_state, resolve_form, resolve_grouped
from retrain.evaluation import prediction_writer, record_evaluation
from retrain.load_trained import read_source, ready
from retrain.shortfall import shortfall
from spaces import backbones
from spaces.backbones import forms
from spaces.connectivity.carry import PUBLIC, fit_mask
from spaces.connectivity.named_masks import available_masks, is_named, named_mask, unknown_mask
from spaces.connectivity.shared import save_network
from spaces.encoder import encoder_weights
from sparsemask import masks, run_summary, runs, tasks, training_setup
from sparsemask import report as page
from sparsemask.config import Section, flag
from sparsemask.costs import format_count, measure
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, say
from sparsemask.families import Built, Restored, RetrainingFamily
from sparsemask.options import Parser
from sparsemask.pictures import draw_architecture
from sparsemask.training_setup import Context
from sparsemask.weights import load_strictly, load_weights

FCN, VOC_MASK = "fcn", "sparsemask-voc"


def read_mask(path: str | None) -> np.ndarray | str:
    """The mask a flag names: a file's, a named one (for nine features), or "fcn"."""
    if path is None:
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one) or a named mask")
    if path == FCN:
        return FCN
    if Path(path).suffix == ".npy" or Path(path).exists():
        return masks.load_mask(path)
    if not is_named(path):
        raise unknown_mask(path, FCN)
    return path


def resolve_mask(options: argparse.Namespace) -> np.ndarray | str:
    """The mask as an array for the backbone of the options, or "fcn"; UseError when they do not fit."""
    return _fitted(options)[0]


def _fitted(options: argparse.Namespace) -> tuple[np.ndarray | str, dict, list[str]]:
    """The mask for the backbone of the options, carried to it if need be, its note, and what was done in words."""
    if grouped(options):
        return resolve_grouped(options), {"backbone_name": options.backbone_name}, []
    mask = read_mask(options.mask_path)
    if isinstance(mask, np.ndarray):
        note = masks.mask_note(options.mask_path)
    elif mask == VOC_MASK:
        mask, note = named_mask(mask, 9), {"backbone_name": PUBLIC}
    else:
        strides = backbones.strides(options.backbone_name)
        mask = mask if mask == FCN else named_mask(mask, len(strides), options.seed)
        return mask, {"backbone_name": options.backbone_name, "strides": strides}, []
    return fit_mask(mask, note, options.backbone_name, options.mask_path)


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
    """Which mask, and where the weights start."""

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

    def check(self, options: argparse.Namespace) -> None:
        """Refuse an unusable mask or missing weights."""
        _, _, carried = _fitted(options)
        if carried and options.inherit != "none":
            raise UseError(f"--inherit {options.inherit}: the mask's search had another encoder; leave it out")
        if options.ft_model:
            load_weights(options.ft_model)

    def build(self, context: Context) -> Built:
        """The small network; its checkpoints carry its mask."""
        options, run = context.options, context.run
        space = spaces.get(options.space)
        if context.state is not None:
            mask = _mask_of(context.state)
            return Built(space.network(mask, options), {"mask": context.state["mask"]})
        mask, note, carried = _fitted(options)
        for line in carried:
            context.say(line)
        seed_all(options.seed)  # what is not inherited is drawn
        start = options.ft_model or (options.mask_path if grouped(options) else None)
        state = load_weights(start) if options.ft_model else spaces.get(SLIM).start(start) if start else None
        inherited = inherited_state(context, mask, note) if state is None else None
        weights = encoder_weights(context) if inherited is None and state is None else None
        seed_all(options.seed)
        if isinstance(mask, np.ndarray):
            if context.main:
                masks.save_mask(run.folder / "mask.npy", mask, {**note, "mask_path": str(options.mask_path)})
            options.mask_path = str(run.folder / "mask.npy")
        if state is not None:
            resolve_form(options, mask, state)
            model = space.network(mask, options)
            load_strictly(model, state, start)
            context.say(f"fine-tuning {start}")
        else:
            if inherited is not None:
                resolve_form(options, mask, inherited)
            model = space.network(mask, options)
            if inherited is not None:
                model.load_state_dict({**model.state_dict(), **inherited})
            elif weights is not None:
                load_strictly(model.backbone, weights.state, f"encoder '{options.backbone_name}'")
        run_summary.note_start(context)
        return Built(model, {"mask": mask if isinstance(mask, str) else torch.from_numpy(mask)})

    def method(self, context: Context, built: Built) -> Method:
        """A plain network is trained."""
        return Method()

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """The network to share, its costs and pictures."""
        options, run, model = context.options, context.run, built.model
        mask = _mask_of(built.extra)
        fcn = isinstance(mask, str)
        cost = measure(model, (1, 3, options.crop_size, options.crop_size))
        save_network(run.folder / "network.safetensors", model, options, options.n_class)
        run.note(
            network="network.safetensors",
            connections=None if fcn else masks.count_connections(mask),
            strides=[int(s) for s in model.backbone.strides],
            channels=[int(c) for c in model.backbone.channels],
            **page.cost_entries(cost, options.crop_size),
        )
        run_summary.draw_training(context, model)
        if not fcn:
            draw_architecture(mask, run.pictures / "architecture.png", model.backbone.strides, model.backbone.channels)
        kept = "fcn" if fcn else f"{masks.count_connections(mask)} connections"
        line = (
            f"retrained: {run_summary.metric_text(context, result)}; {kept}, "
            f"{format_count(cost.parameters)} parameters, {format_count(cost.multiply_adds)} multiply-adds, "
            f"{cost.milliseconds:.1f} ms at {options.crop_size}x{options.crop_size}"
        )
        run_summary.announce(context, [line, shortfall(context, result)], ["network.safetensors"])
        run_summary.announce_next(context, "eval")
        return 0

    def restore(self, parser: Parser, given: dict, run: runs.Run | None) -> Restored:
        """Of a run, or of any weights file with --mask_path."""
        # The run's limit was for validation while training; here it is for the asking.
        source = read_source(parser, given, run, ("eval_limit",))
        options, saved = source.options, source.saved
        if source.state is not None:
            asked = vars(options)
            for name in ("task", "backbone_name", "depth"):
                if asked[name] != saved.get(name):
                    raise UseError(f"--{name} {asked[name]}: the run has {saved.get(name)}")
            vars(options).update({name: saved.get(name) for name in (*forms.names(), "widths")})
            mask, weights = _mask_of(source.state), source.state["model"]
        else:
            weights = load_weights(source.path)
            mask = resolve_mask(options)
            resolve_form(options, mask, weights)
        where = training_setup.device(options)
        training_setup.prepare(options)
        tasks.get(options.task, options)  # settles n_class
        if source.state is not None and options.n_class != saved.get("n_class"):
            raise UseError(f"--n_class {options.n_class}: the run has {saved.get('n_class')}")
        model = spaces.get(options.space).network(mask, options)
        load_strictly(model, weights, source.path)
        return Restored(options, ready(model, where), where, run, mask)

    def evaluate(self, restored: Restored) -> int:
        """Print the task's report; write predictions and the picture of the scores where asked for."""
        options, model, where = restored.options, restored.model, restored.arithmetic
        task = tasks.get(options.task, options)
        views = {"flips": options.flips, "scales": tuple(options.eval_scales)}
        write, context = prediction_writer(task, options.out), tasks.EvaluationContext.from_options(where, options)
        scores = task.evaluate(model, context, limit=options.eval_limit, **views, on_prediction=write)
        if distributed.rank():
            return 0
        say(task.report(scores))
        if options.out:
            say(f"predictions in {options.out}")
        record_evaluation(restored, task, scores, {"eval": {**task.record(scores), "pictures": scores.count}})
        return 0

    def load_run(self, run: runs.Run) -> torch.nn.Module:
        """From the run's last checkpoint."""
        state = checkpoint.load(run.last)
        model = spaces.get(state["space"]).network(_mask_of(state), state["config"])
        load_strictly(model, state["model"], run.last)
        return model.eval()


FAMILY = ConnectivityRetraining()
