"""Numbers of channels that modules keep as attributes: found where a forward uses them, updated with the channels.

While a network is traced its modules' integers are replaced by :class:`Tagged` ones, which say where they come from in
every size that is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.tracing.record import Number

# Their numbers are set from the shapes of their weights.
_OWN = (_ConvNd, nn.Linear, _NormBase, torch.jit.ScriptModule)
_LONGEST = 16
_KINDS = (int, tuple, list)


@dataclass(frozen=True)
class Source:
    """An attribute of a module that holds an integer."""

    module: str
    attribute: str
    index: int | None
    value: int


class Tagged(int):
    """An integer that knows the attributes it was computed from."""

    sources: frozenset[Source]

    def __new__(cls, value: int, sources: frozenset[Source] = frozenset()) -> Tagged:
        """An integer of this value."""
        number = super().__new__(cls, value)
        number.sources = sources
        return number

    @property
    def source(self) -> Source | None:
        """The attribute whose value it is, unchanged."""
        only = next(iter(self.sources)) if len(self.sources) == 1 else None
        return only if only is not None and only.value == self else None


def _arithmetic(name: str) -> Callable[..., object]:
    plain = vars(int)[name]

    def computed(self: Tagged, *others: object) -> object:
        value = plain(self, *others)
        if type(value) is not int:
            return value
        sources = [other.sources for other in others if isinstance(other, Tagged)]
        return Tagged(value, self.sources.union(*sources))

    return computed


for _name in "add radd sub rsub mul rmul floordiv rfloordiv mod rmod neg".split():
    setattr(Tagged, f"__{_name}__", _arithmetic(f"__{_name}__"))


@contextmanager
def tagged(network: nn.Module) -> Iterator[None]:
    """Inside, integers of modules (and those in their tuples and lists) are tagged; afterwards they are as before."""
    changed = []
    for name, module in network.named_modules():
        if isinstance(module, _OWN):
            continue
        for key, value in list(vars(module).items()):
            if type(value) in _KINDS and not key.startswith("_") and (new := _tag(name, key, value)) is not None:
                vars(module)[key] = new
                changed.append((module, key, value, new))
    try:
        yield
    finally:
        for module, key, value, new in changed:
            if vars(module).get(key) is new:
                vars(module)[key] = value
        for module in network.modules():  # what a forward computed from them and kept
            for key, value in vars(module).items():
                if type(value) is Tagged or (type(value) in _KINDS and _holds_tagged(value)):
                    vars(module)[key] = _plain(value)


def _holds_tagged(value: Any) -> bool:
    return type(value) is not int and any(type(entry) is Tagged for entry in value)


def _plain(value: Any) -> object:
    if type(value) in (tuple, list):
        return type(value)(_plain(entry) for entry in value)
    return int(value) if type(value) is Tagged else value


def _tag(module: str, key: str, value: Any) -> object:
    """The value with its integers tagged; None if it holds none that could count channels."""
    if type(value) is int and value > 1:
        return Tagged(value, frozenset([Source(module, key, None, value)]))
    if type(value) in (tuple, list) and 0 < len(value) <= _LONGEST and all(type(entry) is int for entry in value):
        return type(value)(Tagged(n, frozenset([Source(module, key, k, n)])) for k, n in enumerate(value))
    return None


def bind(tags: Iterable[Tagged], counted: Sequence[np.ndarray]) -> list[Number]:
    """The attributes among `tags` whose values count one of these arrays of elements, the first that fits."""
    numbers = []
    for source in {source: None for tag in tags for source in tag.sources}:
        fits = next((elements for elements in counted if len(elements) == source.value), None)
        if fits is not None:
            numbers.append(Number(source.module, source.attribute, source.index, fits))
    return numbers


def remaining(numbers: Iterable[Number], alive: np.ndarray) -> dict[tuple[str, str, int | None], int]:
    """The values of the attributes that change: (module, attribute, index) -> remaining channels.

    Args:
        numbers: the attributes.
        alive: bool, by element.

    Raises:
        UseError: one attribute counts channels of which different numbers remain.
    """
    values: dict[tuple[str, str, int | None], int] = {}
    for number in numbers:
        key, value = (number.module, number.attribute, number.index), int(alive[number.elements].sum())
        if values.setdefault(key, value) != value:
            raise UseError(
                f"'{number.module}.{number.attribute}' stands for {values[key]} and for {value} of the remaining "
                "channels; remove as many of both"
            )
    counts = {(n.module, n.attribute, n.index): len(n.elements) for n in numbers}
    return {key: value for key, value in values.items() if value != counts[key]}


def update_(network: nn.Module, values: dict[tuple[str, str, int | None], int]) -> None:
    """Set attributes of modules to other numbers of channels, in place."""
    for (name, attribute, index), value in values.items():
        held = vars(network.get_submodule(name))
        if index is None:
            held[attribute] = value
        else:
            entries = list(held[attribute])
            entries[index] = value
            held[attribute] = type(held[attribute])(entries)
