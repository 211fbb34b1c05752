"""SMStereo from files: GwcNet's public checkpoints, checkpoints of runs, networks to share."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsemask import weights
from sparsemask.errors import UseError
from sparsemask.masks.spatial import FineMasks
from sparsemask.spaces.described import build_described
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.spaces.sparse_conv import masked_space


def config_of(state: Mapping[str, Tensor], what: object = "checkpoint", said: Mapping | None = None) -> dict[str, int]:
    """The arguments of the :class:`SMStereo` that a state dict belongs to; UseError naming `what` if it is of none.

    said: its maxdisp, which no weight tells; 192 where it is missing, as in GwcNet.
    """
    try:
        inputs = int(state["dres0.0.0.weight"].shape[1])
        last = state.get("feature_extraction.lastconv.2.weight")
        state["feature_extraction.firstconv.0.0.weight"], state["dres2.conv1.0.0.weight"]
    except (KeyError, IndexError):
        raise UseError(f"{what}: no weights of an SMStereo or GwcNet network") from None
    concat = 0 if last is None else int(last.shape[0])
    maxdisp = said.get("maxdisp") if said else None
    return {
        "maxdisp": maxdisp if isinstance(maxdisp, int) else 192, "groups": inputs - 2 * concat, "concat": concat
    }  # fmt: skip


def has_masks(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have masks; those of a GwcNet have none."""
    return "dres2.conv1.ch_mask" in state


def load_into(network: SMStereo, state: Mapping[str, Tensor], what: object = "checkpoint") -> None:
    """Load weights strictly; a GwcNet's, which know no masks, leave those as they are."""
    if not has_masks(state):
        own = {k: v for k, v in network.state_dict().items() if "ch_mask" in k or ".locate." in k}
        state = {**state, **own}
    weights.load_strictly(network, state, what)


def build(state: Mapping[str, Tensor], what: object = "checkpoint", said: Mapping | None = None) -> SMStereo:
    """The network of a state dict, in evaluation mode; without masks in it, all channels are dense."""
    config = config_of(state, what, said)
    network = build_described(lambda: SMStereo(**config), state, what, load_into)
    if not has_masks(state):
        with torch.no_grad():
            for module in network.hourglasses:
                for conv in module.convs:
                    conv.ch_mask.copy_(torch.tensor([1.0, 0.0]).expand_as(conv.ch_mask))
    return network


def load_smstereo(path: str | os.PathLike) -> SMStereo:
    """The network of a file, in evaluation mode on the CPU: a GwcNet's, a run's checkpoint, safetensors.

    See :func:`sparsemask.spaces.sparse_conv.masked_space.load`.
    """
    return masked_space.load(path, build)


def save_smstereo(path: str | os.PathLike, network: SMStereo, masks: FineMasks | None = None) -> None:
    """Write a network to share; see :func:`sparsemask.spaces.sparse_conv.masked_space.save`."""
    masked_space.save(path, network, "smstereo", masks)
