"""SMStereo: costs as recomputed, GwcNet's keys, the cost volume, masks that skip = masks that multiply."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from literal_sparse import one_thread  # noqa: F401
from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.ops.cost_volume import concatenation_volume, correlation_volume
from sparsemask.spaces.smstereo.checkpoints import load_smstereo, save_smstereo
from sparsemask.spaces.smstereo.mask_module import MaskedConv, SparseHourglass
from sparsemask.spaces.smstereo.network import SMStereo, expected_disparity
from sparsemask.spaces.smstereo.space import multiply_adds
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks
from sparsemask.sparse import backend, kept_fraction
from sparsemask.sparse.training_form import masked_conv
from sparsemask.tasks.stereo.batch import StereoPair

KINDS = {  # inputs, outputs, stride, transposed
    "down 1": (8, 16, 2, False), "half": (16, 16, 1, False), "down 2": (16, 24, 2, False),
    "quarter": (24, 24, 1, False), "up 2": (24, 16, 1, True), "up 1": (16, 8, 1, True),
}  # fmt: skip


def pair(batch: int = 1, height: int = 32, width: int = 48) -> StereoPair:
    torch.manual_seed(0)
    return StereoPair(torch.randn(batch, 3, height, width), torch.randn(batch, 3, height, width))


@pytest.fixture(scope="module")
def network() -> SMStereo:
    """Small, with statistics, and heads that say something."""
    torch.manual_seed(0)
    made = SMStereo(32).train()
    with torch.no_grad():
        made(pair(2))
        for head in (made.classif0, made.classif1, made.classif2, made.classif3):
            head[2].weight.mul_(20)
    return made.eval()


def parameters(network: SMStereo, *, masks: bool = False, heads: int = 4) -> int:
    left_out = [f"classif{i}." for i in range(4 - heads)]
    named = {k: v for k, v in network.named_parameters() if masks or not ("ch_mask" in k or ".locate." in k)}
    return sum(v.numel() for k, v in named.items() if not k.startswith(tuple(left_out) or ("-",)))


def test_parameters_are_the_paper_s():
    network = SMStereo()
    assert parameters(network) / 1e6 == pytest.approx(6.52, abs=0.005)
    assert parameters(network, heads=1) / 1e6 == pytest.approx(6.43, abs=0.005)
    assert parameters(network, masks=True) / 6.6e6 == pytest.approx(1, abs=0.02)


def test_multiply_adds_are_the_recomputed_ones():
    found = {name: count / 1e9 for name, count in multiply_adds(SMStereo(), 544, 960).items()}
    wanted = {"encoder": 207, "aggregation": 184, "hourglasses": 202, "head": 45}
    assert found == pytest.approx(wanted, rel=0.01)
    assert sum(found.values()) == pytest.approx(638, rel=0.01)
    printed = multiply_adds(SMStereo(), 544, 960, published=True)
    assert (sum(printed.values()) - printed["encoder"]) / 1e9 == pytest.approx(772, rel=0.01)


@pytest.mark.parametrize("name", ["native", "gather"])
@pytest.mark.parametrize(("channels", "groups", "levels", "width"), [(16, 4, 7, 9), (40, 40, 3, 5), (12, 2, 9, 4)])
def test_the_volume_is_a_loop_over_pixels(name, channels, groups, levels, width):
    left, right = torch.randn(2, 2, channels, 3, width)
    wanted = torch.zeros(2, groups, levels, 3, width)
    for d in range(levels):
        for x in range(d, width):
            product = left[..., x] * right[..., x - d]
            wanted[:, :, d, :, x] = product.unflatten(1, (groups, -1)).mean(2)
    with backend(name):
        torch.testing.assert_close(correlation_volume(left, right, levels, groups), wanted)
    joined = concatenation_volume(left, right, levels)
    for d in range(levels):  # wider than the picture: zeros
        assert torch.equal(joined[:, :channels, d, :, d:], left[..., d:])
        assert torch.equal(joined[:, channels:, d, :, d:], right[..., : max(0, width - d)])
        assert not joined[:, :, d, :, : min(d, width)].any()


def test_gradients_of_the_volume():
    left, right = torch.randn(2, 1, 6, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: correlation_volume(a, b, 5, 3), (left, right))


@pytest.mark.parametrize("maxdisp", [1, 8, 19, 32])
@pytest.mark.parametrize("size", [4, 4000, 1e7])
def test_the_expectation_without_upsampled_costs_is_the_expectation(size, maxdisp):
    # Of large costs no disparity comes near the largest coarse one: the exponentials must not vanish all together.
    cost = torch.randn(2, 8, 5, 6, dtype=torch.float64) * size
    with torch.enable_grad():
        right = expected_disparity(cost, maxdisp, (20, 24))
    with torch.no_grad():
        torch.testing.assert_close(expected_disparity(cost, maxdisp, (20, 24)), right, rtol=1e-5, atol=1e-4)
        assert bool(torch.isfinite(expected_disparity(cost.float(), maxdisp, (20, 24))).all())


@pytest.mark.parametrize("name", ["native", "gather"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_kind_skips_as_masks_multiply(kind, name):
    inputs, outputs, stride, transposed = KINDS[kind]
    torch.manual_seed(0)
    layer = MaskedConv(inputs, outputs, stride, transposed, relu=not transposed)
    layer.train()
    with torch.no_grad():
        layer.pair[1](layer.pair[0](torch.randn(2, inputs, 6, 8, 10)))  # statistics
    layer.eval()
    for size in ((5, 7, 9), (4, 6, 2), (1, 3, 5)):  # odd sizes too
        x = torch.randn(2, inputs, *size)
        out = layer.geometry.output_size(size)
        mask, before, own = torch.rand(2, 1, *out) < 0.4, torch.rand(inputs) < 0.5, torch.rand(outputs) < 0.3
        conv, norm = layer.pair
        with torch.no_grad(), backend(name):
            found = layer(x, mask, before, own)
            right = masked_conv(
                x, conv.weight, None, mask.float(), before.float(), own.float(), layer.geometry,
                "none" if transposed else "relu", norm,
            )  # fmt: skip
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


# Executed multiply-adds fall as kept fractions say: exactly where all inputs are dense, and further where some are not.
@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds_fall_with_the_masks(kind):
    inputs, outputs, stride, transposed = KINDS[kind]
    torch.manual_seed(0)
    layer = MaskedConv(inputs, outputs, stride, transposed, relu=not transposed).eval()
    x, every = torch.randn(2, inputs, 6, 8, 10), torch.ones(inputs, dtype=torch.bool)
    out = layer.geometry.output_size((6, 8, 10))

    @torch.no_grad()
    def executed(run, *arguments) -> int:
        with FlopCounterMode(display=False) as counter:
            run(*arguments)
        return counter.get_total_flops() // 2

    whole, counts = executed(layer.everything, x), []
    for share, dense in ((1.0, 0), (0.7, outputs // 4), (0.3, outputs // 4), (0.1, 0)):
        # Whole blocks of a stride, so that a transposed convolution's outputs of every kind are dropped alike.
        coarse = torch.rand(2, 1, *(-(-n // 2) for n in out)) < share
        mask = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        mask = mask[:, :, : out[0], : out[1], : out[2]]
        own = torch.arange(outputs) < dense
        kept = float(kept_fraction(mask, own[None]))
        counts.append(executed(layer, x, mask, every, own))
        assert counts[-1] == pytest.approx(kept * whole, rel=0.01)
        assert executed(layer, x, mask, torch.arange(inputs) < inputs // 2, own) <= counts[-1]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("name", ["native", "gather"])
def test_the_hourglass_trained_is_the_hourglass_skipping(name):
    torch.manual_seed(0)
    module = SparseHourglass(8).train()
    x = torch.randn(2, 8, 8, 8, 12)
    with torch.no_grad():
        module(x)
        for conv in module.convs:
            conv.ch_mask.mul_(100)
        module.locate[-1].weight.mul_(1e4)
        module.eval()
        with backend(name):
            skipped, kept, _, masks = module(x)
        soft = module._run(x, [m.float() for m in (masks[5], masks[0], masks[2])], [
            conv.dense(1.0, False).float() for conv in module.convs
        ])  # fmt: skip
    torch.testing.assert_close(skipped, soft, rtol=1e-4, atol=1e-4)
    assert not torch.equal(masks[5][0], masks[5][1])  # each sample its own
    # A coarse voxel is kept if any of its fine ones is.
    assert torch.equal(masks[0], F.max_pool3d(masks[5].float(), 2) > 0)
    for conv, mask, share in zip(module.convs, masks, kept, strict=True):
        dense = conv.dense(1.0, False).float().mean()
        assert float(share) == pytest.approx(float(dense + (1 - dense) * mask.float().mean()), abs=1e-6)


def test_all_dense_it_is_gwcnet(network):
    space = spaces.get("smstereo")
    masks = {name: torch.ones_like(torch.from_numpy(mask)).numpy() for name, mask in hard_masks(network).items()}
    apply_masks(network, masks)
    with torch.no_grad():
        torch.testing.assert_close(network(pair()), space.dense_form(network)(pair()), rtol=1e-4, atol=1e-3)


def test_gradients_reach_everything():
    network = SMStereo(16).train()
    sum(one.mean() for one in network(pair(2, 16, 32))).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert len(network.kept) == len(network.masks) == 18


@pytest.mark.parametrize("concat", [0, 12])
def test_gwcnet_s_files_load_strictly(tmp_path, concat):
    torch.manual_seed(0)
    own = SMStereo(192, concat=concat)
    state = {k: v for k, v in own.state_dict().items() if "ch_mask" not in k and ".locate." not in k}
    for key in (
        "feature_extraction.layer2.0.downsample.1.running_var", "dres0.0.0.weight", "dres2.conv1.0.0.weight",
        "dres4.conv5.0.weight", "dres4.conv6.1.bias", "dres3.redir2.0.weight", "classif3.2.weight",
        "feature_extraction.firstconv.4.1.weight", "feature_extraction.layer1.2.conv1.0.0.weight",
    ):  # fmt: skip
        assert key in state
    torch.save({"epoch": 15, "model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "g.ckpt")
    network = load_smstereo(tmp_path / "g.ckpt")
    assert network.config == own.config
    assert all(mask.all() for mask in hard_masks(network).values())  # it knows no masks: everything is computed
    del state["dres4.conv6.1.bias"]
    torch.save(state, tmp_path / "torn.ckpt")
    with pytest.raises(UseError, match=r"dres4\.conv6\.1\.bias"):
        load_smstereo(tmp_path / "torn.ckpt")


def test_a_shared_file_says_what_weights_do_not(tmp_path, network):
    save_smstereo(tmp_path / "n.safetensors", network)
    assert load_smstereo(tmp_path / "n.safetensors").config == {"maxdisp": 32, "groups": 40, "concat": 0}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: SMStereo(100), "multiple of 16"),
        (lambda: SMStereo(64, groups=7), "divide 320"),
        (lambda: SMStereo(16)(pair(1, 24, 32)), "multiples of 16"),
        (lambda: SMStereo(16)(StereoPair(torch.zeros(1, 3, 16, 32), torch.zeros(1, 3, 16, 48))), "differ"),
    ],
)
def test_what_does_not_fit_is_refused(run, said):
    with pytest.raises(UseError, match=said):
        run()
