"""The fast form computes the same function."""

from __future__ import annotations

import copy
import platform

import numpy as np
import pytest
import torch
from torch import nn

from filling import fill, picture
from sparsemask import inference
from sparsemask.backends.native import MANY
from sparsemask.inference import fold_batch_norm, optimize_for_inference, with_fast_convolutions
from sparsemask.masks import DOWN, UP
from sparsemask.memory import keep_freed_memory
from sparsemask.spaces.connectivity import FCN, PrunedNetwork, named_mask
from sparsemask.sparse import backend, joined_conv


@pytest.mark.parametrize("mask", ["sparsemask-voc", "unet", "dense", "random-7", "fcn"])
@pytest.mark.parametrize("first_expansion", [True, False])
def test_folded_network_gives_the_same_logits(mask, first_expansion):
    kind = {"first_expansion": first_expansion}
    net = fill(FCN(**kind) if mask == "fcn" else PrunedNetwork(named_mask(mask, 9), **kind)).eval()
    folded, x = copy.deepcopy(net), picture(2, 3, 65, 97)
    folded.fold()
    with torch.no_grad():
        expected = net(x)
        error = (folded(x) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_a_stage_of_the_global_feature_alone_is_folded():
    mask = np.zeros((9, 9, 2), bool)
    mask[3, 0, UP] = mask[8, 8, DOWN] = mask[8, 4, UP] = True
    net, x = fill(PrunedNetwork(mask)).eval(), picture(2, 3, 65, 97)
    folded = copy.deepcopy(net)
    folded.fold()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4 * float(net(x).abs().max()))


@pytest.mark.parametrize("channels_last", [True, False, None])
def test_optimised_form_and_its_source_do_not_share(channels_last):
    net = fill(PrunedNetwork(named_mask("sparsemask-voc", 9))).eval()
    before, x = copy.deepcopy(net.state_dict()), picture(1, 3, 65, 65)
    with torch.no_grad():
        expected = net(x)
    fast = optimize_for_inference(net, x, compiled=False, channels_last=channels_last, rounds=2)
    assert torch.allclose(fast(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert fast.form in ("contiguous", "channels last")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("bias", [True, False])
def test_folding_one_pair_in_double_precision(bias):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, groups=1, bias=bias).double(), nn.BatchNorm2d(4).double()
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    norm.eval()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = norm(conv(x))
    fold_batch_norm(conv, norm)
    assert torch.allclose(conv(x), expected, atol=1e-12)


def test_module_without_a_fold_is_still_optimised():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 9)
    assert torch.allclose(optimize_for_inference(net, x, compiled=False, rounds=1)(x), net(x), atol=1e-6)


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    known = platform.libc_ver()[0] == "glibc"
    assert keep_freed_memory() is known and keep_freed_memory() is known
    if known:
        import resource

        blocks = [torch.ones(12 << 20) for _ in range(2)]  # 48 MiB each, which glibc would return
        del blocks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(12 << 20)
        # Pages of one block at most, as where the heap has holes; glibc would take those of four anew.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2 * (12 << 10)


def test_fast_convolutions_are_the_wide_ones_that_keep_the_size(monkeypatch):
    torch.manual_seed(0)
    wide, narrow, strided, grouped, point = (
        nn.Conv2d(MANY, MANY, 3, padding=1), nn.Conv2d(MANY, MANY - 1, 3, padding=1),
        nn.Conv2d(MANY, MANY, 3, padding=1, stride=2), nn.Conv2d(MANY, MANY, 3, padding=1, groups=2),
        nn.Conv2d(MANY, MANY, 1),
    )  # fmt: skip
    network = nn.Sequential(wide, point, grouped, strided, wide, nn.PReLU(MANY), narrow).eval()
    x = torch.randn(2, MANY, 12, 9).contiguous(memory_format=torch.channels_last)
    fast, calls = with_fast_convolutions(network), []
    assert fast.state_dict().keys() == network.state_dict().keys()
    assert all(a is b for a, b in zip(fast.parameters(), network.parameters(), strict=True))
    assert not any(type(one) is not nn.Conv2d for one in network if isinstance(one, nn.Conv2d))  # it stays as it was

    def counted(xs, *arguments):
        calls.append(xs)
        return joined_conv(xs, *arguments)

    monkeypatch.setattr(inference, "joined_conv", counted)
    with torch.no_grad(), backend("native"):
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    fast(x).sum().backward()  # with gradients it is torch's
    assert len(calls) == 2
    assert wide.weight.grad is not None
    with torch.no_grad(), backend("reference"):
        torch.testing.assert_close(fast(x), network(x))
    assert len(calls) == 2
