"""A module's data mask in one call; what it does stands in src/locate.h and src/locating.h."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.rows import to_rows
from sparsemask.ops.predict_mask import PredictMaskCall, margin
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Locate(ctypes.Structure):
    _fields_ = [
        ("batch", _I),
        ("height", _I),
        ("width", _I),
        ("stride", _I),
        ("channels", _I),
        ("x", _P),
        ("cut", _I),
        ("hidden", _I),
        ("first", _P),
        ("first_bias", _P),
        ("second", _P),
        ("second_bias", _P),
        ("last", _P),
        ("least", ctypes.c_double),
        ("out", _P),
        ("threads", _I),
        ("around", _I),
        ("first_group", _I),
        ("second_group", _I),
    ]


def locate(call: PredictMaskCall) -> Tensor:
    """See :func:`sparsemask.ops.predict_mask.locate`; at most `WIDEST` channels in the branch."""
    x, given = call.x, (call.first, call.first_bias, call.second, call.second_bias, call.last, call.last_bias)
    return run(x, _derived.get(given, lambda: _Plan(*given)), call.threshold, call.apply_relu6)


def run(x: Tensor, plan: _Plan, threshold: float, apply_relu6: bool) -> Tensor:
    """The mask of x by packed weights."""
    batch, _, height, width = x.shape
    rows = to_rows(x)
    size = (height, width) if plan.args.stride == 1 else (-(-height // 2), -(-width // 2))
    out = torch.empty(batch, 1, *size, dtype=torch.bool)
    args = _Locate.from_buffer_copy(plan.args)
    args.batch, args.height, args.width, args.x, args.cut = (
        batch,
        height,
        width,
        rows.data_ptr(),
        apply_relu6,
    )
    args.least, args.out, args.threads = (
        margin(threshold) - plan.bias,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    library.lib().sm_locate(ctypes.addressof(args))
    return out


class _Plan:
    """Packed weights, of the last convolution the difference that keeping makes; what the kernel is told of them."""

    def __init__(self, first, first_bias, second, second_bias, last, last_bias):
        width, transposed = len(first), last.shape[-1] == 3
        axis = 1 if transposed else 0
        difference = (last.select(axis, 1) - last.select(axis, 0)).detach().reshape(width, -1)  # (w, 9) or (w, 1)
        taps = [one.detach().permute(2, 3, 1, 0).reshape(-1, width) for one in (first, second)]
        around = first.shape[-1] == 3
        groups = [library.group_of(width, first.shape[1]) if around else 0, library.group_of(width, width)]
        self.bias = float(last_bias[1] - last_bias[0])
        biases = [one.detach().to(torch.float32).clone() for one in (first_bias, second_bias)]
        packed = [library.pack(one, group) for one, group in zip([*taps, difference], [*groups, 0], strict=True)]
        self.held = [*biases, *packed]
        self.args = _Locate(
            stride=1 if transposed else 2, channels=first.shape[1], hidden=width, around=around, first_group=groups[0],
            second_group=groups[1],
        )  # fmt: skip
        names = ("first_bias", "second_bias", "first", "second", "last")
        for name, one in zip(names, self.held, strict=True):
            setattr(self.args, name, one.data_ptr())
