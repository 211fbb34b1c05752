"""Distillation of pruned networks: choice of the teacher.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935) fine-tunes with the plain network as the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.engine import Method
from sparsemask.engine.distillation import Teacher
from sparsemask.errors import UseError
from sparsemask.masks.groups import GroupMask
from sparsemask.spaces.pretrained import named
from sparsemask.weights import config_of, load_strictly, load_weights


class FineTuning(Method):
    """Training of the small network, all of it at one rate."""

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """Everything at --lr."""
        return [
            {"name": "network", "params": [p for p in model.parameters() if p.requires_grad], "lr": config.training.lr}
        ]


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
        return named("search", path)
    if not Path(source).is_file():
        raise UseError(f"--teacher {source}: no such file (a file of weights, search or none)")
    return named("plain", Path(source))


def build_teacher(config: RunConfig, teacher: Mapping, mask: GroupMask) -> Teacher | None:
    """Build the teacher, frozen, in evaluation mode; None without one.

    Args:
        config: of the run: weight of the teacher's loss and temperature.
        teacher: as :func:`choose_teacher` returns it.
        mask: of the pruned network; holds the recipe.
    """
    if teacher["kind"] == "none" or not config.family.distill:
        return None
    space, what = spaces.get("hinge"), teacher["what"]
    state = load_weights(what)
    if teacher["kind"] == "search":
        network = space.structure(mask.config).network
        load_strictly(network, state, what)
    else:
        network = space.plain(mask.config)
        space.load_weights_into(network, state, what)
    return Teacher(network.eval().requires_grad_(False), config.family.distill, config.family.temperature)
