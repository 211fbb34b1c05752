"""The expected cost of a relaxed mask, differentiable: every connection is kept with a probability.

Probabilities are taken as independent. A stage costs something with the probability that it has inputs and reaches the
output; an encoder segment with the probability that an end point at or behind it is read. For masks of zeros and ones
the result is the cost of :func:`sparsemask.spaces.connectivity.decoder_steps.decoder_steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsemask.masks import DOWN, UP
from sparsemask.spaces.connectivity.decoder_steps import CONSTANT, Geometry, Step


class ExpectedCost:
    """Expected cost of masks of the published space.

    Args:
        geometry: shapes of the network.
        price: cost of a step of the decoder, in any currency.
        encoder: cost of the encoder down to each end point, deepest first.
    """

    def __init__(self, geometry: Geometry, price: Callable[[Step], float], encoder: Sequence[float]):
        length, depth = len(geometry), geometry.depth
        self._length = length
        self._encoder = torch.tensor(encoder, dtype=torch.float32)
        spatial = sorted({size for size in geometry.sizes if size != CONSTANT}, key=lambda at: (at[0] * at[1], at))
        self._members = torch.stack([_members(geometry, size) for size in spatial], 1)  # (stage, size, member)
        self._constants = _members(geometry, CONSTANT)

        def costs(kind: str, sizes: Sequence[tuple[int, ...]]) -> Tensor:
            return torch.tensor([price(Step(kind, size, depth)) for size in sizes], dtype=torch.float32)

        def resizes(kind: str) -> Tensor:
            rows = [
                [price(Step(kind, (*at, *own), depth)) if _resized(at, own) else 0.0 for at in spatial]
                for own in geometry.sizes
            ]
            return torch.tensor(rows, dtype=torch.float32)

        self._add, add_part = costs("add", spatial), costs("add_part", spatial)
        self._part = add_part - self._add
        self._resize = resizes("resize")
        self._resize_part = resizes("resize_part") - self._resize
        self._add_own, self._finish = costs("add", geometry.sizes), costs("finish", geometry.sizes)
        self._add_constant = price(Step("add", CONSTANT, depth)) if CONSTANT in geometry.sizes else 0.0
        self._head = price(Step("head", (*geometry.sizes[-1], geometry.n_class), depth))
        # Features in the order (E_0, u_0, E_1, u_1, ...), as a mask's rows have them.
        features = [(kind, j) for j in range(length) for kind in (DOWN, UP)]
        self._activation = torch.tensor([_activation(geometry, price, *feature) for feature in features])
        products = [_products(geometry, price, *feature) for feature in features]
        self._fixed = torch.tensor([fixed for fixed, _ in products])
        self._product = torch.tensor([rising for _, rising in products])  # by the number of takers

    def __call__(self, v: Sequence[Tensor]) -> Tensor:
        """The expected cost; arguments as of :meth:`sparsemask.spaces.connectivity.cost_table.CostTable.expected`."""
        length = self._length
        kept = torch.stack([torch.nn.functional.pad(row.float(), (0, 0, 0, length - len(row))) for row in v])
        kept = self._effective(kept)
        unread = 1 - kept
        # Whether another stage takes the feature of a connection too: the connection's product is part of a joint one.
        alone = torch.where(torch.eye(length, dtype=torch.bool)[..., None, None], 1.0, unread[None]).prod(1)
        flat = torch.cat((kept.flatten(), kept.new_zeros(1)))
        parts = torch.cat(((kept * (1 - alone)).flatten(), kept.new_zeros(1)))

        members = flat[self._members]
        count, used = members.sum(-1), 1 - (1 - members).prod(-1)  # (stage, size)
        any_part = 1 - (1 - parts[self._members]).prod(-1)
        constants = flat[self._constants]
        constant = 1 - (1 - constants).prod(-1)
        none_smaller = torch.cumprod(torch.cat((torch.ones(length, 1), 1 - used), 1), 1)
        spatial = 1 - none_smaller[:, -1]
        single = (2 * used - count).clamp_min(0)  # at most the probability of exactly one

        total = self._head + ((count - used) * (self._add + any_part * self._part)).sum()
        total = total + (used * self._resize + single * any_part * self._resize_part).sum()
        total = total + ((used.sum(1) - spatial) * self._add_own).sum()
        total = total + (constant[:, None] * used * none_smaller[:, :-1] * self._add).sum()
        total = total + (constants.sum(-1) - constant).sum() * self._add_constant
        total = total + ((1 - (1 - spatial) * (1 - constant)) * self._finish).sum()

        takers, taken = kept.sum(0).flatten(), 1 - unread.prod(0).flatten()
        low = takers.detach().floor().long().clamp(0, self._product.shape[1] - 2)[:, None]
        below, above = self._product.gather(1, low)[:, 0], self._product.gather(1, low + 1)[:, 0]
        total = total + (below + (above - below) * (takers - low[:, 0])).sum()
        total = total + (taken * (self._fixed + self._activation)).sum()

        unread_points = 1 - taken.view(length, 2)[:, DOWN]
        unread_points = torch.cat((unread_points[:1] * (1 - taken[UP]), unread_points[1:]))
        needed = 1 - torch.cumprod(unread_points, 0)
        return total + self._encoder[-1] + ((self._encoder[:-1] - self._encoder[1:]) * needed[:-1]).sum()

    def _effective(self, kept: Tensor) -> Tensor:
        """Probabilities that connections are kept, lead from a stage with inputs and to one that reaches the output."""
        length = self._length
        up = kept[:, 1:, UP]  # [i, j]: stage i takes stage j's output
        missing = (1 - kept[:, :, DOWN]).prod(1) * (1 - kept[:, 0, UP])
        has_inputs: list[Tensor] = []
        for i in range(length):
            lacks = missing[i]
            if i:
                lacks = lacks * (1 - up[i, :i] * torch.stack(has_inputs)).prod()
            has_inputs.append(1 - lacks)
        reaches = [kept.new_ones(())]  # from the output backwards
        for i in range(length - 2, -1, -1):
            reaches.insert(0, 1 - (1 - up[i + 1 :, i] * torch.stack(reaches)).prod())
        source = torch.ones_like(kept)
        source[:, 1:, UP] = torch.stack(has_inputs[:-1]) if length > 1 else 1
        return kept * source * torch.stack(reaches)[:, None, None]


def _resized(size: tuple[int, int], own: tuple[int, int]) -> bool:
    return size != own and size[0] * size[1] <= own[0] * own[1]


def _members(geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """(L, 2L): for each stage, where in the flattened mask its connections of a size stand; L * L * 2 for none."""
    length = len(geometry)
    rows = [
        [
            (i * length + j) * 2 + kind
            for j in range(i + 1)
            for kind in (DOWN, UP)
            if geometry.source_size(kind, j) == size
        ]
        for i in range(length)
    ]
    return torch.tensor([row + [2 * length**2] * (2 * length - len(row)) for row in rows])


def _activation(geometry: Geometry, price: Callable[[Step], float], kind: int, j: int) -> float:
    """Cost of what stands between a feature and its product."""
    inputs = geometry.channels[j]
    if kind == UP:
        mean = Step("mean", geometry.sizes[0], inputs)
        return 0.0 if j else price(mean) + price(Step("relu6", CONSTANT, inputs))
    return price(Step("relu6", geometry.sizes[j], inputs))


def _products(geometry: Geometry, price: Callable[[Step], float], kind: int, j: int) -> tuple[float, list[float]]:
    """Cost of a feature's product: what is paid once, and what more for 0, 1, ... L takers."""
    takers = len(geometry) - j
    inputs = geometry.depth if kind == UP and j else geometry.channels[j]
    site = (*geometry.source_size(kind, j), inputs)
    costs = [price(Step("conv", site, geometry.depth * n)) for n in range(1, takers + 1)]
    fixed = max(0.0, 2 * costs[0] - costs[1]) if takers > 1 else 0.0
    rising = [0.0, *(cost - fixed for cost in costs)]
    return fixed, rising + [rising[-1]] * (len(geometry) + 2 - len(rising))
