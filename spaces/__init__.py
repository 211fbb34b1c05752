"""The networks that can be searched, by name."""

from __future__ import annotations

import importlib
from typing import Protocol

from sparsemask import _checkout

from sparsemask.errors import choose  # isort: skip  (before torch: it says how threads wait)

from torch import nn

_checkout.unify(__name__)

# Imported when asked for, so that one family's needs are no burden to another.
_MODULES = {
    "connectivity": "spaces.connectivity.space",
    "smsr": "spaces.sparse_conv.space",
    "smpointseg": "spaces.sparse_conv.points_space",
    "smstereo": "spaces.sparse_conv.stereo_space",
    "specialized": "spaces.specialized.space",
    "hinge": "spaces.group_sparsity.space",
    "slim": "spaces.slim.space",
}
_SPACES: dict[str, Space] = {}


class Space(Protocol):
    """What the commands ask of a space; `config` is a mapping or namespace of options.

    A space may have ``load_into(network, state, what)``, which starts a network from weights it knows how to read, and
    network flags of its own, ``add_options(group)`` (else it has those of an encoder), ``task``,
    the task its networks are for (else segmentation), and ``small``, the space that its small networks are of (else
    its own).
    """

    family: str
    name: str  # as registered

    def supernet(self, config) -> nn.Module:
        """The network with relaxed masks."""

    def network(self, mask, config) -> nn.Module:
        """The small network that a mask describes."""

    def transfer(self, checkpoint, mask, config) -> dict:
        """The state the small network starts from, out of the supernet's."""

    def cost(self, net: nn.Module, input_shape: tuple[int, ...]):
        """Parameters, executed multiply-adds and time of `net`."""


def register(name: str, space: Space) -> Space:
    """Make `space` known as `name` (a later one of the same name replaces it)."""
    space.name = name
    _SPACES[name] = space
    return space


def available() -> list[str]:
    """Names of all spaces."""
    return sorted(_MODULES.keys() | _SPACES.keys())


def get(name: str) -> Space:
    """The space called `name`; UseError listing the right names otherwise."""
    choose(name, available(), "space")
    if name not in _SPACES:
        importlib.import_module(_MODULES[name])
    return _SPACES[name]
