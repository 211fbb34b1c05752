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
from sparsemask.costs import measure
from sparsemask.inference import optimize_for_inference
from sparsemask.masks import DOWN, UP, check_mask
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork, load_network, named_mask, save_network
from sparsemask.spaces.connectivity_pruned_encoder.space import small_widths
from sparsemask.weights import load_strictly, unbuilt_parts, under


class Steps(Pyramid):
    """A user's backbone whose end points come one after the other."""

    def truncate_(self, deepest: int) -> None:
        del self.layers[len(self.channels) - deepest :]

    def forward(self, x):
        points = super().forward(x)
        return [None] * (len(self.channels) - len(points)) + points


PARTS = ("weight", "bias", "running_mean", "running_var")
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


MASK = random_mask(np.random.default_rng(3), 9, 5)


def test_only_what_is_used_is_counted():
    counted = [measure(net.eval(), (1, 3, 64, 64), time=False) for net in pair(lambda: "mobilenet_v2", MASK)]
    assert counted[1].parameters < counted[0].parameters / 5
    assert counted[1].multiply_adds < counted[0].multiply_adds
    named = [PrunedNetwork(named_mask(name, 9)) for name in ("sparsemask-voc", "dense", "unet")]
    assert not any(unbuilt_parts(net) for net in named)


def test_weights_of_the_whole_encoder_load_with_a_line(capsys):
    whole, cut = pair(lambda: "mobilenet_v2", MASK)
    fresh = PrunedNetwork(MASK, depth=6, num_classes=3)
    load_strictly(fresh, whole.state_dict(), "whole.pt")
    line = capsys.readouterr().out
    assert line.startswith("whole.pt: ") and line.count("\n") == 1 and "backbone.bottlenecks.Bottlenecks_4" in line
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in fresh.state_dict().items())
    load_strictly(fresh.backbone, whole.backbone.state_dict(), "encoder")
    assert "left out" in capsys.readouterr().out
    load_strictly(fresh, cut.state_dict(), "cut.pt")
    assert not capsys.readouterr().out
    for changed in ({"backbone.extra.weight": torch.ones(1)}, {"decoders.Decoders_0.bn.more": torch.ones(1)}):
        with pytest.raises(UseError, match="do not belong here"):
            load_strictly(fresh, {**whole.state_dict(), **changed}, "whole.pt")
    missing = {k: v for k, v in whole.state_dict().items() if k != "backbone.conv1.weight"}
    with pytest.raises(UseError, match="missing"):
        load_strictly(fresh, missing, "whole.pt")
    with pytest.raises(RuntimeError):
        fresh.load_state_dict(missing)


def test_shared_files_of_both_kinds_load(tmp_path, capsys):
    nets = pair(lambda: "mobilenet_v2", MASK)
    config = {"backbone_name": "mobilenet_v2", "depth": 6}
    x = torch.randn(1, 3, 64, 64)
    for net, lines in zip(nets, (1, 0), strict=True):
        save_network(tmp_path / "net.safetensors", net, config, 3)
        loaded = load_network(tmp_path / "net.safetensors")
        assert capsys.readouterr().out.count("left out") == lines
        assert unbuilt_parts(loaded) and torch.equal(loaded(x), net.eval()(x))


def test_a_copy_and_the_folded_form_of_a_truncated_network_are_truncated():
    _, cut = pair(lambda: "mobilenet_v2", MASK)
    whole_state = pair(lambda: "mobilenet_v2", MASK)[0].state_dict()
    copied = copy.deepcopy(cut.eval())
    copied.load_state_dict(whole_state)
    x = torch.randn(1, 3, 65, 97)
    fast = optimize_for_inference(cut, x, compiled=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), copied(x), rtol=1e-4, atol=1e-4)


def test_a_truncated_backbone_is_no_longer_one_for_deeper_masks():
    backbone = backbones.create("mobilenet_v2")
    assert backbones.truncate_(backbone, 0) == [] and backbones.truncate_(Pyramid(), 2) == []
    removed = backbones.truncate_(backbone, 3)
    assert removed[0] == "bottlenecks.Bottlenecks_5" and "conv_last" in removed
    assert backbones.truncate_(backbone, 3) == []
    assert backbones.truncate_(backbone, 8)
    points = backbone(torch.randn(1, 3, 32, 32))
    assert points[:8] == [None] * 8 and points[8].shape == (1, 32, 16, 16)
    with pytest.raises(UseError, match="end point 8"):
        PrunedNetwork(MASK, backbone)


def test_widths_of_a_truncated_encoder():
    whole, _ = pair(lambda: "mobilenet_v2", MASK)
    state = whole.state_dict()
    block = "backbone.bottlenecks.Bottlenecks_1.LinearBottleneck1_1"
    for name in ("conv1.weight", "conv2.weight", *(f"bn{n}.{part}" for n in (1, 2) for part in PARTS)):
        state[f"{block}.{name}"] = state[f"{block}.{name}"][:100]
    state[f"{block}.conv3.weight"] = state[f"{block}.conv3.weight"][:, :100]
    cut_state = {name: value for name, value in state.items() if not under(name, unbuilt_parts(PrunedNetwork(MASK)))}
    options = {"depth": 6, "n_class": 3}
    widths = small_widths(MASK, options, state)
    assert widths == small_widths(MASK, options, cut_state)
    nets = [PrunedNetwork(MASK, depth=6, num_classes=3, widths=widths, whole_encoder=whole) for whole in (True, False)]
    for net in nets:
        load_strictly(net, state, "narrow.pt")
    check_alike(*nets)
