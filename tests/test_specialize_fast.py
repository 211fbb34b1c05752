"""The fast form of specialised networks: kernels equal torch's own operators, channels go, calls are chained."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError
from sparsemask.inference import fold_pairs
from sparsemask.ops import multiscale_sum
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.spaces.sparse_conv.masking import apply_masks, blocks, hard_masks, mean_kept
from sparsemask.spaces.specialized.channel_masked_bottleneck import NarrowBottleneck
from sparsemask.spaces.specialized.masks import Channels
from sparsemask.sparse import available_backends, backend
from test_specialize_network import folded, lively, network, one_thread  # noqa: F401

BACKENDS = [name for name, reason in available_backends().items() if reason is None]
last = lambda x: x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels, stride, size", [  # odd sizes, a single place, widths beside vectors
    (16, 1, (9, 7)), (24, 2, (9, 7)), (7, 1, (8, 8)), (64, 2, (10, 12)), (3, 1, (1, 1)), (130, 1, (5, 101)),
    (20, 2, (1, 5)),
])  # fmt: skip
@pytest.mark.parametrize("cut", [False, True])
def test_one_operator_locates_what_the_branch_does(channels, stride, size, cut):
    branch = Locator(channels, stride).eval()
    torch.nn.init.normal_(branch[-1].weight), torch.nn.init.zeros_(branch[-1].bias)
    x, fast = 3 * torch.randn(2, channels, *size), copy.deepcopy(branch)
    fast.fold()
    with torch.no_grad():
        for threshold in (0.5, 0.2, 0.0):
            branch.threshold = fast.threshold = threshold
            wanted = branch(x, apply_relu6=cut)[0]
            assert threshold or wanted.all()  # P(keep) above 0 is everywhere
            for name in BACKENDS:
                for given in (x, last(x)):
                    with backend(name):
                        assert torch.equal(fast(given, apply_relu6=cut)[0], wanted), name
        assert multiply_adds(fast, x) == 2 * branch.multiply_adds(*size)


def test_a_branch_of_other_weights_is_refused():
    weights = Locator(8).described()
    with pytest.raises(UseError, match="8 channels|6 channels"):
        torch.ops.sparsemask.locate(torch.randn(1, 6, 4, 4), *weights, False, "auto")


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 12)])
@pytest.mark.parametrize("dense", [0, 3, 10])
@pytest.mark.parametrize("kept", [None, 0.0, 0.3, 1.0])
def test_a_stage_is_the_same_natively(size, dense, kept):
    small = (max(1, size[0] // 2), max(1, size[1] // 3))
    sizes = {(5, (1, 1)), (20, size), (6, small), (9, small), (30, small), (17, size)}  # of one size: summed first
    xs = [last(3 * torch.randn(2, channels, *one)) for channels, one in sorted(sizes)]
    weights = [torch.randn(10, x.shape[1], 1, 1) / x.shape[1] for x in xs]
    cut = [n % 2 == 0 for n in range(len(xs))]
    mask = None if kept is None else torch.rand(2, 1, *size) < kept
    rest = (torch.randn(10), mask, dense, *size)
    wanted = multiscale_sum.reference(multiscale_sum.MultiscaleSumCall(xs, weights, cut, *rest))
    torch.set_num_threads(2)
    for name in BACKENDS:
        found = torch.ops.sparsemask.fuse_scales(xs, weights, cut, *rest, name)
        assert torch.allclose(found, wanted, atol=1e-5), name
    if mask is not None:
        assert not (wanted[:, dense:] * ~mask).any()


@pytest.mark.parametrize("mask", ["unet", "dense", "sparsemask-voc"])
@pytest.mark.parametrize("place_stride", [1, 4, 32])
def test_a_decoder_in_one_call_is_its_stages_in_turn(mask, place_stride):
    net = network(mask, max_stride=32, place_stride=place_stride)
    whole, parts = folded(net), folded(net)
    parts.decoder._whole = False
    for size in ((1, 3, 33, 47), (2, 3, 64, 32), (1, 3, 33, 47)):
        x = last(torch.randn(size))
        with torch.no_grad(), backend("native"):
            found, wanted = whole(x), parts(x)
            assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
            assert multiply_adds(whole, x) == multiply_adds(parts, x)
            assert torch.equal(copy.deepcopy(whole)(x), found)  # addresses are not copied with it
    assert whole.decoder._whole and not parts.decoder._whole


@pytest.mark.parametrize("stride, size", [(1, (37, 9)), (2, (67, 5)), (2, (70, 6)), (1, (3, 50))])
@pytest.mark.parametrize("threads", [1, 2])
def test_strips_and_bands_meet_without_a_seam(stride, size, threads):
    """Maps so high that threads take strips of their own, and so low that they share bands."""
    torch.set_num_threads(threads)
    flags = [torch.rand(n) < 0.3 for n in (36, 36, 6)]
    mask = torch.rand(2, 1, *(-(-n // stride) for n in size)) < 0.6
    weights = (torch.randn(36, 6, 1, 1), torch.randn(36), flags[0], torch.randn(36, 1, 3, 3), torch.randn(36), flags[1],
               torch.randn(6, 36, 1, 1) / 6, torch.randn(6), flags[2])  # fmt: skip
    x = last(torch.randn(2, 6, *size))
    for given in (mask, None):
        run = lambda name, given=given: torch.ops.sparsemask.inverted_residual(
            x, given, *weights, stride, stride == 1, name
        )
        wanted = run("reference")
        for name in BACKENDS:
            assert torch.allclose(run(name), wanted, atol=1e-4 * float(wanted.abs().max())), name


def narrow(stride: int = 1) -> NarrowBottleneck:
    return lively(NarrowBottleneck.of(LinearBottleneck(8, 8, stride, 3, True, 0.1)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_narrow_block_loses_its_channels_and_computes_the_same(stride, share):
    block = narrow(stride)
    left = torch.rand(24) < share
    block.channels.ch_mask.data = torch.stack([left.float(), ~left * 0.9], -1)[None]
    left = block.channels.some()[1]  # of a block that would lose all, one stays
    assert left.any()
    x = torch.randn(2, 8, 7, 6)
    with torch.no_grad():
        y = F.relu6(block.bn2(block.conv2(F.relu6(block.bn1(block.conv1(x))))))
        wanted = block.bn3(block.conv3(y * left.view(1, -1, 1, 1))) + (x if stride == 1 else 0)
        assert torch.allclose(block(x), wanted, atol=1e-5)
        count = sum(whole * float(kept) for whole, kept in block.counted())
        fast = copy.deepcopy(block)
        fold_pairs(fast)
        plain = fast.narrowed()
        fast.fold()
        assert fast.conv2.groups == plain.conv2.groups == int(left.sum())
        assert torch.allclose(plain(x), wanted, atol=1e-4)
        for name in BACKENDS:
            with backend(name):
                assert torch.allclose(fast(last(x)), wanted, atol=1e-4), name
        assert multiply_adds(fast, x) == pytest.approx(2 * count)
    soft = block.train()
    soft(x).sum().backward()
    assert soft.channels.ch_mask.grad.abs().sum() > 0


def test_channels_that_say_little_go_first():
    channels = Channels([4])
    channels.rank(torch.tensor([3.0, 0.0, 2.0, 1.0]))
    assert channels()[1][0].all()  # all are there to begin with
    assert (channels.ch_mask[0, :, 0] - channels.ch_mask[0, :, 1]).argsort().tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("places", [1, 2, 4])
def test_modules_of_small_maps_have_channel_masks_alone(places):
    net = network("random-15", max_stride=32, place_stride=places)
    assert net.config["place_stride"] == places
    for one in blocks(net).values():
        torch.nn.init.uniform_(one.ch_mask)
    fast = folded(net)
    for size in ((33, 47), (32, 64), (33, 47)):  # sizes change, and come back
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = net(x)
            for name in BACKENDS:
                with backend(name):
                    for _ in range(2):
                        found = fast(last(x))
                        assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max())), name
            kept = float(mean_kept(net))
            assert kept == pytest.approx(float(mean_kept(fast)), abs=1e-6)
            assert kept == pytest.approx(multiply_adds(fast, last(x)) / 2 / net.dense_multiply_adds, rel=1e-4)
            assert [one.shape for one in net.masks] == [one.shape for one in fast.masks]
    again = copy.deepcopy(fast)  # addresses are found anew
    del fast
    with torch.no_grad():
        assert torch.allclose(again(last(x)), wanted, atol=1e-4 * float(wanted.abs().max()))
    other = network("random-15", max_stride=32, place_stride=places)
    other.load_state_dict(net.state_dict())
    apply_masks(other, hard_masks(net))
    with torch.no_grad():
        assert torch.equal(other(x), net(x))
    kept = mean_kept(net.train()) if net.train()(x) is not None else None
    kept.backward()
    assert all(one.ch_mask.grad.abs().sum() > 0 for one in blocks(net).values())
