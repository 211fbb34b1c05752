"""Encoders without the blocks that nothing reads: same outputs and gradients, fewer parameters, files of both kinds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from filling import fill
from pyramid import Pyramid
from sparsemask import UseError
from sparsemask.inference import optimize_for_inference
from sparsemask.masks import DOWN, UP, check_mask
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.weights import load_strictly, unbuilt_parts


class Steps(Pyramid):
    """A user's backbone whose end points come one after the other."""

    def truncate_(self, deepest: int) -> None:
        del self.layers[len(self.channels) - deepest :]

    def forward(self, x):
        points = super().forward(x)
        return [None] * (len(self.channels) - len(points)) + points


BACKBONES = {"mobilenet_v2": lambda: "mobilenet_v2", "own": Steps}


def random_mask(rng: np.random.Generator, features: int, deepest: int) -> np.ndarray:
    """A mask whose live stages read `deepest` and nothing deeper; a stage that nobody takes reads the deepest one."""
    allowed = np.tril(np.ones((features, features), bool))[..., None] & (rng.random((features, features, 2)) < 0.4)
    allowed[deepest:, :deepest, DOWN] = False
    allowed[deepest:, : deepest + 1, UP] = deepest == 0
    allowed[:deepest] = False
    allowed[-1, deepest, DOWN] = True
    for stage in range(features - 1):
        if not allowed[stage].any():
            allowed[:, stage + 1, UP] = False
    if deepest:
        allowed[deepest - 1, 0, DOWN] = True
    return check_mask(allowed)


def pair(backbone, mask: np.ndarray, **options) -> tuple[PrunedNetwork, PrunedNetwork]:
    """The whole network and the one that is truncated, of equal weights."""
    whole = fill(PrunedNetwork(mask, backbone(), 6, num_classes=3, bn_momentum=0.1, whole_encoder=True, **options))
    cut = PrunedNetwork(mask, backbone(), 6, num_classes=3, bn_momentum=0.1, **options)
    cut.load_state_dict(whole.state_dict())
    return whole, cut


def check_alike(whole: nn.Module, cut: nn.Module, size: tuple[int, int] = (65, 97)) -> None:
    """Equal outputs in evaluation; equal outputs, gradients and statistics in training."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(whole.eval()(x), cut.eval()(x))
    for net in (whole, cut):
        net.train()(x).square().sum().backward()
    theirs = dict(whole.named_parameters())
    for name, parameter in cut.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # no unused parameters
            assert torch.equal(parameter.grad, theirs[name].grad), name
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in cut.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_truncated_network_computes_what_the_whole_one_does(name):
    rng, backbone = np.random.default_rng(0), BACKBONES[name]
    features = 9 if name == "mobilenet_v2" else 4
    for deepest in range(0, features, 2):
        whole, cut = pair(backbone, random_mask(rng, features, deepest))
        names = list(cut.state_dict())
        assert names == [key for key in whole.state_dict() if key in cut.state_dict()]
        assert (len(names) < len(whole.state_dict())) == (deepest > 0)
        assert list(cut.backbone.channels) == list(whole.backbone.channels)
        check_alike(whole, cut)
