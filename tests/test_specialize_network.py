"""Networks of searched connectivity under fine-grained masks: soft, hard and skipping forms agree, budgets count."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError
from sparsemask.inference import fold_pairs
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.sparse_conv.masking import (
    apply_masks,
    blocks,
    hard_masks,
    mean_kept,
    set_threshold,
    threshold_of,
)
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.spaces.specialized.bottleneck import MaskedBottleneck
from sparsemask.spaces.specialized.masks import carry
from sparsemask.sparse import available_backends, backend, set_mask_mode

BACKENDS = [name for name, reason in available_backends().items() if reason is None]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Batch norms that do something, and mask branches that keep about half, here and there."""
    for one in module.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            one.running_mean.normal_(0, 0.1)
            one.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(one.weight, 0.5, 1.5)
            torch.nn.init.normal_(one.bias, 0, 0.3)
        if hasattr(one, "logits"):
            torch.nn.init.zeros_(one[-1].bias)
            one[1].weight.data.mul_(5)
    return module.eval()


def network(mask: str = "unet", **more) -> SpecializedNetwork:
    return lively(SpecializedNetwork(named_mask(mask, 9), depth=8, num_classes=4, **more))


def folded(net: SpecializedNetwork) -> SpecializedNetwork:
    fast = copy.deepcopy(net)
    fast.fold()
    return fast.to(memory_format=torch.channels_last)


def literal(block: MaskedBottleneck, x: Tensor, mask: Tensor, flags: list[Tensor]) -> Tensor:
    """The block with hard masks, spelled out place by place and channel by channel."""
    m, s = mask.float(), block.stride
    wide = m if s == 1 else m.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : x.shape[2], : x.shape[3]]
    d = [one.float().view(1, -1, 1, 1) for one in flags]
    before = torch.ones(1, x.shape[1], 1, 1)
    y = x
    if block.expand:
        first = d.pop(0)
        y = F.relu6(block.bn1(block.conv1(y))) * (first + (1 - first) * wide)
        before = first
    for conv, norm, mine, top in ((block.conv2, block.bn2, d[0], True), (block.conv3, block.bn3, d[1], False)):
        everything, dense = norm(conv(y)), norm(conv(y * before))
        if top:
            everything, dense = F.relu6(everything), F.relu6(dense)
        y = m * everything + (1 - m) * mine * dense
        before = mine
    return x + y if block.shortcut else y


CASES = [  # inputs, outputs, stride, expansion, expand, size, dense shares of the three layers, kept share
    (8, 8, 1, 6, True, (9, 7), (0.5, 0.5, 0.5), 0.5),
    (8, 12, 2, 6, True, (9, 7), (0.5, 0.3, 0.7), 0.5),
    (8, 12, 2, 6, True, (10, 8), (0.0, 0.0, 0.0), 0.3),
    (8, 8, 1, 6, True, (6, 5), (0.0, 0.0, 0.0), 0.4),  # dropped places are the identity
    (8, 8, 1, 6, True, (6, 5), (1.0, 1.0, 1.0), 0.4),  # nothing to skip
    (8, 8, 1, 6, True, (6, 5), (0.0, 1.0, 1.0), 0.4),  # dense outputs that read nothing dense
    (8, 8, 1, 6, True, (6, 5), (0.5, 0.0, 0.5), 0.0),  # nothing kept
    (8, 8, 1, 6, True, (6, 5), (0.5, 0.5, 0.0), 1.0),  # everything kept
    (6, 10, 1, 1, False, (5, 5), (0.5, 0.5), 0.5),  # no expansion
    (3, 3, 1, 1, True, (1, 1), (0.5, 0.5, 0.5), 0.5),  # one place
]


