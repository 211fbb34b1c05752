"""The networks that can be searched, by name."""

from __future__ import annotations

import importlib

from sparsemask import _checkout

from sparsemask.errors import choose  # isort: skip  (before torch: it says how threads wait)

from sparsemask.spaces.protocols import Loaded, Space

__all__ = ["Loaded", "Space", "available", "get", "register"]

_checkout.unify(__name__)

# Imported when asked for, so that one family's needs are no burden to another.
_MODULES = {
    "connectivity": "sparsemask.spaces.connectivity.space",
    "smsr": "sparsemask.spaces.smsr.space",
    "smpointseg": "sparsemask.spaces.smpointseg.space",
    "smstereo": "sparsemask.spaces.smstereo.space",
    "specialized": "sparsemask.spaces.specialized.space",
    "hinge": "sparsemask.spaces.group_sparsity.space",
    "slim": "sparsemask.spaces.connectivity_pruned_encoder.space",
}
_SPACES: dict[str, Space] = {}


def register(name: str, space: Space) -> Space:
    """Make a space known to all commands.

    Args:
        name: what --space says; a later space of the same name replaces the earlier.
        space: its attribute `name` is set.

    Returns:
        The space.

    Raises:
        TypeError: an object that is no :class:`Space`.
    """
    if not isinstance(space, Space):
        raise TypeError(f"{name}: expected a spaces.Space, got {type(space).__name__}")
    space.name = name
    _SPACES[name] = space
    return space


def available() -> list[str]:
    """Names of all spaces."""
    return sorted(_MODULES.keys() | _SPACES.keys())


def get(name: str) -> Space:
    """The space of a name.

    Raises:
        UseError: no space has this name; the error lists those that there are.
    """
    choose(name, available(), "space")
    if name not in _SPACES:
        importlib.import_module(_MODULES[name])
    return _SPACES[name]
