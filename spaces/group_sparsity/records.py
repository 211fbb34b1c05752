"""What runs of this family note and draw: groups kept, costs beside the plain network's, norms before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from sparsemask import run_summary, spaces
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_text
from sparsemask.pictures.hinge import draw_kept, draw_spectra
from sparsemask.runs import Run
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.training_setup import Context

_START = "norms.json"


def keep_start_norms(context: Context, hinged: Hinged) -> None:
    """Keep the norms that the groups begin with."""
    if context.main:
        norms = hinged.reduction.norms(hinged.network)
        rounded = {name: [float(f"{v:.4g}") for v in n] for name, n in norms.items()}
        write_text(context.run.folder / _START, json.dumps(rounded))


def start_norms(run: Run) -> dict[str, list[float]]:
    """Those norms; empty where none were kept."""
    try:
        found = read_json(run.folder / _START)
    except (OSError, UseError):
        return {}
    return found if isinstance(found, dict) else {}


def entries(found: Reduction, kept: Mapping[str, np.ndarray], merged: tuple[str, ...]) -> dict:
    """Entries of run.json about what stays and what that costs."""
    cost, plain = found.cost(kept, merged), found.baseline
    noted = {"groups": {name: {"kept": int(k.sum()), "total": len(k)} for name, k in kept.items()}}
    noted["merged"] = list(merged)
    names = {"parameters": "params", "multiply_adds": "multiply-adds", "multiply_adds_true": "executed"}
    for entry, name in names.items():
        noted |= {entry: cost[name], f"{entry}_dense": plain[name]}
    return noted


def conclude_search(context: Context, hinged: Hinged, kept: Mapping[str, np.ndarray]) -> None:
    """Pictures and entries at the end of a search."""
    config, run, found = context.config, context.run, hinged.reduction
    merged = found.merged(found.removal.gone(kept), config.family.merge)
    run.note(**entries(found, kept, merged), threshold=config.family.thres)
    draw_groups(run, kept, found.norms(hinged.network), config.family.thres)
    run_summary.draw_training(context, hinged.network)


def draw_groups(
    run: Run, kept: Mapping[str, np.ndarray], norms: Mapping[str, np.ndarray], threshold: float | None
) -> None:
    """What stays of every set, and how its norms fell."""
    draw_kept_groups(run, kept)
    draw_spectra(start_norms(run), norms, run.pictures / "spectra.png", threshold)


def draw_kept_groups(run: Run, kept: Mapping[str, np.ndarray]) -> None:
    """What stays of every set."""
    draw_kept({name: (int(k.sum()), len(k)) for name, k in kept.items()}, run.pictures / "kept.png")


def times(
    small: nn.Module, config: Mapping, batch: int, device: torch.device, compiled: bool = False, rounds: int = 9
) -> dict:
    """Entries of run.json: milliseconds of a small network and of the plain one, on a batch."""
    plain = spaces.get("hinge").plain(config)
    shape = config["input_shape"]
    found = compare_times({"small": small, "plain": plain}, shape, batch, device, compiled, rounds)
    return {
        "milliseconds": found["small"],
        "milliseconds_dense": found["plain"],
        "timed": {"device": str(device), "threads": torch.get_num_threads(), "batch": batch, "compiled": compiled},
    }
