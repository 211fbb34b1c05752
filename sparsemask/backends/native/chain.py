"""Inverted residuals in turn, with their mask branches, in one call: on small maps calls cost more than they compute.

Addresses and sizes of a chain are worked out once for every input size; a call copies them and puts in where its input
and outputs lie.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import inverted_residual, library, predict_mask
from sparsemask.backends.native.plans import Plans
from sparsemask.backends.native.rows import to_rows
from sparsemask.ops import inverted_residual as residuals
from sparsemask.ops import predict_mask as branches
from sparsemask.ops.registration import register

_numbers = itertools.count()
_chains: weakref.WeakValueDictionary[int, Chain] = weakref.WeakValueDictionary()


class _Link(ctypes.Structure):
    _fields_ = [("masked", ctypes.c_int64), ("locate", predict_mask._Locate), ("block", inverted_residual._Inverted)]


class Chain:
    """Blocks whose weights do not change any more.

    Args:
        blocks: of each (weights of its mask branch and threshold, or None; what
            :func:`sparsemask.ops.inverted_residual.inverted_residual` takes after the mask, or weights and bias of a
            1×1 convolution).
    """

    def __init__(self, blocks: Sequence[tuple[tuple | None, tuple]]):
        self.blocks = blocks
        self.number = next(_numbers)
        self._links = (_Link * len(blocks))()
        self._held, self.strides, self.outputs = [], [], []
        with torch.inference_mode(False), torch.no_grad():
            for link, (branch, block) in zip(self._links, blocks, strict=True):
                self._add(link, branch, block)
        self._plans: Plans[_Sizes] = Plans()
        _chains[self.number] = self

    def _add(self, link: _Link, branch: tuple | None, block: tuple) -> None:
        if len(block) == 2:  # a convolution alone
            weight, bias = block
            packed = library.pack(weight.detach().flatten(1).T)
            bias = bias.detach().to(torch.float32).clone()
            self._held.append((packed, bias))
            args = inverted_residual._Inverted(channels=weight.shape[1], middle=1, outputs=len(weight), stride=1)
            args.project, args.project_bias = packed.data_ptr(), bias.data_ptr()
        else:
            plan = inverted_residual._Plan(*block[:-2])
            self._held.append(plan)
            args = inverted_residual._Inverted.from_buffer_copy(plan.args)
            args.stride, args.shortcut = block[-2], block[-1]
        args.ring = inverted_residual.RING
        link.block = args
        self.strides.append(args.stride)
        self.outputs.append(args.outputs)
        if branch is not None:
            *weights, threshold = branch
            plan = predict_mask._Plan(*weights)
            self._held.append(plan)
            link.masked, link.locate = 1, plan.args
            link.locate.least = branches.margin(threshold) - plan.bias

    def sizes(self, batch: int, height: int, width: int) -> _Sizes:
        """What is known of an input size."""
        key = batch, height, width, torch.get_num_threads()
        return self._plans.get(key, lambda: _Sizes(self, *key))

    def __call__(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """(every block's output (N, C, h, w), channels last; every block's mask, None where it has none)."""
        numbers, flags = torch.ops.sparsemask.inverted_chain(x, self.number)
        return self.sizes(len(x), *x.shape[-2:]).views(numbers, flags)


class _Sizes:
    """A chain's links for one input size, with offsets in the place of addresses that a call brings."""

    def __init__(self, chain: Chain, batch: int, height: int, width: int, threads: int):
        self.links = (_Link * len(chain.blocks))()
        ctypes.memmove(self.links, chain._links, ctypes.sizeof(self.links))
        self.outs, self.masks = [], []
        self.numbers = self.flags = 0
        for link, stride, channels in zip(self.links, chain.strides, chain.outputs, strict=True):
            size = -(-height // stride), -(-width // stride)
            places = batch * size[0] * size[1]
            for part in (link.block, link.locate):
                part.batch, part.height, part.width, part.threads = batch, height, width, threads
            link.block.out_height, link.block.out_width = size
            self.outs.append((self.numbers, *_strided(batch, channels, size)))
            self.masks.append(
                (self.flags, (batch, 1, *size), (places // batch, 1, size[1], 1)) if link.masked else None
            )
            self.numbers += places * channels
            self.flags += places if link.masked else 0
            height, width = size
        self.words = np.frombuffer(self.links, np.int64).reshape(len(self.links), -1)
        word = lambda *names: sum(vars(kind)[n].offset for kind, n in names) // 8
        block = (_Link, "block")
        inverted, branch = inverted_residual._Inverted, predict_mask._Locate
        self.x = word(block, (inverted, "x")), word((_Link, "locate"), (branch, "x"))
        self.out, self.mask = word(block, (inverted, "out")), word(block, (inverted, "mask"))
        self.mask_out = word((_Link, "locate"), (branch, "out"))
        self.out_at = np.array([4 * one[0] for one in self.outs], np.int64)
        self.masked = np.array([i for i, one in enumerate(self.masks) if one], np.int64)
        self.mask_at = np.array([one[0] for one in self.masks if one], np.int64)

    def run(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All outputs and all masks, each in one piece."""
        numbers, flags = library.empty(self.numbers, 1).view(-1), torch.empty(self.flags, dtype=torch.bool)
        words = self.words.copy()
        words[:, self.out] = outs = self.out_at + numbers.data_ptr()
        for at in self.x:
            words[0, at], words[1:, at] = rows.data_ptr(), outs[:-1]
        if len(self.masked):
            words[self.masked, self.mask] = words[self.masked, self.mask_out] = self.mask_at + flags.data_ptr()
        library.lib().sm_chain(words.ctypes.data, len(words))
        return numbers, flags

    def views(self, numbers: Tensor, flags: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """The outputs and masks of their shapes."""
        outs = [numbers.as_strided(shape, strides, at) for at, shape, strides in self.outs]
        return outs, [one and flags.as_strided(one[1], one[2], one[0]) for one in self.masks]


def _strided(batch: int, channels: int, size: tuple[int, int]) -> tuple[tuple, tuple]:
    """Shape and strides of (batch, channels, *size), channels last."""
    height, width = size
    return (batch, channels, *size), (height * width * channels, 1, width * channels, channels)


def inverted_chain(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """A :class:`Chain`, by its number, on x (N, C, H, W) float32 on the CPU: all outputs and all masks."""
    return _chains[number].sizes(len(x), *x.shape[-2:]).run(to_rows(x))


def _fake(x, number) -> tuple[Tensor, Tensor]:
    sizes = _chains[number].sizes(len(x), *x.shape[-2:])
    return x.new_empty(sizes.numbers), x.new_empty(sizes.flags, dtype=torch.bool)


def _flops(x, number, *_, out_val=None, **__) -> int:
    chain = _chains[number]
    outs, masks = chain.sizes(len(x), *x.shape[-2:]).views(*out_val)
    total = 0
    for given, mask, (branch, block) in zip([x, *outs], masks, chain.blocks, strict=False):
        if branch is not None:
            total += branches.count_flops(given, *branch[:-1])
        if len(block) == 2:
            total += 2 * given[:, 0].numel() * block[0].numel()
        else:
            total += residuals.count_flops(given, mask, *block)
    return total


register("inverted_chain", inverted_chain, fake=_fake, flops=_flops)
