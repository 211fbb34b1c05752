"""What makes traces quick gives what the slow ways give: moved elements, spared products, duplicated networks."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hinge import one_thread  # noqa: F401
from sparsemask.spaces.group_sparsity.tracing.duplicate import duplicate
from sparsemask.spaces.group_sparsity.tracing.moves import moved
from sparsemask.spaces.group_sparsity.tracing.record import tensors_in
from sparsemask.spaces.group_sparsity.tracing.sparing import spared

pytestmark = pytest.mark.usefixtures("one_thread")
A = torch.ops.aten

# Operator, shape of its tensor, other arguments.
MOVES = [
    (A.view.default, (2, 6, 4), ([2, 24],)),
    (A.view.default, (2, 6, 4), ([2, 3, 2, 4],)),
    (A.view.default, (2, 6, 4), ([12, -1],)),
    (A.view.default, (2, 6, 4), ([2, 4, 6],)),
    (A.view.default, (2, 6, 4), ([1, 2, 1, 6, 4, 1],)),
    (A.view.default, (1, 6, 1, 4), ([6, 4],)),
    (A.view.default, (1, 6, 1, 4), ([24],)),
    (A.view.default, (4, 6, 6, 2), ([4, 3, 2, 3, 2, 2],)),
    (A.view.default, (2, 0, 4), ([2, 0, 2, 2],)),
    (A.view.default, (6,), ([2, 3],)),
    (A.view.default, (6,), ([1, 6, 1],)),
    (A.view.default, (2, 2, 2), ([8],)),
    (A._unsafe_view.default, (3, 8, 2), ([3, 2, 4, 2],)),
    (A.permute.default, (2, 3, 4), ([2, 0, 1],)),
    (A.transpose.int, (2, 3, 4), (1, 2)),
    (A.unsqueeze.default, (2, 3), (1,)),
    (A.squeeze.dim, (2, 1, 3), (1,)),
    (A.select.int, (2, 3, 4), (1, 2)),
    (A.slice.Tensor, (2, 6, 4), (1, 1, 5, 2)),
    (A.split.Tensor, (2, 6, 4), (4, 1)),
    (A.split_with_sizes.default, (2, 6, 4), ([1, 5], 1)),
    (A.unbind.int, (2, 3, 4), (1,)),
    (A.flip.default, (2, 3, 4), ([1, 2],)),
    (A.roll.default, (2, 3, 4), ([1, -1], [0, 2])),
    (A.repeat.default, (2, 3), ([2, 1, 3],)),
    (A.index_select.default, (2, 3, 4), (1, torch.tensor([2, 0]))),
    (A.channel_shuffle.default, (2, 6, 4, 2), (3,)),
    (A.pixel_unshuffle.default, (2, 3, 4, 2), (2,)),
    (A.unfold.default, (2, 6, 4), (1, 3, 2)),
]


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_elements_move_as_entries_do(number):
    operator, shape, more = MOVES[number]
    for dim, same in itertools.product(range(len(shape)), (False, True)):
        elements = np.arange(10, 10 + shape[dim]) // (2 if same else 1)  # as after a flattening: several of one number
        numbers = torch.from_numpy(elements).view([-1 if d == dim else 1 for d in range(len(shape))])
        wanted = tensors_in(operator(numbers.expand(shape).contiguous(), *more))
        results = moved(operator, (None, *more), {}, elements, dim, shape)
        for result, whole in zip(results, wanted, strict=True):
            assert result.shape == tuple(whole.shape)
            assert np.array_equal(np.broadcast_to(result.numbers, result.shape), whole.numpy())
            changing = {d for d in range(whole.dim()) if whole.numel() and (whole != whole.narrow(d, 0, 1)).any()}
            assert set(result.dims) == changing
            if len(changing) < 2 and whole.dim() and whole.numel():
                at, line = result.along(dim, elements)
                assert changing <= {at} and (whole.movedim(at, -1) == torch.from_numpy(line)).all()
                assert result.lies(at, line) and not result.lies(at, line + 1) and not result.lies(at, line[1:])


PRODUCTS = [
    (A.mm, lambda: (torch.randn(3, 4), torch.randn(5, 4).t())),
    (A.mm, lambda: (torch.randn(4, 3).t(), torch.randn(4, 5))),
    (A.addmm, lambda: (torch.randn(5), torch.randn(3, 4), torch.randn(5, 4).t())),
    (A.bmm, lambda: (torch.randn(2, 3, 4), torch.randn(2, 5, 4).transpose(1, 2))),
    *(
        (A.convolution, lambda t=t, d=d, s=s, g=g: convolution(t, d, s, g))
        for t in (False, True)
        for d in (1, 2, 3)
        for s in (1, 2)
        for g in (1, 2)
    ),
]


def convolution(transposed, dims, stride, groups):
    weight = torch.randn(4, 6 // groups if transposed else 4 // groups, *[3] * dims)
    weight = weight if transposed else torch.randn(6, 4 // groups, *[3] * dims)
    numbers = [stride] * dims, [1] * dims, [2] * dims, transposed, [stride - 1 if transposed else 0] * dims, groups
    return torch.randn(2, 4, *range(9, 9 + dims)), weight, torch.randn(6), *numbers


@pytest.mark.parametrize("number", range(len(PRODUCTS)))
def test_spared_products_look_like_real_ones(number):
    operator, arguments = PRODUCTS[number]
    arguments = arguments()
    real, found = operator(*arguments), spared(operator.__name__, arguments, True)
    assert (found.shape, found.stride(), found.dtype) == (real.shape, real.stride(), real.dtype)
    assert not found.any()


def test_products_that_do_not_fit_are_left_to_torch():
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    rest = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert spared("convolution", (x, weight, None, *rest), True) is not None
    assert spared("convolution", (x, weight, None, *rest), False) is None
    for a, b, c in (
        (x[:, :2], weight, None),
        (x, weight, torch.randn(3)),
        (x[..., :2], weight, None),
        (x.to(memory_format=torch.channels_last), weight, None),
        (x, weight.to(memory_format=torch.channels_last), None),
        (x.double(), weight, None),
    ):
        assert spared("convolution", (a, b, c, *rest), True) is None
    assert spared("mm", (torch.randn(2, 3), torch.randn(2, 3)), True) is None
    assert spared("relu", (x,), True) is None


def test_standardised_weights_are_taken_as_they_are():
    weight, rest = torch.randn(1, 6, 36), (True, 0.0, 1e-5)
    real = A.native_batch_norm(weight, None, None, None, None, *rest)
    found = spared("native_batch_norm", (weight, None, None, None, None, *rest), False)
    assert [(t.shape, t.stride(), t.dtype) for t in found] == [(t.shape, t.stride(), t.dtype) for t in real]
    assert found[0] is not weight and found[0].data_ptr() == weight.data_ptr()
    # Statistics that are kept are a state: they are computed, and so is what depends on the input.
    kept = torch.zeros(6), torch.ones(6)
    assert spared("native_batch_norm", (weight, None, None, *kept, *rest), False) is None
    assert spared("native_batch_norm", (weight, None, None, None, None, *rest), True) is None


class Own(nn.Module):
    """Says itself how it is copied."""

    def __init__(self):
        super().__init__()
        self.layer, self.copies = nn.Linear(2, 2), 0

    def __deepcopy__(self, memo):
        other = Own()
        other.layer, other.copies = copy.deepcopy(self.layer, memo), self.copies + 1
        return other


class Holder(nn.Module):
    """Everything that a module may hold."""

    def __init__(self):
        super().__init__()
        self.first, self.own = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), Own()
        self.again, self.order = self.first[0], [self.first, self.own]
        self.sizes, self.cache, self.width = (4, 2), {"weight": self.first[0].weight}, 4
        self.call = self.first.forward


def test_duplicates_are_apart_but_for_weights():
    network = Holder()
    other = duplicate(network)
    assert type(other) is Holder and other.first is not network.first and other.again is other.first[0]
    assert other.order[0] is other.first and other.order[1] is other.own and other.own.copies == 1
    assert other.cache["weight"] is other.first[0].weight and other.cache is not network.cache
    assert other.call.__self__ is other.first and (other.sizes, other.width) == ((4, 2), 4)
    names = network.state_dict().keys()
    assert names == other.state_dict().keys() == copy.deepcopy(network).state_dict().keys()
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert a is not b and a.data_ptr() == b.data_ptr() and a.requires_grad == b.requires_grad, name
    other.first[1].running_mean += 1
    other.first[0].weight.data = torch.zeros(2, 3, 1, 1)
    other.first.append(nn.ReLU())
    other.first.register_forward_hook(lambda *_: None)
    assert not network.first[1].running_mean.any() and network.first[0].weight.shape == (4, 3, 1, 1)
    assert len(network.first) == 2 and not network.first._forward_hooks
