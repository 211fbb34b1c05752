"""The connectivity space: named masks, its configuration, and what a small network inherits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from filling import fill
from sparsemask import UseError, spaces
from sparsemask.masks import UP, check_mask, count_connections
from sparsemask.spaces.connectivity import ConnectivityConfig, FullyDenseNetwork, available_masks, named_mask


def zeroed(seed: int):
    """A supernet whose weights outside a random mask are zero, the mask, and its configuration."""
    torch.manual_seed(seed)
    mask = named_mask(f"random-{10 + seed}", 9, seed)
    config = ConnectivityConfig(depth=8, n_class=4, encoder={} if seed % 2 else {"first_expansion": False})
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
    config = ConnectivityConfig.from_options({"depth": 8, "lr": 1, "bn_momentum": None, "first_expansion": "no"})
    assert config == ConnectivityConfig(depth=8, encoder={"first_expansion": False})
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
