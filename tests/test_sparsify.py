"""sparsify: regions of any network of convolutions, masks on them, and the form that skips."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import literal_sr as literal
import sparsemask
from sparsemask import costs, models, spaces
from sparsemask.backends.native import tiles
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.spaces import sr_networks
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.spaces.sparsified import SparsifiedNetwork
from sparsemask.spaces.sparsified.network import RegionMasks, fit_bypass
from sparsemask.sparse import available_backends, backend, set_mask_mode

SIZE = (24, 29)
# Architecture: a small network, and the first convolution of each of its regions.
SMALL = {
    "SRVGGNetCompact": (lambda: sr_networks.SRVGGNetCompact(2, 16, 8), ["body.2", "body.10"]),
    "RLFN": (lambda: sr_networks.RLFN(2, 16, 2), ["block_1.c1_r", "block_2.c1_r"]),
    "SPAN": (
        lambda: sr_networks.SPAN(2, 16, 3, folded=True),
        ["block_1.c1_r.eval_conv", "block_2.c1_r.eval_conv"],  # the third's inside is read at the network's end
    ),
    "PLKSR": (lambda: sr_networks.PLKSR(2, 16, 2, 5, 4), ["feats.1.channe_mixer.0", "feats.2.channe_mixer.0"]),
    "EDSR": (lambda: sr_networks.EDSR(2, 16, 2), ["body.0.body.0", "body.1.body.0"]),
}
BACKENDS = [name for name, reason in available_backends().items() if reason is None and name != "triton"]


@pytest.fixture(autouse=True)
def one_backend():
    """Not whichever is fastest at the moment; a test may choose another inside."""
    with backend("reference"):
        yield


def picture(dtype: torch.dtype = torch.float32, count: int = 1) -> torch.Tensor:
    return 255 * torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)


def half(network: SparsifiedNetwork) -> SparsifiedNetwork:
    """Mask branches at random, which keep a half of each region."""
    torch.manual_seed(3)
    weight = next(network.parameters())
    with torch.no_grad():
        for masks in network.region_masks:
            for parameter in masks.spa_mask.parameters():
                parameter.normal_().abs_()  # no channel is always zero
            masks.branch_end()[0].normal_()
        for parameter in network.bypasses.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for masks in network.region_masks:
            masks.ch_mask.copy_(torch.rand_like(masks.ch_mask))  # layers that are computed everywhere, too
        for number, masks in enumerate(network.region_masks):
            network.train()(picture(weight.dtype))
            logits = masks.spa_mask.logits(network.read[number])
            margin = logits[:, 1] - logits[:, 0]
            masks.branch_end()[1][1] -= margin.median() + 1e-3 * margin.std()  # no tie
    network.kept, network.hard_kept, network.masks = [], [], []
    return network.eval()


def bypassed(state: dict, number: int, x: torch.Tensor) -> torch.Tensor:
    """What stands for a dropped region: each location's channels times a matrix, or a factor each, and an offset."""
    weight, bias = (state[f"bypasses.{number}.{part}"] for part in ("weight", "bias"))
    if weight.shape[1] == 1:
        return weight[:, 0] * x + bias[:, None, None]
    return torch.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None]


def masked(name: str, dtype: torch.dtype = torch.float32) -> SparsifiedNetwork:
    torch.manual_seed(0)
    network = SMALL[name][0]().to(dtype).eval()
    return half(SparsifiedNetwork(network, picture(dtype)))


@pytest.mark.parametrize("name", SMALL)
def test_regions_are_the_blocks(name):
    network = masked(name)
    assert network.mask_names == SMALL[name][1]
    shares = torch.cat([weights for weights in network.kept_weights])
    assert 0.3 < float(shares.sum()) < 1 and 0 < network.kept_base < 1


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_skipping_is_multiplying(name):
    """By every backend, whatever the masks: to 1e-5 of the output."""
    network, x = masked(name), picture(count=2)
    with backend("reference"):
        wanted = network(x)
    kept = torch.stack([mask.float().mean() for mask in network.masks])
    assert ((kept > 0.05) & (kept < 0.95)).all()
    for chosen in BACKENDS:
        with backend(chosen):
            torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()), msg=chosen)


