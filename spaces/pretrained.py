"""Networks from elsewhere that a training begins with: the encoder's weights; a teacher, and the flags that name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsemask import datasets, runs, spaces
from sparsemask.config import RunConfig, flag
from sparsemask.engine import data
from sparsemask.engine.distillation import Teacher
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.options import factor, fraction
from sparsemask.plugins import imported, is_own
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.backbones.weights import ImportedWeights, load_backbone_weights
from sparsemask.training_setup import Context
from sparsemask.weights import file_space

TITLE = "a teacher"
NONE = "none"
_NO_TEACHER = {"kind": "none", "what": "", "sha256": ""}


def encoder_weights(context: Context) -> tuple[ImportedWeights | None, dict[str, Any]]:
    """Load the encoder's weights for a new run.

    Args:
        context: of the command.

    Returns:
        The weights (None: start from random ones, or resume from a checkpoint), and the flags that they determine:
        ``pretrained_model``, the file's path, and the encoder's form where it was "auto"
        (:func:`sparsemask.spaces.backbones.forms.resolved`).
    """
    config = context.config
    if context.state is not None:
        return None, {}
    name = config.network.backbone_name
    path = datasets.backbone_weights(name, config.network.pretrained_model)
    if path is None:
        context.say(
            f"no ImageNet weights for {name} (--pretrained_model, $SPARSEMASK_WEIGHTS or "
            f"{datasets.cache() / 'weights'}): the encoder starts from random weights"
        )
        return None, forms.resolved(config, None)
    weights = load_backbone_weights(path, name)
    context.say(weights.message)
    return weights, {"pretrained_model": str(path), **forms.resolved(config, weights.form)}


def encoder_form(config: RunConfig) -> dict[str, str]:
    """The encoder's form where it is "auto", as :func:`encoder_weights` will find it, without a word.

    Args:
        config: of a run that begins.
    """
    name = config.network.backbone_name
    if not forms.resolved(config, None):
        return {}
    path = datasets.backbone_weights(name, config.network.pretrained_model)
    return forms.resolved(config, None if path is None else load_backbone_weights(path, name).form)


def teacher_flag(default: str = NONE, words: str | None = None) -> str:
    """The flag that names the teacher."""
    usual = "a trained network to learn from: a run, its network.safetensors, a checkpoint, or package.module:function "
    usual += "that gives one (default: none)"
    given: str = flag(default, help=words or usual, group=None if words else TITLE)
    return given


def distill_flag(group: str | None = TITLE) -> float:
    """The flag of the weight of the teacher's loss."""
    weight: float = flag(0.4, fraction, help="weight of the teacher's loss (default: 0.4)", group=group)
    return weight


def temperature_flag(group: str | None = TITLE) -> float:
    """The flag of the temperature."""
    value: float = flag(4.0, factor, help="of the teacher's and the network's softmaxes (default: 4)", group=group)
    return value


def named(kind: str, path: Path) -> dict[str, str]:
    """What checkpoints hold of a teacher that is a file."""
    return {"kind": kind, "what": str(path.resolve()), "sha256": sha256(path)}


def same_teacher(teacher: Mapping[str, str]) -> dict[str, str]:
    """Return a resumed run's teacher.

    Raises:
        UseError: its file is missing or has changed.
    """
    if teacher["kind"] not in ("none", "own"):
        what = Path(teacher["what"])
        if not what.is_file() or sha256(what) != teacher["sha256"]:
            raise UseError(f"{what}: the run's teacher is gone or changed since; put it back to go on with this run")
    return dict(teacher)


def choose(config: RunConfig) -> dict[str, str]:
    """The teacher that a configuration names, as checkpoints hold it; kind "none" without one.

    Raises:
        UseError: no such file or run.
    """
    source = config.family.teacher
    if source == NONE or not config.family.distill:
        return dict(_NO_TEACHER)
    if is_own(source):
        return {"kind": "own", "what": source, "sha256": ""}
    path = Path(source)
    if path.is_dir():
        run = runs.find(path)
        shared = run.folder / "network.safetensors"
        path = shared if shared.is_file() else run.last
    if not path.is_file():
        raise UseError(
            f"--teacher {source}: no such file or run (a trained network's, package.module:function, or none)"
        )
    return named("network", path)


def open_teacher(context: Context) -> tuple[Teacher | None, dict[str, Any]]:
    """The teacher of a run as it begins, or as its checkpoint has it; and what its checkpoints carry of it.

    Raises:
        UseError: no such network, or one of other classes.
    """
    config = context.config
    if context.state is not None:
        chosen = same_teacher(context.state.get("teacher", _NO_TEACHER))
    else:
        chosen = choose(config)
    if chosen["kind"] == "none":
        return None, {}
    network = _network(chosen, config).eval().requires_grad_(False)
    teacher = Teacher(network, config.family.distill, config.family.temperature)
    if context.state is None:
        _try(teacher, context, chosen["what"])
        context.say(f"teacher: {chosen['what']}, weight {teacher.share:g}")
    return teacher, {"teacher": chosen}


def _network(chosen: Mapping[str, str], config: RunConfig) -> nn.Module:
    what = chosen["what"]
    if chosen["kind"] == "own":
        network = imported(what, "teacher")()
        if not isinstance(network, nn.Module):
            raise UseError(f"--teacher {what}: gave {type(network).__name__}, expected a torch.nn.Module")
        return network
    # Public checkpoints do not say of which space they are: then of this one.
    loaded: nn.Module = spaces.get(file_space(what) or config.network.space).load(what).network
    return loaded


def _try(teacher: Teacher, context: Context, what: str) -> None:
    """Raise a UseError where the teacher's output on a validation sample is none of the task's."""
    task, source = context.task, context.task.eval_data
    if isinstance(source, data.PlannedSource):
        return  # found at the first step
    inputs, target = data.collate(source, [source[0]])
    try:
        with torch.no_grad():
            answer = teacher.network(inputs)
        value = float(task.teacher_loss(answer, answer, target, teacher.temperature))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UseError(f"--teacher {what}: takes no {task.items} of this task ({error})") from None
    except UseError as error:
        raise UseError(f"--teacher {what}: {error}") from None
    if not np.isfinite(value):
        raise UseError(f"--teacher {what}: its output is not finite")
