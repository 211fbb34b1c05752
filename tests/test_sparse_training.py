"""The form that learns: by the formula with soft masks, differentiable in everything, equal to the skipping form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import literal_sparse as literal
from literal_sparse import Case, Form, difference, one_thread, problem  # noqa: F401
from sparsemask.sparse import (
    DataMask,
    SparseMaskBlock,
    SparseMaskConv,
    available_backends,
    budget_loss,
    set_backend,
    set_mask_mode,
)

# sizes and form of a layer: (channels in, out), size, what differs from a 3-wide convolution of stride 1
LAYERS = {
    "plain": ((4, 5), (5, 6), {}),
    "1x1": ((4, 5), (5, 6), dict(kernel_size=1)),
    "even": ((4, 5), (5, 6), dict(kernel_size=2, padding=0)),
    "stride 2": ((4, 5), (5, 6), dict(stride=2)),
    "dilated": ((4, 5), (5, 6), dict(dilation=2)),
    "transposed": ((4, 5), (3, 4), dict(stride=2, transposed=True, output_padding=1)),
    "groups": ((4, 6), (5, 6), dict(groups=2)),
    "depth-wise": ((4, 4), (5, 6), dict(groups=4)),
    "points": ((4, 5), (9,), dict(kernel_size=1, dims=1)),
    "volume": ((3, 4), (3, 4, 2), dict(dims=3)),
    "bias": ((4, 5), (5, 6), dict(bias=True)),
    "bias, leaky": ((4, 5), (5, 6), dict(bias=True, activation="leaky_relu:0.2")),
    "no activation": ((4, 5), (5, 6), dict(bias=True, activation="none")),
}


def made(what: str, dtype=torch.float64) -> tuple[SparseMaskConv, torch.Tensor, Form]:
    """A layer, features for it, and its form."""
    torch.manual_seed(len(what))
    (c_in, c_out), spatial, given = LAYERS[what]
    layer = SparseMaskConv(c_in, c_out, **{"kernel_size": 3, **given}).to(dtype)
    names = ("stride", "padding", "dilation", "output_padding", "transposed", "groups")
    form = Form.of(len(spatial), given.get("kernel_size", 3), **{name: given[name] for name in names if name in given})
    return layer, torch.randn(2, c_in, *spatial, dtype=dtype), form


def soft(layer: SparseMaskConv, x: torch.Tensor, form: Form) -> tuple[torch.Tensor, ...]:
    mask = torch.rand(2, 1, *form.outputs(x.shape[2:]), dtype=x.dtype)
    return mask, torch.rand(layer.in_channels, dtype=x.dtype), torch.rand(layer.out_channels, dtype=x.dtype)


def leaky(layer: SparseMaskConv, *given, form: Form):
    """The formula, for slopes that its table does not have."""
    if layer.activation != "leaky_relu:0.2":
        return literal.layer(*given, form, layer.activation)
    y = literal.layer(*given, form)
    return (y > 0) * y + (y <= 0) * 0.2 * y


@pytest.mark.parametrize("what", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_soft_masks_follow_the_formula(what, training):
    # Soft masks mean learning, also where a module happens to be in evaluation mode.
    layer, x, form = made(what)
    mask, ins, outs = soft(layer, x, form)
    y = layer.train(training)(x, mask, ins, outs)
    assert difference(y, leaky(layer, x, layer.weight, layer.bias, mask, ins, outs, form=form)) < 1e-12


@pytest.mark.parametrize("what", ["plain", "bias", "groups", "transposed"])
@pytest.mark.parametrize("ins", [0.0, 1.0, None])
@pytest.mark.parametrize("outs", [0.0, 1.0, None])
def test_short_cuts_change_nothing(what, ins, outs):
    # One convolution where a set of channels is empty; None, all dense, is what the first layer gets.
    layer, x, form = made(what)
    mask, *_ = soft(layer, x, form)
    each = lambda v, n: None if v is None else torch.full((n,), v, dtype=x.dtype)
    ins, outs = each(ins, layer.in_channels), each(outs, layer.out_channels)
    y = layer(x, mask, ins, outs)
    whole = lambda v, n: torch.ones(n) if v is None else v
    ins, outs = whole(ins, layer.in_channels), whole(outs, layer.out_channels)
    assert difference(y, leaky(layer, x, layer.weight, layer.bias, mask, ins, outs, form=form)) < 1e-12


@pytest.mark.parametrize("what", LAYERS)
def test_gradcheck(what):
    layer, x, form = made(what)
    mask, ins, outs = soft(layer, x, form)
    inputs = [t.requires_grad_() for t in (x, mask, ins, outs)]
    names = [name for name, _ in layer.named_parameters()]

    def run(x, mask, ins, outs, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, mask, ins, outs))

    assert torch.autograd.gradcheck(run, (*inputs, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("what", ["plain", "groups", "transposed", "volume", "bias, leaky"])
def test_gradcheck_of_the_operator(what):
    # Hard masks, fine-tuning in evaluation mode: the skipping form has gradients too.
    layer, x, form = made(what)
    layer = set_backend(layer.eval(), "reference")
    mask, ins, outs = (t > 0.5 for t in soft(layer, x, form))
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, mask, ins, outs))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("what", LAYERS)
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_hard_masks_train_as_they_serve(what, kept):
    layer, x, form = made(what, torch.float32)
    mask, ins, outs = soft(layer, x, form)
    mask, ins, outs = mask < kept, ins < 0.5, outs < 0.5
    with torch.no_grad():
        learning = layer.train()(x, mask, ins, outs)
        assert torch.equal(layer(x, mask.to(x.dtype), ins.to(x.dtype), outs.to(x.dtype)), learning)
        for name, reason in available_backends().items():
            if reason is None:
                serving = set_backend(layer.eval(), name)(x, mask, ins, outs)
                assert torch.allclose(serving, learning, atol=1e-5)
    dropped = (~mask & ~outs.view(1, -1, *[1] * (x.ndim - 2))).expand_as(learning)
    assert torch.count_nonzero(learning[dropped]) == 0


@pytest.mark.parametrize("what", ["plain", "bias", "groups", "transposed"])
def test_gradients_of_both_forms_agree(what):
    layer, x, form = made(what)
    mask, ins, outs = (t > 0.5 for t in soft(layer, x, form))
    found = []
    for training in (True, False):
        layer.train(training).zero_grad()
        x = x.detach().requires_grad_()
        layer(x, mask, ins, outs).square().sum().backward()
        found.append([x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("form", [{}, dict(transposed=True, stride=2), dict(groups=2),
                                  dict(transposed=True, groups=2)])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_comes_before_the_mask_and_folds(form, bias):
    # Only so is what is dropped exactly zero.
    torch.manual_seed(0)
    layer = SparseMaskConv(4, 6, 3, norm="batch", bias=bias, **form)
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    x = torch.randn(2, 4, 5, 6)
    mask = torch.rand(2, 1, *layer.geometry.output_size((5, 6))) < 0.4
    ins, outs = torch.arange(4) < 2, torch.arange(6) < 3
    layer.train()(x, mask.float(), ins, outs)  # moves the running statistics
    with torch.no_grad():
        folded = layer.eval()(x, mask, ins, outs)
        plain = layer(x, mask.float(), ins, outs)
    assert torch.allclose(folded, plain, atol=1e-5)
    assert torch.count_nonzero(folded[(~mask & ~outs.view(1, -1, 1, 1)).expand_as(folded)]) == 0
    with torch.no_grad():  # the fold follows the statistics
        layer.norm.running_mean += 1
        assert torch.allclose(layer(x, mask, ins, outs), layer(x, mask.float(), ins, outs), atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_block_with_fixed_masks_trains_as_it_serves(dims):
    torch.manual_seed(0)
    block = set_mask_mode(SparseMaskBlock(6, 3, dims=dims), "hard")
    x = torch.randn(2, 6, *(5, 4, 3)[:dims])
    mask = torch.rand(2, 1, *x.shape[2:]) < 0.4
    learning, kept = block.train()(x, mask)
    serving, executed = block.eval()(x, mask)
    assert torch.allclose(learning, serving, atol=1e-5) and torch.allclose(kept, executed)
    assert block.training is False and not kept.requires_grad


def test_a_blocks_soft_form_is_the_formula_layer_by_layer():
    # Each layer's input is split by the channel mask before it, not by its own (a defect of the published code).
    torch.manual_seed(0)
    block = SparseMaskBlock(5, 3).double()
    x, mask = torch.randn(2, 5, 4, 5).double(), torch.rand(2, 1, 4, 5).double()
    torch.manual_seed(1)
    y, kept = block(x, mask, tau=0.7)
    torch.manual_seed(1)
    dense = block.channels(0.7)
    assert dense.shape == (3, 5) and ((dense > 0) & (dense < 1)).all()
    weights = [layer.weight for layer in block.body]
    expected = literal.block(x, mask, weights, dense, block.collect.weight, block.collect.bias)
    assert difference(y, expected) < 1e-12
    eta = [(d + (1 - d) * m).mean() for d, m in ((d.view(1, -1, 1, 1), mask) for d in dense)]
    assert torch.allclose(kept, torch.stack(eta))


def test_gradients_reach_weights_mask_branch_and_channel_logits():
    torch.manual_seed(0)
    branch, block = DataMask(8), SparseMaskBlock(8, 3)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    y, kept = block(x, branch(x, 0.8), 0.8)
    (y.square().mean() + 0.1 * budget_loss([kept])).backward()
    for name, parameter in [("x", x), *branch.named_parameters(), *block.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_fixed_masks_leave_only_the_weights_to_learn():
    torch.manual_seed(0)
    model = nn.ModuleDict({"branch": DataMask(8), "block": SparseMaskBlock(8, 2)})
    set_mask_mode(model, "hard")
    x = torch.randn(1, 8, 6, 6)
    y, _ = model["block"](x, model["branch"](x))
    y.square().mean().backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"block.body.0.weight", "block.body.1.weight", "block.collect.weight", "block.collect.bias"}


def test_a_step_of_learning_goes_where_the_formula_points():
    # All the way: soft masks, budget, optimizer; the loss falls.
    torch.manual_seed(0)
    branch, block = DataMask(6), SparseMaskBlock(6, 2)
    x, goal = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)
    optimizer = torch.optim.Adam([*branch.parameters(), *block.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        y, kept = block(x, branch(x))
        loss = (y - goal).square().mean() + 0.5 * budget_loss([kept])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_mixed_precision_trains():
    # Under autocast convolutions come in bfloat16, masks and shares in float32.
    torch.manual_seed(0)
    branch, block = DataMask(8), SparseMaskBlock(8, 2)
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, kept = block(x, branch(x))
    (y.float().square().mean() + kept.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low, _ = block.eval()(x, branch.eval()(x))
    with torch.no_grad():
        full, _ = block(x, branch(x))
    assert (low.float() - full).abs().max() < 0.1 * full.abs().max()


def test_fine_tuning_under_autocast_in_evaluation_mode():
    # Features come in bfloat16, weights stay in float32, and so must their gradients.
    torch.manual_seed(0)
    head, block, layer = nn.Conv2d(3, 8, 3, padding=1), SparseMaskBlock(8, 2).eval(), SparseMaskConv(8, 8, 3).eval()
    x, mask = torch.randn(1, 3, 6, 6), torch.rand(1, 1, 6, 6) < 0.5
    flags = torch.arange(8) < 3
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = block(head(x), mask)
        y = layer(y, mask, None, flags)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    learnt = [p for m in (head, block.body, block.collect, layer) for p in m.parameters()]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in learnt)


@pytest.mark.parametrize("case", [Case(), Case(activation="leaky_relu:0.1")], ids=str)
def test_a_mask_nobody_keeps_sends_no_gradient(case):
    given = problem(case)
    weight = given.weight.requires_grad_()
    none = torch.zeros_like(given.out_dense)
    y = given.run("reference", mask=torch.zeros_like(given.mask), out_dense=none)
    y.sum().backward()
    assert torch.count_nonzero(weight.grad) == 0
