"""Networks of the wider space: against a literal computation, folded, and equal to the published ones where alike."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import literal_decoders as literal
from filling import fill
from pyramid import Pyramid
from sparsemask.errors import UseError
from sparsemask.inference import optimize_for_inference
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, POINTWISE, SEPARABLE, DecoderMask, as_decoder, decoder_mask
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask


def drawn(seed: int, length: int = 4) -> DecoderMask:
    """A decoder of any shape, operations and widths."""
    rng = np.random.default_rng(seed)
    while True:
        takes = (rng.random((length, length, 2)) < rng.uniform(0.2, 0.8)) & np.tri(length, dtype=bool)[..., None]
        takes[int(rng.integers(1, length)) + 1 :] = False
        for stage in range(length):
            if not takes[stage].any():
                takes[:, stage + 1 : stage + 2, UP] = False
        if takes.any():
            operations, widths = rng.integers(0, 3, length), rng.choice([8, 16, 24], length)
            return decoder_mask(takes, operations, widths, bool(rng.integers(2)))


def lively(net: nn.Module) -> nn.Module:
    """Batch norms as after training, so that what is forgotten shows."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias, 0.5), nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 2)
    return net


def network(mask, seed: int = 0) -> PrunedNetwork:
    torch.manual_seed(seed)
    return lively(PrunedNetwork(mask, Pyramid(), num_classes=3, bn_momentum=0.1)).double()


def test_the_masks_drawn_here_are_of_all_kinds():
    masks = [drawn(seed) for seed in range(12)]
    kinds = {int(m.operations[i]) for m in masks for i in m.stages}
    assert kinds == {POINTWISE, SEPARABLE, FULL}
    assert {m.context for m in masks} == {True, False} and len({m.output for m in masks}) >= 3
    assert any(len({int(m.widths[i]) for i in m.stages}) > 1 for m in masks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_networks_equal_their_literal_form(seed, training):
    net = network(drawn(seed), seed).train(training)
    other = copy.deepcopy(net)
    x = torch.randn(3, 3, 37 + seed, 53 - seed, dtype=torch.float64)
    ours, theirs = net(x), literal.wide(other, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(ours)
    (ours * direction).sum().backward(), (theirs * direction).sum().backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("seed", range(12))
def test_folded_networks_compute_the_same_without_norms(seed):
    net = network(drawn(seed), seed).eval()
    x = torch.randn(2, 3, 45, 38, dtype=torch.float64)
    folded = copy.deepcopy(net)
    folded.fold()
    folded.backbone = copy.deepcopy(net.backbone)  # its norms stand in sequences, which are not its matter
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)
    assert not [m for m in folded.decoders.modules() if isinstance(m, nn.BatchNorm2d)]
    # One product a feature, whatever the number and the widths of the stages that take it.
    assert len(folded.merged) == sum(bool(takers) for takers in folded._takers.values())


def test_the_fast_form_computes_the_same():
    net = network(drawn(3), 3).float().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            optimize_for_inference(net, x, compiled=False, rounds=1)(x), net(x), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["unet", "dense", "random-7"])
def test_a_published_mask_told_as_a_decoder_is_the_same_network(name):
    published = named_mask(name, 9, seed=2)
    torch.manual_seed(1)
    before = PrunedNetwork(published, depth=16)
    torch.manual_seed(1)
    after = PrunedNetwork(as_decoder(published, 16))
    state = before.state_dict()
    assert list(state) == list(after.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in after.state_dict().items())
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(fill(before).eval()(x), fill(after).eval()(x))


def test_what_is_deeper_than_all_that_is_used_is_not_looked_at():
    takes = np.zeros((4, 4, 2), dtype=bool)
    takes[1, 1, DOWN] = takes[2, 2, UP] = takes[2, 2, DOWN] = True
    net = network(decoder_mask(takes, [FULL] * 4, [8] * 4)).eval()
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        points = net.backbone(x)
        features = net.decode(points)
        assert torch.equal(net.decode([None, *points[1:]]), features)
    assert features.shape[-2:] == points[2].shape[-2:]  # the output stage's size
    assert net(x, (40, 40)).shape[-2:] == (40, 40)


def test_a_decoder_of_another_backbone_is_refused():
    with pytest.raises(UseError, match="for 5 features, this backbone has 4"):
        PrunedNetwork(drawn(0, 5), Pyramid())
