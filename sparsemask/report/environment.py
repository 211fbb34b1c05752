"""Entries of run.json for the report: the environment, and the costs of the network."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from sparsemask._version import __version__
from sparsemask.costs import Cost
from sparsemask.devices import processor


def environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Versions of what computes, and the machine, as plain values for run.json."""
    device = torch.device(device)
    values: dict[str, str | int] = {"sparsemask": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy"):
        values[package] = importlib.metadata.version(package)
    values |= {"system": platform.platform(terse=True), "processor": processor(), "cores": os.cpu_count() or 1}
    values["threads"] = torch.get_num_threads()
    values["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return values


def cost_entries(cost: Cost, size: int) -> dict:
    """Entries of run.json for the cost of a network on one image of `size` × `size`."""
    return {
        "parameters": cost.parameters,
        "decoder_parameters": cost.decoder_parameters,
        "multiply_adds": cost.multiply_adds,
        "milliseconds": cost.milliseconds,
        "input_size": size,
        "timed": {"device": cost.device, "threads": cost.threads, "spread": cost.spread},
    }
