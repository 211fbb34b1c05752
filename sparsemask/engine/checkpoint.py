"""Checkpoints: everything that an exact continuation of a run needs, written atomically."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import torch

from sparsemask.engine import randomness
from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.options import Parser
from sparsemask.weights import read_checkpoint

FORMAT = 1
_NEEDED = ("model", "optimizer", "scaler", "best", "step", "random", "config", "space", "verb")
# What a family's checkpoints carry beside that.
_CARRIED = {
    ("search", "hinge"): ("network",),
    ("search", "slim"): ("network",),
    ("retrain", "hinge"): ("mask", "teacher"),
    **{("retrain", space): ("mask",) for space in ("connectivity", "smsr", "smpointseg", "smstereo")},
}


def save(path: str | Path, state: dict) -> None:
    """Write a checkpoint atomically: serialised in memory first, so that a full disk leaves the last good file."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state, "random": randomness.states()}, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: str | Path, space: str | None = None) -> dict:
    """Read a checkpoint of this toolkit; UseError when it is another kind of file or of another space."""
    state = read_checkpoint(path)  # every entry that is there is of its type
    missing = [key for key in _NEEDED if key not in state]
    if missing:
        raise UseError(f"{path}: weights, but not a checkpoint of a run (no {', '.join(missing)})")
    if state.get("format", 0) > FORMAT:
        raise UseError(f"{path}: written by a newer version (format {state['format']}, known: {FORMAT})")
    if lacking := [key for key in _CARRIED.get((state["verb"], state["space"]), ()) if key not in state]:
        raise UseError(f"{path}: damaged: a checkpoint of {state['verb']} without {', '.join(lacking)}")
    if space is not None and state["space"] != space:
        raise UseError(f"{path}: a checkpoint of space '{state['space']}', not of '{space}'")
    return state


def saved_flags(state: dict, parser: Parser, what: object, without: Collection[str] = ()) -> dict:
    """A checkpoint's configuration as flags that a parser knows, checked like the command line's; others are left out.

    Raises:
        UseError: one has a value that its flag cannot have; the message names `what`.
    """
    actions = parser.actions()
    flags = parser.checked({k: v for k, v in state["config"].items() if k in actions and k not in without}, what)
    require(flags, parser, what, ("crop_size",))
    return flags


# Flags that presets settle, so that every run's configuration has them, where the verb has them.
SETTLED = ("batch_size", "lr", "log_interval", "crop_size", "n_points", "train_steps", "val_steps")


def require(flags: dict, parser: Parser, what: object, names: Collection[str] = SETTLED) -> None:
    """Raise UseError where a run's configuration lacks a flag that every run of the verb has."""
    actions = parser.actions()
    lacking = [name for name in names if name in actions and flags.get(name) is None]
    if names is SETTLED and flags.get("max_iter") is None and flags.get("max_epoch") is None:
        lacking.append("max_iter")
    if lacking:
        raise UseError(f"{what}: incomplete: it does not say {', '.join(lacking)}")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load an optimizer's state; ValueError where its settings or tensors are not those of this optimizer.

    torch itself compares the numbers of parameters only, and fails steps later on what does not fit.
    """
    before = [{key: _kind(value) for key, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, kinds in zip(optimizer.param_groups, before, strict=True):
        for key, kind in kinds.items():
            if key != "params" and _kind(group.get(key)) != kind:
                raise ValueError(f"the optimizer's {key} cannot be {group.get(key)!r:.40}")
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                    raise ValueError(f"the optimizer's {key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")


def _kind(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(map(_kind, value))
    return "a number" if isinstance(value, int | float) else type(value)


def finite(module: torch.nn.Module) -> bool:
    """Whether every parameter and buffer is finite (a network that is not must never replace a good checkpoint)."""
    values = [*module.parameters(), *module.buffers()]
    return all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point())
