"""Searched networks under the names of segmentation_models_pytorch's models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sparsemask
from pyramid import Pyramid
from sparsemask.errors import UseError
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.pruned_network import FCN


def shallow() -> np.ndarray:
    """A mask that reads the two shallowest of four end points."""
    mask = np.zeros((4, 4, 2), bool)
    mask[2, 2, 0] = mask[3, 3, 0] = mask[3, 3, 1] = True
    return mask


def network(mask: np.ndarray, backbone="mobilenet_v2") -> PrunedNetwork:
    torch.manual_seed(0)
    return PrunedNetwork(mask, backbone, depth=8, num_classes=4).eval()


CASES = {
    "dense": lambda: network(named_mask("dense", 9)),
    "unet": lambda: network(named_mask("unet", 9)),
    "whole encoder": lambda: network(shallow(), Pyramid()),
    "cut encoder": lambda: network(np.pad(shallow(), ((5, 0), (5, 0), (0, 0)))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(64, 96), (67, 45)])
def test_the_parts_in_turn_give_the_scores(case, size):
    made = CASES[case]()
    model, x = sparsemask.SegmentationModel(made).eval(), torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = made(x, size)
        features = model.encoder(x)
        assert torch.equal(features[0], x)
        assert [one.shape[1] for one in features] == list(model.encoder.out_channels)
        sides = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in model.encoder.strides]
        assert [tuple(one.shape[2:]) for one in features] == sides
        kept = model.decoder(features)
        assert kept.shape[1] == model.decoder.out_channels
        assert torch.equal(model.segmentation_head(kept, size), wanted) and torch.equal(model.predict(x), wanted)
        if size == (64, 96):
            assert torch.equal(model.segmentation_head(kept), wanted)


@pytest.mark.parametrize("case", CASES)
def test_each_parameter_is_of_one_part_and_the_networks_own(case):
    made = CASES[case]()
    model = sparsemask.SegmentationModel(made)
    parts = [list(part.parameters()) for part in (model.encoder, model.decoder, model.segmentation_head)]
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, made.parameters()))
    assert len(model.state_dict()) == len(made.state_dict())
    torch.optim.SGD([{"params": part} for part in parts], lr=0.1)  # which takes no parameter twice
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(any(p.grad is not None for p in part) for part in parts)


def test_a_copy_stands_alone():
    made = CASES["unet"]()
    other, x = copy.deepcopy(sparsemask.SegmentationModel(made)).double().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = made(x, (64, 64))
        for parameter in made.parameters():
            parameter.zero_()
        assert torch.allclose(other(x.double()).float(), wanted, atol=1e-5)


def test_folded_networks_too():
    made, x = CASES["dense"](), torch.randn(1, 3, 64, 64)
    model = sparsemask.SegmentationModel(made).eval()
    with torch.no_grad():
        wanted = model(x)
        made.fold()
        assert torch.allclose(model(x), wanted, atol=1e-4)


@pytest.mark.parametrize("other", [FCN(Pyramid()), torch.nn.Conv2d(3, 4, 1)])
def test_other_networks_are_refused(other):
    with pytest.raises(UseError, match="a network of searched connectivity is wanted"):
        sparsemask.SegmentationModel(other)
