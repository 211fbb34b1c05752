"""A whole sparse mask module in rows, in one call (src/module.h): nothing is padded, zeroed or concatenated inside.

Every layer's dense channels lie in one buffer of all locations, its sparse channels in a compact one of the kept
locations alone; channels are ordered dense first. A kept location reads both at every tap (a dropped neighbour's sparse
channels are one shared row of zeros), a dropped location the dense buffer only. The 1×1 fusion reads all layers'
buffers where they are. (SMSR, Wang et al. 2021, section 3.2.)

Channel attention needs the mean of the fusion's output before it can scale it. The fusion is linear, so that the mean
is the fusion of the layers' means, which the layers sum up as they write: attention becomes a factor on the fusion's
weights and the module's input an addend in its epilogue, and the unscaled output is never written.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.conv import activation_code
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.backends.native.workspace import Workspace
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall, Attention
from sparsemask.ops.conv import same_size
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
_P, _I = ctypes.c_void_p, ctypes.c_int64


def block(call: BlockCall) -> Tensor:
    """A module's layers and their fusion."""
    return _block(call, None)


def attended_block(call: AttendedBlockCall) -> Tensor:
    """A module with its channel attention, and its input added."""
    return by_sample(call.block, lambda sample: _block(sample, call.attention))


def by_sample(call: BlockCall, run: Callable[[BlockCall], Tensor]) -> Tensor:
    """What `run` makes of every sample's call, together: attention has factors of each sample's own."""
    if len(call.x) == 1:
        return run(call)
    samples = zip(call.x.split(1), call.mask.split(1), strict=True)
    return torch.cat([run(dataclasses.replace(call, x=x, mask=mask)) for x, mask in samples])


def _block(call: BlockCall, attention: Attention | None) -> Tensor:
    """With attention the result is x + factors times the fusion (batch 1)."""
    x, weights, dense = call.x, call.weights, call.dense
    collect_weight, collect_bias = call.collect_weight, call.collect_bias
    batch, spatial = x.shape[0], tuple(x.shape[2:])
    sources = [*weights, dense, collect_weight] + ([collect_bias] if collect_bias is not None else [])
    plan = _derived.get(sources, lambda: _Plan(weights, dense, collect_weight, collect_bias))
    tables = grid(batch, spatial, same_size(weights[0]))
    kept, dropped, compact = library.split(call.mask.contiguous())
    at = [library.lookup(kept, tables.position), library.lookup(dropped, tables.position)]
    way, rows, offsets = library.lookup(tables.interior, compact), to_rows(x), tables.classes[0].offsets
    result = library.empty(len(rows), plan.columns)
    args = _Module.from_buffer_copy(plan.args)
    attending = plan.attend(args, attention)  # held until the call is done, as all that addresses are taken of
    args.activation, args.slope = activation_code(call.activation)
    args.count, args.n_kept, args.n_dropped = len(rows), len(kept), len(dropped)
    args.n_taps, args.threads = len(offsets), torch.get_num_threads()
    tensors = {
        "x": rows, "kept": kept, "dropped": dropped, "at_kept": at[0], "at_dropped": at[1], "interior": tables.interior,
        "compact": way, "out": result,
    }  # fmt: skip
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    args.offsets, args.pitch = offsets.ctypes.data, tables.pitch
    with Workspace() as space:
        args.memory = space.take(1, plan.floats(len(rows), len(kept))).data_ptr()
        library.lib().sm_module(ctypes.addressof(args))
    del attending
    return from_rows(result, batch, spatial, x)


class _Layer(ctypes.Structure):
    _fields_ = [
        ("dense", _I),
        ("sparse", _I),
        ("full", _P),
        ("full_group", _I),
        ("dropping", _P),
        ("dropping_group", _I),
        ("squared", _P),
    ]


