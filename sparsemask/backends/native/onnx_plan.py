"""What nodes of an ONNX file tell the kernels: their structures, with numbers of tensors in the place of addresses.

The operators that read these plans are onnxruntime_ops/operators.cpp, which says how a plan is laid out. Weights are
packed when a file is written, so that nothing is packed or compared when it is run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import block as modules
from sparsemask.backends.native import conv as convolutions
from sparsemask.backends.native import inverted_residual as residuals
from sparsemask.backends.native import kept, library
from sparsemask.backends.native import multiscale_sum as stages
from sparsemask.backends.native import point_network as points
from sparsemask.backends.native import predict_mask as branches
from sparsemask.backends.native.grid import grid
from sparsemask.ops.conv import same_size
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.point_network import PointNetworkWeights
from sparsemask.ops.predict_mask import margin

VERSION = 4  # what operators.cpp calls PLAN


@dataclass(frozen=True)
class Plan:
    """One node's.

    Attributes:
        kind: the operator's name.
        words: int64, addresses first.
        tensors: what they are of, float32 or int32.
    """

    kind: str
    words: np.ndarray
    tensors: list[np.ndarray]


class _Writer:
    """Collects words and addresses."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.addresses: list[tuple[int, int, int]] = []  # place among the words, number of the tensor, offset
        self.tensors: list[np.ndarray] = []
        # By address and length. The tensors are held: the address of one that is gone may be another's soon.
        self._numbers: dict[tuple[int, int], int] = {}
        self._held: list[Tensor] = []

    def integers(self, *values: int) -> None:
        self.words.extend(map(int, values))

    def real(self, value: float) -> None:
        self.words.extend(struct.unpack("<q", struct.pack("<d", value)))

    def tensor(self, tensor: Tensor | None) -> None:
        """The address of a tensor; None: null."""
        if tensor is not None:
            self.addresses.append((len(self.words), self._number(tensor), 0))
        self.words.append(0)

    def geometry(self, g: Geometry) -> None:
        self.integers(g.dims, *g.kernel, *g.stride, *g.padding, *g.dilation, *g.output_padding, g.transposed)

    def activation(self, name: str) -> None:
        code, slope = convolutions.activation_code(name)
        self.integers(code)
        self.real(slope)

    def structure(self, root: ctypes.Structure, held: Sequence[object], arrays: Sequence[ctypes.Array] = ()) -> None:
        """A structure of the kernels, and those that it points to.

        Args:
            root: it comes first.
            held: what keeps its tensors, among other things.
            arrays: of structures.
        """
        tensors = {one.data_ptr(): one for one in held if isinstance(one, Tensor)}
        starts: dict[int, int] = {}
        for part in (root, *arrays):
            starts[ctypes.addressof(part)] = len(self.words)
            self.words.extend(np.frombuffer(bytes(part), np.int64).tolist())
        for part in (root, *arrays):
            start = starts[ctypes.addressof(part)]
            for at in _pointers(type(part)):
                address = self.words[start + at]
                if not address:
                    continue
                self.words[start + at] = 0
                if address in starts:
                    self.addresses.append((start + at, -1, starts[address]))
                else:
                    self.addresses.append((start + at, self._number(tensors[address]), 0))

    def plan(self, kind: str) -> Plan:
        flat = [len(self.addresses), *(number for one in self.addresses for number in one), *self.words]
        return Plan(kind, np.array(flat, np.int64), self.tensors)

    def _number(self, tensor: Tensor) -> int:
        key = tensor.data_ptr(), tensor.numel()
        if tensor.numel() and key in self._numbers:
            return self._numbers[key]
        array = tensor.detach().contiguous().numpy() if tensor.numel() else np.zeros(1, np.float32)
        self.tensors.append(array.copy())
        self._held.append(tensor)
        self._numbers[key] = len(self.tensors) - 1
        return len(self.tensors) - 1


