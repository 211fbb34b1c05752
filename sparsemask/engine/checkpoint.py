"""Checkpoints: everything a run needs to go on exactly, written beside and renamed into place."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from sparsemask.engine import randomness
from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.weights import read_checkpoint

FORMAT = 1
_NEEDED = ("model", "optimizer", "scaler", "best", "step", "random", "config", "space", "verb")


def save(path: str | Path, state: dict) -> None:
    """Serialise first, then write: a full disk then fails as an ordinary write and leaves the last good file."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state, "random": randomness.states()}, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: str | Path, space: str | None = None) -> dict:
    """Read a checkpoint of this toolkit; UseError when it is another kind of file or of another space."""
    state = read_checkpoint(path)
    missing = [key for key in _NEEDED if key not in state]
    if missing:
        raise UseError(f"{path}: weights, but not a checkpoint of a run (no {', '.join(missing)})")
    if state.get("format", 0) > FORMAT:
        raise UseError(f"{path}: written by a newer version (format {state['format']}, known: {FORMAT})")
    if space is not None and state["space"] != space:
        raise UseError(f"{path}: a checkpoint of space '{state['space']}', not of '{space}'")
    return state


def finite(module: torch.nn.Module) -> bool:
    """Whether every parameter and buffer is finite (a network that is not must never replace a good checkpoint)."""
    values = [*module.parameters(), *module.buffers()]
    return all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point())
