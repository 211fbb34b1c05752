"""Write a network with fine-grained masks and its mask file."""

from __future__ import annotations

from torch import nn

from sparsemask import spaces
from sparsemask.files import sha256
from sparsemask.masks import npz
from sparsemask.masks import spatial as files
from sparsemask.spaces.sparse_conv.masking import hard_masks
from sparsemask.training_setup import Context

NETWORK = "network.safetensors"


def share(context: Context, model: nn.Module, measured: dict, threshold: float) -> files.FineMasks:
    """Write a finished run's network.safetensors and mask.npz, which refers to it.

    Args:
        context: of the run.
        model: the network.
        measured: as :func:`sparsemask.spaces.sparse_conv.records.conclude` returns it.
        threshold: of the data masks.

    Returns:
        The masks.
    """
    config, run = context.config, context.run
    space = spaces.get(config.network.space)
    network = run.folder / NETWORK
    masks = files.FineMasks(
        space=config.network.space,
        task=config.data.task,
        channels=hard_masks(model),
        sha256="",
        threshold=threshold,
        kept={name: module_metrics["kept"] for name, module_metrics in measured["masks"].items()},
        kept_whole=measured["kept_fraction"],
        measured_on=measured["measured_on"],
        config=space.config_of(model),
        checkpoint=str(network.resolve()),
        connectivity=space.connectivity_of(model),
    )
    space.save(network, model, masks)
    context.describe(network)
    masks = files.replace(masks, sha256=sha256(network))
    files.save_masks(run.folder / f"mask{npz.SUFFIX}", masks)
    run.note(network=network.name)
    return masks
