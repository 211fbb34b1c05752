"""The shape of a convolution: kernel, stride, padding, dilation, direction, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsemask.errors import UseError

Sizes = int | Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution but its channels. Each tuple has one entry a dimension (1 to 3)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool = False
    groups: int = 1

    def __post_init__(self):
        if not 1 <= self.dims <= 3:
            raise UseError(f"convolutions have 1 to 3 dimensions, not {self.dims}")
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name)
            if len(value) != self.dims or min(value) < least:
                raise UseError(f"{name} must be {self.dims} numbers of at least {least}, got {value}")
        if self.groups < 1:
            raise UseError(f"groups must be at least 1, got {self.groups}")

    @classmethod
    def of(
        cls,
        dims: int,
        kernel: Sizes,
        stride: Sizes = 1,
        padding: Sizes | None = None,
        dilation: Sizes = 1,
        output_padding: Sizes = 0,
        transposed: bool = False,
        groups: int = 1,
    ) -> Geometry:
        """One number stands for all dimensions; padding None keeps the size at stride 1 (odd kernels)."""
        kernel, dilation = _each(kernel, dims), _each(dilation, dims)
        if padding is None:
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        return cls(
            kernel,
            _each(stride, dims),
            _each(padding, dims),
            dilation,
            _each(output_padding, dims),
            transposed,
            groups,
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        count = 1
        for size in self.kernel:
            count *= size
        return count

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Size of the output grid for an input grid."""
        found = []
        for d, size in enumerate(spatial):
            reach = self.dilation[d] * (self.kernel[d] - 1)
            if self.transposed:
                found.append((size - 1) * self.stride[d] - 2 * self.padding[d] + reach + self.output_padding[d] + 1)
            else:
                found.append((size + 2 * self.padding[d] - reach - 1) // self.stride[d] + 1)
        return tuple(found)


def _each(value: Sizes, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(int(v) for v in value)
