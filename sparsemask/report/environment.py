"""On what a run was computed: versions and machine, noted in its run.json when it begins."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from sparsemask._version import __version__


def environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Versions of what computes, and the machine, as plain values for run.json."""
    device = torch.device(device)
    found: dict[str, str | int] = {"sparsemask": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy"):
        found[package] = importlib.metadata.version(package)
    found |= {"system": platform.platform(terse=True), "processor": _processor(), "cores": os.cpu_count() or 1}
    found["threads"] = torch.get_num_threads()
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return found


def _processor() -> str:
    """The processor's name as people know it; the architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
