"""The network of all decoders: each is computed as the network of its mask alone computes it."""

import numpy as np
import pytest
import torch
from torch import nn

from pyramid import Pyramid
from sparsemask.engine.method import reestimate
from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.elastic import ElasticNetwork
from sparsemask.spaces.connectivity.named_masks import random_decoder
from sparsemask.spaces.connectivity.transfer import inherited_state

STRIDES = list(Pyramid.strides)
WIDTHS = (8, 16, 24)


def elastic(seed: int = 0) -> ElasticNetwork:
    torch.manual_seed(seed)
    net = ElasticNetwork(Pyramid(), depth=24, widths=WIDTHS, n_class=3, bn_momentum=0.1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias, 0.5), nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 2)
    return net.double()


def decoder(seed: int) -> DecoderMask:
    return random_decoder(np.random.default_rng(seed), len(STRIDES), STRIDES, WIDTHS)


def alone(net: ElasticNetwork, mask) -> PrunedNetwork:
    """The network of a mask, with the weights that the elastic one has for it."""
    small = PrunedNetwork(mask, Pyramid(), depth=24, num_classes=3, bn_momentum=0.1).double()
    small.load_state_dict(net.state_for(mask), strict=True)
    return small


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_decoder_is_computed_as_its_own_network(seed, training):
    net, mask = elastic(), decoder(seed)
    small = alone(net, mask).train(training)
    net.train(training)
    x = torch.randn(3, 3, 40, 37, dtype=torch.float64)
    ours, theirs = net(x, mask), small(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    # One step of training moves the shared weights as it moves the small network's.
    for network, scores in ((net, ours), (small, theirs)):
        scores.square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    state = net.state_for(mask)
    for key, value in small.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-7, atol=1e-9, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(net(x, mask, (9, 9)), small(x, (9, 9)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["unet", "dense", "random-5"])
def test_published_masks_have_the_full_depth(name):
    net, mask = elastic().eval(), named_mask(name, 4, seed=3)
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x, mask), alone(net, mask).eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", [decoder(3), decoder(11), named_mask("unet", 4)], ids=["3", "11", "unet"])
def test_a_retrained_network_inherits_its_decoder(mask):
    net = elastic().eval()
    small = PrunedNetwork(mask, Pyramid(), depth=24, num_classes=3, bn_momentum=0.1).double().eval()
    small.load_state_dict(inherited_state(small, net.state_dict(), "all"), strict=True)
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x, mask), rtol=1e-10, atol=1e-10)


def test_a_damaged_elastic_checkpoint_is_refused():
    net, state = PrunedNetwork(decoder(3), Pyramid(), depth=24, num_classes=3), elastic().state_dict()
    del state["decoders.Decoders_1.bn.weight"]
    with pytest.raises(UseError, match="another elastic network"):
        inherited_state(net, state, "all")


def test_nothing_but_the_decoder_itself_is_touched():
    net, mask = elastic().train(), decoder(11)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(torch.randn(2, 3, 33, 33, dtype=torch.float64), mask).sum().backward()
    unused = [i for i in range(4) if i not in mask.stages]
    assert unused
    for i in unused:
        stage = net.decoders[f"Decoders_{i}"]
        assert all(parameter.grad is None for parameter in stage.parameters())
        for key, value in stage.state_dict().items():
            assert torch.equal(value, before[f"decoders.Decoders_{i}.{key}"])
    width = int(mask.widths[mask.output])
    norm = net.decoders[f"Decoders_{mask.output}"].bn
    assert width < 24 and not norm.bias.grad[width:].any()
    assert torch.equal(norm.running_mean[width:], before[f"decoders.Decoders_{mask.output}.bn.running_mean"][width:])


@pytest.mark.parametrize("seed", range(4))
def test_statistics_are_estimated_anew_for_a_decoder(seed):
    net, mask = elastic(), decoder(seed)
    small = alone(net, mask)
    batches = [torch.randn(2, 3, 40, 40, dtype=torch.float64) for _ in range(3)]
    reestimate(net.restricted(mask), batches)
    reestimate(small, batches)
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    net.eval(), small.eval()
    with torch.no_grad():
        torch.testing.assert_close(net.restricted(mask)(x), small(x), rtol=1e-9, atol=1e-9)


def test_the_encoder_is_computed_as_deep_as_a_decoder_reads_it():
    net = ElasticNetwork(n_class=3).eval()
    mask = named_mask("random-8", 9, seed=0)
    mask[:] = False
    mask[5, 5, 0] = mask[8, 6, 1] = mask[8, 8, 0] = True
    calls: list[str] = []
    for name, module in net.backbone.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        scores = net(x, mask)
    assert "bottlenecks.Bottlenecks_2" in calls and "bottlenecks.Bottlenecks_3" not in calls
    assert "conv_last" not in calls
    small = PrunedNetwork(mask, num_classes=3).eval()
    small.load_state_dict(net.state_for(mask))
    with torch.no_grad():
        torch.testing.assert_close(scores, small(x), rtol=1e-4, atol=1e-4)
    for deepest in range(9):
        with torch.no_grad():
            points, whole = net.backbone(x, deepest), net.backbone(x)
        assert [point is None for point in points] == [j < deepest for j in range(9)]
        assert all(point is None or torch.equal(point, other) for point, other in zip(points, whole, strict=True))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ElasticNetwork(Pyramid(), depth=24, widths=(16, 32)), r"widths \[16, 32\]: .* up to the depth 24"),
        (lambda: ElasticNetwork(Pyramid(), widths=(12,)), "multiples of 8"),
        (lambda: ElasticNetwork(Pyramid(), widths=()), "multiples of 8"),
        (lambda: elastic().restricted(random_decoder(np.random.default_rng(0), 4, STRIDES, (40,))), "has 40 channels"),
        (lambda: elastic().state_for(named_mask("unet", 9)), "for 9 features, this backbone has 4"),
    ],
)
def test_what_does_not_fit_is_one_line(call, line):
    with pytest.raises(UseError, match=line):
        call()
