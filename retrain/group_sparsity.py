"""Networks of the groups that stayed: fine-tuned under a teacher, evaluated beside the plain network, shared.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.5.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

import spaces
from prune.group_options import add_memory
from retrain.group_evaluation import costs_text, measured, slower_note, write_predictions
from retrain.group_teacher import FineTuning, build_teacher, choose_teacher, same_teacher
from retrain.shortfall import shortfall
from spaces.group_sparsity import mask_file as files
from spaces.group_sparsity import records
from sparsemask import datasets, runs, session, tasks
from sparsemask import report as page
from sparsemask.engine import checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, describe, say
from sparsemask.options import Parser, factor, fraction, natural, positive
from sparsemask.session import Session
from sparsemask.tables import format_count
from sparsemask.weights import bare_state, load_strictly, read_checkpoint

NETWORK = "network.safetensors"


def add_options(parser: Parser) -> None:
    """Flags of retraining."""
    group = parser.add_argument_group("groups of weights")
    group.add_argument("--mask_path", default=None, help="mask file (.npz), as prune/prune.py writes it")
    group.add_argument(
        "--search_checkpoint", default=None, help="the checkpoint the mask was made from (default: where it lay then)"
    )
    group.add_argument("--ft_model", default=None, help="go on training a network.safetensors of another retraining")
    group.add_argument(
        "--teacher",
        default="auto",
        help="weights of a plain network to learn from, 'search' (the searched network, whole) or 'none'; auto: what "
        "the search started from, else 'search'",
    )
    group.add_argument("--distill", type=fraction, default=0.4, help="weight of the teacher's loss (default: 0.4)")
    group.add_argument("--temperature", type=factor, default=4.0, help="of both softmaxes (default: 4)")
    group.add_argument("--batch", type=positive, default=1, help="inputs at once when time is measured (default: 1)")
    add_memory(group)


def add_eval_options(parser: Parser) -> None:
    """Flags of evaluation."""
    group = parser.add_argument_group("groups of weights")
    group.add_argument("--mask_path", default=None, help="checked against the weights' own")
    group.add_argument("--rounds", type=natural, default=9, help="timed calls of each network, 0: none (default: 9)")
    group.add_argument(
        "--batch", type=positive, nargs="+", default=[1], help="inputs at once when time is measured (default: 1)"
    )
    group.add_argument("--compiled", action="store_true", help="time compiled networks")


def method(options: argparse.Namespace) -> FineTuning:
    """The family's method for the training loop."""
    return FineTuning(options)


def check(options: argparse.Namespace) -> None:
    """Refuse an unusable mask, and weights that are not the mask's, before a run folder is made."""
    _start(options)


def _start(options: argparse.Namespace) -> tuple[files.GroupMask, Path]:
    """The mask and the file that holds the weights."""
    if options.ft_model:
        found = read_checkpoint(options.ft_model)
        mask = spaces.get(options.space).load(options.ft_model).mask
        if mask is None:
            raise UseError(f"--ft_model {options.ft_model}: no pruned network of this toolkit ({len(found)} tensors)")
        return mask, Path(options.ft_model)
    if options.mask_path is None:
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one)")
    mask = files.load_mask(options.mask_path)
    path = options.search_checkpoint or mask.checkpoint
    if path is None or not Path(path).exists():
        raise UseError(f"the checkpoint of {options.mask_path} is gone ({path}): --search_checkpoint FILE")
    mask.check_weights(path, options.mask_path)
    return mask, Path(path)


def build(opened: Session, task) -> tuple[torch.nn.Module, dict]:
    """The small network, and what its checkpoints carry: how it is built, and who teaches it."""
    options, run = opened.options, opened.run
    space = spaces.get(options.space)
    seed_all(options.seed)
    if opened.state is not None:
        saved = opened.state["mask"]
        mask = files.GroupMask.from_recipe(saved, run.last)
        model = space.network(mask, state=opened.state["model"])
        teacher = same_teacher(opened.state["teacher"])
    else:
        mask, path = _start(options)
        _settle(options, mask, options.mask_path or path)
        if options.ft_model:
            model = space.load(path).network
            found = {}
        else:
            found = read_checkpoint(path)
            hinged = space.structure(mask.config)
            load_strictly(hinged, bare_state(found, path), path)
            model = space.compressed(hinged, mask)
            options.mask_path = str(Path(options.mask_path).resolve())
            options.search_checkpoint = str(path.resolve())
        teacher = choose_teacher(options, found, path)
        share = mask.figures.get("multiply_adds_share")
        left = "" if share is None else f", {share:.1%} of the multiply-adds"
        opened.say(f"weights of {path}{left}; teacher: {teacher['what'] or 'none'}")
        saved = mask.recipe()
    if task.n_output != mask.config["n_class"]:
        raise UseError(f"{task.measured_on()} has {task.n_output} classes, the mask's network {mask.config['n_class']}")
    network = build_teacher(teacher, mask) if options.distill else None
    # Kept out of the modules: a teacher is neither trained nor saved.
    model.teacher = functools.partial(_same, network)
    model.train()
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    records.begin(opened)
    return model, {"mask": saved, "teacher": teacher}