def _pointers(part: type) -> Iterator[int]:
    """Words of a kind of structure, or of an array of them, that are addresses."""
    if issubclass(part, ctypes.Array):
        size = ctypes.sizeof(part._type_) // 8
        for number in range(part._length_):
            yield from (number * size + at for at in _pointers(part._type_))
        return
    for name, kind in part._fields_:
        at = vars(part)[name].offset // 8
        if kind is ctypes.c_void_p:
            yield at
        elif issubclass(kind, ctypes.Structure):
            yield from (at + inner for inner in _pointers(kind))


def inverted_residual(weights: Sequence[Tensor | None], stride: int, shortcut: bool) -> Plan:
    """A block; weights: as :func:`sparsemask.ops.inverted_residual.inverted_residual` takes them after the mask."""
    made, writer = residuals._Plan(*weights), _Writer()
    made.args.stride, made.args.shortcut, made.args.ring = stride, shortcut, residuals.RING
    writer.structure(made.args, made.held)
    return writer.plan("InvertedResidual")


def predict_mask(weights: Sequence[Tensor], threshold: float, apply_relu6: bool) -> Plan:
    """A mask branch; weights: as :func:`sparsemask.ops.predict_mask.locate` takes them."""
    made, writer = branches._Plan(*weights), _Writer()
    made.args.cut, made.args.least = apply_relu6, margin(threshold) - made.bias
    writer.structure(made.args, made.held)
    return writer.plan("PredictMask")


def multiscale_sum(weights: Sequence[Tensor], apply_relu6: Sequence[bool], bias: Tensor, dense: int) -> Plan:
    """A decoder's stage, see :func:`sparsemask.ops.multiscale_sum.fuse_scales`."""
    packed, numbers = stages._packed(weights, bias, dense)
    listed = (stages._Scale * len(weights))(
        *(
            stages._Scale(packed=a.data_ptr(), packed_dense=b.data_ptr(), channels=weight.shape[1], cut=limited)
            for weight, limited, (a, b) in zip(weights, apply_relu6, packed, strict=True)
        )
    )
    args = stages._Scales(
        columns=len(bias), n=len(weights), scales=ctypes.addressof(listed), bias=numbers.data_ptr(), dense=dense,
        wide=len(numbers), wide_dense=stages._whole(dense),
    )  # fmt: skip
    writer = _Writer()
    writer.structure(args, [numbers, *(one for pair in packed for one in pair)], [listed])
    return writer.plan("MultiscaleSum")


def conv(
    weight: Tensor, bias: Tensor | None, in_dense: Tensor, out_dense: Tensor, geometry: Geometry, activation: str
) -> Plan:
    """A sparse mask convolution, see :class:`sparsemask.ops.conv.ConvCall`."""
    ins = len(in_dense)
    depthwise = geometry.groups > 1 and geometry.groups == ins == len(out_dense)
    # Of a size at which every class of outputs is there.
    size = tuple(2 * (k * d + s) for k, d, s in zip(geometry.kernel, geometry.dilation, geometry.stride, strict=True))
    tables = grid(1, size, geometry)
    parts = convolutions._Parts(weight, bias, in_dense, out_dense, geometry, tables, depthwise)
    writer = _Writer()
    writer.geometry(geometry)
    writer.activation(activation)
    writer.integers(len(out_dense))
    _weights(writer, parts.full)
    writer.integers(parts.dense is not None, parts.first)
    for places in (parts.ins, parts.places):
        writer.integers(0 if places is None else len(places))
        writer.tensor(places)
    if parts.dense is not None:
        _weights(writer, parts.dense)
    return writer.plan("Conv")


def _weights(writer: _Writer, product: convolutions.Product) -> None:
    """Those of a product, class by class."""
    writer.integers(product.groups, product.depth, product.columns, product.depthwise, product.narrow)
    writer.integers(*(int(product.more[name]) for name in ("clear", "group")))
    writer.tensor(product.more["places"])
    writer.tensor(product.bias)
    writer.tensor(product.squared)
    for one in product.packed:
        for packed in one:
            writer.tensor(packed)


