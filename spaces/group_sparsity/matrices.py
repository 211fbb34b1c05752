"""The sparsity-inducing matrix: a convolution factorised into one of the same kernel size and a 1×1 convolution.

With W a convolution's weights as a matrix of c·k² rows and n columns (one a filter), W = U A. The filters of U are the
first convolution, A the second: column j of A is output channel j, row i is filter i of the first. A zero column is a
pruned filter, a zero row lowers the rank (Li et al., CVPR 2020, section 3).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import choose

INITS = ("svd2", "svd", "p-identity", "p-random", "t-random", "p-disturbance-u", "p-disturbance-n")
EXACT = ("svd2", "svd", "p-identity")
"""Initialisations that preserve the convolution's function."""


def factorise(
    weight: Tensor, init: str = "svd2", generator: torch.Generator | None = None, scale: float = 0.05, dim: int = 0
) -> tuple[Tensor, Tensor]:
    """Factorise a convolution's weight (Li et al., CVPR 2020, section 3).

    Initialisations, with W = U S Vᵀ (in float64); r = n unless stated:

    - "svd2": U and S Vᵀ, so that the norms of A's rows are the singular values; r = min(n, c·kh·kw).
    - "svd": U S (zero columns where c·kh·kw < n) and Vᵀ.
    - "p-identity": W and the identity.
    - "p-random", "t-random": W and a Xavier-normal A; both Kaiming-normal. These two draw from `generator` and start a
      training, they do not keep the function; nor does
    - "p-disturbance-u", "p-disturbance-n": W and the identity plus `scale` times uniform or normal values, its columns
      (`dim` 0) or rows (`dim` 1) scaled to length 1.

    Args:
        weight: (n, c, kh, kw).
        init: one of `INITS`.
        generator: of random values; None: torch's global generator.
        scale: of the disturbance.
        dim: along which disturbed matrices are normalised.

    Returns:
        Weights of the first convolution (r, c, kh, kw) and of the second (n, r, 1, 1), of the type of `weight`.
    """
    choose(init, INITS, "initialisation")
    n, shape = weight.shape[0], weight.shape[1:]
    matrix = weight.detach().reshape(n, -1).double().T  # (c·k², n)
    first, second = _factors(matrix, init, generator, scale, dim)
    if init == "t-random":
        first = nn.init.kaiming_normal_(torch.empty(n, *shape), a=math.sqrt(5), generator=generator).reshape(n, -1).T
    rank = second.shape[0]
    return (
        first.T.reshape(rank, *shape).to(weight).contiguous(),
        second.T.reshape(n, rank, 1, 1).to(weight).contiguous(),
    )


def _factors(
    matrix: Tensor, init: str, generator: torch.Generator | None, scale: float, dim: int
) -> tuple[Tensor, Tensor]:
    rows, n = matrix.shape
    if init == "svd2":
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u, s[:, None] * vt
    if init == "svd":
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        if rows < n:  # all n right vectors, of which those without a singular value meet zero filters
            vt = torch.linalg.svd(matrix, full_matrices=True)[2]
        return F.pad(u * s, (0, n - len(s))), vt
    square = torch.empty(n, n)  # drawn in float32 on the CPU, so that a seed gives one result everywhere
    if init == "p-identity":
        square = torch.eye(n)
    elif init == "p-random":
        nn.init.xavier_normal_(square, generator=generator)
    elif init == "t-random":
        nn.init.kaiming_normal_(square, a=math.sqrt(5), generator=generator)
    else:
        noise = square.uniform_(generator=generator) if init.endswith("-u") else square.normal_(generator=generator)
        square = F.normalize(torch.eye(n) + scale * noise, dim=dim)
    return matrix, square.to(matrix)


class Pair(nn.Sequential):
    """Two convolutions that replace one.

    [0] has its kernel size, stride, padding and dilation, [1] is a 1×1 convolution with its bias.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__(first, second)

    @classmethod
    def shaped(cls, conv: nn.Conv2d, rank: int, n_in: int | None = None, n_out: int | None = None) -> Pair:
        """A pair for `conv` with `rank` filters in between and newly initialised weights."""
        n_in = conv.in_channels if n_in is None else n_in
        n_out = conv.out_channels if n_out is None else n_out
        factory = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        first = _like(conv, n_in, rank, False, factory)
        return cls(first, nn.Conv2d(rank, n_out, 1, bias=conv.bias is not None, **factory))

    @classmethod
    def of(
        cls, conv: nn.Conv2d, init: str = "svd2", generator: torch.Generator | None = None, **settings: float
    ) -> Pair:
        """Factorise a convolution without groups; `init` and `settings` as for :func:`factorise`.

        Raises:
            ValueError: the convolution is grouped.
        """
        if conv.groups != 1 or not isinstance(conv, nn.Conv2d):
            raise ValueError(f"no pair for {conv}: grouped")
        first, second = factorise(conv.weight, init, generator, **settings)
        pair = cls.shaped(conv, len(first))
        with torch.no_grad():
            pair[0].weight.copy_(first)
            pair[1].weight.copy_(second)
            if conv.bias is not None:
                pair[1].bias.copy_(conv.bias)
        return pair.train(conv.training)

    def merged(self) -> nn.Conv2d:
        """The single convolution that computes the same."""
        first, second = self
        factory = {"device": first.weight.device, "dtype": first.weight.dtype}
        conv = _like(first, first.in_channels, second.out_channels, second.bias is not None, factory)
        with torch.no_grad():
            matrix = second.weight.flatten(1).double() @ first.weight.flatten(1).double()
            conv.weight.copy_(matrix.reshape(conv.weight.shape))
            if second.bias is not None:
                conv.bias.copy_(second.bias)
        return conv.train(self.training)


def _like(conv: nn.Conv2d, n_in: int, n_out: int, bias: bool, factory: dict) -> nn.Conv2d:
    return nn.Conv2d(
        n_in,
        n_out,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=bias,
        padding_mode=conv.padding_mode,
        **factory,
    )