class Called(TorchDispatchMode):
    """Notes the toolkit's operators that are called."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparsemask":
            self.names.append(func._schema.name.removeprefix("sparsemask::"))
        return func(*args, **(kwargs or {}))


def without_dense_layers(name: str, dtype: torch.dtype = torch.float32) -> SparsifiedNetwork:
    """All of whose layers follow the mask."""
    network = masked(name, dtype)
    with torch.no_grad():
        for masks in network.region_masks:
            masks.ch_mask.copy_(torch.tensor([0.0, 1.0]))
    return network


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_regions_in_rows_are_multiplied_masks(name):
    """Kept locations alone, side by side, are the same as whole maps times masks: to 1e-5, and to 1e-12 in float64."""
    network, x = without_dense_layers(name), picture(count=2)
    assert all(region.in_rows for region in network.regions)
    network.multiplies = True
    wanted = network(x)
    network.multiplies = False
    with backend("native"), Called() as called:
        got = network(x)
    convs = sum(len(region.convs) for region in network.regions)
    assert called.names.count("kept_conv") == convs and "conv" not in called.names
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_operators_references_in_float64(name, monkeypatch):
    """The plain forms of the operators in rows, by the same walk through the graph."""
    network, x = without_dense_layers(name, torch.float64), picture(torch.float64, count=2)
    wanted = network(x)
    monkeypatch.setattr(type(dispatch.find("reference")), "in_kept_rows", True)
    with Called() as called:
        got = network(x)
    assert "merge_kept" in called.names
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [0, 1])
@torch.no_grad()
def test_regions_in_rows_of_nothing_and_of_all(kept):
    network, x = without_dense_layers("RLFN"), picture()
    for masks in network.region_masks:
        masks.spa_mask[-1].weight.mul_(1e-6)  # not zero, so that no mask is constant
        masks.spa_mask[-1].bias.copy_(torch.tensor([-1e3, 1e3]) * (1 if kept else -1))
    wanted = network(x)
    with backend("native"), Called() as called:
        got = network(x)
    assert {float(mask.float().mean()) for mask in network.masks} == {float(kept)}
    assert "kept_conv" in called.names
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["emulated", "emulated dot", "emulated vnni"])
@pytest.mark.parametrize("name", ["SPAN", "SRVGGNetCompact"])
@torch.no_grad()
def test_regions_in_rows_in_lower_precision(name, kind):
    """Under autocast, as whole maps are; in int8, where the caller says so."""
    network, x = without_dense_layers(name), picture()
    int8 = dispatch.int8() if kind == "emulated vnni" else contextlib.nullcontext()
    with backend("native"), torch.autocast("cpu", torch.bfloat16), tiles.using("emulated dot"), tiles.using(kind), int8:
        with Called() as called:
            got = network(x)
        assert "kept_conv" in called.names and "conv" not in called.names
        masks = [mask.clone() for mask in network.masks]
        wanted = with_masks(network, x.float(), masks)
    error = (got - wanted).abs()
    assert float(error.mean()) < 0.01 * float(wanted.abs().mean())


def with_masks(network: SparsifiedNetwork, x: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
    """What a network of whole maps makes of x in float32 under given masks."""
    drawn = iter(masks)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", enabled=False), backend("reference"):
        patch.setattr(RegionMasks, "hard_mask", lambda self, x, by_operator=False: next(drawn))
        return network(x)


@torch.no_grad()
def test_networks_of_versions_before_have_their_branches(tmp_path):
    """Their mask branches convolve before they pool; files and configurations say so, or say nothing."""
    dense = SMALL["EDSR"][0]()
    word = {"architecture": dense.architecture, **dense.config}
    old = SparsifiedNetwork(dense.eval(), torch.zeros(1, 3, 48, 48), {"dense": json.dumps(word)}, "full").eval()
    assert "region_masks.0.spa_mask.0.weight" in old.state_dict()
    space = spaces.get("sr")
    space.save(tmp_path / "old.safetensors", old)
    x = picture()
    torch.testing.assert_close(space.load(tmp_path / "old.safetensors").network(x), old(x))
    assert space.supernet({"dense": json.dumps(word)}).state_dict().keys() == old.state_dict().keys()
    new = space.supernet(space.flags_of(Path(models.__file__).with_name("compact-x2.safetensors")))
    assert "region_masks.0.spa_mask.1.weight" in new.state_dict()


class Reads(nn.Module):
    """A residual block whose second convolution reads what is not zero where the first one's output is dropped."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two, self.between = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), between

    def forward(self, x):
        return x + self.two(self.between(self.one(x)))


