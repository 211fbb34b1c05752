"""The connectivity networks: published sizes and outputs, equality with the literal form."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import literal_connectivity as literal
from filling import fill, picture
from pyramid import Pyramid
from sparsemask import UseError, spaces
from sparsemask.masks import UP
from sparsemask.spaces.connectivity import FCN, FullyDenseNetwork, PrunedNetwork, named_mask


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
    """Two equal networks agree in outputs, gradients of all that is learnt, and running statistics."""
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


def noisy_weights(net: FullyDenseNetwork, noise: list[torch.Tensor]) -> list[torch.Tensor]:
    """The connection weights of a forward pass with this noise, as published: none in evaluation."""
    std = net.noise_std if net.training else 0
    return [(w + std * n.to(w)).clamp(0, 2) for w, n in zip(net.raw_weights(), noise, strict=True)]


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
    noise = net.sample_noise(torch.Generator().manual_seed(5))
    ours = net(x)
    theirs = literal.supernet(other, x, noisy_weights(other, noise))
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
    x = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        ours, theirs = net(x), literal.supernet(other, x, noisy_weights(other, noise))
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
    # Every decoder parameter that asks for a gradient got one: distributed training depends on it.
    for name, p in net.named_parameters():
        if not name.startswith("backbone."):
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
    net.set_noise(None)  # every pass draws its own again
    net.train()
    net(x)
    free = [w.clone() for w in net.connection_weights()]
    net(x)
    assert any((a != b).any() for a, b in zip(free, net.connection_weights(), strict=True))


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
