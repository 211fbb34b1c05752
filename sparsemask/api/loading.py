"""Networks by the name of one that ships, by their file or by their run."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from sparsemask import models, runs, spaces
from sparsemask.errors import UseError
from sparsemask.retrain.trained import family_of
from sparsemask.spaces import sr_networks
from sparsemask.spaces.group_sparsity import shrinking
from sparsemask.spaces.sr_networks.space import SRSpace, has_masks
from sparsemask.weights import file_space, load_weights

SR = SRSpace.name


def load(source: str | os.PathLike[str], network: nn.Module | None = None) -> nn.Module:
    """Load a trained network.

    Args:
        source: a name that `sparsemask models` lists, the folder of a finished retraining or specialisation, or a
            file: a run's network.safetensors or checkpoint, the weights of a super-resolution network of a public
            architecture, or, with `network`, what :func:`sparsemask.save` wrote.
        network: of the class that :func:`sparsemask.shrink` made small, with any weights; changed in place as
            :func:`sparsemask.spaces.group_sparsity.shrinking.load` says. None: `source` itself says what to build.

    Returns:
        Without `network`: a new network in evaluation mode, on the CPU. It takes what its space's networks take:
        normalised images (N, 3, H, W) those of segmentation, images of 0 to 255 those of super-resolution,
        a :class:`sparsemask.points.PointBatch` SMPointSeg.

    Raises:
        UseError: no such name, run or file, a damaged one, or one that does not say of what network it is.

    Example:
        ``network = sparsemask.load("compact-x2-masked")``
    """
    if network is not None:
        return shrinking.load(source, network)
    path = Path(models.path_of(os.fspath(source)))
    if path.is_dir():
        run = runs.find(path)
        return family_of(str(run.info().get("space"))).load_run(run).eval()
    if not path.exists():
        raise UseError(
            f"{source}: no such file or run, and no network of that name ships: {', '.join(models.available())}"
        )
    if shrinking.is_shrunk(path):
        raise UseError(
            f"{source}: a network that shrink made small is loaded into one of its class: load(path, network)"
        )
    space = file_space(path)
    if space in (None, SR) and not has_masks(load_weights(path)):  # which name no space, unless they were exported
        return sr_networks.load(path).eval()
    return spaces.get(space or SR).load(path).network.eval()
