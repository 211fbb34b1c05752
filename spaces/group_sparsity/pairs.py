"""The sparsity-inducing matrix: a convolution factorised into one of the same kernel size and a 1×1 convolution.

With W a convolution's weights as a matrix of c·k² rows and n columns (one a filter), W = U A. The filters of U are the
first convolution, A the second: column j of A is output channel j, row i is filter i of the first. A zero column is a
pruned filter, a zero row lowers the rank (Li et al., CVPR 2020, arXiv 2003.08935, section 3).

W has k²·c·n multiply-adds a position, the pair r·(k²·c + n): below rank r = k²cn / (k²c + n) the pair is cheaper, above
it is merged into one convolution (section 3.1). Time on a device may differ; :mod:`sparsemask.prune.group_sparsity`
measures it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.inference import merge_parts
from sparsemask.spaces.group_sparsity.compression.border import Bordered, add_bias, add_border
from sparsemask.spaces.group_sparsity.groups import GroupSet, axis
from sparsemask.spaces.group_sparsity.rules import Plan

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

    @torch.no_grad()
    def single_layer(self) -> nn.Conv2d:
        """The single convolution that computes the same, including a bias and border of the first one."""
        first, second = self
        factory = {"device": first.weight.device, "dtype": first.weight.dtype}
        conv = _like(first, first.in_channels, second.out_channels, second.bias is not None, factory)
        matrix = second.weight.flatten(1)
        product = matrix.double() @ first.weight.flatten(1).double()
        conv.weight.copy_(product.reshape(conv.weight.shape))
        if second.bias is not None:
            conv.bias.copy_(second.bias)
        if first.bias is not None:
            add_bias(conv, matrix @ first.bias)
        if isinstance(first, Bordered):
            add_border(conv, (matrix @ first.border.flatten(1)).view(-1, *first.border.shape[1:]))
            if first.border_map is not None:
                conv.border_map = (matrix @ first.border_map.flatten(2)).unflatten(2, first.border_map.shape[2:])
        return conv.train(self.training)


def _like(conv: nn.Conv2d, n_in: int, n_out: int, bias: bool, factory: dict) -> nn.Conv2d:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return nn.Conv2d(n_in, n_out, *shape, bias=bias, padding_mode=conv.padding_mode, **factory)


class DoubleReLU(nn.Module):
    """p · relu(x) + q · relu(-x) with learnable p and q; a ReLU at first (Li et al., CVPR 2020, section 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope_p = nn.Parameter(torch.tensor(1.0))
        self.slope_n = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        # relu(-x) = relu(x) - x spares a second rectified map
        return (self.slope_p + self.slope_n) * torch.relu(x) - self.slope_n * x

    def fixed(self) -> TwoSlopes:
        """The same function with p and q as they are now, for inference."""
        return TwoSlopes(float(self.slope_p), -float(self.slope_n))


class TwoSlopes(nn.Module):
    """A line of one slope above zero and of another below, in two passes over the features where there are four."""

    def __init__(self, above: float, below: float) -> None:
        super().__init__()
        self.above, self.below = above, below

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        if self.above == 0:
            return x.clamp(max=0) * self.below
        y = F.leaky_relu(x, self.below / self.above)
        return y if self.above == 1 else y * self.above


def hinge(
    network: nn.Module, plan: Plan, init: str = "svd2", generator: torch.Generator | None = None, **settings: float
) -> nn.Module:
    """Insert the plan's pairs and double ReLUs into a network, in place.

    Args:
        network: the plain network.
        plan: which convolutions are factorised, and the groups.
        init: initialisation of pairs, one of :data:`INITS`; those in :data:`EXACT` preserve the function.
        generator: of random initialisations.
        settings: further arguments of :func:`factorise`.

    Returns:
        The network. Its groups are :func:`groups_of` it, since the initialisation may change a rank.

    Raises:
        UseError: the network lacks a convolution or ReLU of the plan.
    """
    for name in plan.splits:
        network.set_submodule(name, Pair.of(_convolution(network, name), init, generator, **settings))
    for name in plan.double_relu:
        relu = network.get_submodule(name)
        if not isinstance(relu, nn.ReLU):
            raise UseError(f"{name}: is {type(relu).__name__}, expected a ReLU to be made a double one")
        network.set_submodule(name, DoubleReLU().train(relu.training))
    return network


def _convolution(network: nn.Module, name: str) -> nn.Conv2d:
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise UseError(f"{type(network).__name__} has no module '{name}' to put a matrix at") from None
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        raise UseError(f"{name}: is {module}, expected a convolution without groups to put a matrix at")
    return module


def groups_of(network: nn.Module, plan: Plan) -> tuple[GroupSet, ...]:
    """The plan's groups, counted by the shapes of a network with its pairs."""
    return tuple(_counted(network, s) for s in plan.sets)


def _counted(network: nn.Module, s: GroupSet) -> GroupSet:
    member = s.members[0]
    if member.index is not None:
        return s
    module = network.get_submodule(member.module)
    return dataclasses.replace(s, count=module.weight.shape[axis(module, member.dim)] // s.size)


def pairs_of(network: nn.Module) -> dict[str, Pair]:
    """All pairs of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Pair)}


def merge(network: nn.Module, names: Iterable[str] | None = None) -> dict[str, Pair]:
    """Replace pairs by the single convolutions they are equal to, in place.

    Args:
        network: changed in place.
        names: of pairs; None: all.

    Returns:
        The replaced pairs by name; :func:`split` puts the same objects back.

    Raises:
        UseError: a name that is no pair; nothing is changed then.
    """
    by_name = pairs_of(network)
    names = list(by_name if names is None else names)
    for name in names:
        if name not in by_name:
            raise UseError(f"'{name}' is no pair of this network; its pairs: {', '.join(by_name) or 'none'}")
    replaced = {name: by_name[name] for name in names}
    merge_parts(network, tuple(replaced))
    return replaced


def split(network: nn.Module, replaced: Mapping[str, Pair]) -> None:
    """Undo :func:`merge` in place with the pairs that it returned; changes of the merged convolutions are lost."""
    for name, pair in replaced.items():
        network.set_submodule(name, pair)


def merged_is_cheaper(kernel: int, c_in: np.ndarray, rank: np.ndarray, c_out: np.ndarray) -> np.ndarray:
    """Whether one convolution has at most as many multiply-adds as the pair, elementwise.

    Args:
        kernel: area of the kernel.
        c_in: input channels.
        rank: filters between the two convolutions.
        c_out: output channels.
    """
    c_in, rank, c_out = map(np.asarray, (c_in, rank, c_out))
    return kernel * c_in * c_out <= rank * (kernel * c_in + c_out)
