"""The network on points in one native call; what it does stands in src/point_network.h."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsemask.backends.native import library, point_block
from sparsemask.backends.native.points import _struct
from sparsemask.ops.point_network import BlockWeights, PointNetworkWeights

_Layer = _struct("_Layer", "ins wide *packed *rel *table *bias")
_Masked = _struct("_Masked", "dense ins_dense ins_sparse *from_dense *from_sparse *rel *table *bias")
_LEVEL = "points *neighbours *upsample ~radius *mask"
_Level = _struct("_Level", _LEVEL)
_Join = _struct("_Join", "coarse own *left *right *bias")
_Network = _struct(
    "_Network",
    "batch k ins *rows *xyz n_levels *levels *blocks *joins *init *init_bias hidden *tail *tail_bias classes *last "
    "*last_bias cells nearest *out threads",
)


class _Block(ctypes.Structure):
    _fields_ = [
        *_struct("", "ins wide n_layers *layers masked narrow *first *first_bias")._fields_,
        ("second", _Layer),
        ("third", _Layer),
        *_struct("", "compared ~threshold *kept *dropped *tail_bias *kept_bias shortcut gated")._fields_,
    ]


class PointNetwork:
    """Packed weights that do not change any more, and the call.

    Args:
        weights: of the network, float32 on the CPU.
    """

    def __init__(self, weights: PointNetworkWeights):
        self.weights = weights
        self._held: list[object] = []
        with torch.inference_mode(False), torch.no_grad():
            self._blocks = (_Block * len(weights.blocks))(*map(self._block, weights.blocks))
            self._joins = (_Join * len(weights.joins))(
                *(
                    _Join(left.shape[1], len(left), self._pack(left.t()), self._pack(right.t()), self._number(bias))
                    for left, right, bias in weights.joins
                )
            )
            (init, init_bias), ((tail, tail_bias), (last, last_bias)) = weights.init, weights.tail
            self._args = _Network(
                ins=init.shape[1], n_levels=len(self._blocks), blocks=ctypes.addressof(self._blocks),
                joins=ctypes.addressof(self._joins), init=self._pack(init.t()), init_bias=self._number(init_bias),
                hidden=len(tail), tail=self._pack(tail.t()), tail_bias=self._number(tail_bias), classes=len(last),
                last=self._pack(last.t()), last_bias=self._number(last_bias), cells=weights.size,
                nearest=weights.nearest,
            )  # fmt: skip

    def run(
        self, rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], batch: int
    ) -> tuple[Tensor, Tensor]:
        """See :func:`sparsemask.ops.point_network.point_network`."""
        rows, xyz = rows.contiguous(), xyz.contiguous()
        near = [one.to(torch.int32).contiguous() for one in neighbours]
        up = [one.to(torch.int32).contiguous() for one in upsample]
        counts = [one.shape[0] * one.shape[1] for one in near]
        mask = torch.empty(sum(counts), dtype=torch.bool)
        out = library.empty(len(rows), self._args.classes)
        levels, at = (_Level * len(near))(), mask.data_ptr()
        for level, own, radius, count in zip(levels, near, self.weights.radius, counts, strict=True):
            level.points, level.neighbours, level.radius, level.mask = own.shape[1], own.data_ptr(), radius, at
            at += count
        for level, own in zip(levels, reversed(up), strict=False):
            level.upsample = own.data_ptr()
        args = _Network.from_buffer_copy(self._args)
        args.batch, args.k, args.rows, args.xyz = batch, near[0].shape[2], rows.data_ptr(), xyz.data_ptr()
        args.levels, args.out, args.threads = ctypes.addressof(levels), out.data_ptr(), torch.get_num_threads()
        library.lib().sm_point_network(ctypes.addressof(args))
        return out, mask

    def _block(self, block: BlockWeights) -> _Block:
        f = block.folded
        parts = point_block._split(f, block.dense)
        layers = (_Masked * len(parts.layers))()
        before = block.inputs
        for told, layer, weight in zip(layers, parts.layers, f.weights, strict=True):
            told.dense, told.ins_dense, told.ins_sparse = layer.dense, before, weight.shape[1] - 3 - before
            told.from_dense = self._keep(layer.from_dense)
            told.from_sparse = None if layer.from_sparse is None else self._keep(layer.from_sparse)
            told.rel, told.table, told.bias = map(self._keep, (layer.rel, layer.table, layer.bias))
            before = layer.dense
        self._held.append(layers)
        first, _, first_bias = block.branch[0]
        return _Block(
            ins=block.inputs, wide=len(f.weights[0]), n_layers=len(layers), layers=ctypes.addressof(layers),
            masked=1 if block.kept is None else 0 if block.kept else 2, narrow=len(first),
            first=self._pack(first.t()), first_bias=self._number(first_bias), second=self._layer(block.branch[1]),
            third=self._layer(block.branch[2]), compared=int(block.threshold != 0.5), threshold=block.threshold,
            kept=self._keep(parts.kept), dropped=self._keep(parts.dropped), tail_bias=self._keep(parts.tail_bias),
            kept_bias=self._keep(parts.kept_bias), shortcut=int(f.shortcut is not None), gated=int(block.gated),
        )  # fmt: skip

    def _layer(self, layer: tuple[Tensor, Tensor | None, Tensor]) -> ctypes.Structure:
        weight, table, bias = layer
        assert table is not None
        whole = point_block._whole(weight, table, bias)
        return _Layer(
            weight.shape[1] - 3, len(whole.bias), self._keep(whole.from_dense), self._keep(whole.rel),
            self._keep(whole.table), self._keep(whole.bias),
        )  # fmt: skip

    def _pack(self, weight: Tensor) -> int:
        return self._keep(library.pack(weight))

    def _number(self, tensor: Tensor) -> int:
        return self._keep(tensor.detach().to(torch.float32).contiguous().clone())

    def _keep(self, tensor: Tensor) -> int:
        """The address of a tensor that is held as long as this is."""
        self._held.append(tensor)
        return tensor.data_ptr()
