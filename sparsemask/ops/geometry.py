"""What a convolution reads: kernel, stride, padding, dilation, and whether it is transposed; without channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from sparsemask.errors import UseError

_LEAST = {"kernel size": 1, "stride": 1, "padding": 0, "dilation": 1, "output padding": 0}


@dataclass(frozen=True)
class Geometry:
    """The grid side of a convolution in 1 to 3 dimensions; every tuple has one entry a dimension.

    Meanings are those of torch's convolutions; the mask of a sparse mask convolution lies on the output grid.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool = False
    groups: int = 1

    @classmethod
    def of(
        cls,
        dims: int,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        output_padding: int | Sequence[int] = 0,
        transposed: bool = False,
        groups: int = 1,
    ) -> Geometry:
        """A geometry from numbers (the same along every axis) or sequences.

        Args:
            dims: 1, 2 or 3.
            kernel: at least 1.
            stride: at least 1.
            padding: None: dilation·(kernel − 1)/2, which keeps the size at stride 1; for odd kernels only.
            dilation: at least 1.
            output_padding: of transposed convolutions, less than the stride or the dilation.
            transposed: a transposed convolution.
            groups: at least 1.

        Raises:
            UseError: for what is none of these.
        """
        if dims not in (1, 2, 3):
            raise UseError(f"convolutions have 1, 2 or 3 dimensions, not {dims}")
        kernel = _each(kernel, dims, "kernel size")
        dilation = _each(dilation, dims, "dilation")
        stride = _each(stride, dims, "stride")
        if padding is None:
            if any(k % 2 == 0 for k in kernel):
                raise UseError(f"a kernel of {' x '.join(map(str, kernel))} has no middle: give its padding")
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = _each(padding, dims, "padding")
        output_padding = _each(output_padding, dims, "output padding")
        if any(output_padding) and not transposed:
            raise UseError("output padding is for transposed convolutions")
        if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
            raise UseError(f"output padding {output_padding} is not less than the stride {stride}")
        if groups < 1:
            raise UseError(f"groups must be at least 1, got {groups}")
        return cls(kernel, stride, padding, dilation, output_padding, bool(transposed), int(groups))

    @property
    def dims(self) -> int:
        """Number of dimensions of the grid."""
        return len(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether output i reads input i alone: kernel 1, stride 1, no padding."""
        return (
            all(k == 1 for k in self.kernel)
            and all(s == 1 for s in self.stride)
            and not any(self.padding)
            and not any(self.output_padding)
        )

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Size of the output grid for an input grid of size `spatial`.

        Raises:
            UseError: where nothing would be left.
        """
        each = zip(spatial, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True)
        if self.transposed:
            size = tuple([(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in each])
        else:
            size = tuple([(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in each])
        if any([isinstance(n, int) and n < 1 for n in size]):  # sizes that are symbols while a graph is traced pass
            raise UseError(f"an input of {' x '.join(map(str, spatial))} is too small for a kernel of {self.kernel}")
        return size


def _each(value: int | Sequence[int], dims: int, what: str) -> tuple[int, ...]:
    values = (int(value),) * dims if isinstance(value, Integral) else tuple(int(v) for v in value)
    if len(values) != dims:
        raise UseError(f"{what} {values} has {len(values)} entries for {dims} dimensions")
    if any(v < _LEAST[what] for v in values):
        raise UseError(f"{what} must be at least {_LEAST[what]}, got {values}")
    return values
