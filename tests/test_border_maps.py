"""Maps that convolutions with borders keep: computed once a size, and never of other weights than the present ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hinge import one_thread  # noqa: F401
from sparsemask.spaces.group_sparsity.compression import border
from sparsemask.spaces.group_sparsity.compression.border import Bordered, add_border, fix_borders

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def conv():
    torch.manual_seed(0)
    module = nn.Conv2d(2, 3, 3, padding=1)
    add_border(module, torch.randn(3, 1, 3, 3))
    return module.eval()


@pytest.fixture
def computed(monkeypatch):
    """The sizes for which a map was computed."""
    sizes = []
    compute = Bordered.border_of
    monkeypatch.setattr(Bordered, "border_of", lambda self, x: sizes.append(tuple(x.shape[2:])) or compute(self, x))
    return sizes


X = torch.randn(2, 2, 6, 5)


def literal(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype)
    return torch.conv2d(torch.cat([x, ones], 1), torch.cat([conv.weight, conv.border], 1), conv.bias, padding=1)


def right(conv: nn.Module, x: torch.Tensor = X) -> bool:
    with torch.no_grad():
        return torch.allclose(conv(x), literal(conv, x), atol=1e-5)


def test_a_map_is_computed_once_a_size(conv, computed):
    for _ in range(3):
        assert right(conv) and right(conv, X[:1]) and right(conv, X[..., :4])
    assert computed == [(6, 5), (6, 4)]
    for width in range(1, 12):
        assert right(conv, torch.randn(1, 2, 3, width))
    assert len(conv._kept) == border._SIZES


CHANGES = {
    "in place": lambda conv: conv.border.detach().mul_(2),
    "data": lambda conv: conv.border.data.add_(1),
    "another tensor": lambda conv: setattr(conv.border, "data", torch.randn(3, 1, 3, 3)),
    "another parameter": lambda conv: setattr(conv, "border", nn.Parameter(torch.randn(3, 1, 3, 3))),
    "state": lambda conv: conv.load_state_dict({k: v + 1 for k, v in conv.state_dict().items()}),
    "scaled": lambda conv: (
        conv.border.requires_grad_(False) is not None and conv.scale_border(torch.tensor([1.0, 2, 3]))
    ),
    "optimiser": lambda conv: step(conv),
    "training": lambda conv: step(conv.train()) or conv.eval(),
}


def step(conv: nn.Module) -> None:
    conv(X).square().sum().backward()
    torch.optim.SGD(conv.parameters(), 0.01).step()


@pytest.mark.parametrize("name", CHANGES)
def test_other_weights_make_other_maps(conv, name):
    assert right(conv)
    before = conv.border.detach().clone()
    CHANGES[name](conv)
    assert not torch.equal(before, conv.border) and right(conv)


@pytest.mark.parametrize("name", ["state", "scaled", "training"])
def test_fixed_maps_follow_what_drops_or_scales_them(conv, name):
    fix_borders(conv, X)
    assert right(conv) and conv.border_map is not None
    CHANGES[name](conv)
    assert right(conv)


def test_types_and_modes(conv, computed):
    assert right(conv)
    with torch.inference_mode():
        conv(X[..., :3])  # a map of this size is made in inference mode
    assert right(conv.double(), X.double())
    conv.float()
    x = X[..., :3].clone().requires_grad_()
    conv(x).sum().backward()  # gradients reach the border
    assert x.grad is not None and conv.border.grad.abs().sum() > 0
    for p in conv.parameters():
        p.requires_grad_(False)
    x = X[..., :3].clone().requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first, second = conv(X), conv(X)
        assert first.dtype == torch.bfloat16 and torch.equal(first, second)
    assert torch.allclose(first.float(), literal(conv, X), atol=0.1)


def test_functional_calls_and_batches_of_weights(conv):
    assert right(conv)
    other = {name: value.detach() + 1 for name, value in conv.named_parameters()}
    changed = copy.deepcopy(conv)
    changed.load_state_dict(other)
    with torch.no_grad():
        assert torch.allclose(torch.func.functional_call(conv, other, (X,)), literal(changed, X), atol=1e-5)
        stacked = {name: torch.stack([value, value + 1]) for name, value in conv.named_parameters()}
        both = torch.func.vmap(lambda p: torch.func.functional_call(conv, p, (X,)))(stacked)
        assert torch.allclose(both[0], literal(conv, X), atol=1e-5)
        assert torch.allclose(both[1], literal(changed, X), atol=1e-5)
        each = torch.func.vmap(lambda x: conv(x[None])[0])(X[..., :4])
        assert torch.allclose(each, literal(conv, X[..., :4]), atol=1e-5)
    assert right(conv, X[..., :4])  # nothing batched was kept


def test_kept_maps_are_no_part_of_copies_and_files(conv):
    size = len(pickle.dumps(conv))
    assert right(conv) and conv._kept
    assert len(pickle.dumps(conv)) == size and not copy.deepcopy(conv)._kept
    assert list(conv.state_dict()) == ["weight", "bias", "border"]
