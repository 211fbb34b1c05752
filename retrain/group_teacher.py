"""Who teaches a pruned network, and the loss that listens: distillation after Hinton et al. (arXiv 1503.02531).

Hinge (Li et al., CVPR 2020, arXiv 2003.08935) fine-tunes under the plain network's answers.
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
    """A plain training of the small network, with a teacher's answers beside the truth.

    teacher: the network that answers, frozen; None: there is the truth alone.
    """

    def __init__(self, config: RunConfig, teacher: torch.nn.Module | None):
        self.share, self.temperature = config.family.distill, config.family.temperature
        self.teacher = teacher

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """Everything at --lr."""
        place = next(model.parameters())
        if self.teacher is not None:
            self.teacher.to(place.device, place.dtype)
        return [
            {"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": config.training.lr}
        ]

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


def choose_teacher(config: RunConfig, found: Mapping, path: Path) -> dict:
    """Whose answers are learnt from: kind, file and its hash, as the checkpoints remember it."""
    wanted = config.family.teacher if config.family.distill else "none"
    if wanted == "auto":
        start = config_of(found).get("pretrained_model")
        wanted = start if isinstance(start, str) and Path(start).exists() else "search" if found else "none"
    if wanted == "none":
        return {"kind": "none", "what": "", "sha256": ""}
    if wanted == "search":
        if not found:
            raise UseError("--teacher search: --ft_model is no search; give a file of weights, or none")
        return {"kind": "search", "what": str(path.resolve()), "sha256": sha256(path)}
    if not Path(wanted).is_file():
        raise UseError(f"--teacher {wanted}: no such file (a file of weights, search or none)")
    return {"kind": "plain", "what": str(Path(wanted).resolve()), "sha256": sha256(wanted)}


def same_teacher(teacher: Mapping) -> dict:
    """A resumed run's teacher: the same file, byte for byte."""
    if teacher["kind"] != "none":
        what = Path(teacher["what"])
        if not what.is_file() or sha256(what) != teacher["sha256"]:
            raise UseError(f"{what}: the run's teacher is gone or changed since; put it back to go on with this run")
    return dict(teacher)


def build_teacher(teacher: Mapping, mask: GroupMask) -> torch.nn.Module | None:
    """The network that answers, frozen, in evaluation mode; None where nobody does."""
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
