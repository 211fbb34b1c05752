"""A specialised network of a program: its blocks in one call, its stages in another, and the stages' masks between."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from sparsemask.backends.native import predict_mask
from sparsemask.backends.native.chain import Chain
from sparsemask.backends.native.decoder import Decoder
from sparsemask.backends.native.rows import to_rows
from sparsemask.ops.masked_network import MaskedNetworkWeights
from sparsemask.ops.predict_mask import WIDEST


def prepared(weights: MaskedNetworkWeights) -> Callable[[Tensor], Tensor] | None:
    """A function of x, see :mod:`sparsemask.ops.masked_network`; None where a part has no native form."""
    given = [branch for branch, _ in weights.blocks] + list(weights.branches)
    decoder = Decoder(weights.stages)
    if not decoder.fits or any(one is not None and len(one[0]) > WIDEST for one in given):
        return None
    chain = Chain(weights.blocks)
    branches = [
        (stage.point, predict_mask._Plan(*branch[:-1]), branch[-1])
        for stage, branch in zip(weights.stages, weights.branches, strict=True)
        if branch is not None
    ]

    def run(x: Tensor) -> Tensor:
        sizes = chain.sizes(len(x), *x.shape[-2:])
        outs, _ = sizes.views(*sizes.run(to_rows(F.relu6(x))))
        points = [x if number < 0 else outs[number] for number in weights.points]
        if weights.mean:
            points.append(points[0].mean((2, 3), keepdim=True))
        masks = [predict_mask.run(points[at], plan, threshold, True) for at, plan, threshold in branches]
        return decoder.last(points, decoder.sizes(points).run(points, masks))

    return run
