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
    "sr": "sparsemask.spaces.sr_networks.space",
    "slim": "sparsemask.spaces.connectivity_pruned_encoder.space",
}
_SPACES: dict[str, Space] = {}


def register(name: str, space: Space) -> Space:
    """Register a space, so that every command can find it by name.

    Args:
        name: value of ``--space``; registering a name again replaces the earlier space.
        space: the space; its attribute `name` is set to `name`.

    Returns:
        The space itself.

    Raises:
        TypeError: `space` is not a :class:`Space`.
    """
    if not isinstance(space, Space):
        raise TypeError(f"{name}: expected a spaces.Space, got {type(space).__name__}")
    space.name = name
    _SPACES[name] = space
    return space


def available() -> list[str]:
    """Return the names of all spaces, sorted."""
    return sorted(_MODULES.keys() | _SPACES.keys())


def get(name: str) -> Space:
    """Return a space by its name; its module is imported on first use.

    Args:
        name: one of :func:`available`.

    Returns:
        The registered space.

    Raises:
        UseError: no space has this name; the message lists the known ones.
    """
    choose(name, available(), "space")
    if name not in _SPACES:
        importlib.import_module(_MODULES[name])
    return _SPACES[name]
