"""Connectivity networks: built from a mask, started from an encoder, evaluated, shared."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch

import spaces
from retrain.connectivity_start import SLIM, grouped, inherited_state, settle_form, settle_grouped
from retrain.shortfall import shortfall
from spaces import backbones
from spaces.backbones import forms
from spaces.connectivity.carry import PUBLIC, fit_mask
from spaces.connectivity.named_masks import available_masks, is_named, named_mask, unknown_mask
from spaces.connectivity.shared import save_network
from spaces.encoder import encoder_weights
from sparsemask import datasets, masks, runs, session, tasks
from sparsemask import report as page
from sparsemask.costs import format_count, measure
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError, describe, say
from sparsemask.options import Parser
from sparsemask.pictures import draw_architecture, draw_curves
from sparsemask.session import Session
from sparsemask.weights import load_strictly, load_weights

FCN, VOC_MASK = "fcn", "sparsemask-voc"


def add_eval_options(parser: Parser) -> None:
    """Flags that both verbs of this family have."""
    group = parser.add_argument_group("connectivity network")
    group.add_argument(
        "--mask_path",
        default=None,
        help=f"mask file, or a named mask: {', '.join(available_masks())}, or the baseline {FCN}",
    )


def add_options(parser: Parser) -> None:
    """Flags of retraining."""
    add_eval_options(parser)
    group = parser.add_argument_group("where the weights start")
    group.add_argument("--ft_model", default=None, help="fine-tune: weights of the whole network")
    group.add_argument(
        "--inherit",
        choices=("none", "encoder", "all"),
        default="none",
        help="take the encoder, or all kept connections too, from the search (default: none, the pretrained encoder)",
    )
    group.add_argument("--search_checkpoint", default=None, help="checkpoint to inherit from (default: the mask's own)")


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


def check(options: argparse.Namespace) -> None:
    """Refuse an unusable mask or missing weights before a run folder is made."""
    _, _, carried = _fitted(options)
    if carried and options.inherit != "none":
        raise UseError(f"--inherit {options.inherit}: the mask's search had another encoder; leave it out")
    if options.ft_model:
        load_weights(options.ft_model)


def resolve_mask(options: argparse.Namespace) -> np.ndarray | str:
    """The mask as an array for the backbone of the options, or "fcn"; UseError when they do not fit."""
    return _fitted(options)[0]


def _fitted(options: argparse.Namespace) -> tuple[np.ndarray | str, dict, list[str]]:
    """The mask for the backbone of the options, carried to it if need be, its note, and what was done in words."""
    if grouped(options):
        return settle_grouped(options), {"backbone_name": options.backbone_name}, []
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


def method(options: argparse.Namespace) -> Method:
    """A plain network is trained."""
    return Method()


def build(opened: Session, task) -> tuple[torch.nn.Module, dict]:
    """The small network and what its checkpoints carry: its mask."""
    options, run = opened.options, opened.run
    space = spaces.get(options.space)
    if opened.state is not None:
        mask = _mask_of(opened.state)
        return space.network(mask, options), {"mask": opened.state["mask"]}
    mask, note, carried = _fitted(options)
    for line in carried:
        opened.say(line)
    seed_all(options.seed)  # what is not inherited is drawn
    start = options.ft_model or (options.mask_path if grouped(options) else None)
    state = load_weights(start) if options.ft_model else spaces.get(SLIM).start(start) if start else None
    inherited = inherited_state(opened, mask, note) if state is None else None
    weights = encoder_weights(opened) if inherited is None and state is None else None
    seed_all(options.seed)
    if isinstance(mask, np.ndarray):
        if opened.main:
            masks.save_mask(run.folder / "mask.npy", mask, {**note, "mask_path": str(options.mask_path)})
        options.mask_path = str(run.folder / "mask.npy")
    if state is not None:
        settle_form(options, mask, state)
        model = space.network(mask, options)
        load_strictly(model, state, start)
        opened.say(f"fine-tuning {start}")
    else:
        if inherited is not None:
            settle_form(options, mask, inherited)
        model = space.network(mask, options)
        if inherited is not None:
            model.load_state_dict({**model.state_dict(), **inherited})
        elif weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{options.backbone_name}'")
    if opened.main:
        run.note(environment=page.environment(opened.arithmetic.device))
        session.rewrite_config(opened)
    return model, {"mask": mask if isinstance(mask, str) else torch.from_numpy(mask)}


def _mask_of(state: dict) -> np.ndarray | str:
    mask = state.get("mask")
    return mask.numpy() if isinstance(mask, torch.Tensor) else str(mask)


def finish(opened: Session, model: torch.nn.Module, task, result: dict) -> None:
    """The network to share, its costs and pictures, and the line that says what to do next."""
    options, run = opened.options, opened.run
    mask = _mask_of(checkpoint.load(run.last))
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
    draw_curves(read_rows(run.metrics), run.pictures / "curves.png")
    if not fcn:
        draw_architecture(mask, run.pictures / "architecture.png", model.backbone.strides, model.backbone.channels)
    task.draw(task.samples(model, opened.arithmetic, options), run.pictures / "samples.png")
    kept = "fcn" if fcn else f"{masks.count_connections(mask)} connections"
    opened.say(
        f"retrained: {task.primary} {result.get(task.primary, float('nan')):.4f}; {kept}, "
        f"{format_count(cost.parameters)} parameters, {format_count(cost.multiply_adds)} multiply-adds, "
        f"{cost.milliseconds:.1f} ms at {options.crop_size}x{options.crop_size}"
    )
    if note := shortfall(opened, task, result, options.mask_path):
        opened.say(note)
    opened.say(f"run: {run.folder} (network.safetensors, pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    opened.say(f"next: {page.next_command(run, 'eval')}")


def restore(parser: Parser, given: dict, run: runs.Run | None):
    """(options, network with its weights, arithmetic) for evaluation: of a run, or of any weights file."""
    if run is not None:
        given.setdefault("checkpoint", "last")
        if given["checkpoint"] not in ("last", "best"):
            raise UseError(f"--checkpoint {given['checkpoint']}: last or best")
        what = run.checkpoints / f"{given['checkpoint']}.pt"
        state = checkpoint.load(what, given.get("space"))
        # The run's limit was for validation while training; here it is for the asking.
        saved = checkpoint.saved_flags(state, parser, what, ("eval_limit",))
        options = parser.resolve(datasets.without_replaced(saved, given), given)
        for name in ("task", "backbone_name", "depth"):
            if getattr(options, name) != saved.get(name):
                raise UseError(f"--{name} {getattr(options, name)}: the run has {saved.get(name)}")
        vars(options).update({name: saved.get(name) for name in (*forms.names(), "widths")})
        mask, weights = _mask_of(state), state["model"]
    else:
        options, line = session.settle(parser, given, training=False)
        if line:
            say(line)
        what = options.pretrained_model
        weights = load_weights(what)
        mask = resolve_mask(options)
        settle_form(options, mask, weights)
    where = session.device(options)
    session.prepare(options)
    tasks.get(options.task, options)  # settles n_class
    if run is not None and options.n_class != saved.get("n_class"):
        raise UseError(f"--n_class {options.n_class}: the run has {saved.get('n_class')}")
    model = spaces.get(options.space).network(mask, options)
    load_strictly(model, weights, what)
    return options, model.to(where.device, where.parameters).eval(), where


def evaluate(options: argparse.Namespace, model: torch.nn.Module, where, run: runs.Run | None) -> None:
    """Print the task's report; write predictions and the picture of the scores where asked for."""
    task = tasks.get(options.task, options)
    each = None
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        each = functools.partial(task.write, folder)
    scores = task.scores(model, where, options, options.eval_limit, options.flips, tuple(options.eval_scales), each)
    pictures = min(len(task.eval_data), options.eval_limit or len(task.eval_data))
    if distributed.rank():
        return
    say(task.report(scores, pictures))
    if options.out:
        say(f"predictions in {options.out}")
    if run is not None:
        try:
            task.draw_scores(scores, run.pictures)
            run.note(eval={**task.record(scores), "pictures": pictures})
            if hasattr(scores, "matrix"):
                page.record_confusion(run, task.classes, scores.matrix)
            say(f"report: {page.write_report(run)}")
        except OSError as error:  # the figures are out; a folder that may not be written is not worth failing for
            session.warn(f"not written into {run.folder}: {describe(error) or error}")


def load_run(run: runs.Run) -> torch.nn.Module:
    """The trained network of a run, in evaluation mode, on the CPU."""
    state = checkpoint.load(run.last)
    model = spaces.get(state["space"]).network(_mask_of(state), state["config"])
    load_strictly(model, state["model"], run.last)
    return model.eval()