@pytest.mark.parametrize("case", CASES)
def test_a_block_equals_its_literal_form_in_every_form(case):
    inputs, outputs, stride, expansion, expand, size, dense, kept = case
    block = lively(MaskedBottleneck(inputs, outputs, stride, expansion, expand, 0.1))
    x = torch.randn(2, inputs, *size)
    mask = torch.rand(2, 1, *(-(-n // stride) for n in size)) < kept
    flags = [torch.rand(width) < share for width, share in zip(block.channels.widths, dense, strict=True)]
    logits = torch.cat(flags).float()
    block.channels.ch_mask.data = torch.stack([logits, 1 - logits], -1)[None]
    block.locate.forward = lambda x, tau: (mask, mask)
    with torch.no_grad():
        wanted = literal(block, x, mask, flags)
        assert torch.allclose(block(x), wanted, atol=1e-5)
        shares = torch.stack([share for _, share in block.counted()])
        whole = torch.tensor([count for count, _ in block.counted()], dtype=torch.float64)
        fast = copy.deepcopy(block)
        fast.locate.forward = block.locate.forward
        fold_pairs(fast)
        fast.fold()
        for name in BACKENDS:
            for given in (x, x.contiguous(memory_format=torch.channels_last)):
                with backend(name):
                    found = fast(given)
                assert torch.allclose(found, wanted, atol=1e-4), name
        # What is counted as kept is what the operator says it executes.
        executed = multiply_adds(fast, x)
        assert executed == pytest.approx(2 * float((whole * shares).sum()), rel=1e-5)


def test_soft_masks_near_hard_ones_compute_the_same():
    block = lively(MaskedBottleneck(8, 8, 1, 6, True, 0.1))
    x, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 1, 6, 7) < 0.5
    sure = [torch.rand(width) < 0.5 for width in block.channels.widths]
    soft = [one.float().clamp(1e-6, 1 - 1e-6) for one in sure]
    block.locate.forward = lambda x, tau: (mask.float().clamp(1e-6, 1 - 1e-6), mask)
    block.channels.forward = lambda tau: (soft, sure)
    with torch.no_grad():
        assert torch.allclose(block(x), literal(block, x, mask, sure), atol=1e-3)


@pytest.mark.parametrize("mask", ["unet", "dense", "random-15"])
@pytest.mark.parametrize("size", [(33, 47), (32, 64)])
def test_skipping_equals_masking(mask, size):
    net = network(mask)
    x = torch.randn(2, 3, *size)
    fast = folded(net)
    with torch.no_grad():
        wanted = net(x)
        for name in BACKENDS:
            with backend(name):
                assert torch.allclose(fast(x), wanted, atol=1e-4 * float(wanted.abs().max())), name
        shares = [float(one.float().mean()) for one in net.masks]
        assert any(0 < share < 1 for share in shares)  # the test has something to skip
        # The kept fraction is executed over all, whatever form ran.
        kept = float(mean_kept(net))
        assert kept == pytest.approx(float(mean_kept(fast)), abs=1e-6)
        assert kept == pytest.approx(multiply_adds(fast, x) / 2 / net.dense_multiply_adds, rel=1e-4)


def test_masks_that_keep_everything_give_the_pruned_network():
    net = network("unet")
    twin = PrunedNetwork(net.mask, depth=8, num_classes=4)
    state = net.state_dict()
    missing = twin.load_state_dict({k: v for k, v in state.items() if k in twin.state_dict()})
    assert not missing.missing_keys  # the weights keep their names
    set_threshold(net, 0.0)
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        wanted = twin.eval()(x)
        assert torch.allclose(net(x), wanted, atol=1e-5)
        assert torch.allclose(folded(net)(x), wanted, atol=1e-4)


def test_masks_act_where_they_are_wanted():
    named = {where: set(blocks(network(where=where, max_stride=8))) for where in ("decoder", "encoder", "all")}
    assert named["decoder"] and all(name.startswith("stage_masks.") for name in named["decoder"])
    assert named["encoder"] and all(name.startswith("backbone.") for name in named["encoder"])
    assert named["all"] == named["decoder"] | named["encoder"]
    assert named["all"] < set(blocks(network(max_stride=32)))
    for where, stride, word in (("nowhere", 8, "nowhere"), ("all", 1, "stride 1 or less")):
        with pytest.raises(UseError, match=word):
            network(where=where, max_stride=stride)


def test_training_moves_masks_and_weights_and_a_budget_presses():
    net = network("unet").train()
    net.tau = 0.7
    x = torch.randn(2, 3, 33, 33)
    out = net(x)
    kept = mean_kept(net)
    assert kept.requires_grad and 0 < float(kept.detach()) < 1.2
    assert not mean_kept(net, hard=True).requires_grad
    (out.square().mean() + (kept - 0.3).square()).backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # Pressed by the budget alone, less is kept.
    masks = [p for n, p in net.named_parameters() if "ch_mask" in n or "locate" in n]
    rate = torch.optim.Adam(masks, 0.1)
    first = float(mean_kept(net, hard=True))
    for _ in range(8):
        rate.zero_grad()
        net(x)
        mean_kept(net).backward()
        rate.step()
    assert float(mean_kept(net, hard=True)) < first - 0.1


def test_fixed_masks_are_hard_in_training_and_frozen():
    net = set_mask_mode(network("unet"), "hard").train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    x = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.allclose(net(x), net.eval()(x), atol=1e-5)
    assert not any(p.requires_grad for n, p in net.named_parameters() if "ch_mask" in n or "locate" in n)


def test_hard_masks_go_out_and_in():
    one, other = network("unet"), network("unet")
    other.load_state_dict(one.state_dict())
    for block in blocks(other).values():
        torch.nn.init.uniform_(block.ch_mask)
    apply_masks(other, hard_masks(one))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("sizes", [((3, 4), (5, 8)), ((1, 1), (5, 8)), ((5, 8), (5, 8)), ((7, 9), (14, 17))])
def test_carried_masks_cover_all_that_is_read(sizes):
    small, large = sizes
    mask = torch.rand(2, 1, *large) < 0.2
    carried = carry(mask, small)
    assert carried.shape == (2, 1, *small)
    x = torch.randn(2, 3, *small)
    up = lambda x: F.interpolate(x, size=large, mode="bilinear", align_corners=True)
    if small == (1, 1):
        assert carried.flatten().tolist() == mask.flatten(1).any(1).tolist()
        return
    # What is not carried may be anything: kept places do not see it.
    assert torch.allclose(up(x) * mask, up(x + 100 * ~carried) * mask, atol=1e-4)
    # And nothing is carried in vain: without any one of them, some kept place changes.
    for where in carried[0, 0].nonzero().tolist()[:5]:
        spoilt = x.clone()
        spoilt[0, :, where[0], where[1]] += 100
        assert not torch.allclose(up(x) * mask, up(spoilt) * mask, atol=1e-2)


@pytest.mark.parametrize("scale, size", [(2, (16, 18)), (3, (15, 17))])
def test_pictures_are_enlarged(scale, size):
    net = network("unet", scale=scale)
    x = torch.rand(1, 3, *size) * 255
    with torch.no_grad():
        y = net(x)
        assert y.shape == (1, 3, scale * size[0], scale * size[1])
        assert torch.allclose(folded(net)(x), y, atol=0.05)
        net.fc_conv.weight.zero_(), net.fc_conv.bias.zero_()
        wanted = F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False)
        assert torch.allclose(net(x), wanted, atol=1e-3)  # a fresh head adds to bicubic


def test_a_block_of_masks_starts_from_the_dense_one():
    dense = lively(LinearBottleneck(8, 8, 1, 6, True, 0.1))
    masked = MaskedBottleneck.of(dense).eval()
    masked.locate.forward = lambda x, tau: (torch.ones_like(x[:, :1]).bool(),) * 2
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        assert torch.allclose(masked(x), dense(x), atol=1e-6)


def test_channels_alone_need_no_data_mask():
    # Every stage, the last one too, loses its channels; what is counted is what is computed.
    net = network("unet", max_stride=32, place_stride=1)
    assert not any(hasattr(one, "logits") for one in net.modules()) and not any(net.mask_names)
    for module in net.masked.values():
        torch.nn.init.normal_(module.channels.ch_mask)
    x, fast = torch.randn(1, 3, 65, 47), folded(net)
    with torch.no_grad():
        assert torch.allclose(fast(x), net(x), atol=1e-4)
        assert multiply_adds(fast, x) == pytest.approx(float(mean_kept(net)) * net.dense_multiply_adds, rel=1e-5)
    assert threshold_of(net) == 0.5
