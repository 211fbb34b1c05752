"""Networks of the wider space: against a literal computation, folded, and equal to the published ones where alike."""

import copy
import json

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
from sparsemask.pictures import draw_architecture
from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork, load_network, named_mask, save_network
from sparsemask.spaces.connectivity.encoding import read_mask
from sparsemask.spaces.connectivity.transfer import inherited_state
from sparsemask.spaces.connectivity_pruned_encoder.space import described
from sparsemask.spaces.specialized.network import SpecializedNetwork
from sparsemask.weights import save_safetensors


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


def test_a_shared_file_says_the_whole_decoder(tmp_path):
    mask = decoder_mask(drawn(0, 9).connections, [FULL, SEPARABLE, 0] * 3, [8, 16, 24] * 3, context=True)
    net = lively(PrunedNetwork(mask, num_classes=3)).eval()
    file = tmp_path / "network.safetensors"
    save_network(file, net, {"backbone_name": "mobilenet_v2", "depth": 64}, 3)
    loaded = load_network(file)
    assert loaded.mask == mask
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    assert read_mask(described(file)["connectivity"], 9) == mask  # for networks with a pruned encoder


@pytest.mark.parametrize(
    "words",
    [
        {"operations": [7] * 9},
        {"widths": [12] * 9},
        {"widths": ["x"] * 9},
        {"widths": [1 << 40] * 9},
        {"operations": [0]},
        {"context": None, "widths": None},
        None,
    ],
)
def test_files_that_describe_no_decoder_are_refused(tmp_path, words):
    net = PrunedNetwork(named_mask("unet", 9), depth=8)
    file = tmp_path / "network.safetensors"
    right = {"operations": [0] * 9, "widths": [8] * 9, "context": False}
    entries = {
        "space": "connectivity", "backbone_name": "mobilenet_v2", "depth": 8, "n_class": 21, "features": 9,
        "connections": np.argwhere(net.mask).tolist(), "decoder": "x" if words is None else {**right, **words},
    }  # fmt: skip
    save_safetensors(file, net.state_dict(), {key: json.dumps(value) for key, value in entries.items()})
    with pytest.raises(UseError, match="network.safetensors"):
        load_network(file)


def test_what_a_search_has_is_inherited_and_the_rest_drawn():
    search = lively(FullyDenseNetwork(depth=16, num_classes=3))
    state = search.state_dict()
    takes = named_mask("random-9", 9, seed=1)
    mask = decoder_mask(takes, [FULL] * 9, [8, 16, 24] * 3, context=True)
    net = PrunedNetwork(mask, num_classes=3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    new = inherited_state(net, state, "all")
    assert {key: value.shape for key, value in new.items()} == {key: value.shape for key, value in before.items()}
    exact = inherited_state(PrunedNetwork(takes, depth=16, num_classes=3), state, "all")
    for key, value in new.items():
        if ".operation." in key or ".context." in key:
            assert torch.equal(value, before[key]), key
        elif key in exact:  # the first channels of what the published network takes over
            common = tuple(slice(min(sizes)) for sizes in zip(value.shape, exact[key].shape, strict=True))
            assert torch.equal(value[common], exact[key][common]), key
    net.load_state_dict(new)
    # The same decoder told as one of the wider space inherits exactly the same.
    same = inherited_state(PrunedNetwork(as_decoder(takes, 16), num_classes=3), state, "all")
    assert all(torch.equal(value, exact[key]) for key, value in same.items())
    with pytest.raises(UseError, match="does not fit: fc_conv"):
        inherited_state(PrunedNetwork(mask, num_classes=4), state, "all")


def test_the_classifier_of_another_stage_is_not_inherited():
    state = FullyDenseNetwork(depth=16, num_classes=3).state_dict()
    net = PrunedNetwork(named_mask("fpn", 9, strides=[32, 32, 32, 16, 16, 8, 4, 2, 2], depth=16), num_classes=3)
    new = inherited_state(net, state, "all")
    assert torch.equal(new["fc_conv.weight"], net.fc_conv.weight)
    assert not torch.equal(
        new["decoders.Decoders_3.down_convs.3.weight"], net.decoders["Decoders_3"].down_convs["3"].weight
    )


def test_networks_that_enlarge_refuse_the_wider_space():
    with pytest.raises(UseError, match="a decoder of the wider space; networks that enlarge pictures take masks of"):
        SpecializedNetwork(drawn(0, 9), scale=2)


def test_drawings_show_operations_and_widths(tmp_path):
    mask = named_mask("fpn", 9, strides=[32, 32, 32, 16, 16, 8, 4, 2, 2], depth=48)
    mask = decoder_mask(mask.connections, [FULL, 0, 0, SEPARABLE, 0, POINTWISE, FULL, 0, 0], mask.widths, context=True)
    svg = draw_architecture(mask, tmp_path / "a.svg").read_text()
    for words in ("<!-- 3×3, 48 -->", "<!-- sep. 3×3, 48 -->", "<!-- 1×1, 48 -->", "context block at"):
        assert words in svg
    assert svg.count("empty") == 3  # stages after the output are not there
