"""The connectivity networks: published sizes and outputs, and equality with the literal form of their formulas."""

from __future__ import annotations

import copy
import json

import literal_connectivity as literal
import numpy as np
import pytest
import torch
from filling import fill, picture
from torch import nn

import spaces
from spaces.connectivity import (
    FCN,
    ConnectivityConfig,
    FullyDenseNetwork,
    PrunedNetwork,
    available_masks,
    named_mask,
)
from sparsemask import UseError
from sparsemask.masks import UP, check_mask, count_connections


class Pyramid(nn.Module):
    """A tiny backbone of four end points, two of one size, with batch norms of its own."""

    channels, strides = (12, 10, 8, 6), (8, 4, 4, 2)

    def __init__(self):
        super().__init__()
        widths = (3, *reversed(self.channels))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b))
            for a, b, stride in zip(widths, widths[1:], (2, 2, 1, 2), strict=False)
        )

    def forward(self, x):
        points = []
        for layer in self.layers:
            x = layer(x)
            points.append(x)
        return points[::-1]


def small_supernet(**options) -> FullyDenseNetwork:
    torch.manual_seed(0)
    net = FullyDenseNetwork(Pyramid(), depth=5, num_classes=3, bn_momentum=0.1, **options).double()
    with torch.no_grad():  # scales, shifts and weights apart, so that a mixed-up order shows
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
        for w in net.raw_weights():
            w.uniform_(0, 2)
    return net


def small_mask(seed: int) -> np.ndarray:
    return named_mask(f"random-{4 + seed}", 4, seed)


def decoder_size(net: nn.Module) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith("backbone."))


@pytest.mark.parametrize("name, net", [("derived", "sparsemask-voc"), ("supernet", None)])
def test_public_key_names_and_shapes_in_order(name, net, golden):
    keys = json.loads((golden / "connectivity_keys.json").read_text())[name]
    space = spaces.get("connectivity")
    built = space.network(net, {}) if net else space.supernet({})
    assert {key: list(value.shape) for key, value in built.state_dict().items()} == keys


@pytest.mark.parametrize(
    "mask, size",
    [
        ("sparsemask-voc", 560_981),
        ("unet", 164_821),
        ("dense", 1_934_293),
        ("sparseacn", 721_877),
        ("fcn", 26_901),
    ],
)
def test_published_decoder_sizes(mask, size):
    net = spaces.get("connectivity").network(mask, {})
    assert decoder_size(net) == size
    assert sum(p.numel() for p in net.parameters()) == size + 2_224_960


def test_golden_outputs(golden):
    recorded = np.load(golden / "connectivity_nets.npz")
    space = spaces.get("connectivity")
    for net, x, name in (
        (space.network("sparsemask-voc", {}), picture(2, 3, 129, 97), "derived_129x97"),
        (space.supernet({}), picture(2, 3, 65, 97), "supernet_65x97"),
    ):
        with torch.no_grad():
            scores = fill(net).eval()(x)
        assert np.abs(scores.numpy() - recorded[name]).max() < 1e-4


