"""Networks of the groups that stayed: fine-tuned under a teacher, evaluated beside the plain network, shared.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.5; distillation after Hinton et al. (arXiv 1503.02531).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

import spaces
from prune.group_options import add_memory
from retrain.group_evaluation import costs_text, measured, write_predictions
from spaces.group_sparsity import mask_file as files
from spaces.group_sparsity import records
from sparsemask import datasets, runs, session, tasks
from sparsemask import report as page
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, describe, say
from sparsemask.files import sha256
from sparsemask.options import Parser, factor, fraction, natural, positive, spoken
from sparsemask.session import Session
from sparsemask.tables import format_count
from sparsemask.weights import bare_state, load_strictly, load_weights, read_checkpoint

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


class FineTuning(Method):
    """A plain training of the small network, with a teacher's answers beside the truth."""

    def __init__(self, options: argparse.Namespace):
        self.share, self.temperature = options.distill, options.temperature
        self.teacher: torch.nn.Module | None = None

    def groups(self, model: torch.nn.Module, options: argparse.Namespace) -> list[dict]:
        """Everything at --lr."""
        place = next(model.parameters())
        self.teacher = getattr(model, "teacher", lambda: None)()
        if self.teacher is not None:
            self.teacher.to(place.device, place.dtype)
        return [{"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": options.lr}]

    def loss(self, model: torch.nn.Module, task, images, output, target) -> torch.Tensor:
        """(1 - w)·CE + w·T²·KL(softmax(teacher / T) ‖ softmax(network / T)), summed over the pictures."""
        own = task.loss(output, target)
        if self.teacher is None or not self.share:
            return own
        with torch.no_grad():
            wanted = self.teacher.eval()(images)  # its batch norms must neither see nor remember this batch
        t = self.temperature
        pull = F.kl_div(
            F.log_softmax(output.float() / t, 1), F.log_softmax(wanted.float() / t, 1), reduction="sum", log_target=True
        )
        return (1 - self.share) * own + self.share * t * t * pull


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
        _, mask = spaces.get(options.space).load(options.ft_model)
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
        teacher = _teacher_again(opened.state["teacher"], mask)
    else:
        mask, path = _start(options)
        _settle(options, mask, options.mask_path or path)
        if options.ft_model:
            model, _ = space.load(path)
            found = {}
        else:
            found = read_checkpoint(path)
            hinged = space.structure(mask.config)
            load_strictly(hinged, bare_state(found, path), path)
            model = space.compressed(hinged, mask)
            options.mask_path = str(Path(options.mask_path).resolve())
            options.search_checkpoint = str(path.resolve())
        teacher = _teacher(options, mask, found, path)
        share = mask.figures.get("multiply_adds_share")
        left = "" if share is None else f", {share:.1%} of the multiply-adds"
        opened.say(f"weights of {path}{left}; teacher: {teacher['what'] or 'none'}")
        saved = mask.recipe()
    if task.n_output != mask.config["n_class"]:
        raise UseError(f"{task.measured_on()} has {task.n_output} classes, the mask's network {mask.config['n_class']}")
    network = _teaching(teacher, mask) if options.distill else None
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


def _teacher(options: argparse.Namespace, mask: files.GroupMask, found: Mapping, path: Path) -> dict:
    """Whose answers are learnt from: kind, file and its hash, as the checkpoints remember it."""
    wanted = options.teacher if options.distill else "none"
    if wanted == "auto":
        start = (found.get("config") or {}).get("pretrained_model")
        wanted = start if start and Path(start).exists() else "search" if found else "none"
    if wanted == "none":
        return {"kind": "none", "what": "", "sha256": ""}
    if wanted == "search":
        if not found:
            raise UseError("--teacher search: --ft_model is no search; give a file of weights, or none")
        return {"kind": "search", "what": str(path.resolve()), "sha256": sha256(path)}
    if not Path(wanted).is_file():
        raise UseError(f"--teacher {wanted}: no such file (a file of weights, search or none)")
    return {"kind": "plain", "what": str(Path(wanted).resolve()), "sha256": sha256(wanted)}


def _teacher_again(teacher: Mapping, mask: files.GroupMask) -> dict:
    """A resumed run's teacher: the same file, byte for byte."""
    if teacher["kind"] != "none":
        what = Path(teacher["what"])
        if not what.is_file() or sha256(what) != teacher["sha256"]:
            raise UseError(f"{what}: the run's teacher is gone or changed since; put it back to go on with this run")
    return dict(teacher)


def _teaching(teacher: Mapping, mask: files.GroupMask) -> torch.nn.Module | None:
    if teacher["kind"] == "none":
        return None
    space, what = spaces.get("hinge"), teacher["what"]
    state = load_weights(what)
    if teacher["kind"] == "search":
        network = space.structure(mask.config)
        load_strictly(network, state, what)
    else:
        network = space.plain(mask.config)
        space.load_into(network, state, what)
    return network.eval().requires_grad_(False)


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
    opened.say(f"run: {run.folder} ({NETWORK}, pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    opened.say(f"next: {spoken('eval')}")


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
        saved = {k: v for k, v in state["config"].items() if k in parser.actions() and k not in own}
        options = parser.resolve(datasets.without_replaced(saved, given), given)
    else:
        options, line = session.settle(parser, given, training=False)
        if line:
            say(line)
        what = Path(options.pretrained_model)
    options.given = given
    model, mask = space.load(what)
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
    return spaces.get(checkpoint.load(run.last)["space"]).load(run.last)[0]
