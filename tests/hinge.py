"""Helpers of the group sparsity tests: the published count, networks with lively statistics, one of a user's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsemask.spaces.group_sparsity.networks import INPUT_SHAPE, create


@pytest.fixture
def one_thread():
    """One thread while a test runs: maps this small only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published_count(network: nn.Module, shape: tuple[int, ...] = (1, *INPUT_SHAPE)) -> tuple[int, int]:
    """Multiply-adds as the papers on group sparsity count them, and parameters; by hooks, apart from the toolkit's."""
    total = 0

    def count(module, _, out):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += module.weight[0].numel() * out[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * out[0].numel()
        elif isinstance(module, nn.ReLU):
            total += out[0].numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(shape))
    for hook in hooks:
        hook.remove()
    return total, sum(parameter.numel() for parameter in network.parameters())


def lively(arch: str, seed: int = 0, n_class: int = 10, **options) -> nn.Module:
    """A network in evaluation mode whose features stay of order one: statistics from a batch, affine terms drawn."""
    torch.manual_seed(seed)
    return enliven(create(arch, n_class, **options))


def enliven(network: nn.Module, shape: tuple[int, ...] = (4, *INPUT_SHAPE)) -> nn.Module:
    """Give batch norms the statistics of a random batch, and scales and shifts of their own."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum, kept = 1.0, norm.momentum
        norm.kept = kept
    with torch.no_grad():
        network.train()(torch.randn(shape))
    for norm in norms:
        norm.momentum = norm.kept
        del norm.kept
    return network.eval()


def lasting(network: nn.Module) -> nn.Module:
    """Put an activation that makes a constant of zero in place of ReLU: removed channels then leave something."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    return network


class SmallUNet(nn.Module):
    """Two scales with concatenations, an interpolation and a transposed convolution, without batch norm at the end."""

    def __init__(self, n_class: int = 3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(22, 9, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(17, n_class, 1)

    def forward(self, x):
        a = self.first(x)
        b = self.down(a)
        c = self.join(torch.cat([self.up(self.deep(b)), b], 1))
        return self.last(torch.cat([a, F.interpolate(c, a.shape[-2:])], 1))


def small_unet() -> SmallUNet:
    """A callable without arguments."""
    return SmallUNet()
