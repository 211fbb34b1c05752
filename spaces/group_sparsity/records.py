"""Run records of this family: kept groups, costs compared with the plain network's, norms before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_text
from sparsemask.pictures.hinge import draw_kept, draw_spectra
from sparsemask.runs import Run
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.training_setup import Context

_START = "norms.json"


def keep_start_norms(context: Context, hinged: Hinged) -> None:
    """Write the groups' initial norms into the run's folder."""
    if context.main:
        norms = hinged.reduction.norms(hinged.network)
        rounded = {name: [float(f"{v:.4g}") for v in n] for name, n in norms.items()}
        write_text(context.run.folder / _START, json.dumps(rounded))


def start_norms(run: Run) -> dict[str, list[float]]:
    """Read the groups' initial norms by set name; empty if there are none."""
    try:
        norms = read_json(run.folder / _START)
    except (OSError, UseError):
        return {}
    return norms if isinstance(norms, dict) else {}


def entries(reduction: Reduction, kept: Mapping[str, np.ndarray], merged: tuple[str, ...]) -> dict:
    """Entries of run.json: kept groups and costs.

    Args:
        reduction: of the network.
        kept: by set name, bool (count,).
        merged: names of merged pairs.
    """
    cost, plain = reduction.cost(kept, merged), reduction.baseline
    result = {"groups": {name: {"kept": int(k.sum()), "total": len(k)} for name, k in kept.items()}}
    result["merged"] = list(merged)
    names = {"parameters": "params", "multiply_adds": "multiply-adds", "multiply_adds_true": "executed"}
    for entry, name in names.items():
        result |= {entry: cost[name], f"{entry}_dense": plain[name]}
    return result


def conclude_search(context: Context, hinged: Hinged, kept: Mapping[str, np.ndarray]) -> None:
    """Draw the result of a search and write its entries of run.json.

    Args:
        context: of the run.
        hinged: the searched network.
        kept: the groups above the threshold, bool (count,) by set name.
    """
    config, run, reduction = context.config, context.run, hinged.reduction
    merged = reduction.merged(reduction.removal.gone(kept), config.family.merge)
    run.note(**entries(reduction, kept, merged), threshold=config.family.thres)
    draw_groups(run, kept, reduction.norms(hinged.network), config.family.thres)
    context.draw_training(hinged.network)


def draw_groups(
    run: Run, kept: Mapping[str, np.ndarray], norms: Mapping[str, np.ndarray], threshold: float | None
) -> None:
    """Draw the kept groups of every set, and norms before and after the search.

    Args:
        run: whose folder the drawings go to.
        kept: bool (count,) by set name.
        norms: (count,) by set name, after the search.
        threshold: on the norms; None: not drawn.
    """
    draw_kept_groups(run, kept)
    draw_spectra(start_norms(run), norms, run.pictures / "spectra.png", threshold)


def draw_kept_groups(run: Run, kept: Mapping[str, np.ndarray]) -> None:
    """Draw the kept groups of every set."""
    draw_kept({name: (int(k.sum()), len(k)) for name, k in kept.items()}, run.pictures / "kept.png")


def times(
    small: nn.Module, config: Mapping, batch: int, device: torch.device, compiled: bool = False, rounds: int = 9
) -> dict:
    """Entries of run.json: milliseconds of a small network and of the plain one, on a batch.

    Args:
        small: the pruned network.
        config: its recipe.
        batch: inputs at once.
        device: to measure on.
        compiled: also consider compiled forms.
        rounds: timed calls of each network.
    """
    plain = spaces.get("hinge").plain(config)
    shape = config["input_shape"]
    milliseconds = compare_times({"small": small, "plain": plain}, shape, batch, device, compiled, rounds)
    return {
        "milliseconds": milliseconds["small"],
        "milliseconds_dense": milliseconds["plain"],
        "timed": {"device": str(device), "threads": torch.get_num_threads(), "batch": batch, "compiled": compiled},
    }