def _same(network):
    return network


def _settle(options: argparse.Namespace, mask: files.GroupMask, what: object) -> None:
    """Take the network's numbers from its mask; UseError where the command line says otherwise."""
    given = getattr(options, "given", {})
    for name in ("arch", "variant", "init", "n_class"):
        value = mask.config.get(name)
        if name in given and given[name] != value:
            raise UseError(f"--{name} {given[name]}: {what} has {value}")
        setattr(options, name, value)
    options.arch_options = [f"{k}={v}" for k, v in mask.config["arch_options"].items()] or None


def finish(opened: Session, model: torch.nn.Module, task, result: dict) -> None:
    """The network to share, its costs and pictures, and the line that says what to do next."""
    options, run = opened.options, opened.run
    space = spaces.get(options.space)
    mask = files.GroupMask.from_recipe(checkpoint.load(run.last)["mask"], run.last)
    found = space.structure(mask.config).reduction
    network = run.folder / NETWORK
    model.teacher = functools.partial(_same, None)
    space.save(network, model, mask)
    noted = {
        **records.entries(found, mask.kept, mask.merged),
        **records.times(model, mask.config, options.batch, opened.arithmetic.device),
    }
    run.note(network=NETWORK, threshold=mask.threshold, **noted)
    records.draw_kept_groups(run, mask.kept)
    records.draw_training(opened, model, task)
    opened.say(
        f"retrained: {task.primary} {result.get(task.primary, float('nan')):.4f}; multiply-adds "
        f"{format_count(noted['multiply_adds'])} of {format_count(noted['multiply_adds_dense'])}, parameters "
        f"{format_count(noted['parameters'])} of {format_count(noted['parameters_dense'])}, "
        f"{noted['milliseconds']:.2f} ms (plain {noted['milliseconds_dense']:.2f}, batch {options.batch})"
    )
    if note := slower_note([noted]):
        opened.say(note)
    if note := shortfall(opened, task, result, options.mask_path):
        opened.say(note)
    opened.say(f"run: {run.folder} ({NETWORK}, pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    opened.say(f"next: {page.next_command(run, 'eval')}")


def restore(parser: Parser, given: dict, run: runs.Run | None):
    """(options, network with its weights, arithmetic) for evaluation: of a run, or of any weights file."""
    space = spaces.get(given["space"])
    if run is not None:
        name = given.setdefault("checkpoint", "last")
        if name not in ("last", "best"):
            raise UseError(f"--checkpoint {name}: last or best")
        what = run.checkpoints / f"{name}.pt"
        state = checkpoint.load(what, given["space"])
        own = ("eval_limit", "config", "batch", "mask_path")
        saved = checkpoint.saved_flags(state, parser, what, own)
        options = parser.resolve(datasets.without_replaced(saved, given), given)
    else:
        options, line = session.settle(parser, given, training=False)
        if line:
            say(line)
        what = Path(options.pretrained_model)
    options.given = given
    found = space.load(what)
    model, mask = found.network, found.mask
    if options.mask_path:
        _same_mask(options.mask_path, mask, what)
    model.mask = mask
    where = session.device(options)
    return options, model.to(where.device, where.parameters).eval(), where


def _same_mask(path: str, mask: files.GroupMask | None, what: object) -> None:
    wanted = files.load_mask(path)
    alike = mask is not None and wanted.merged == mask.merged and wanted.kept.keys() == mask.kept.keys()
    if not alike or any((wanted.kept[k] != mask.kept[k]).any() for k in wanted.kept):
        raise UseError(f"--mask_path {path}: {what} is not a network of this mask")


def evaluate(options: argparse.Namespace, model: torch.nn.Module, where, run: runs.Run | None) -> None:
    """Print quality, and what the network costs beside the plain one."""
    task = tasks.get(options.task, options)
    predictions: dict[int, torch.Tensor] = {}
    each = predictions.__setitem__ if options.out else None
    scores = task.scores(model, where, options, options.eval_limit, each, flips=options.flips)
    if distributed.rank():
        return
    say(task.report(scores))
    noted = measured(model, options, where, task)
    say(costs_text(noted, options))
    if note := slower_note(noted):
        say(note)
    if options.out:
        say(f"predictions in {write_predictions(task, predictions, options.out)}")
    if run is not None:
        try:
            task.draw_scores(scores, run.pictures)
            if hasattr(scores, "matrix"):
                page.record_confusion(run, task.classes, scores.matrix)
            run.note(eval={**task.record(scores), "pictures": scores.count}, **noted[0])
            say(f"report: {page.write_report(run)}")
        except OSError as error:  # the figures are out; a folder that may not be written is not worth failing for
            session.warn(f"not written into {run.folder}: {describe(error) or error}")


def load_run(run: runs.Run) -> torch.nn.Module:
    """The network of a run, of a search too, in evaluation mode, on the CPU."""
    return spaces.get(checkpoint.load(run.last)["space"]).load(run.last).network
