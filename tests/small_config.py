"""Configurations of tasks without a command line."""

from __future__ import annotations

from pathlib import Path

from sparsemask.config import RunConfig
from sparsemask.flags import DeviceSection, NetworkSection, RunSection, TrainingSection
from sparsemask.tasks import DataSection


def configured(data: type[DataSection], network: type[NetworkSection] = NetworkSection, /, **flags) -> RunConfig:
    """The flags of a training over their defaults; paths as text."""
    sections = {
        "run": RunSection,
        "data": data,
        "network": network,
        "device": DeviceSection,
        "training": TrainingSection,
    }
    values = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    return RunConfig.from_flat(sections, values)
