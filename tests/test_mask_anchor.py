"""Masks that are held where they were started, while the features that mask branches read are trained."""

from __future__ import annotations

import copy
from types import SimpleNamespace as Some

import pytest
import torch

from sparsemask.spaces import sr_networks
from sparsemask.spaces.sparsified import SparsifiedNetwork
from sparsemask.spaces.sparsified.anchor import MaskAnchor
from sparsemask.spaces.sparsified.network import begin
from sparsemask.sparse import backend, set_mask_mode

CONFIG = Some(training=Some(lr=1e-2))


@pytest.fixture(autouse=True)
def one_backend():
    """Not whichever is fastest at the moment."""
    with backend("reference"):
        yield


@pytest.fixture
def started():
    """An EDSR, whose features have the size of its pictures, with masks started on pictures half of which are flat."""
    torch.manual_seed(0)
    x = 255 * torch.rand(6, 3, 24, 24)
    x[..., :12] = x[..., :1, :1]
    network = SparsifiedNetwork(sr_networks.EDSR(2, 16, 2), x).eval()
    begin(network, x, 0.8, steps=60)
    return network, x


def trained(network: SparsifiedNetwork, x: torch.Tensor) -> torch.Tensor:
    """A forward pass as in training, masks hard."""
    set_mask_mode(network.train(), "hard")
    return network(x)


def agreement(network: SparsifiedNetwork, x: torch.Tensor, wanted) -> float:
    with torch.no_grad():
        network.eval()(x)
    pairs = zip(network.masks, wanted, strict=True)
    return float(torch.stack([(mask == other).float().mean() for mask, other in pairs]).min())


def test_what_it_draws_is_what_the_dense_network_has(started):
    network, x = started
    anchor = MaskAnchor(network)
    output, masks = anchor(x)
    with torch.no_grad():
        torch.testing.assert_close(output, network.network(x))
        network(x)
        assert torch.equal(masks[0], network.masks[0])  # nothing is dropped before the first region
        for region in network.region_masks:
            region.open_masks()
        network(x)
    assert all(0.05 < float(mask.float().mean()) < 0.95 for mask in masks)
    assert all(torch.equal(mask, again) for mask, again in zip(masks, anchor(x)[1], strict=True))


def test_masks_stay_while_features_move(started):
    """Features of other sizes and kinds: the branch alone is trained, and draws the same masks again."""
    network, x = started
    anchor = MaskAnchor(network)
    wanted = anchor(x)[1]
    with torch.no_grad():
        for name, parameter in network.network.named_parameters():
            if name.startswith("head"):
                parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    before = agreement(network, x, wanted)
    frozen = {name: value.clone() for name, value in network.network.state_dict().items()}
    optimizer = torch.optim.Adam(anchor.groups(network, CONFIG))
    anchor.scale_rates(optimizer.param_groups)
    for _ in range(80):
        trained(network, x)
        anchor.thaw(network)
        optimizer.zero_grad()
        anchor.loss(network, anchor(x)[1]).backward()
        assert not any(parameter.grad is not None for parameter in network.network.parameters())
        optimizer.step()
    assert agreement(network, x, wanted) > max(0.93, before + 0.02)
    assert all(torch.equal(value, frozen[name]) for name, value in network.network.state_dict().items())


def test_rates_are_relative_to_weights(started):
    """Features of 0 to 255 are read by small weights; a step of --lr would be larger than they are."""
    network, _ = started
    anchor = MaskAnchor(network)
    groups = anchor.groups(network, CONFIG)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    branches = [parameter for masks in network.region_masks for parameter in masks.spa_mask.parameters()]
    assert sorted(listed) == sorted(map(id, branches))
    anchor.scale_rates(groups)
    for group, masks in zip(groups, network.region_masks, strict=False):
        assert group["lr"] < 0.5 * float(masks.spa_mask.first().weight.detach().abs().max()) < 0.1
    assert groups[-1]["lr"] == CONFIG.training.lr


def test_it_follows_the_budget_and_goes_on(started):
    network, x = started
    anchor = MaskAnchor(network)
    before = [mask.float().mean() for mask in anchor(x)[1]]
    anchor.shift(1.5)
    after = anchor(x)[1]
    assert all(mask.float().mean() > share for mask, share in zip(after, before, strict=True))
    again = MaskAnchor(network)
    again.restore(anchor.state())
    assert all(torch.equal(mask, other) for mask, other in zip(again(x)[1], after, strict=True))


def test_regions_without_masks_are_left_out(started):
    network, x = started
    anchor = MaskAnchor(network)
    network.region_masks[0].open_masks()
    trained(network, x)
    anchor.thaw(network)
    anchor.loss(network, anchor(x)[1]).backward()
    first, second = (masks.spa_mask.first().weight.grad for masks in network.region_masks)
    assert first is None and second is not None


def test_what_is_read_does_not_hinder_copies(started):
    network, x = started
    trained(network, x).sum().backward()
    assert set(network.read) == {0, 1} and not any(value.requires_grad for value in network.read.values())
    copy.deepcopy(network)
    read = network.read
    with torch.no_grad():
        network.eval()(x)
    assert network.read is read
