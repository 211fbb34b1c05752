"""What every backend must do, a user's own too."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sparsemask.backends import AttendedBlockCall, Backend, BlockCall, ConvCall
from sparsemask.backends.reference import BACKEND as REFERENCE
from sparsemask.ops import dispatch
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.predict_mask import PredictMaskCall


@dataclass(frozen=True)
class Layer:
    """The shape of a convolution to try."""

    kernel: int
    spatial: tuple[int, ...] = (6, 7)
    stride: int = 1
    transposed: bool = False
    groups: int = 1
    channels: tuple[int, int] = (6, 8)
    activation: str = "relu"
    bias: bool = True


LAYERS = {
    "3×3": Layer(3),
    "1×1": Layer(1, activation="none"),
    "without bias, leaky": Layer(3, bias=False, activation="leaky_relu:0.1"),
    "stride 2": Layer(3, stride=2),
    "transposed": Layer(3, stride=2, transposed=True),
    "grouped": Layer(3, groups=2),
    "depth-wise": Layer(3, groups=8, channels=(8, 8)),
    "points": Layer(1, spatial=(11,)),
    "volume": Layer(3, spatial=(3, 4, 5)),
}


class BackendContract:
    """Tests of a backend: its numbers are the reference's, whatever the masks, and its arguments stay as they were.

    Derive a class whose name begins with `Test` and set `backend`::

        class TestMine(BackendContract):
            backend = Mine()

    Attributes:
        backend: the object under test.
        device, dtype: where it is tested; tests are skipped where its `why_not` gives a reason.
        tolerance: the largest absolute difference from the reference that passes; results are of size one.
    """

    backend: ClassVar[Backend]
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 1e-4

    @pytest.fixture(autouse=True)
    def _only_where_it_computes(self):
        torch.manual_seed(0)
        reason = self.backend.why_not(torch.device(self.device), self.dtype)
        if reason is not None:
            pytest.skip(reason)

    def test_it_is_a_backend(self):
        assert isinstance(self.backend, Backend) and self.backend.name
        for device, dtype in itertools.product(("cpu", "meta"), (torch.float32, torch.float64)):
            reason = self.backend.why_not(torch.device(device), dtype)
            assert reason is None or (reason and "\n" not in reason)

    @pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("dense", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("what", LAYERS)
    def test_convolutions(self, what, dense, kept):
        self._agrees(self._layer(LAYERS[what], dense, kept))

    @pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("dense", [0.0, 0.4, 1.0])
    def test_blocks_with_and_without_attention(self, dense, kept):
        call = self._block(dense, kept)
        self._agrees(call)
        c = call.x.shape[1]
        self._agrees(AttendedBlockCall(call, (self._draw(2, c), self._draw(2), self._draw(c, 2), self._draw(c))))

    @pytest.mark.parametrize("kept", [None, 0.4])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_inverted_residuals(self, stride, kept):
        x, size = self._draw(2, 6, 8, 6), (8 // stride, 6 // stride)
        mask = None if kept is None else self._flags(2, 1, *size, share=kept)
        expand = self._draw(12, 6, 1, 1), self._draw(12), self._flags(12)
        middle = self._draw(12, 1, 3, 3), self._draw(12), self._flags(12)
        project = self._draw(6, 12, 1, 1) / 12, self._draw(6), self._flags(6)
        self._agrees(InvertedResidualCall(x, mask, *expand, *middle, *project, stride, stride == 1))

    def test_several_features_at_once(self):
        xs, weight = [self._draw(2, c, 5, 6) for c in (3, 4)], self._draw(6, 7, 3, 3) / 8
        self._agrees(ConcatConvCall(xs, weight, self._draw(6), self._draw(2, 6, 5, 6), "relu"))

    @pytest.mark.parametrize("kept", [None, 0.4])
    def test_features_of_several_sizes(self, kept):
        xs = [self._draw(2, c, *size) for c, size in ((4, (6, 8)), (3, (3, 4)), (5, (1, 1)))]
        weights = [self._draw(7, x.shape[1], 1, 1) / 2 for x in xs]
        mask = None if kept is None else self._flags(2, 1, 6, 8, share=kept)
        self._agrees(MultiscaleSumCall(xs, weights, [True, False, True], self._draw(7), mask, 3, 6, 8))

    @pytest.mark.parametrize("stride", [1, 2])
    def test_masks_are_predicted(self, stride):
        last = self._draw(4, 2, 3, 3) if stride == 1 else self._draw(2, 4, 1, 1)
        branch = self._draw(4, 6, 1, 1), self._draw(4), self._draw(4, 4, 3, 3), self._draw(4), last, self._draw(2)
        call = PredictMaskCall(self._draw(2, 6, 8, 6), *branch, 0.5, False)
        mask, expected = self.backend.locate(call), REFERENCE.locate(call)
        assert mask.dtype == torch.bool and mask.shape == expected.shape
        assert (mask != expected).float().mean() < 0.02  # rounding may decide where both logits are the same

    @pytest.mark.parametrize("last", [False, True])
    def test_an_operator_brings_the_result_in_the_features_layout(self, last):
        call = self._block(0.4, 0.4)
        x = call.x.contiguous(memory_format=torch.channels_last) if last else call.x
        y = dispatch.laid_out_like(self.backend.block(replace(call, x=x)), x)
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert self._difference(y, REFERENCE.block(call)) < self.tolerance

    # Problems

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device, self.dtype)

    def _flags(self, *shape: int, share: float = 0.5) -> Tensor:
        return (torch.rand(shape) < share).to(self.device)

    def _layer(self, form: Layer, dense: float, kept: float) -> ConvCall:
        dims, (c_in, c_out) = len(form.spatial), form.channels
        g = Geometry.of(
            dims, form.kernel, form.stride, output_padding=form.stride - 1 if form.transposed else 0,
            transposed=form.transposed, groups=form.groups,
        )  # fmt: skip
        outer, inner = (c_in, c_out) if form.transposed else (c_out, c_in)
        weight = self._draw(outer, inner // form.groups, *g.kernel) / (c_in * form.kernel**dims) ** 0.5
        mask = self._flags(2, 1, *g.output_size(form.spatial), share=kept)
        flags = self._flags(c_in, share=dense), self._flags(c_out, share=dense)
        bias = self._draw(c_out) if form.bias else None
        return ConvCall(self._draw(2, c_in, *form.spatial), weight, bias, mask, *flags, g, form.activation)

    def _block(self, dense: float, kept: float, c: int = 6) -> BlockCall:
        weights = [self._draw(c, c, 3, 3) / 6 for _ in range(3)]
        fusion = self._draw(c, 3 * c, 1, 1) / 4, self._draw(c)
        mask, flags = self._flags(2, 1, 6, 7, share=kept), self._flags(3, c, share=dense)
        return BlockCall(self._draw(2, c, 6, 7), mask, weights, flags, *fusion, "relu")

    def _agrees(self, call) -> None:
        before = _copied(call)
        y = call.served_by(self.backend)
        assert _same(_copied(call), before), f"{self.backend.name} changed its arguments"
        expected = call.served_by(REFERENCE)
        assert y.shape == expected.shape and y.dtype == expected.dtype
        assert self._difference(y, expected) < self.tolerance

    @staticmethod
    def _difference(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).abs().max())


def _copied(call) -> list[Tensor]:
    """Copies of all tensors of a call."""
    copies = []
    for field in fields(call):
        value = getattr(call, field.name)
        if isinstance(value, BlockCall):
            copies += _copied(value)
        for item in value if isinstance(value, list | tuple) else [value]:
            copies += [item.clone()] if isinstance(item, Tensor) else []
    return copies


def _same(tensors: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
