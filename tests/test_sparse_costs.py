"""Executed multiply-adds of the sparse operators: equal to counting products one by one, and seen by the counters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from literal_sparse import SPLITS, Case, layer_multiply_adds, one_thread, problem  # noqa: F401
from sparsemask.costs import multiply_adds
from sparsemask.sparse import DataMask, SparseMaskBlock, SparseMaskConv, available_backends, set_backend
from test_sparse_block import BLOCKS, attention, block_problem

NAMES = ("reference", "dense", "gather", "native", "auto")


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", [{}, dict(kernel=1), dict(stride=2), dict(dilation=2), dict(groups=2),
                                  dict(kernel=(5, 1)), dict(padding=0)], ids=str)  # fmt: skip
def test_layers_equal_a_count_of_products(form, kept):
    for ins, outs in (("random", "random"), ("none", "all"), ("all", "none"), ("one", "one sparse"), ("all", "all")):
        given = problem(Case(2, 6, 4, (5, 7), kept, ins, outs, form=tuple({"kernel": 3, **form}.items())))
        expected = layer_multiply_adds(
            given.mask, given.in_dense, given.out_dense, given.form.kernel, given.form.groups
        )
        assert counted(lambda given=given: given.run("reference")) == expected


@pytest.mark.parametrize("dims, spatial", [(1, (9,)), (3, (3, 4, 3))])
def test_other_dimensions(dims, spatial):
    given = problem(Case(1, 3, 4, spatial))
    expected = layer_multiply_adds(given.mask, given.in_dense, given.out_dense, given.form.kernel)
    assert counted(lambda: given.run("reference")) == expected


@pytest.mark.parametrize("form", [dict(kernel=3, stride=2, padding=1, output_padding=1), dict(kernel=2, stride=3),
                                  dict(kernel=3, stride=1), dict(kernel=3, stride=2, dilation=2)], ids=str)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_layers_count_the_taps_that_outputs_read(form, groups):
    # Some outputs of a strided one read more taps than others; taps that would read beyond the input count as padding.
    case = Case(2, 4, 6, (4, 3), form=tuple({**form, "transposed": True, "groups": groups}.items()))
    given = problem(case)
    f, total = given.form, 0
    sizes = f.outputs((4, 3))
    for n in range(2):
        for place in torch.cartesian_prod(*map(torch.arange, sizes)).tolist():
            taps = 1
            for d, o in enumerate(place):
                taps *= sum((o + f.padding[d] - k * f.dilation[d]) % f.stride[d] == 0 for k in range(f.kernel[d]))
            kept = given.mask[n, 0, place[0], place[1]].reshape(1, 1)
            total += taps * layer_multiply_adds(kept, given.in_dense, given.out_dense, (1,), groups)
    assert counted(lambda: given.run("reference")) == total


@pytest.mark.parametrize("form", [{}, dict(stride=2), dict(groups=2), dict(kernel=2, stride=2, padding=0,
                                                                          transposed=True)], ids=str)  # fmt: skip
def test_everything_kept_costs_what_torch_counts(form):
    # Where no tap of a transposed convolution falls outside, as here, torch's count by inputs is the same.
    given = problem(Case(2, 4, 6, (6, 8), 1.0, "all", "all", form=tuple({"kernel": 3, **form}.items())))
    names = ("kernel", "groups", "transposed")
    more = {k: v for k, v in form.items() if k not in names}
    conv = nn.ConvTranspose2d if form.get("transposed") else nn.Conv2d
    dense = conv(4, 6, form.get("kernel", 3), groups=form.get("groups", 1), **{"padding": 1, **more})
    assert counted(lambda: given.run("reference")) == counted(lambda: dense(given.x))


@pytest.mark.parametrize("what", BLOCKS)
def test_blocks_equal_a_count_of_products(what):
    x, mask, weights, dense, collect, _ = given = block_problem(**BLOCKS[what])
    before, total = torch.ones(x.shape[1], dtype=torch.bool), 0
    for weight, mine in zip(weights, dense, strict=True):
        total += layer_multiply_adds(mask, before, mine, tuple(weight.shape[2:]))
        before = mine
    total += layer_multiply_adds(mask, dense.flatten(), torch.ones(len(collect), dtype=torch.bool), (1,))
    assert counted(lambda: torch.ops.sparsemask.block(*given, "relu", "reference")) == total
    gates = attention(x.shape[1])
    if len(collect) == x.shape[1]:
        more = x.shape[0] * (gates[0].numel() + gates[2].numel())
        run = lambda: torch.ops.sparsemask.attended_block(*given, gates, "relu", "reference")
        assert counted(run) == total + more


@pytest.mark.parametrize("name", NAMES)
def test_the_count_is_the_methods_whoever_computes(name):
    # Not the backend's own convolutions on top of it, or instead of it.
    if available_backends()[name] is not None:
        pytest.skip(available_backends()[name])
    given = block_problem()
    expected = counted(lambda: torch.ops.sparsemask.block(*given, "relu", "reference"))
    assert counted(lambda: torch.ops.sparsemask.block(*given, "relu", name)) == expected > 0


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.block = DataMask(8), SparseMaskBlock(8, 2)
        self.layer = SparseMaskConv(8, 8, 3)

    def forward(self, x):
        mask = self.branch(x)
        y, _ = self.block(x, mask)
        return self.layer(y, mask, None, self.block.channels()[0])


def test_the_toolkits_own_count_sees_modules(recwarn):
    torch.manual_seed(0)
    module = set_backend(Module(), "reference")
    x = torch.randn(1, 8, 8, 6)
    with torch.no_grad():  # about half of the places
        margins = module.branch.logits(x).diff(dim=1)
        module.branch[5].bias[0] += margins.median()
    mask, dense = module.branch.eval()(x), module.block.eval().channels()
    everything = torch.ones(8, dtype=torch.bool)
    branch = 8 * 6 * 9 * 8 * 2 + 4 * 3 * 9 * 2 * 2 + 4 * 3 * 9 * 2 * 2
    layers = [(everything, dense[0], (3, 3)), (dense[0], dense[1], (3, 3)), (dense.flatten(), everything, (1,)),
              (everything, dense[0], (3, 3))]  # fmt: skip
    expected = branch + sum(layer_multiply_adds(mask, *one) for one in layers)
    assert 0 < int(mask.sum()) < mask.numel()  # the masks have a say
    assert multiply_adds(module.train(), x) == expected
    assert module.training
    assert not [w for w in recwarn if "no formula" in str(w.message)]


def test_fake_tensors_count_as_if_everything_were_kept():
    # Estimates without data (a mask's content is unknown) are upper bounds, not errors.
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, mask, weights, dense, collect, bias = block_problem()
    full = counted(
        lambda: torch.ops.sparsemask.block(x, torch.ones_like(mask), weights, dense, collect, bias, "relu", "reference")
    )
    with FakeTensorMode() as mode:
        fake = lambda t: mode.from_tensor(t)
        given = (fake(x), fake(mask), [fake(w) for w in weights], fake(dense), fake(collect), fake(bias))
        assert counted(lambda: torch.ops.sparsemask.block(*given, "relu", "reference")) == full


def test_fewer_kept_cost_less():
    # Kept fraction and multiply-adds move together: all of it at 1, the dense channels' part at 0.
    x, mask, weights, dense, collect, bias = block_problem(dense=("one", "none"), spatial=(8, 8))
    order = torch.rand(mask.shape).flatten().argsort()
    found = []
    for count in (0, 16, 64, 128):
        some = torch.zeros(mask.numel(), dtype=torch.bool)
        some[order[:count]] = True
        given = (x, some.view_as(mask), weights, dense, collect, bias, "relu", "reference")
        found.append(counted(lambda given=given: torch.ops.sparsemask.block(*given)))
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert [s / n for s, n in zip(steps, (16, 48, 64), strict=True)] == [steps[0] / 16] * 3 and steps[0] > 0
    channels = x.shape[1]
    assert found[-1] == mask.numel() * (2 * channels**2 * math.prod((3, 3)) + 2 * channels * channels)


@pytest.mark.parametrize("kind", SPLITS)
def test_the_judge_counts_by_hand(kind):
    # The judge itself, where the count is plain to see.
    mask = torch.tensor([True, False, False])
    ins = torch.tensor([True, False])
    outs = {"none": [0, 0, 0], "all": [1, 1, 1], "one": [1, 0, 0], "one sparse": [0, 1, 1], "random": [0, 1, 0]}[kind]
    found = layer_multiply_adds(mask, ins, torch.tensor(outs, dtype=torch.bool), (3, 3))
    assert found == 9 * (2 * 3 + 2 * sum(outs))
