"""Masks: their noise and limits, ties, odd sizes, thresholds, freezing, kept fractions and the budget's gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from literal_sparse import one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.smpointseg.block import PointMask
from sparsemask.spaces.smstereo.mask_module import VolumeMask
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.sparse import (
    ChannelMask,
    DataMask,
    SparseMaskBlock,
    budget_loss,
    gumbel_mask,
    harden_channels,
    kept_fraction,
    set_mask_mode,
)


@pytest.mark.parametrize("difference", [-3.0, -0.5, 0.0, 1.0, 2.0])
def test_gumbel_masks_choose_with_the_logits_probability(difference):
    # P(one logit wins under Gumbel noise) is the sigmoid of their difference, at any temperature.
    torch.manual_seed(0)
    logits = torch.tensor([0.0, difference]).expand(20000, 2)
    p = 1 / (1 + math.exp(-difference))
    for tau in (0.1, 1.0):
        share = (gumbel_mask(logits, tau, 1)[:, 1] > 0.5).float().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 20000)


@pytest.mark.parametrize("difference", [-3.0, -0.5, 0.0, 1.0, 2.0])
def test_cold_draws_average_to_the_sigmoid(difference):
    torch.manual_seed(0)
    logits = torch.tensor([0.0, difference]).expand(20000, 2)
    assert abs(gumbel_mask(logits, 0.05, 1)[:, 1].mean().item() - 1 / (1 + math.exp(-difference))) < 0.015


def test_warm_draws_have_the_logistic_distribution():
    # (difference + logistic noise) / tau through a sigmoid: its quantiles are known.
    torch.manual_seed(0)
    tau, difference = 0.7, 0.4
    drawn = gumbel_mask(torch.tensor([0.0, difference]).expand(50000, 2), tau, 1)[:, 1]
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = 1 / (1 + math.exp(-(difference + math.log(q / (1 - q))) / tau))
        assert abs(drawn.quantile(q).item() - expected) < 0.015


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_masks_sum_to_one_along_their_dimension(dim):
    torch.manual_seed(0)
    found = gumbel_mask(torch.randn(2, 2, 2), 0.5, dim)
    assert torch.allclose(found.sum(dim), torch.ones(2, 2)) and (found > 0).all() and (found < 1).all()


def test_as_tau_falls_the_noiseless_mask_becomes_the_argmax():
    torch.manual_seed(0)
    logits = torch.randn(500, 2)
    hard = (logits[:, 1] > logits[:, 0]).float()
    apart = [(gumbel_mask(logits, tau, 1, noise=False)[:, 1] - hard).abs().mean().item() for tau in (1, 0.1, 0.01)]
    assert apart[0] > apart[1] > apart[2] and apart[2] < 0.01
    assert torch.allclose(gumbel_mask(logits, 1.0, 1, noise=False), logits.softmax(1))


def test_noise_comes_from_torchs_generator_and_without_noise_there_is_none():
    logits = torch.randn(10, 2)
    torch.manual_seed(3)
    first = gumbel_mask(logits)
    assert not torch.equal(first, gumbel_mask(logits))
    torch.manual_seed(3)
    assert torch.equal(first, gumbel_mask(logits))
    assert torch.equal(gumbel_mask(logits, noise=False), gumbel_mask(logits, noise=False))


def test_no_straight_through():
    # The gradient is the soft mask's own: that of a softmax.
    logits = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def drawn(logits):
        torch.manual_seed(0)
        return gumbel_mask(logits, 0.5, 1)

    assert torch.autograd.gradcheck(drawn, logits)
    assert ((drawn(logits) > 0) & (drawn(logits) < 1)).all()


@pytest.mark.parametrize("tau", [0, -1.0, math.nan])
def test_a_temperature_that_is_none(tau):
    with pytest.raises(UseError, match="tau|temperature"):
        gumbel_mask(torch.zeros(3, 2), tau, 1)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[0.0, 1e4], [-1e4, 1e4], [1e4, 1e4]], requires_grad=True)
    found = gumbel_mask(logits, 0.1, 1)
    found[:, 0].sum().backward()
    assert found.isfinite().all() and logits.grad.isfinite().all()


# Channel masks


def test_channel_logits_begin_as_published():
    torch.manual_seed(0)
    logits = ChannelMask(64, 4).ch_mask
    assert logits.shape == (1, 64, 4, 2) and logits.requires_grad
    assert logits.min() >= 0 and logits.max() <= 1 and abs(logits.mean().item() - 0.5) < 0.05


def test_hard_channel_masks_are_the_argmax_and_ties_are_dense():
    logits = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 0.0]], [[0.0, 2.0], [3.0, 2.0]]]])
    # channel by layer -> layer by channel
    expected = torch.tensor([[True, True, False], [False, True, True]])
    assert torch.equal(harden_channels(logits), expected)
    masks = ChannelMask(3, 2)
    with torch.no_grad():
        masks.ch_mask.copy_(logits)
    assert torch.equal(masks.eval()(), expected)
    assert torch.equal(set_mask_mode(masks, "hard").train()(), expected)


def test_soft_channel_masks_are_near_the_hard_ones_when_cold():
    torch.manual_seed(0)
    masks = ChannelMask(50, 3)
    with torch.no_grad():
        masks.ch_mask.mul_(60)  # far beyond the noise
    cold = masks.train()(0.01)
    decided = (masks.ch_mask.diff(dim=-1).abs() > 15)[0, :, :, 0].T
    assert decided.sum() > 60
    assert torch.allclose(cold[decided], masks.eval()().float()[decided], atol=1e-3)


def test_every_layer_and_channel_draws_for_itself():
    torch.manual_seed(0)
    masks = ChannelMask(20, 3).train()
    with torch.no_grad():
        masks.ch_mask.zero_()
    assert masks().unique().numel() == 60


# Data masks


@pytest.mark.parametrize("dims, sizes", [(1, [(1,), (7,), (8,)]), (2, [(6, 8), (7, 8), (6, 5), (1, 1), (1, 9), (3, 1)]),
                                         (3, [(2, 4, 6), (3, 4, 5), (1, 1, 1)])])  # fmt: skip
def test_data_masks_of_any_size(dims, sizes):
    torch.manual_seed(0)
    branch = DataMask(8, dims)
    for size in sizes:
        x = torch.randn(2, 8, *size)
        soft = branch.train()(x, 0.7)
        assert soft.shape == (2, 1, *size) and soft.dtype == x.dtype and ((soft > 0) & (soft < 1)).all()
        hard = branch.eval()(x)
        assert hard.shape == (2, 1, *size) and hard.dtype == torch.bool
        logits = branch.logits(x)
        assert logits.shape == (2, 2, *size) and torch.equal(hard, logits[:, 1:] > logits[:, :1])


@pytest.mark.parametrize("size", [(7, 8), (6, 5), (5, 5)])
def test_odd_sizes_are_padded_by_their_last_row_and_cropped(size):
    torch.manual_seed(0)
    branch = DataMask(8).eval()
    x = torch.randn(1, 8, *size)
    whole = x
    if size[0] % 2:
        whole = torch.cat([whole, whole[:, :, -1:]], 2)
    if size[1] % 2:
        whole = torch.cat([whole, whole[:, :, :, -1:]], 3)
    assert torch.equal(branch.logits(x), nn.Sequential.forward(branch, whole)[:, :, : size[0], : size[1]])


def test_the_branch_is_the_published_one():
    shapes = {k: tuple(v.shape) for k, v in DataMask(64).state_dict().items()}
    assert shapes == {
        "0.weight": (16, 64, 3, 3), "0.bias": (16,), "3.weight": (16, 16, 3, 3), "3.bias": (16,),
        "5.weight": (16, 2, 3, 3), "5.bias": (2,),
    }  # fmt: skip
    assert DataMask(64, width=5)[0].weight.shape[0] == 5 and DataMask(2)[0].weight.shape[0] == 1
    assert all(parameter.shape[2:] == (1,) for parameter in DataMask(8, 1).parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("training", [False, True])
def test_the_threshold_is_a_probability(threshold, training):
    torch.manual_seed(0)
    branch = set_mask_mode(DataMask(8).double(), "hard").train(training)
    branch.threshold = threshold
    x = torch.randn(2, 8, 12, 12).double() * 20
    p = branch.logits(x).softmax(1)[:, 1:]
    assert torch.equal(branch(x).bool(), p > threshold)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_location_at_the_threshold_is_not_kept(dims):
    # The threshold is exceeded, not reached: a tie of the logits is skipped, as argmax takes index 0.
    branch = DataMask(4, dims).eval()
    x = torch.randn(2, 4, *(6,) * dims)
    for margin in (0.0, 1.0, -2.0):
        with torch.no_grad():
            branch[5].weight.zero_()
            branch[5].bias.copy_(torch.tensor([0.0, margin]))
        reached = torch.sigmoid(torch.tensor(margin)).item()
        branch.threshold = reached
        assert not branch(x).any()
        branch.threshold = reached - 1e-6
        assert branch(x).all()
    with torch.no_grad():
        branch[5].bias.copy_(torch.tensor([0.0, 1e-9]))
    branch.threshold = 0.5  # the argmax, even where the probability rounds to one half
    assert branch(x).all()


@pytest.mark.parametrize("dims", [0, 4, -1])
def test_data_masks_of_other_dimensions_are_refused(dims):
    with pytest.raises(UseError, match=f"1, 2 or 3 dimensions, not {dims}"):
        DataMask(8, dims)


def test_the_temperature_is_1_where_none_is_given():
    branch, masks, x = DataMask(8).train(), ChannelMask(5, 2).train(), torch.randn(1, 8, 6, 6)
    for call in (lambda *tau: branch(x, *tau), masks, masks.channels, lambda *tau: gumbel_mask(x, *tau)):
        drawn = []
        for tau in ((), (1.0,), (2.0,)):
            torch.manual_seed(3)
            drawn.append(call(*tau))
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", [VolumeMask, PointMask])
def test_branches_of_volumes_and_points_do_not_keep_what_is_at_the_threshold(kind):
    branch = kind(8, 4)
    margins = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    logits = torch.stack([torch.zeros(4), margins], 1)  # four rows, or four volumes of one voxel
    logits = logits if kind is PointMask else logits[:, :, None, None, None]
    assert branch.harden(logits).flatten().tolist() == [False, False, True, True]  # argmax, ties are skipped
    for k, margin in enumerate(margins.tolist()):
        branch.threshold = torch.sigmoid(torch.tensor(margin)).item()
        assert branch.harden(logits).flatten().tolist() == [j > k for j in range(4)]


@pytest.mark.parametrize("stride", [1, 2])
def test_specialized_branches_do_not_keep_what_is_at_the_threshold(stride):
    branch = Locator(8, stride).eval()
    x = torch.randn(1, 8, 6, 6)
    for margin in (0.0, 1.0, -2.0):
        with torch.no_grad():
            branch[5].weight.zero_()
            branch[5].bias.copy_(torch.tensor([0.0, margin]))
        reached = torch.sigmoid(torch.tensor(margin)).item()
        for threshold, kept in ((reached, False), (reached - 1e-6, True)):
            branch.threshold = threshold
            assert [bool(mask.all()) for mask in branch(x)] == [kept] * 2 == [bool(mask.any()) for mask in branch(x)]


def test_higher_thresholds_keep_less():
    torch.manual_seed(0)
    branch, x = DataMask(8).eval(), torch.randn(1, 8, 12, 12) * 20
    kept = []
    for threshold in (0.0, 0.2, 0.5, 0.8, 1.0):
        branch.threshold = threshold
        kept.append(branch(x))
    assert kept[0].all() and not kept[-1].any()
    for more, less in zip(kept, kept[1:], strict=False):
        assert (less <= more).all()


# Modes


def family() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.ModuleDict({"spa_mask": DataMask(8), "body": SparseMaskBlock(8, 2), "plain": nn.Conv2d(8, 8, 1)})
    return nn.ModuleDict({"head": nn.Conv2d(3, 8, 3), "module": inner})


def test_fixing_masks_freezes_masks_alone_and_can_be_undone():
    model = family()
    frozen = lambda: {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen() == set()
    assert set_mask_mode(model, "hard") is model
    branch = {f"module.spa_mask.{i}.{kind}" for i in (0, 3, 5) for kind in ("weight", "bias")}
    assert frozen() == {"module.body.ch_mask", *branch}
    set_mask_mode(model, "soft")
    assert frozen() == set()
    with pytest.raises(UseError, match="unknown mask mode 'firm'; known: hard, soft"):
        set_mask_mode(model, "firm")


def test_modes_say_what_training_sees():
    model = family()["module"].train()
    x = torch.randn(1, 8, 6, 6)
    assert model["spa_mask"](x).unique().numel() > 2 and model["body"].channels().is_floating_point()
    set_mask_mode(model, "hard")
    a, b = model["spa_mask"](x), model["spa_mask"](x)
    assert torch.equal(a, b) and set(a.unique().tolist()) <= {0, 1} and not a.requires_grad
    assert model["body"].channels().dtype == torch.bool
    model.eval()
    assert torch.equal(model["spa_mask"](x), a.bool())
    set_mask_mode(model, "soft")  # evaluation is hard in any mode
    assert torch.equal(model["spa_mask"](x), a.bool()) and model["body"].channels().dtype == torch.bool


# Kept fractions and the budget


def brute(mask: torch.Tensor, dense: torch.Tensor) -> list[float]:
    """η by its definition, channel by channel and place by place."""
    found = []
    for layer in dense.tolist():
        cells = [float(d) + (1 - float(d)) * float(m) for d in layer for m in mask.flatten().tolist()]
        found.append(sum(cells) / len(cells))
    return found


@pytest.mark.parametrize("hard_mask", [True, False])
@pytest.mark.parametrize("hard_channels", [True, False])
@pytest.mark.parametrize("spatial", [(4,), (3, 4), (2, 2, 3)])
def test_kept_fractions_are_the_mean_over_cells(hard_mask, hard_channels, spatial):
    torch.manual_seed(0)
    mask, dense = torch.rand(2, 1, *spatial), torch.rand(3, 5)
    mask, dense = (mask < 0.4 if hard_mask else mask), (dense < 0.4 if hard_channels else dense)
    found = kept_fraction(mask, dense)
    assert found.shape == (3,) and found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(brute(mask, dense)), atol=1e-6)


def test_kept_fractions_of_logits_are_those_of_hard_masks():
    torch.manual_seed(0)
    logits, mask = torch.rand(1, 5, 3, 2), torch.rand(2, 1, 3, 3) < 0.4
    assert torch.equal(kept_fraction(mask, logits), kept_fraction(mask, harden_channels(logits)))


@pytest.mark.parametrize("kept, dense, expected", [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_kept_fractions_at_the_ends(kept, dense, expected):
    found = kept_fraction(torch.full((1, 1, 3, 3), kept), torch.full((2, 4), dense))
    assert torch.equal(found, torch.full((2,), expected))


def test_the_budgets_gradient():
    torch.manual_seed(0)
    masks = [torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    dense = [torch.rand(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(*given):
        return budget_loss([kept_fraction(m, d) for m, d in zip(given[:2], given[2:], strict=True)])

    assert torch.autograd.gradcheck(loss, (*masks, *dense))
    loss(*masks, *dense).backward()
    assert all((t.grad > 0).all() for t in (*masks, *dense))  # keeping more costs more, everywhere


def test_the_budget_is_the_mean_over_all_layers_of_all_modules():
    assert budget_loss([torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5, 0.5, 0.2])]).item() == pytest.approx(2.7 / 6)
    assert budget_loss([torch.tensor(0.25)]).item() == 0.25
    with pytest.raises(UseError, match="no kept fractions"):
        budget_loss([])


def test_the_budget_alone_empties_the_masks():
    # A descent on nothing but the budget must end with little kept.
    torch.manual_seed(0)
    branch, block = DataMask(6), SparseMaskBlock(6, 2)
    x = torch.randn(1, 6, 8, 8)
    optimizer = torch.optim.Adam([*branch.parameters(), block.ch_mask], 0.05)
    for _ in range(60):
        loss = budget_loss([kept_fraction(branch(x), block.channels())])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    branch.eval()
    block.eval()
    assert kept_fraction(branch(x), block.channels()).max() < 0.1
