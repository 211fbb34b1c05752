"""Export of connectivity networks: without the pruned connections, batch norms folded."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.exporting import Exportable, laid_out, pure
from sparsemask.inference import merge_parts, optimize_for_inference
from sparsemask.spaces.connectivity.space import save_network
from sparsemask.spaces.group_sparsity.fast import fold_norms

SIZE = (64, 96)  # of the example; sizes are open


def exportable(network: nn.Module, batch: Tensor, options) -> Exportable:
    """Describe a PrunedNetwork or FCN as a function from images to scores at the last stage's size.

    Args:
        network: in evaluation mode, on the CPU.
        batch: images (B, C, H, W) as the task prepares them.
        options: of the run: backbone_name, depth, the encoder's form, n_class.
    """
    folded = copy.deepcopy(network).eval()
    folded.fold()
    with contextlib.suppress(UseError):  # norms of encoders that are not ours; one that cannot be traced keeps them
        fold_norms(folded, torch.zeros(1, batch.shape[1], *SIZE))
    fast = optimize_for_inference(network, batch, compiled=False)
    folded = merge_parts(folded, fast.merged).requires_grad_(False)
    plain = pure(folded, lambda net, picture: net(picture))

    def save(path: Path) -> None:
        save_network(path, network, options, options["n_class"])

    # Two images: torch.export takes a batch size of one for a constant.
    example = torch.zeros(2, batch.shape[1], *SIZE)
    any_size = torch.export.Dim.DYNAMIC
    return Exportable(
        network=network,
        fast=fast,
        save=save,
        program=laid_out(plain, fast.last),
        plain=plain,
        inputs={"picture": example},
        outputs=("scores",),
        dynamic=({0: any_size, 2: any_size, 3: any_size},),
    )
