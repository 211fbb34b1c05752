"""Distillation of pruned networks (Hinton et al., arXiv 1503.02531): choice of the teacher, and the loss.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935) fine-tunes with the plain network as the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.engine import Method
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.masks.groups import GroupMask
from sparsemask.weights import config_of, load_strictly, load_weights


class FineTuning(Method):
    """Training of the small network on labels and a teacher's outputs.

    Args:
        config: of the run: weight of the teacher's loss and temperature.
        teacher: frozen; None: labels alone.
    """

    def __init__(self, config: RunConfig, teacher: torch.nn.Module | None):
        self.share, self.temperature = config.family.distill, config.family.temperature
        self.teacher = teacher

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """Everything at --lr."""
        parameter = next(model.parameters())
        if self.teacher is not None:
            self.teacher.to(parameter.device, parameter.dtype)
        return [
            {"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": config.training.lr}
        ]

    def loss(self, model: torch.nn.Module, task, images, output, target) -> torch.Tensor:
        """(1 - w)·CE + w·T²·KL(softmax(teacher / T) ‖ softmax(network / T)), summed over the images."""
        task_loss = task.loss(output, target)
        if self.teacher is None or not self.share:
            return task_loss
        with torch.no_grad():
            answer = self.teacher.eval()(images)  # its batch norms must neither see nor remember this batch
        t = self.temperature
        pull = F.kl_div(
            F.log_softmax(output.float() / t, 1), F.log_softmax(answer.float() / t, 1), reduction="sum", log_target=True
        )
        return (1 - self.share) * task_loss + self.share * t * t * pull


def choose_teacher(config: RunConfig, state: Mapping, path: Path) -> dict:
    """Choose the teacher.

    Args:
        config: of the run.
        state: the search's checkpoint; empty if the run starts from another retraining.
        path: of the checkpoint.

    Returns:
        "kind" ("none", "search" or "plain"), "what" (the file) and its "sha256", as checkpoints store it.

    Raises:
        UseError: no such file or search.
    """
    source = config.family.teacher if config.family.distill else "none"
    if source == "auto":
        start = config_of(state).get("pretrained_model")
        source = start if isinstance(start, str) and Path(start).exists() else "search" if state else "none"
    if source == "none":
        return {"kind": "none", "what": "", "sha256": ""}
    if source == "search":
        if not state:
            raise UseError("--teacher search: --ft_model is no search; give a file of weights, or none")
        return {"kind": "search", "what": str(path.resolve()), "sha256": sha256(path)}
    if not Path(source).is_file():
        raise UseError(f"--teacher {source}: no such file (a file of weights, search or none)")
    return {"kind": "plain", "what": str(Path(source).resolve()), "sha256": sha256(source)}


def same_teacher(teacher: Mapping) -> dict:
    """Return a resumed run's teacher.

    Raises:
        UseError: its file is missing or has changed.
    """
    if teacher["kind"] != "none":
        what = Path(teacher["what"])
        if not what.is_file() or sha256(what) != teacher["sha256"]:
            raise UseError(f"{what}: the run's teacher is gone or changed since; put it back to go on with this run")
    return dict(teacher)


def build_teacher(teacher: Mapping, mask: GroupMask) -> torch.nn.Module | None:
    """Build the teacher network, frozen, in evaluation mode; None without one.

    Args:
        teacher: as :func:`choose_teacher` returns it.
        mask: of the pruned network; holds the recipe.
    """
    if teacher["kind"] == "none":
        return None
    space, what = spaces.get("hinge"), teacher["what"]
    state = load_weights(what)
    if teacher["kind"] == "search":
        network = space.structure(mask.config).network
        load_strictly(network, state, what)
    else:
        network = space.plain(mask.config)
        space.load_weights_into(network, state, what)
    return network.eval().requires_grad_(False)
