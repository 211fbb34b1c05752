"""An inverted residual in one call: expanded features exist for a band of lines at a time, in the cache.

What it does stands in src/inverted.h and src/bands.h. Middle channels are put in an order in which those that are dense
before the depth-wise convolution lie together, and those that are dense after it: what dropped places compute is one
stretch of either. They are padded to whole vectors by channels of zeros, which no place reads.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.weight_cache import Derived

RING = 1 << 16  # floats of expanded features held at a time, about: half of a core's second cache
_WHOLE = 16  # middle channels are padded to a multiple
_derived = Derived()
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Inverted(ctypes.Structure):
    _fields_ = [
        ("batch", _I),
        ("height", _I),
        ("width", _I),
        ("out_height", _I),
        ("out_width", _I),
        ("stride", _I),
        ("x", _P),
        ("channels", _I),
        ("mask", _P),
        ("middle", _I),
        ("only_before", _I),
        ("both", _I),
        ("only_after", _I),
        ("expand", _P),
        ("expand_bias", _P),
        ("expand_dense", _P),
        ("taps", _P),
        ("taps_bias", _P),
        ("project", _P),
        ("project_bias", _P),
        ("project_dense", _P),
        ("project_dense_bias", _P),
        ("outputs", _I),
        ("shortcut", _I),
        ("out", _P),
        ("threads", _I),
        ("ring", _I),
    ]


def inverted_residual(call: InvertedResidualCall) -> Tensor:
    """See :func:`sparsemask.ops.inverted_residual.inverted_residual`."""
    x, mask, stride = call.x, call.mask, call.stride
    given = (
        call.expand, call.expand_bias, call.expand_dense, call.depthwise, call.depthwise_bias, call.depthwise_dense,
        call.project, call.project_bias, call.project_dense,
    )  # fmt: skip
    plan = _derived.get([one for one in given if one is not None], lambda: _Plan(*given))
    batch, _, height, width = x.shape
    size = (height, width) if stride == 1 else (-(-height // 2), -(-width // 2))
    rows = to_rows(x)
    out = library.empty(batch * size[0] * size[1], plan.outputs)
    args = _Inverted.from_buffer_copy(plan.args)
    args.batch, args.height, args.width, args.out_height, args.out_width = (
        batch,
        height,
        width,
        *size,
    )
    args.stride, args.x, args.shortcut, args.out = (
        stride,
        rows.data_ptr(),
        call.shortcut,
        out.data_ptr(),
    )
    args.threads, args.ring = torch.get_num_threads(), RING
    if mask is not None:
        mask = mask.contiguous()
        args.mask = mask.data_ptr()
    library.lib().sm_inverted(ctypes.addressof(args))
    return from_rows(out, batch, size, x)


class _Plan:
    """Packed weights in the order of the kernel, and what it is told of them.

    Middle channels in their order: dense before the depth-wise convolution only, before and after, after only, neither.
    """

    def __init__(self, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project,
                 project_bias, project_dense):  # fmt: skip
        count, self.outputs = len(depthwise_dense), len(project)
        after = depthwise_dense
        if expand is None:  # x is read as it lies: of dropped places all is computed, and what is sparse not used
            order, pad = torch.arange(count), 0
            b, a, c = 0, count, 0
        else:
            before = expand_dense
            kinds = [k.nonzero().flatten() for k in (before & ~after, before & after, ~before & after)]
            order = torch.cat([*kinds, (~before & ~after).nonzero().flatten()])
            b, a, c = map(len, kinds)
            pad = -count % _WHOLE
        whole = count + pad
        taps = _padded(depthwise.detach().flatten(1)[order], pad).T.contiguous()  # (9, middle)
        taps_bias = _padded(depthwise_bias.detach()[order], pad)
        matrix = _padded(_matrix(project)[order], pad)
        bias = project_bias.detach().to(torch.float32).clone()
        self.held = [taps, taps_bias, bias, library.pack(matrix)]
        args = self.args = _Inverted(channels=whole, middle=whole, only_before=b, both=a, only_after=c)
        args.outputs, args.taps, args.taps_bias = self.outputs, self._at(taps), self._at(taps_bias)
        args.project, args.project_bias = self._at(self.held[3]), self._at(bias)
        if expand is not None:
            weights, more = _padded(_matrix(expand).T[order], pad).T, _padded(expand_bias.detach()[order], pad)
            args.channels = len(weights)
            args.expand, args.expand_bias = self._at(library.pack(weights)), self._at(more)
            args.expand_dense = self._at(library.pack(weights[:, : a + b]))
        if bool(project_dense.any()):
            gate = project_dense.to(torch.float32)  # of sparse outputs dropped places have nothing: it is written too
            read = matrix[b : b + a + c] * gate
            if expand is None:
                read = read * after.to(torch.float32)[:, None]
            args.project_dense, args.project_dense_bias = self._at(library.pack(read)), self._at(bias * gate)

    def _at(self, tensor: Tensor) -> int:
        """Its address; it lives as long as the plan."""
        tensor = tensor if tensor.numel() else torch.zeros(1)  # nothing is read there, but a null says something
        self.held.append(tensor)
        return tensor.data_ptr()


def _matrix(weight: Tensor) -> Tensor:
    """A 1×1 convolution's weights as (inputs, outputs)."""
    return weight.detach().to(torch.float32).flatten(1).T


def _padded(x: Tensor, more: int) -> Tensor:
    """So many rows of zeros after those of x (n, ...), contiguous float32."""
    x = x.to(torch.float32)
    return F.pad(x, [0, 0] * (x.ndim - 1) + [0, more]).contiguous() if more else x.contiguous()
