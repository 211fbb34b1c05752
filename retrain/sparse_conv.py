"""Networks with fine-grained masks: fine-tuned with the masks fixed, evaluated, shared."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

import spaces
from retrain.shortfall import shortfall
from retrain.sparse_conv_table import evaluation_text, record
from spaces.protocols import HasViews
from spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks, set_threshold
from spaces.sparse_conv.measuring import Watch
from spaces.sparse_conv.records import begin, conclude, evaluate_kept
from sparsemask import datasets, runs, session, tasks
from sparsemask import fine_masks as files
from sparsemask import report as page
from sparsemask.costs import format_count
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, describe, say
from sparsemask.files import sha256
from sparsemask.options import Parser, natural
from sparsemask.session import Session
from sparsemask.sparse import available_backends, set_backend
from sparsemask.weights import bare_state, load_strictly, read_checkpoint


def add_options(parser: Parser) -> None:
    """Flags of retraining."""
    group = parser.add_argument_group("fine-grained masks")
    group.add_argument("--mask_path", default=None, help="mask file (.npz), as prune/prune.py writes it")
    group.add_argument(
        "--search_checkpoint", default=None, help="the checkpoint the mask was made from (default: where it lay then)"
    )


def add_eval_options(parser: Parser) -> None:
    """Flags of evaluation."""
    group = parser.add_argument_group("fine-grained masks")
    group.add_argument("--mask_path", default=None, help="mask file (.npz) of these weights (default: their argmax)")
    group.add_argument("--backend", default="auto", help="of the sparse convolutions (default: auto)")
    group.add_argument("--rounds", type=natural, default=5, help="timed calls of each input, 0: none (default: 5)")
    space = spaces.get(parser.get_default("space"))
    space.add_eval_options(group)


class MasksFixed(Method):
    """The weights train on under hard masks; channel logits and mask branches are frozen."""

    def groups(self, model: torch.nn.Module, options: argparse.Namespace) -> list[dict]:
        """All that is not frozen, at --lr."""
        return [{"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": options.lr}]

    def evaluate(self, model: torch.nn.Module, task, arithmetic, options: argparse.Namespace) -> dict:
        """The task's figures, and the kept fraction, which moves as the features under the masks do."""
        return evaluate_kept(model, task, arithmetic, options)


def method(options: argparse.Namespace) -> MasksFixed:
    """The family's method for the training loop."""
    return MasksFixed()


def check(options: argparse.Namespace) -> None:
    """Refuse an unusable mask, and weights that are not the mask's, before a run folder is made."""
    _start(options)


def _start(options: argparse.Namespace) -> tuple[files.FineMasks, Path]:
    """The mask and the checkpoint that holds its weights."""
    if options.mask_path is None:
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one)")
    masks = files.load_masks(options.mask_path)
    if masks.space != options.space:
        raise UseError(f"{options.mask_path}: a mask of space '{masks.space}', not of '{options.space}'")
    if masks.task != options.task:
        raise UseError(f"{options.mask_path}: a mask for --task {masks.task}, not {options.task}")
    for name in ("pretrained_model", "search_checkpoint"):
        if getattr(options, name):
            path = Path(getattr(options, name))
            break
    else:
        if masks.checkpoint is None or not Path(masks.checkpoint).exists():
            raise UseError(
                f"the checkpoint of {options.mask_path} is gone ({masks.checkpoint}): --search_checkpoint FILE"
            )
        path = Path(masks.checkpoint)
    masks.check_weights(path, str(options.mask_path))
    settle_config(options, masks.config, options.mask_path)
    return masks, path


def settle_config(options: argparse.Namespace, config: dict, what: object) -> None:
    """Take the network's numbers from its mask or weights; UseError where the command line says otherwise."""
    given = getattr(options, "given", {})
    for name, value in config.items():
        if hasattr(options, name):
            if name in given and given[name] != value:
                raise UseError(f"--{name} {given[name]}: {what} has {value}")
            setattr(options, name, value)


def build(opened: Session, task) -> tuple[torch.nn.Module, dict]:
    """The network with its masks fixed, and what its checkpoints carry: the masks."""
    options, run = opened.options, opened.run
    space = spaces.get(options.space)
    seed_all(options.seed)
    if opened.state is not None:
        saved = opened.state["mask"]
        model = space.supernet(options)
        apply_masks(model, {k: v.numpy() for k, v in saved["channels"].items()}, saved["threshold"])
        begin(opened)
    else:
        masks, path = _start(options)
        model = space.network(masks, options)
        state = space.transfer(bare_state(read_checkpoint(path), path), masks, options)
        load_strictly(model, state, path)
        apply_masks(model, masks.channels, masks.threshold)
        opened.say(f"weights and masks of {path}, kept fraction {masks.mean_kept or float('nan'):.3f}")
        if opened.main:
            files.save_masks(run.folder / f"searched{files.SUFFIX}", masks)
        options.mask_path = str((run.folder / f"searched{files.SUFFIX}").resolve())
        options.search_checkpoint = str(path.resolve())
        begin(opened)
        saved = {"channels": {k: torch.from_numpy(v) for k, v in masks.channels.items()}, "threshold": masks.threshold}
    fix_masks(model)
    return model, {"mask": saved}


