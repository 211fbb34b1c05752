"""Weights of a whole network in one tensor, as operators of programs take them: many cost time to fetch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Weights packed by a :class:`Packer`.

    Attributes:
        numbers: all weights, one after another.
        flags: all bool tensors, likewise.
        layout: what is said of them, and their shapes.
        reals: likewise, numbers.
    """

    numbers: Tensor
    flags: Tensor
    layout: list[int]
    reals: list[float]


class Packer:
    """Packs weights and words in turn; a :class:`Reader` gives them in the same order."""

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []
        self._flags: list[Tensor] = []
        self._layout: list[int] = []
        self._reals: list[float] = []

    def word(self, *words: int) -> None:
        """Add whole numbers."""
        self._layout.extend(map(int, words))

    def real(self, *reals: float) -> None:
        """Add numbers."""
        self._reals.extend(map(float, reals))

    def tensor(self, *tensors: Tensor | None) -> None:
        """Add tensors of any shape, or None."""
        for tensor in tensors:
            if tensor is None:
                self.word(-1)
                continue
            flag = tensor.dtype == torch.bool
            self.word(tensor.ndim, *tensor.shape, flag)
            (self._flags if flag else self._numbers).append(tensor.detach().flatten())

    def packed(self) -> Packed:
        """All of it."""
        flags = torch.cat(self._flags) if self._flags else torch.zeros(0, dtype=torch.bool)
        return Packed(torch.cat(self._numbers).to(torch.float32), flags, self._layout, self._reals)


class Reader:
    """What was packed, in its order; tensors are views."""

    def __init__(self, packed: Packed):
        self._left = {False: packed.numbers, True: packed.flags}
        self._at = {False: 0, True: 0}
        self._words, self._reals = iter(packed.layout), iter(packed.reals)

    def word(self) -> int:
        """The next whole number."""
        return next(self._words)

    def real(self) -> float:
        """The next number."""
        return next(self._reals)

    def maybe(self) -> Tensor | None:
        """The next tensor or None."""
        ndim = self.word()
        if ndim < 0:
            return None
        shape = [self.word() for _ in range(ndim)]
        flag = bool(self.word())
        start, count = self._at[flag], torch.Size(shape).numel()
        self._at[flag] += count
        return self._left[flag][start : start + count].view(shape)

    def tensor(self) -> Tensor:
        """The next tensor."""
        found = self.maybe()
        assert found is not None
        return found
