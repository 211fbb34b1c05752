"""Sparse mask convolution by the letter of its formula, in float64 and without any convolution of torch's: location by
location, tap by tap. Every form and every backend must agree with it. Problems for both to solve, too."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread():
    """For the modules that import it: problems this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ACTIVATIONS = {
    "none": lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "leaky_relu": lambda y: np.where(y > 0, y, 0.01 * y),
    "leaky_relu:0.1": lambda y: np.where(y > 0, y, 0.1 * y),
}


def _each(value, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Form:
    """A convolution's shape, and what torch documents of it."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int

    @classmethod
    def of(cls, dims, kernel, stride=1, padding=None, dilation=1, output_padding=0, transposed=False, groups=1):
        kernel, dilation = _each(kernel, dims), _each(dilation, dims)
        if padding is None:
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        more = _each(stride, dims), _each(padding, dims), dilation, _each(output_padding, dims)
        return cls(kernel, *more, transposed, groups)

    def outputs(self, spatial) -> tuple[int, ...]:
        each = zip(spatial, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True)
        if self.transposed:
            return tuple((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in each)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in each)

    def pairs(self, spatial):
        """Every (output place, tap, input place) that multiplies, padding left out."""
        walked = spatial if self.transposed else self.outputs(spatial)
        reached = self.outputs(spatial) if self.transposed else spatial
        steps = list(zip(self.stride, self.padding, self.dilation, strict=True))
        for here in itertools.product(*map(range, walked)):
            for tap in itertools.product(*map(range, self.kernel)):
                there = tuple(h * s - p + t * d for h, t, (s, p, d) in zip(here, tap, steps, strict=True))
                if all(0 <= a < n for a, n in zip(there, reached, strict=True)):
                    yield (there, tap, here) if self.transposed else (here, tap, there)


def numbers(value: Tensor | None) -> np.ndarray | None:
    """float64 of a tensor of any type; None stays."""
    return None if value is None else value.detach().cpu().double().numpy()


@cache
def _places(form: Form, spatial: tuple[int, ...]) -> dict[tuple[int, ...], tuple[list[int], list[int]]]:
    """Of every tap, the flat output places and the flat input places that they read."""
    found: dict = {tap: ([], []) for tap in itertools.product(*map(range, form.kernel))}
    flat = lambda place, sizes: int(np.ravel_multi_index(place, sizes))
    for there, tap, here in form.pairs(spatial):
        found[tap][0].append(flat(there, form.outputs(spatial)))
        found[tap][1].append(flat(here, spatial))
    return found


def convolve(x: np.ndarray, weight: np.ndarray, form: Form) -> np.ndarray:
    """W ∗ x of (N, C, *spatial), without bias."""
    groups, spatial = form.groups, x.shape[2:]
    n_in, n_out = x.shape[1], weight.shape[1] * groups if form.transposed else weight.shape[0]
    deep, wide = n_in // groups, n_out // groups
    whole = np.zeros((n_out, n_in, *form.kernel))  # every output's weight for every input, zero across groups
    for g in range(groups):
        ins, outs = slice(g * deep, (g + 1) * deep), slice(g * wide, (g + 1) * wide)
        whole[outs, ins] = weight[ins].swapaxes(0, 1) if form.transposed else weight[outs]
    flat = x.reshape(*x.shape[:2], -1)
    y = np.zeros((x.shape[0], n_out, math.prod(form.outputs(spatial))))
    for tap, (there, here) in _places(form, spatial).items():  # no output place twice for one tap
        y[..., there] += whole[(..., *tap)] @ flat[..., here]
    return y.reshape(*y.shape[:2], *form.outputs(spatial))


def along(values: np.ndarray, dims: int) -> np.ndarray:
    return values.reshape(1, -1, *[1] * dims)


def layer(x, weight, bias, mask, in_dense, out_dense, form: Form, activation: str = "none") -> np.ndarray:
    """out = o_d·(W∗(c_d·F)) + o_s·M·(W∗(c_d·F)) + o_d·M·(W∗(c_s·F)) + o_s·M·(W∗(c_s·F)), then the activation.

    The bias goes with the dense inputs: everywhere on dense outputs, under the mask on sparse ones. SMSR, section 3.2.
    """
    x, weight, bias, m, c_d, o_d = map(numbers, (x, weight, bias, mask, in_dense, out_dense))
    c_d, o_d = along(c_d, len(form.kernel)), along(o_d, len(form.kernel))
    c_s, o_s = 1 - c_d, 1 - o_d
    dense, sparse = np.split(convolve(np.concatenate([c_d * x, c_s * x]), weight, form), 2)
    if bias is not None:
        dense = dense + along(bias, len(form.kernel))
    out = o_d * dense + o_s * m * dense + o_d * m * sparse + o_s * m * sparse
    return ACTIVATIONS[activation](out)


def block(x, mask, weights, dense, collect_weight, collect_bias, activation: str = "relu") -> np.ndarray:
    """Layers in a chain, each split by the channel masks before and after it; a plain 1×1 convolution of all."""
    dims = x.ndim - 2
    y, before, outputs = numbers(x), torch.ones(x.shape[1]), []
    for weight, mine in zip(weights, dense, strict=True):
        form = Form.of(dims, tuple(weight.shape[2:]))
        y = layer(torch.from_numpy(y), weight, None, mask, before, mine, form, activation)
        outputs.append(y)
        before = mine
    fused = convolve(np.concatenate(outputs, 1), numbers(collect_weight), Form.of(dims, 1))
    return fused + (0 if collect_bias is None else along(numbers(collect_bias), dims))


def layer_multiply_adds(mask, in_dense, out_dense, kernel, groups: int = 1) -> int:
    """Products of hard masks one by one: output place by place, channel by channel, every tap, padding too."""
    ins, outs = in_dense.tolist(), out_dense.tolist()
    deep, wide, total = len(ins) // groups, len(outs) // groups, 0
    for kept in mask.flatten().tolist():
        for o, o_dense in enumerate(outs):
            group = o // wide
            for c_dense in ins[group * deep : (group + 1) * deep]:
                total += kept or (o_dense and c_dense)
    return total * math.prod(kernel)


def split(kind: str, channels: int, generator: torch.Generator) -> Tensor:
    """bool (C,): which channels are dense: "none", "all", "one" (dense), "one sparse", "random"."""
    flags = torch.zeros(channels, dtype=torch.bool)
    if kind == "random":
        return torch.rand(channels, generator=generator) < 0.5
    if kind in ("one", "one sparse"):
        flags[int(torch.randint(channels, (), generator=generator))] = True
    return flags if kind in ("none", "one") else ~flags


SPLITS = ("none", "all", "one", "one sparse", "random")


@dataclass(frozen=True)
class Case:
    """A layer to compute: sizes, shares, and how it differs from a 3-wide convolution of stride 1."""

    n: int = 2
    c_in: int = 5
    c_out: int = 6
    spatial: tuple[int, ...] = (6, 7)
    kept: float = 0.4
    ins: str = "random"
    outs: str = "random"
    bias: bool = True
    activation: str = "relu"
    form: tuple[tuple[str, Any], ...] = field(default=(("kernel", 3),))

    def __str__(self) -> str:
        form = " ".join(f"{k[:2]}{v}" for k, v in self.form)
        return f"{self.n}x{self.c_in}-{self.c_out} {self.spatial} {self.kept} {self.ins}/{self.outs} {form}"


@dataclass
class Problem:
    """Tensors of a case; inputs are nowhere zero, so that reading too much shows."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    in_dense: Tensor
    out_dense: Tensor
    form: Form
    activation: str

    @property
    def tensors(self) -> tuple:
        return self.x, self.weight, self.bias, self.mask, self.in_dense, self.out_dense

    def run(self, backend: str, **changed) -> Tensor:
        """By the operator."""
        given = {name: getattr(self, name) for name in ("x", "weight", "bias", "mask", "in_dense", "out_dense")}
        f = self.form
        return torch.ops.sparsemask.conv(
            *{**given, **changed}.values(), list(f.stride), list(f.padding), list(f.dilation), list(f.output_padding),
            f.transposed, f.groups, self.activation, backend,
        )  # fmt: skip

    def literal(self) -> np.ndarray:
        return layer(*self.tensors, self.form, self.activation)


def problem(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
    """The tensors of a case, each picture with a mask of its own."""
    g = torch.Generator().manual_seed(seed)
    form = Form.of(len(case.spatial), **dict(case.form))
    shape = (case.c_in, case.c_out // form.groups) if form.transposed else (case.c_out, case.c_in // form.groups)
    scale = (case.c_in // form.groups * math.prod(form.kernel)) ** -0.5
    return Problem(
        torch.randn(case.n, case.c_in, *case.spatial, generator=g).to(dtype),
        (torch.randn(*shape, *form.kernel, generator=g) * scale).to(dtype),
        torch.randn(case.c_out, generator=g).to(dtype) if case.bias else None,
        torch.rand(case.n, 1, *form.outputs(case.spatial), generator=g) < case.kept,
        split(case.ins, case.c_in, g),
        split(case.outs, case.c_out, g),
        form,
        case.activation,
    )


def difference(y: Tensor, expected: np.ndarray) -> float:
    """Largest error, relative where values are above one."""
    assert tuple(y.shape) == expected.shape, (tuple(y.shape), expected.shape)
    error = np.abs(numbers(y) - expected) / np.maximum(1, np.abs(expected))
    return float(error.max()) if error.size else 0.0