def finish(opened: Session, model: torch.nn.Module, task, result: dict) -> int:
    """The network to share, its mask file, costs and pictures, and the line that says what to do next.

    Returns 1 where what skips and what multiplies by masks differ, else 0.
    """
    run = opened.run
    found = conclude(opened, model, task)
    share(opened, model, found, checkpoint.load(run.last)["mask"]["threshold"])
    wrong = found["milliseconds"] is None
    times = "" if wrong else f", {found['milliseconds']:.1f} ms (dense {found['milliseconds_dense']:.1f})"
    opened.say(
        f"retrained: {task.primary} {result.get(task.primary, float('nan')):.4f}; kept fraction "
        f"{found['kept_fraction']:.3f}, {format_count(found['parameters'])} parameters, multiply-adds "
        f"{format_count(found['multiply_adds'])} of {format_count(found['multiply_adds_dense'])}{times}"
    )
    if note := shortfall(opened, task, result, opened.options.mask_path):
        opened.say(note)
    opened.say(f"run: {run.folder} (network.safetensors, mask{files.SUFFIX}, pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    opened.say(f"next: {page.next_command(run, 'eval')}")
    return int(wrong)


def share(opened: Session, model: torch.nn.Module, found: dict, threshold: float) -> files.FineMasks:
    """Write a finished run's network.safetensors and mask.npz, which belong together. found: what was measured."""
    options, run = opened.options, opened.run
    space = spaces.get(options.space)
    network = run.folder / "network.safetensors"
    masks = files.FineMasks(
        space=options.space,
        task=options.task,
        channels=hard_masks(model),
        sha256="",
        threshold=threshold,
        kept={name: shares["kept"] for name, shares in found["masks"].items()},
        kept_whole=found["kept_fraction"],
        measured_on=found["measured_on"],
        config=space.config_of(model),
        checkpoint=str(network.resolve()),
        connectivity=space.connectivity_of(model),
    )
    space.save(network, model, masks)
    masks = files.replace(masks, sha256=sha256(network))
    files.save_masks(run.folder / f"mask{files.SUFFIX}", masks)
    run.note(network=network.name)
    return masks


def restore(parser: Parser, given: dict, run: runs.Run | None):
    """(options, network with its weights, arithmetic) for evaluation: of a run, or of any weights file."""
    space = spaces.get(given["space"])
    if run is not None:
        name = given.setdefault("checkpoint", "last")
        if name not in ("last", "best"):
            raise UseError(f"--checkpoint {name}: last or best")
        what = run.checkpoints / f"{name}.pt"
        state = checkpoint.load(what, given["space"])
        saved = checkpoint.saved_flags(state, parser, what, ("eval_limit", "config"))
        options = parser.resolve(datasets.without_replaced(saved, given), given)
        options.mask_path = given.get("mask_path")
    else:
        options, line = session.settle(parser, given, training=False)
        if line:
            say(line)
        what = Path(options.pretrained_model)
    options.given = given
    model = space.load(what).network
    if run is not None and state.get("verb") == "specialize":  # its checkpoints hold weights, the threshold is a flag
        set_threshold(model, state["config"]["thres"])
    space.configure(model, options)
    settle_config(options, space.config_of(model), what)
    if options.mask_path:
        masks = files.load_masks(options.mask_path)
        masks.check_weights(what, str(options.mask_path))
        apply_masks(model, masks.channels, masks.threshold)
    _settle_backend(model, options.backend)
    where = session.device(options)
    session.prepare(options)
    return options, model.to(where.device, where.parameters).eval(), where


def _settle_backend(model: torch.nn.Module, name: str) -> None:
    set_backend(model, name)
    reason = available_backends().get(name)
    if reason is not None and not torch.cuda.is_available():
        raise UseError(f"--backend {name}: not available here: {reason}")


def evaluate(options: argparse.Namespace, model: torch.nn.Module, where, run: runs.Run | None) -> int:
    """Print quality, time of the sparse and the dense form, what was kept and computed.

    Returns 1 where what skips and what multiplies by masks differ, else 0.
    """
    task = tasks.get(options.task, options)
    space = spaces.get(options.space)
    each = None
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        each = functools.partial(task.write, folder)
    watch = Watch(space, model, where, options.rounds, **_calls(space, model, options))
    scores = task.scores(watch, where, options, options.eval_limit, each=each)
    table, by_module = watch.table(), watch.by_module()
    if distributed.rank():
        return 0
    if watch.disagreement:
        options.rounds = 0
    say(evaluation_text(space, model, task, scores, table, by_module, where, options))
    if options.out:
        say(f"predictions in {options.out}")
    if run is not None:
        try:
            task.draw_scores(scores, run.pictures)
            if hasattr(scores, "matrix"):
                page.record_confusion(run, task.classes, scores.matrix)
            run.note(eval=record(model, task, scores, table, by_module))
            say(f"report: {page.write_report(run)}")
        except OSError as error:  # the figures are out; a folder that may not be written is not worth failing for
            session.warn(f"not written into {run.folder}: {describe(error) or error}")
    if watch.disagreement:
        session.warn(f"error: {watch.disagreement}")
        return 1
    return 0


def pool_predictions(options: argparse.Namespace) -> None:
    """Print the scores of the predictions of several evaluations as one."""
    say(tasks.find(options.task).pooled_text(options.six_fold))


def _calls(space, model: torch.nn.Module, options: argparse.Namespace) -> dict:
    """How a :class:`Watch` calls the network, where not as it is: in tiles, over flips."""
    if not isinstance(space, HasViews):
        if options.flips:
            raise UseError(f"--flips is not for space '{options.space}'")
        return {}
    views = {"tile": options.tile, "ensemble": options.flips}
    if not any(views.values()):
        return {}
    dense = functools.partial(space.run_dense, model, ensemble=options.flips)
    return {"run": functools.partial(space.run, model, **views), "run_dense": dense}


def load_run(run: runs.Run) -> torch.nn.Module:
    """The network of a run, of a search too, in evaluation mode, on the CPU."""
    state = checkpoint.load(run.last)
    return spaces.get(state["space"]).load(run.last).network