@pytest.mark.parametrize(
    "between, in_rows",
    [
        (lambda y: F.silu(y), True),
        (lambda y: y * torch.sigmoid(y), True),
        (lambda y: y * 2 / 3, True),
        (lambda y: torch.cat([y[:, 4:], y[:, :4]], 1), True),
        (lambda y: torch.sigmoid(y), False),
        (lambda y: y + 1, False),
        (lambda y: F.softplus(y), False),
    ],
)
@torch.no_grad()
def test_what_can_be_computed_in_rows(between, in_rows):
    """Where a convolution inside would read more than zeros, whole maps are computed; both give one function."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 24, 28)
    network = SparsifiedNetwork(Reads(between).eval(), x).eval()
    [region] = network.regions
    assert region.in_rows == in_rows
    network.multiplies = True
    wanted = network(x)
    network.multiplies = False
    with backend("native"), Called() as called:
        got = network(x)
    assert 0 < network.masks[0].float().mean() and ("kept_conv" in called.names) == in_rows
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_a_residual_block_by_hand():
    """EDSR in float64, spelled out: dropped outputs are zero inside, and the bypass of the block's input behind it."""
    network, x = masked("EDSR", torch.float64), picture(torch.float64)
    with backend("reference"):
        got = network(x)
    whole = network.state_dict()
    state = {key.removeprefix("network."): value for key, value in network.state_dict().items()}
    first = y = literal.apply(state, "head.0", literal.apply(state, "sub_mean", x))
    for k, masks in enumerate(network.region_masks):
        logits = masks.spa_mask.logits(y)
        mask = (logits[:, 1:] > logits[:, :1]).double()
        gates = [1.0 if dense >= sparse else mask for dense, sparse in masks.ch_mask[0, 0].tolist()]
        inside = F.relu(literal.apply(state, f"body.{k}.body.0", y)) * gates[0]
        inside = literal.apply(state, f"body.{k}.body.2", inside) * gates[1]
        y = mask * (y + inside) + (1 - mask) * bypassed(whole, k, y)
    y = literal.apply(state, "body.2", y) + first
    y = F.pixel_shuffle(literal.apply(state, "tail.0.0", y), 2)
    wanted = literal.apply(state, "add_mean", literal.apply(state, "tail.1", y))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_chain_by_hand():
    """SRVGGNetCompact in float64: where a chain of four convolutions is dropped, its bypass stands in."""
    network, x = masked("SRVGGNetCompact", torch.float64), picture(torch.float64)
    for masks in network.region_masks:
        masks.ch_mask.copy_(torch.tensor([0.0, 1.0]))
    with backend("reference"):
        got = network(x)
    body = network.network.body
    y = body[1](body[0](x / 255))
    for number, masks in enumerate(network.region_masks):
        logits = masks.spa_mask.logits(y)
        mask, before = (logits[:, 1:] > logits[:, :1]).double(), y
        for k in range(2 + 8 * number, 10 + 8 * number, 2):
            y = body[k + 1](mask * body[k](y))
        y = torch.where(mask.bool(), y, bypassed(network.state_dict(), number, before))
    wanted = 255 * (F.pixel_shuffle(body[-1](y), 2) + F.interpolate(x / 255, scale_factor=2.0))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_all_kept_is_the_dense_network(name):
    network, x = masked(name), picture()
    for masks in network.region_masks:
        masks.spa_mask[-1].weight.zero_()
        masks.spa_mask[-1].bias.copy_(torch.tensor([0.0, 1.0]))  # bypasses are computed, and not used
    wanted = network.network(x)
    torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert float(mean_kept(network)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SMALL)
