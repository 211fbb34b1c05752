"""The decoder's schedule, shared by the supernet and the pruned networks.

Two identities keep it cheap: a concatenation followed by a convolution is a sum of convolutions, and a 1x1
convolution commutes with bilinear upsampling. So every feature is convolved once, at its own size, for all
stages that take it, and what a stage gets of one size is summed before it is upsampled once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP

# product(kind, j, x): contributions (stage i, tensor of the stage's channels) of feature j, DOWN (E_j) or UP (u_j)
Product = Callable[[int, int, Tensor], Iterable[tuple[int, Tensor]]]


def decode(
    end_points: Sequence[Tensor],
    used: Callable[[int, int], bool],
    product: Product,
    finish: Callable[[int, Tensor], Tensor],
    refine: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Run the decoder stages from the deepest and return the output of the last one with inputs, (B, depth, H, W).

    Args:
        end_points: E_0 ... E_{L-1}, deepest first, before activation; what is deeper than all that is used may be None.
        used: whether any stage reads feature j of a kind; unused features are not computed.
        product: convolves one activated feature for all stages that read it.
        finish: applied by a stage to the sum of its inputs (batch norm), before relu6.
        refine: applied by a stage after relu6; None: nothing is.
    """
    # A tensor of each size; sizes are compared, not hashed: they are open where a network is exported.
    sums: list[list[Tensor]] = [[] for _ in end_points]

    def spread(kind: int, j: int, x: Tensor) -> None:
        for stage, y in product(kind, j, x):
            alike = (n for n, partial in enumerate(sums[stage]) if partial.shape[-2:] == y.shape[-2:])
            if (at := next(alike, None)) is None:
                sums[stage].append(y)
            else:
                sums[stage][at] = sums[stage][at] + y

    if used(UP, 0):
        spread(UP, 0, F.relu6(end_points[0].mean((2, 3), keepdim=True)))
    output = None
    for i, end_point in enumerate(end_points):
        if used(DOWN, i):
            spread(DOWN, i, F.relu6(end_point))
        if sums[i]:
            # A constant map alone is a view of one value a channel, which cannot be changed in place.
            constant = len(sums[i]) == 1 and sums[i][0].shape[-2:] == (1, 1)
            total = finish(i, _total(sums[i], end_point.shape[-2:]))
            output = F.relu6(total, inplace=not constant)
            if refine is not None:
                output = refine(i, output)
            sums[i] = []
            if i + 1 < len(end_points) and used(UP, i + 1):
                spread(UP, i + 1, output)
    return output


def _total(sums: list[Tensor], size: torch.Size) -> Tensor:
    """Sum of tensors of several sizes at `size`; a constant map joins the smallest before upsampling."""
    by_area = sorted(sums, key=lambda y: y.shape[-2] * y.shape[-1])
    total = None
    constant = None
    for y in by_area:
        if y.shape[-2:] == (1, 1) and len(by_area) > 1:
            constant = y
            continue
        if constant is not None:
            y, constant = y + constant, None
        y = upsample(y, size)
        total = y if total is None else total + y
    return total


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size` (H, W), corners aligned; returned as it is if the size is right."""
    size = tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x
    if tuple(x.shape[-2:]) == (1, 1):
        return x.expand(*x.shape[:2], *size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


@contextlib.contextmanager
def batch_norm_errors() -> Iterator[None]:
    """Turn torch's error for batch statistics of a single value per channel into a UseError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UseError(
            "a batch of 1 has no batch statistics: batch norm needs two values per channel when training; "
            "use --batch_size 2 or more, or --freeze_bn"
        ) from None
