"""SMPointSeg in evaluation as one operator, where the backend has the network whole."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparsemask.ops import dispatch
from sparsemask.ops.point_conv import SIZE
from sparsemask.ops.point_network import PointNetworkWeights, PreparedPointNetwork, enter, point_network
from sparsemask.ops.weight_cache import Snapshot
from sparsemask.spaces.smpointseg.block import SparsePointBlock
from sparsemask.tasks.points.clouds.batch import PointBatch

if TYPE_CHECKING:
    from sparsemask.spaces.smpointseg.network import SMPointSeg


class Whole:
    """The operator of a network whose weights do not change.

    Args:
        prepared: a backend's form of it.
    """

    def __init__(self, prepared: PreparedPointNetwork):
        self._prepared = prepared  # which is known by its number as long as it lives
        self._number = enter(prepared)
        # (levels, L): shares of dense channels
        self._dense = torch.stack([block.dense.float().mean(1) for block in prepared.weights.blocks])

    def __call__(self, batch: PointBatch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(logits (B, n_class, N), kept fractions (levels, L), the points' masks, bool (B, 1, N_l))."""
        count, d_in, size = batch.features.shape
        rows = batch.features.transpose(1, 2)
        xyz = rows[..., :3]
        # Only differences are used, which are more exact for small coordinates.
        xyz = (xyz - xyz.mean(1, keepdim=True)).contiguous().view(-1, 3)
        rows = rows.reshape(count * size, d_in)
        logits, flat = point_network(rows, xyz, batch.neighbours, batch.upsample, count, self._number)
        masks = [mask.view(count, 1, -1) for mask in flat.split([count * points for points in batch.sizes])]
        shares = torch.stack([mask.mean(dtype=torch.float32) for mask in masks]).unsqueeze(1)
        kept = self._dense + (1 - self._dense) * shares
        return logits.view(count, size, -1).transpose(1, 2), kept, masks


class _Known(NamedTuple):
    key: Hashable
    snapshot: Snapshot
    form: Whole | None


_known: weakref.WeakKeyDictionary[SMPointSeg, dict[bool, _Known]] = weakref.WeakKeyDictionary()


def whole(network: SMPointSeg, batch: PointBatch, masked: bool) -> Whole | None:
    """The network as one operator, made anew when its weights change; None where it is computed block by block.

    Args:
        network: the network.
        batch: that it is called with.
        masked: whether its masks count.
    """
    rows, reading = batch.features, network.reading
    if network.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or rows.is_meta:
        return None
    if reading.kernel_batch_mix and len(batch) > 1 or any(map(_watched, network.encoder)):
        return None
    if rows.dtype != torch.float32 or network.encoder[0].ch_mask.dtype != torch.float32:
        return None
    backend = dispatch.chosen_for(rows)
    thresholds = tuple(block.branch().threshold for block in network.encoder)
    key = (type(backend), reading, thresholds)
    forms = _known.setdefault(network, {})
    known = forms.get(masked)
    if known is None or known.key != key or not known.snapshot.holds():
        with torch.inference_mode(False), torch.no_grad():
            snapshot = Snapshot(network)
            prepared = backend.point_network(weights_of(network, masked)) if snapshot.usable else None
            known = forms[masked] = _Known(key, snapshot, None if prepared is None else Whole(prepared))
    return known.form


def _watched(block: SparsePointBlock) -> bool:
    """Whether somebody has to see the block's own call, or chose another way to compute it."""
    return bool(block._forward_hooks or block._forward_pre_hooks) or block.backend not in ("auto", "native")


def weights_of(network: SMPointSeg, masked: bool = True) -> PointNetworkWeights:
    """All weights of a network, batch norms folded in; masked: whether its masks count."""
    reading = network.reading
    blocks = [block.weights(reading) if masked else block.open_weights() for block in network.encoder]
    joins = []
    for stage in network.decoder:
        weight, _, bias = stage.folded()
        coarse = weight.shape[1] - len(weight)
        joins.append((weight[:, :coarse], weight[:, coarse:], bias))
    plain = [layer.folded() for layer in (network.init, network.tail[0], network.tail[2])]
    (init, *tail) = [(weight, bias) for weight, _, bias in plain]
    return PointNetworkWeights(
        init=init,
        blocks=blocks,
        joins=joins,
        tail=tail,
        radius=[network.radius * 2**level for level in range(len(network.channels))],
        size=SIZE,
        nearest=reading.index_rule == "round",
    )