def test_training_reaches_masks_and_weights(name):
    network, x = masked(name).train(), picture()
    torch.manual_seed(0)
    network(x).square().mean().backward()
    silent = [key for key, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not [key for key in silent if "no_norm" not in key and not key.endswith("bias")], silent
    assert mean_kept(network).requires_grad


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("name", ["EDSR", "SPAN", "SRVGGNetCompact"])
def test_what_is_trained_is_what_is_evaluated(name, mode):
    """While masks are learnt, too: they are hard, and have the gradients of soft ones."""
    network, x = masked(name), picture()
    with torch.no_grad():
        wanted = network(x)
        kept = float(mean_kept(network))
    set_mask_mode(network, mode)
    assert float(mean_kept(network, hard=True)) == pytest.approx(kept)
    torch.testing.assert_close(network.train()(x).detach(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_what_is_executed_is_what_is_kept():
    """Kept fractions weigh layers by their multiply-adds: the operator's own count agrees."""
    network, x = masked("EDSR"), picture()
    network(x)
    branches = sum(region.branch for region in network.regions) / costs.multiply_adds(network.network, [x])
    executed = costs.multiply_adds(network, [x]) / costs.multiply_adds(network.network, [x])
    assert executed == pytest.approx(float(mean_kept(network)), abs=0.1 * branches + 0.01)


def test_copies_are_of_their_own():
    network, x = masked("RLFN"), picture()
    other = copy.deepcopy(network)
    with torch.no_grad():
        wanted = network(x)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(other(x), wanted)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("dropped", [0.3, 1.0])
def test_a_bypass_is_the_least_squares_fit(groups, dropped):
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 9, 11), 5 + torch.randn(2, 6, 9, 11)
    where = torch.rand(2, 9, 11) < dropped
    bypass = nn.Conv2d(6, 6, 1, groups=groups)
    fit_bypass(bypass, x, y, where)
    rows, wanted = (np.asarray(part.movedim(1, -1)[where], np.float64) for part in (x, y))
    for channel in range(6):
        read = rows if groups == 1 else rows[:, channel : channel + 1]
        design = np.concatenate([read, np.ones((len(rows), 1))], 1)
        best = np.linalg.lstsq(design, wanted[:, channel], rcond=None)[0]
        got = [*bypass.weight[channel].flatten().tolist(), bypass.bias[channel].item()]
        assert got == pytest.approx(best.tolist(), abs=1e-4)


def test_a_bypass_of_what_was_not_seen_is_the_identity():
    """Channels that are zero on the example, and no dropped location at all."""
    x = torch.randn(1, 4, 5, 5)
    x[:, 2] = 0
    bypass = nn.Conv2d(4, 4, 1)
    fit_bypass(bypass, x, x, torch.ones(1, 5, 5, dtype=torch.bool))
    torch.testing.assert_close(bypass.weight[:, :, 0, 0], torch.eye(4), rtol=0, atol=1e-4)
    before = bypass.weight.detach().clone()
    fit_bypass(bypass, x, 2 * x, torch.zeros(1, 5, 5, dtype=torch.bool))
    assert torch.equal(bypass.weight, before)


def test_fitted_bypasses_lose_less():
    """Of a region that is nearly linear next to nothing is lost, whatever is dropped."""
    torch.manual_seed(0)
    network = sr_networks.SRVGGNetCompact(2, 16, 8).eval()
    with torch.no_grad():
        for layer in network.body[2:-1]:  # 1x1 convolutions in disguise, without activations
            if isinstance(layer, nn.PReLU):
                layer.weight.fill_(1.0)
            else:
                layer.weight[:, :, :, 0] = layer.weight[:, :, :, 2] = 0
                layer.weight[:, :, 0] = layer.weight[:, :, 2] = 0
        x = picture(count=2)
        wanted = network(x)
        sparse = sparsemask.sparsify(network, x, keep=0.5, steps=5)
        assert 0.3 < float(sparse(x).new_tensor([m.float().mean() for m in sparse.masks]).mean()) < 0.7
        fitted = (sparse(x) - wanted).abs().mean()
        for bypass in sparse.bypasses:
            bypass.weight.copy_(torch.eye(16)[:, :, None, None])
            bypass.bias.zero_()
        assert 20 * fitted < (sparse(x) - wanted).abs().mean()
        assert fitted < 1e-4 * wanted.abs().mean()


class Users(nn.Module):
    """A network of somebody's: strides, batch norm, a residual block with a projection, classes at its end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.depth, self.point = nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.two(F.silu(self.one(x)))
        return self.head(torch.relu(self.point(self.depth(x))).mean((2, 3)))


def test_any_network():
    torch.manual_seed(0)
    network, x = Users().eval(), torch.randn(2, 3, 32, 40)
    sparse = sparsemask.sparsify(network, x, keep=0.7, steps=5)
    assert sparse.mask_names == ["one"]  # the depth-wise pair is cheaper than a mask branch
    assert [tuple(mask.shape) for mask in sparse.masks] == [(2, 1, 16, 20)]
    assert float(mean_kept(sparse)) == pytest.approx(0.7, abs=0.03)
    assert sparse(x).shape == (2, 5)


def test_the_share_is_met_where_regions_change_most():
    torch.manual_seed(0)
    keep, x = 0.7, torch.zeros(1, 3, 32, 32)
    x[..., 8:20, 10:26] = 255 * torch.rand(3, 12, 16)
    network = sr_networks.EDSR(2, 16, 3).eval()
    with torch.no_grad():
        for block in network.body[:-1]:
            for layer in (block.body[0], block.body[2]):
                layer.bias.zero_()
                layer.weight.sub_(layer.weight.mean((1, 2, 3), keepdim=True))
    sparse = sparsemask.sparsify(network, x, keep=keep, steps=30)
    with torch.no_grad():
        sparse(x)
    assert float(mean_kept(sparse)) == pytest.approx(keep, abs=0.03)
    inside = torch.stack([mask[..., 8:20, 10:26].float().mean() for mask in sparse.masks])
    everywhere = torch.stack([mask.float().mean() for mask in sparse.masks])
    assert float(inside.mean()) > float(everywhere.mean())


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "keep", "words"),
    [
        (Decides(), 0.5, ["Decides", "torch.fx"]),
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), 0.5, ["Sequential", "no residual block"]),
        (sr_networks.EDSR(2, 16, 4), 0.05, ["keep 0.05", "between 0."]),
        (sr_networks.EDSR(2, 16, 4), 1.5, ["keep 1.5"]),
    ],
    ids=["control flow", "nothing to mask", "too little", "too much"],
)
def test_what_cannot_be(network, keep, words):
    with pytest.raises(UseError) as error:
        sparsemask.sparsify(network, picture(), keep=keep, steps=2)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("example", "said"), [([picture()], "a list"), (picture()[0], "one of shape")])
def test_an_example_that_is_no_batch(example, said):
    with pytest.raises(UseError, match=f"one tensor .N, C, H, W., not {said}"):
        sparsemask.sparsify(sr_networks.EDSR(2, 16, 4), example)
