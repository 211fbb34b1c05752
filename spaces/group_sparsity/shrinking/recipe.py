"""How a small network is made from its original class again: which channels stayed; files of small networks."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.compression.border import fit_additions
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.tracing.graph import STATISTICS, ChannelGraph, trace
from sparsemask.spaces.group_sparsity.tracing.plain_weights import plain_weights

_MOST = 1 << 24  # channels of a layer that a file may claim


@dataclass(frozen=True)
class Recipe:
    """Which channels of the original network's parameters stayed, or of those of a network made small before.

    Attributes:
        kept: by parameter and dimension that lost channels ("conv1.weight:0"), "count:mask", the mask in hexadecimal,
            first channel first.
        inputs: shapes and types of the example, with which the network is traced again.
        added: biases and borders (:mod:`sparsemask.spaces.group_sparsity.compression.border`) that hold constants of
            removed channels, by the names of their parameters.
        statistics: "exact" or "free", as the network was traced.
        former: the recipe of that network where it was made small before; None: it is of the original class. One
            trace serves as many steps as it allows: a smaller network may tie other channels (heads get narrower, then
            one goes).
    """

    kept: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    statistics: str = "exact"
    former: Recipe | None = None

    def rebuild(self, network: nn.Module) -> nn.Module:
        """Make a network of the original class small, in place, for weights to be loaded into.

        Args:
            network: of the original class; its weights do not matter. Not changed where its weights are computed
                (:func:`sparsemask.spaces.group_sparsity.tracing.plain_weights.plain_weights`).

        Returns:
            The network, or its copy with plain weights, of the shapes of the small one.

        Raises:
            UseError: a network of other layers or sizes.
        """
        like = next((p for p in network.parameters() if p.is_floating_point()), None)
        steps = self._steps()
        network = plain_weights(network, Inputs.drawn(steps[0].inputs, like).given)
        while steps:
            graph = trace(network, Inputs.drawn(steps[0].inputs, like).given, steps[0].statistics)
            done = _remove(network, graph, steps)
            added = (name for step in steps[:done] for name in step.added)
            fit_additions(network, {name: _zeros(network, name) for name in added})
            steps = steps[done:]
        return network

    def _steps(self) -> list[Recipe]:
        """The recipes of all steps, the first one of the original class."""
        steps, step = [self], self.former
        while step is not None:
            steps, step = [step, *steps], step.former
        return steps

    def gone(self, graph: ChannelGraph) -> np.ndarray:
        """The elements of a channel graph of the network before that went, bool (graph.count,).

        Raises:
            UseError: a graph of other layers or sizes.
        """
        gone = np.zeros(graph.count, dtype=bool)
        for key, text in self.kept.items():
            name, _, dim = key.rpartition(":")
            elements = graph.axes.get(name, {}).get(int(dim))
            if elements is None:
                raise UseError(f"the recipe's network has a parameter '{name}' with channels, this one does not")
            mask = unpacked(text)
            if len(mask) != len(elements):
                raise UseError(f"'{name}' has {len(elements)} channels, in the recipe's network {len(mask)}")
            gone[elements[~mask]] = True
        return gone

    def as_json(self) -> dict[str, Any]:
        """The recipe as values of JSON."""
        lists = {"kept": dict(self.kept), "inputs": dict(self.inputs), "added": list(self.added)}
        return {**lists, "statistics": self.statistics, "former": self.former and self.former.as_json()}

    @classmethod
    def from_json(cls, values: object, what: object) -> Recipe:
        """Make a recipe from the values of :meth:`as_json`, perhaps of a stranger's file.

        Raises:
            UseError: they are no recipe; the message begins with `what`.
        """
        try:
            assert isinstance(values, Mapping)
            kept = {_key(str(key)): packed(unpacked(str(text))) for key, text in values["kept"].items()}
            assert values["statistics"] in STATISTICS
            added = tuple(str(name) for name in values["added"])
            former = None if values["former"] is None else cls.from_json(values["former"], what)
            return cls(kept, dict(values["inputs"]), added, values["statistics"], former)
        except (RecursionError, AssertionError, KeyError, TypeError, ValueError, AttributeError):
            raise UseError(f"{what}: says nothing readable of the channels that it kept") from None


def _remove(network: nn.Module, graph: ChannelGraph, steps: Sequence[Recipe]) -> int:
    """Remove from a traced network what as many steps as possible remove, in place; the number of these steps."""
    own = dict(network.named_parameters()).keys()
    for count in range(len(steps), 1, -1):
        gone = _composed(graph, own, steps[:count])
        if gone is not None:
            with contextlib.suppress(UseError):  # refused before anything is changed
                graph.remove(network, gone)
                return count
    graph.remove(network, steps[0].gone(graph))
    return 1


def _composed(graph: ChannelGraph, own: Collection[str], steps: Sequence[Recipe]) -> np.ndarray | None:
    """What several steps remove from the first one's network, bool (graph.count,).

    None where its channels do not hang together so: each of its `own` parameters must keep just what the steps leave.
    """
    lines = {f"{name}:{dim}": e for name, axes in graph.axes.items() if name in own for dim, e in axes.items()}
    masks = {key: np.ones(len(elements), dtype=bool) for key, elements in lines.items()}
    for step in steps:
        for key, text in step.kept.items():
            mask, left = masks.get(key), unpacked(text)
            if mask is None and key.rpartition(":")[0] not in own:
                continue  # added by a step before, of the size that its layer's weight has
            if mask is None or len(left) != mask.sum() or step.statistics != steps[0].statistics:
                return None
            mask[mask] = left
    gone = np.zeros(graph.count, dtype=bool)
    for key, mask in masks.items():
        gone[lines[key][~mask]] = True
    return gone if all((gone[lines[key]] != mask).all() for key, mask in masks.items()) else None


def _key(text: str) -> str:
    """The text, if it names a parameter and a dimension; otherwise ValueError."""
    name, _, dim = text.rpartition(":")
    return f"{name}:{int(dim)}"


def packed(mask: np.ndarray) -> str:
    """A bool array as text: its length and its bits in hexadecimal."""
    return f"{len(mask)}:{np.packbits(mask).tobytes().hex()}"


def unpacked(text: str) -> np.ndarray:
    """The bool array of :func:`packed`.

    Raises:
        ValueError: no such text.
    """
    count, _, bits = text.partition(":")
    data = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    if not 0 < int(count) <= _MOST or len(data) != -(-int(count) // 8):
        raise ValueError(text[:80])
    return np.unpackbits(data, count=int(count)).astype(bool)


def recipe_of(
    network: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    removed: np.ndarray,
    inputs: Inputs,
    statistics: str,
    former: Recipe | None = None,
) -> Recipe:
    """The recipe of a small network.

    Args:
        network: that it was made from.
        small: the result.
        graph: channels of `network`.
        removed: elements that went, bool (graph.count,).
        inputs: the example.
        statistics: as `network` was traced.
        former: the recipe of `network` where that was made small before.
    """
    own, kept = dict(network.named_parameters()).keys(), {}
    for name, axes in graph.axes.items():
        for dim, elements in axes.items() if name in own else ():
            mask = ~removed[elements]
            if not mask.all():
                kept[f"{name}:{dim}"] = packed(mask)
    added = sorted(small.state_dict().keys() - network.state_dict().keys())
    return Recipe(kept, inputs.describe(), tuple(added), statistics, former)


def _zeros(network: nn.Module, name: str) -> Tensor:
    """A bias or border for a layer of these sizes."""
    layer, _, kind = name.rpartition(".")
    try:
        module = network.get_submodule(layer)
        weight = network.get_parameter(f"{layer}.weight").detach()
    except AttributeError:
        raise UseError(f"the recipe's network has a layer '{layer}', this one does not") from None
    transposed = isinstance(module, _ConvTransposeNd)
    if kind == "border":
        return torch.zeros_like(weight[:1] if transposed else weight[:, :1])
    return weight.new_zeros(module.out_channels if isinstance(module, _ConvTransposeNd) else len(weight))
