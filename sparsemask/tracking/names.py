"""The names of --track; without torch, which a command line alone does not need."""

from __future__ import annotations

import argparse
import importlib.util
from typing import NamedTuple

from sparsemask.errors import UseError, meant
from sparsemask.plugins import imported, is_own

NONE = "none"


class Known(NamedTuple):
    """A tracker that ships: its class, the module that it needs, and the extra that installs it."""

    code: str
    module: str
    extra: str | None = None


KNOWN = {
    "tensorboard": Known("sparsemask.tracking.tensorboard:TensorBoard", "tensorboardX"),
    "mlflow": Known("sparsemask.tracking.mlflow:MLflow", "mlflow", "mlflow"),
    "wandb": Known("sparsemask.tracking.wandb:WeightsAndBiases", "wandb", "wandb"),
    "trackio": Known("sparsemask.tracking.trackio:Trackio", "trackio", "trackio"),
}
NAMES = tuple(KNOWN)


def track_names(text: str) -> str:
    """argparse type: names of trackers with commas between them, or "none"."""
    names = split_names(text)
    if not names or len(set(names)) < len(names) or (NONE in names and len(names) > 1):
        raise argparse.ArgumentTypeError(f"names of trackers with commas between them, or none, not {text!r}")
    return ",".join(names)


def split_names(text: str) -> list[str]:
    """The names in --track."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check(text: str) -> None:
    """Raise a UseError where a tracker of --track is unknown or its package is missing; nothing heavy is imported."""
    for name in split_names(text):
        if name == NONE:
            continue
        if is_own(name):
            imported(name, "tracker")
            continue
        if name not in KNOWN:
            near = meant(name, NAMES)
            raise UseError(
                f"--track {name}: {near}known: {', '.join(NAMES)}, none, or package.module:Tracker of your own"
            )
        known = KNOWN[name]
        if importlib.util.find_spec(known.module) is None:
            package = f"'sparsemask[{known.extra}]'" if known.extra else known.module
            raise UseError(f"--track {name}: {known.module} is not installed: pip install {package}")
