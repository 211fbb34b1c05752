"""SMStereo from files: GwcNet's public checkpoints, checkpoints of runs, safetensors."""

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


def config_of(
    state: Mapping[str, Tensor], what: object = "checkpoint", description: Mapping | None = None
) -> dict[str, int]:
    """Determine the arguments of an :class:`SMStereo` from its state dict.

    Args:
        state: the weights.
        what: the file's name in errors.
        description: `maxdisp`, which weights do not determine; default: 192, as in GwcNet.

    Raises:
        UseError: weights of another network.
    """
    try:
        inputs = int(state["dres0.0.0.weight"].shape[1])
        concat_weight = state.get("feature_extraction.lastconv.2.weight")
        state["feature_extraction.firstconv.0.0.weight"], state["dres2.conv1.0.0.weight"]
    except (KeyError, IndexError):
        raise UseError(f"{what}: no weights of an SMStereo or GwcNet network") from None
    concat = 0 if concat_weight is None else int(concat_weight.shape[0])
    maxdisp = description.get("maxdisp") if description else None
    return {
        "maxdisp": maxdisp if isinstance(maxdisp, int) else 192, "groups": inputs - 2 * concat, "concat": concat
    }  # fmt: skip


def has_masks(state: Mapping[str, Tensor]) -> bool:
    """Whether weights include masks; a GwcNet's do not."""
    return "dres2.conv1.ch_mask" in state


def load_into(network: SMStereo, state: Mapping[str, Tensor], what: object = "checkpoint") -> None:
    """Load weights strictly; a GwcNet's have no masks and leave the network's unchanged.

    Args:
        network: changed in place.
        state: the weights.
        what: the file's name in errors.

    Raises:
        UseError: weights that do not fit.
    """
    if not has_masks(state):
        mask_state = {k: v for k, v in network.state_dict().items() if "ch_mask" in k or ".locate." in k}
        state = {**state, **mask_state}
    weights.load_strictly(network, state, what)


def build(state: Mapping[str, Tensor], what: object = "checkpoint", description: Mapping | None = None) -> SMStereo:
    """Build the network of a state dict, in evaluation mode; without masks in it, all channels are dense.

    Arguments as :func:`config_of`.

    Raises:
        UseError: weights of another network.
    """
    config = config_of(state, what, description)
    network = build_described(lambda: SMStereo(**config), state, what, load_into)
    if not has_masks(state):
        with torch.no_grad():
            for module in network.hourglasses:
                for conv in module.convs:
                    conv.ch_mask.copy_(torch.tensor([1.0, 0.0]).expand_as(conv.ch_mask))
    return network


def load_smstereo(path: str | os.PathLike) -> SMStereo:
    """Load a network from a GwcNet's checkpoint, a run's checkpoint or a safetensors file, in evaluation mode.

    See :func:`sparsemask.spaces.sparse_conv.masked_space.load`.
    """
    return masked_space.load(path, build)


def save_smstereo(path: str | os.PathLike, network: SMStereo, masks: FineMasks | None = None) -> None:
    """Write a network as safetensors; arguments as :func:`sparsemask.spaces.sparse_conv.masked_space.save`."""
    masked_space.save(path, network, "smstereo", masks)
