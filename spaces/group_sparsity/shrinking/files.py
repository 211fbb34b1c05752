"""Files of small networks: weights, and the recipe by which the original class becomes small again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from sparsemask import weights
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.shrinking.report import Report, former_report

_SUFFIX, _ENTRY = ".safetensors", "shrunk"


def save(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a small network as a safetensors file: its weights, its recipe and its report. There is no pickle in it.

    Args:
        network: a result of :func:`sparsemask.shrink`, trained further or not.
        path: the file, `.safetensors`; written atomically.

    Raises:
        UseError: another suffix, or a network without a report.
    """
    report = former_report(network)
    if report is None:
        raise UseError(
            f"{type(network).__name__} has no report: only networks that sparsemask.shrink made are saved so"
        )
    weights.save_safetensors(_checked(path), network.state_dict(), {_ENTRY: json.dumps(report.as_json())})


def load(path: str | os.PathLike[str], network: nn.Module) -> nn.Module:
    """Make a network small as a file says, and load its weights.

    Args:
        path: a file of :func:`save`.
        network: of the original class, with any weights; changed in place, unless its weights are computed (weight
            norm, parametrisations).

    Returns:
        The network, or its copy with plain weights, in the mode that it had, with its report.

    Raises:
        UseError: not such a file, damaged, or of a network of other layers or sizes.

    Example:
        ``small = sparsemask.load("small.safetensors", resnet50())``
    """
    path = _checked(path)
    state = weights.read_checkpoint(path)
    entries = weights.metadata(path)
    if _ENTRY not in entries:
        raise UseError(f"{path}: does not say how its network was made small; was it written by sparsemask.save?")
    report = Report.from_json(entries[_ENTRY], path)
    try:
        network = report.recipe.rebuild(network)
    except UseError as error:
        raise UseError(f"{path}: {error}") from None
    weights.load_strictly(network, state, path)
    network.report = report  # type: ignore[assignment]
    return network


def is_shrunk(path: str | os.PathLike[str]) -> bool:
    """Whether an existing file is one of :func:`save`."""
    return Path(path).suffix == _SUFFIX and _ENTRY in weights.metadata(path)


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise UseError(f"{path}: a small network is a {_SUFFIX} file")
    return path