def kept_tables(geometry: Geometry) -> Plan:
    """Where kept locations of a mask stand on a convolution's grid."""
    writer = _Writer()
    writer.geometry(geometry)
    return writer.plan("KeptTables")


def kept_conv(
    weight: Tensor, bias: Tensor | None, geometry: Geometry, kept_rows: bool, activation: str, slopes: Tensor | None
) -> Plan:
    """A convolution at kept locations, see :class:`sparsemask.ops.kept_conv.KeptConvCall`."""
    layer = kept.Layer(weight, bias, geometry, activation, slopes, grid(1, geometry.kernel, geometry))
    writer = _Writer()
    writer.geometry(geometry)
    writer.activation(layer.activation)
    writer.integers(kept_rows)
    writer.tensor(layer.slopes)
    _weights(writer, layer.product)
    return writer.plan("KeptConv")


def merge_kept(weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Plan:
    """Kept rows in their places, see :class:`sparsemask.ops.merge_kept.MergeKeptCall`; geometry: of the convolution."""
    writer = _Writer()
    _weights(writer, kept.Layer(weight, bias, geometry, "none", None, grid(1, (1, 1), geometry)).product)
    return writer.plan("MergeKept")


def joined_conv(
    weight: Tensor, bias: Tensor | None, channels: Sequence[int], activation: str, slopes: Tensor | None = None
) -> Plan:
    """A convolution over several features, see :func:`sparsemask.ops.concat_conv.joined_conv`.

    Args:
        weight: (C_out, sum of `channels`, kh, kw); bias: (C_out,).
        channels: of the features.
        activation: what follows; slopes: (C_out,), in place of an activation "leaky_relu"'s one slope.
    """
    group, taps = library.group_of(len(weight), *channels), weight.detach().flatten(2).permute(2, 1, 0)
    squares = tuple(weight.shape[2:]) == (3, 3) and library.in_squares(weight.shape[1], len(weight))
    writer = _Writer()
    writer.geometry(same_size(weight))
    writer.activation(activation)
    writer.integers(len(channels), len(weight), group)
    writer.tensor(library.pack(taps.flatten(0, 1), group))
    writer.tensor(library.pack_squares(taps) if squares else None)
    writer.tensor(None if bias is None else bias.detach().to(torch.float32))
    writer.tensor(slopes)
    return writer.plan("JoinedConv")


def block(
    weights: list[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None, activation: str,
    attention: Sequence[Tensor] = (),
) -> Plan:  # fmt: skip
    """A module, see :class:`sparsemask.ops.block.BlockCall`; attention: of an attended one."""
    made, writer = modules._Plan(weights, dense, collect_weight, collect_bias), _Writer()
    held = made.attend(made.args, tuple(attention) or None)
    made.args.activation, made.args.slope = convolutions.activation_code(activation)
    writer.geometry(same_size(weights[0]))
    writer.structure(made.args, [*made.held, *held], [made.layers])
    return writer.plan("Block")


def correlation_volume(levels: int, groups: int) -> Plan:
    """A cost volume, see :func:`sparsemask.ops.cost_volume.correlation_volume`."""
    writer = _Writer()
    writer.integers(levels, groups)
    return writer.plan("CorrelationVolume")


def point_network(weights: PointNetworkWeights) -> Plan:
    """A whole network on points."""
    made, writer = points.PointNetwork(weights), _Writer()
    layers = [one for one in made._held if isinstance(one, ctypes.Array)]
    held = [one for one in made._held if isinstance(one, Tensor)]
    args = points._Network.from_buffer_copy(made._args)
    writer.structure(args, held, [made._blocks, made._joins, *layers])
    # Levels have their radii here; the rest of them is said by a call.
    start = len(writer.words)
    levels = (points._Level * len(weights.radius))(*(points._Level(radius=radius) for radius in weights.radius))
    writer.words.extend(np.frombuffer(bytes(levels), np.int64).tolist())
    writer.addresses.append((points._Network.levels.offset // 8, -1, start))
    return writer.plan("PointNetwork")
