"""A decoder's stages in turn, in one call: on small maps calls cost more than they compute (see chain.py).

Addresses and sizes are worked out once for every input size; a call copies them and puts in where features and masks
lie.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native import multiscale_sum as scales
from sparsemask.backends.native.plans import Plans
from sparsemask.backends.native.rows import to_rows
from sparsemask.ops import multiscale_sum
from sparsemask.ops.masked_network import Stage
from sparsemask.ops.registration import register

_numbers = itertools.count()
_decoders: weakref.WeakValueDictionary[int, Decoder] = weakref.WeakValueDictionary()


class Decoder:
    """Stages whose weights do not change any more; the last one's output is the decoder's."""

    def __init__(self, stages: Sequence[Stage]):
        self.stages = list(stages)
        self.number = next(_numbers)
        with torch.inference_mode(False), torch.no_grad():
            self.packed = [scales._packed([s[2] for s in one.sources], one.bias, one.dense) for one in self.stages]
        self._plans: Plans[_Sizes] = Plans()
        _decoders[self.number] = self

    fits = property(lambda self: all(len(one.sources) <= scales.MOST for one in self.stages))

    def sizes(self, points: Sequence[Tensor]) -> _Sizes:
        """What is known of features of these sizes."""
        key = len(points[0]), *(tuple(one.shape[-2:]) for one in points), torch.get_num_threads()
        return self._plans.get(key, lambda: _Sizes(self, key[0], key[1:-1], key[-1]))

    def __call__(self, points: Sequence[Tensor], masks: Mapping[int, Tensor]) -> Tensor:
        """The last stage's output (N, C, h, w), channels last. masks: bool (N, 1, h, w), by their point's number."""
        given = [masks[one.point] for one in self.stages if one.masked]
        return self.last(points, torch.ops.sparsemask.fused_stages(list(points), given, self.number))

    def last(self, points: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """The last stage's output, of all stages' in one piece."""
        at, shape = self.sizes(points).last
        return numbers[at:].view(shape).permute(0, 3, 1, 2)


class _Sizes:
    """Stages for one set of sizes, with offsets in the place of addresses that a call brings."""

    def __init__(self, decoder: Decoder, batch: int, sizes: Sequence[tuple[int, int]], threads: int):
        stages = decoder.stages
        most = [len(one.sources) for one in stages]
        self.told = (scales._Scales * len(stages))()
        self.scales = (scales._Scale * sum(most))()
        first = np.cumsum([0, *most])
        outs: list[tuple[int, tuple]] = []
        self.numbers = 0
        rows, points = [], []
        for n, (one, (packed, bias)) in enumerate(zip(stages, decoder.packed, strict=True)):
            height, width = sizes[one.point]
            columns = len(one.bias)
            for k, (feature, j, weight, cut) in enumerate(one.sources):
                number, size = first[n] + k, sizes[j if feature else stages[j].point]
                (points if feature else rows).append((number, j if feature else outs[j][0]))
                channels = weight.shape[1]
                whole, dense = (part.data_ptr() for part in packed[k])
                self.scales[number] = scales._Scale(None, whole, dense, channels, *size, channels, cut)
            args = self.told[n]
            args.batch, args.height, args.width, args.columns, args.n = (
                batch,
                height,
                width,
                columns,
                most[n],
            )
            args.bias, args.dense, args.threads = bias.data_ptr(), one.dense, threads
            args.wide, args.wide_dense = len(bias), scales._whole(one.dense)
            outs.append((self.numbers, (batch, height, width, columns)))
            self.numbers += batch * height * width * columns
        self.last = outs[-1]
        word = lambda kind, name: vars(kind)[name].offset // 8
        self.words = np.frombuffer(self.told, np.int64).reshape(len(stages), -1)
        self.scale_words = np.frombuffer(self.scales, np.int64).reshape(len(self.scales), -1)
        self.rows = word(scales._Scale, "rows")
        self.out, self.mask = word(scales._Scales, "out"), word(scales._Scales, "mask")
        self.listed = word(scales._Scales, "scales")
        self.first = first[:-1] * ctypes.sizeof(scales._Scale)
        self.out_at = np.array([4 * at for at, _ in outs], np.int64)
        self.masked = [n for n, one in enumerate(stages) if one.masked]
        self.inner = np.array(rows, np.int64).reshape(-1, 2)
        self.outer = np.array(points, np.int64).reshape(-1, 2)

    def run(self, points: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """All stages' outputs in one piece."""
        numbers = library.empty(self.numbers, 1).view(-1)
        last = torch.channels_last
        rows = [one if one.is_contiguous(memory_format=last) else to_rows(one) for one in points]
        held = rows, [one.contiguous() for one in masks]
        addresses = np.array([one.data_ptr() for one in held[0]], np.int64)
        words, parts = self.words.copy(), self.scale_words.copy()
        parts[self.inner[:, 0], self.rows] = 4 * self.inner[:, 1] + numbers.data_ptr()
        parts[self.outer[:, 0], self.rows] = addresses[self.outer[:, 1]]
        words[:, self.out] = self.out_at + numbers.data_ptr()
        words[:, self.listed] = self.first + parts.ctypes.data
        for n, mask in zip(self.masked, held[1], strict=True):
            words[n, self.mask] = mask.data_ptr()
        run, at, step = library.lib().sm_scales, words.ctypes.data, words.strides[0]
        for n in range(len(words)):
            run(at + n * step)
        return numbers


def fused_stages(points: list[Tensor], masks: list[Tensor], number: int) -> Tensor:
    """A :class:`Decoder`, by its number, on features (N, C, h, w) float32 on the CPU: all stages' outputs."""
    return _decoders[number].sizes(points).run(points, masks)


def _fake(points, masks, number) -> Tensor:
    return points[0].new_empty(_decoders[number].sizes(points).numbers)


def _flops(points, masks, number, *_, out_val=None, **__) -> int:
    decoder, total, given = _decoders[number], 0, iter(masks)
    for one in decoder.stages:
        mask = next(given) if one.masked else None
        size = tuple(points[one.point].shape[-2:])
        xs = [
            points[j] if feature else points[decoder.stages[j].point][:, :1].expand(-1, weight.shape[1], -1, -1)
            for feature, j, weight, _ in one.sources
        ]
        total += multiscale_sum.count_flops(xs, None, None, one.bias, mask, one.dense, *size)
    return total


register("fused_stages", fused_stages, fake=_fake, flops=_flops)