class _Module(ctypes.Structure):
    _fields_ = [
        ("channels", _I),
        ("columns", _I),
        ("n_layers", _I),
        ("layers", _P),
        ("activation", _I),
        ("slope", ctypes.c_double),
        ("everywhere", _I),
        ("whole", _I),
        ("fuse", _P),
        ("collect", _P),
        ("collect_dropped", _P),
        ("bias", _P),
        ("squeezed", _I),
        ("squeeze", _P),
        ("squeeze_bias", _P),
        ("excite", _P),
        ("excite_bias", _P),
        ("count", _I),
        ("x", _P),
        ("n_kept", _I),
        ("n_dropped", _I),
        ("kept", _P),
        ("dropped", _P),
        ("at_kept", _P),
        ("at_dropped", _P),
        ("interior", _P),
        ("compact", _P),
        ("n_taps", _I),
        ("offsets", _P),
        ("pitch", _I),
        ("memory", _P),
        ("out", _P),
        ("threads", _I),
    ]


class _Plan:
    """The packed weights of a block, channels dense first, and what the kernel is told of them."""

    def __init__(self, weights: list[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None):
        wide, listed = dense.shape[1], []
        order, n_dense, n_sparse = torch.arange(weights[0].shape[1]), weights[0].shape[1], 0
        everywhere, here = [], []
        self.held: list[Tensor] = []
        for number, (weight, mine) in enumerate(zip(weights, dense, strict=True)):
            outs = torch.cat([mine.nonzero().flatten(), (~mine).nonzero().flatten()])
            n_outs = int(mine.sum())
            taps = weight.detach().to(torch.float32).flatten(2).permute(2, 1, 0)[:, order][:, :, outs]
            lengths = [n for n in (n_dense, n_sparse) if n]
            full, dropping = library.group_of(wide, *lengths), library.group_of(n_outs, n_dense)
            packed = library.pack(taps.flatten(0, 1), full)
            packed_dropping = library.pack(taps[:, :n_dense, :n_outs].flatten(0, 1), dropping)
            self.held += [packed, packed_dropping]
            made = _Layer(n_outs, wide - n_outs, packed.data_ptr(), full, packed_dropping.data_ptr() or None, dropping)
            if tuple(weight.shape[2:]) == (3, 3) and library.in_squares(taps.shape[1], wide):
                squared = library.pack_squares(taps)
                self.held.append(squared)
                made.squared = squared.data_ptr()
            listed.append(made)
            order, n_dense, n_sparse = outs, n_outs, wide - n_outs
            everywhere.append(number * wide + outs[:n_outs])
            here.append(number * wide + outs[n_outs:])
        self.layers = (_Layer * len(listed))(*listed)
        fuse = collect_weight.detach().to(torch.float32).flatten(1).T[torch.cat(everywhere + here)].contiguous()
        self.columns, n_everywhere = fuse.shape[1], sum(map(len, everywhere))
        packed = {"fuse": fuse, "collect": library.pack(fuse), "collect_dropped": library.pack(fuse[:n_everywhere])}
        if collect_bias is not None:
            packed["bias"] = collect_bias.detach().to(torch.float32).clone()
        self.held += packed.values()
        self.args = _Module(
            channels=weights[0].shape[1], columns=self.columns, n_layers=len(listed),
            layers=ctypes.addressof(self.layers), everywhere=n_everywhere, whole=len(fuse),
            **{name: tensor.data_ptr() for name, tensor in packed.items()},
        )  # fmt: skip

    def attend(self, args: _Module, attention: Attention | None) -> list[Tensor]:
        """Say of the attention, if there is any, what the kernel is told; returns what has to live during the call."""
        if attention is None:
            return []
        held = [one.detach().to(torch.float32).flatten(int(one.ndim > 1)).contiguous() for one in attention]
        args.squeezed = len(held[0])
        for name, one in zip(("squeeze", "squeeze_bias", "excite", "excite_bias"), held, strict=True):
            setattr(args, name, one.data_ptr())
        return held

    def floats(self, locations: int, kept: int) -> int:
        """How much memory the layers' outputs take."""
        whole = lambda n: -(-n // 16) * 16
        return sum(whole(locations * one.dense) + whole(kept * one.sparse) for one in self.layers)
