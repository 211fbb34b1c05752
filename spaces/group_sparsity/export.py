"""Export of networks with pruned groups: batch norms folded, borders precomputed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sparsemask.exporting import Exportable, laid_out, pure
from sparsemask.inference import merge_parts
from sparsemask.spaces.group_sparsity.fast import fast_form, folded


def exportable(network: nn.Module, batch: Tensor, mask=None, save=None) -> Exportable:
    """Describe a network as a function from images (B, C, H, W) of the size of `batch`, any B, to its outputs.

    Args:
        network: in evaluation mode, on the CPU.
        batch: an example (B, C, H, W).
        mask: the groups that were kept; None: a plain network.
        save: (path, network, mask), writes the network as a safetensors file.
    """
    two = torch.cat([batch, batch]) if len(batch) == 1 else batch
    fast, _ = fast_form(network, tuple(batch.shape[1:]), len(batch), batch.device)
    whole = merge_parts(folded(network, two), fast.merged).requires_grad_(False)
    plain = pure(whole, lambda net, picture: net(picture))

    def write(path: Path) -> None:
        save(path, network, mask)

    absent = "a plain network's weights are a file already: only pruned networks say how they are built"
    return Exportable(
        network=network,
        fast=fast,
        save=write,
        program=laid_out(plain, fast.last),
        plain=plain,
        inputs={"picture": two},
        outputs=("scores",),
        dynamic=({0: torch.export.Dim.DYNAMIC},),
        refused={} if mask is not None else {".safetensors": absent},
    )