def check_same(net, ours, theirs, other, training):
    """Outputs, gradients of everything learnt and, when training, the running statistics of two equal networks."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    # A random direction: the sum alone has no gradient through a batch norm.
    direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, a), b in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)
    counters = [b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
    # Each batch norm has moved exactly once: a double update is the public form's defect.
    assert all(int(c) == int(training) for c in counters)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(33, 41), (32, 16), (19, 50)])
def test_supernet_equals_its_literal_form(size, training, momentum):
    net = small_supernet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True).momentum = momentum
    other = copy.deepcopy(net)
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    net.train(training), other.train(training)
    net.sample_noise(torch.Generator().manual_seed(5))
    other.set_noise(net._noise)
    ours = net(x)
    theirs = literal.supernet(other, x, other._sample_weights())
    check_same(net, ours, theirs, other, training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_pruned_network_equals_its_literal_form(seed, training):
    torch.manual_seed(seed)
    net = PrunedNetwork(small_mask(seed), Pyramid(), depth=5, num_classes=3, bn_momentum=0.1).double()
    other = copy.deepcopy(net)
    net.train(training), other.train(training)
    x = torch.randn(2, 3, 21 + seed, 37 - seed, dtype=torch.float64)
    check_same(net, net(x), literal.pruned(other, x), other, training)


def test_a_search_network_of_the_dense_mask_and_of_float32_agrees_too():
    torch.manual_seed(0)
    net = FullyDenseNetwork(depth=16, num_classes=4).train()
    other = copy.deepcopy(net)
    noise = net.sample_noise(torch.Generator().manual_seed(0))
    other.set_noise(noise)
    x = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        ours, theirs = net(x), literal.supernet(other, x, other._sample_weights())
    # Covariances in float32 are good to a few parts in a hundred thousand.
    assert (ours - theirs).abs().max() < 2e-4 * theirs.abs().max()


def test_global_feature_alone_and_one_by_one_maps():
    mask = np.zeros((4, 4, 2), bool)
    mask[3, 0, UP] = True
    net = PrunedNetwork(mask, Pyramid(), depth=5, num_classes=3).double().eval()
    for size in ((8, 8), (21, 9)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(net(x), literal.pruned(net, x))


def test_a_stage_that_feeds_nothing_keeps_its_weights_but_is_not_computed():
    mask = named_mask("unet", 4)
    mask[3, 3, UP] = False
    net = PrunedNetwork(mask, Pyramid(), depth=5, num_classes=3)
    assert "decoders.Decoders_2.bn.weight" in net.state_dict()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    # Every parameter that asks for a gradient got one: distributed training depends on it.
    dead = {"backbone.layers.1", "backbone.layers.2", "backbone.layers.3"}
    for name, p in net.named_parameters():
        if not name.startswith(tuple(dead)):
            assert p.requires_grad == (p.grad is not None), name


def test_size_upsamples_the_scores():
    net = FCN(Pyramid(), num_classes=3).eval()
    x = torch.randn(1, 3, 33, 41)
    assert net(x).shape[-2:] == (5, 6) and net(x, size=(33, 41)).shape == (1, 3, 33, 41)


def test_noise_is_drawn_once_a_step_and_never_outside_training():
    net, x = small_supernet(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net.train()
    net(x)
    free = [w.clone() for w in net.connection_weights()]
    net(x)
    assert any((a != b).any() for a, b in zip(free, net.connection_weights(), strict=True))
    noise = net.sample_noise(torch.Generator().manual_seed(3))
    net(x)
    first = [w.clone() for w in net.connection_weights()]
    net(x)
    assert all(torch.equal(a, b) for a, b in zip(first, net.connection_weights(), strict=True))
    again = small_supernet().sample_noise(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(noise, again, strict=True))
    net.eval()
    net(x)
    for w, raw in zip(net.connection_weights(), net.raw_weights(), strict=True):
        assert torch.equal(w, raw)
    net.set_noise(None)
    assert net._noise is None


def test_connection_weights_are_clamped_and_learn():
    net = small_supernet(noise_std=5.0).train()
    net(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    weights = net.connection_weights()
    assert [tuple(w.shape) for w in weights] == [(i + 1, 2) for i in range(4)]
    assert all(w.min() >= 0 and w.max() <= 2 for w in weights)
    sum(w.sum() for w in weights).backward()
    assert all(w.grad is not None for w in net.raw_weights())
    with torch.no_grad():
        net.raw_weights()[0].fill_(7)
    net.clamp_weights_()
    assert (net.raw_weights()[0] == 2).all()


def test_batch_norms_of_a_search_are_frozen_and_weights_start_at_one():
    net = FullyDenseNetwork(Pyramid(), depth=5)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 + 4 + 20 and not any(p.requires_grad for m in norms for p in m.parameters())
    assert all((w == 1).all() for w in net.raw_weights())
    assert net.fc_conv.weight.requires_grad and not net.fc_conv.bias.any()


def test_connections_of_weight_zero_change_nothing_when_they_are_skipped():
    net = small_supernet().eval()
    with torch.no_grad():
        for i, w in enumerate(net.raw_weights()):
            w[torch.from_numpy(~small_mask(3)[i, : i + 1])] = 0
    x = torch.randn(2, 3, 33, 29, dtype=torch.float64)
    with torch.no_grad():
        skipped = net(x)
    torch.testing.assert_close(skipped, net(x).detach(), rtol=1e-10, atol=1e-10)


def test_a_supernet_can_be_copied_after_a_forward_pass():
    net = small_supernet().train()
    net(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert [w.shape for w in copy.deepcopy(net).connection_weights()] == [w.shape for w in net.raw_weights()]


@pytest.mark.parametrize("make", [FullyDenseNetwork, lambda: spaces.get("connectivity").network("unet", {})])
def test_a_batch_of_one_is_refused_in_plain_words(make):
    net, x = make().train(), torch.randn(1, 3, 32, 32)
    with pytest.raises(UseError, match="batch of 1 .*--batch_size 2 or more, or --freeze_bn"):
        net(x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert torch.isfinite(net(x)).all()


def test_half_precision_keeps_its_statistics():
    net, x = small_supernet().float().train(), torch.randn(2, 3, 32, 32)
    net.set_noise([torch.zeros(w.shape) for w in net.raw_weights()])
    with torch.no_grad():
        full = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def zeroed(seed: int):
    """A supernet whose weights outside a random mask are zero, the mask, and its configuration."""
    torch.manual_seed(seed)
    mask = named_mask(f"random-{10 + seed}", 9, seed)
    config = ConnectivityConfig(depth=8, n_class=4, first_expansion=bool(seed % 2))
    net = fill(spaces.get("connectivity").supernet(config)).double().eval()
    with torch.no_grad():
        for i, w in enumerate(net.raw_weights()):
            w[torch.from_numpy(~mask[i, : i + 1])] = 0
    return net, mask, config


@pytest.mark.parametrize("seed", [0, 1])
def test_inheriting_all_is_exact(seed):
    net, mask, config = zeroed(seed)
    space = spaces.get("connectivity")
    # The checkpoint decides the backbone's form, whatever the options say.
    state = space.transfer(net.state_dict(), mask, {"depth": 8, "n_class": 4}, inherit="all")
    small = space.network(mask, config).double().eval()
    small.load_state_dict(state)
    x = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-9, atol=1e-9)


def test_inheriting_the_encoder_leaves_the_decoder_alone():
    net, mask, config = zeroed(1)
    space = spaces.get("connectivity")
    for target in (mask, "fcn"):
        state = space.transfer(net.state_dict(), target, config)
        small = space.network(target, config)
        small.load_state_dict(state)
        assert torch.equal(small.backbone.conv1.weight, net.backbone.conv1.weight.float())
    with pytest.raises(UseError, match="'all' needs a connectivity mask"):
        space.transfer(net.state_dict(), "fcn", config, inherit="all")
    with pytest.raises(UseError, match="unknown inheritance 'some'; known: all, encoder"):
        space.transfer(net.state_dict(), mask, config, inherit="some")
    with pytest.raises(UseError, match="other classes, depth or backbone"):
        space.transfer(net.state_dict(), mask, {"depth": 8, "n_class": 5}, inherit="all")
    with pytest.raises(UseError, match="has no backbone"):
        space.transfer({"x": torch.zeros(1)}, mask, config)


def test_sparsemask_voc_is_the_published_mask(golden):
    keys = json.loads((golden / "connectivity_keys.json").read_text())["derived"]
    convs = {k.rsplit(".", 1)[0] for k in keys if "_convs." in k}
    mask = named_mask("sparsemask-voc", 9)
    kinds = ("down_convs", "up_convs")
    assert convs == {f"decoders.Decoders_{i}.{kinds[kind]}.{j}" for i, j, kind in np.argwhere(mask)}
    assert count_connections(mask) == 15
    with pytest.raises(UseError, match="for 9 features, this backbone has 4"):
        named_mask("sparsemask-voc", 4)


@pytest.mark.parametrize("length", [1, 3, 5, 9])
def test_named_masks_are_usable_for_any_backbone(length):
    counts = {"unet": 2 * length - 1, "dense": length * (length + 1)}
    for name in ("unet", "dense", "sparseacn"):
        mask = check_mask(named_mask(name, length))
        assert count_connections(mask) == counts.get(name, count_connections(mask))
    if length == 9:
        assert count_connections(named_mask("sparseacn", 9)) == 34


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_random_masks_have_exactly_k_connections_all_of_use(length):
    for k in range(1, length * (length + 1) + 1):
        mask = check_mask(named_mask(f"random-{k}", length, seed=k))
        assert count_connections(mask) == k
        for stage in range(length - 1):
            # Every stage with inputs is used by one with inputs, hence reaches the output.
            assert mask[stage].any() == mask[:, stage + 1, UP].any()
    assert (named_mask("random-2", length, 7) == named_mask("random-2", length, 7)).all()


def test_random_masks_differ_by_seed():
    assert len({named_mask("random-15", 9, seed).tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize("name", ["ssd", "random-", "random-x", "random-0", "random-91", ""])
def test_wrong_mask_names_are_one_clear_line(name):
    with pytest.raises(UseError, match="unknown mask .*unet|1 to 90 connections"):
        named_mask(name, 9)
    assert "sparseacn" in available_masks()


def test_registry_and_configuration():
    assert "connectivity" in spaces.available()
    assert spaces.get("connectivity").family == "connectivity"
    with pytest.raises(UseError, match="unknown space 'nas'; known: .*connectivity"):
        spaces.get("nas")
    config = ConnectivityConfig.from_options(
        {"depth": 8, "lr": 1, "bn_momentum": None, "first_expansion": "no"}
    )
    assert config == ConnectivityConfig(depth=8, first_expansion=False)
    for wrong, words in (
        ({"depth": 0}, "depth must be a whole number"),
        ({"n_class": "21"}, "n_class must be a whole number"),
        ({"bn_momentum": 3}, "bn_momentum must be a number in"),
        ({"backbone_name": "vgg"}, "unknown backbone 'vgg'"),
    ):
        with pytest.raises(UseError, match=words):
            ConnectivityConfig.from_options(wrong)
    with pytest.raises(UseError, match="the mask is for 3 features, this backbone has 9"):
        spaces.get("connectivity").network(named_mask("unet", 3), {})
    with pytest.raises(UseError, match="is no backbone"):
        FullyDenseNetwork(nn.Linear(2, 2))
