"""SMPointSeg: golden results, keys, masks that skip = masks that multiply, kept fractions and costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from filling import fill
from literal_sparse import one_thread  # noqa: F401
from point_crops import crop, part
from sparsemask import spaces
from sparsemask.engine.method import set_training
from sparsemask.errors import UseError
from sparsemask.spaces.smpointseg.network import CONFIGS
from sparsemask.spaces.smpointseg.space import multiply_adds
from sparsemask.spaces.sparse_conv import Reading, SMPointSeg, load_smpointseg, save_smpointseg
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks, mean_kept
from sparsemask.sparse import backend
from sparsemask.tasks.points.clouds.batch import PointBatch

SMALL = {"d_in": 6, "n_class": 5, "channels": (16, 32, 64), "n_neighbors": 8, "radius": 0.1}
BACKENDS = ("native", "gather", "reference")


def small(training: bool = False, seed: int = 0, **reading) -> SMPointSeg:
    """A network whose batch norms have statistics and whose point masks keep about half."""
    torch.manual_seed(seed)
    network = SMPointSeg(**SMALL, reading=Reading(**reading))
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(crop(samples=2, seed=int(torch.randint(1000, (1,)))))
    return network.train(training)


@torch.no_grad()
def settle(network: SMPointSeg, kind: str) -> SMPointSeg:
    """Choose the channel masks, and point masks, by name."""
    channels = {"all dense": 1.0, "all sparse": 0.0}.get(kind, 0.5)
    for block in network.encoder:
        dense = (torch.rand(block.ch_mask.shape[:2]) < channels).float()
        block.ch_mask.copy_(torch.stack([dense, 1 - dense], -1) * 100 - 50)
        block.pt_mask.threshold = {"none kept": 1.0, "all kept": -1.0}.get(kind, 0.5)
        block.pt_mask[2].conv.conv_1x1.weight.normal_()
    return network


@pytest.fixture(scope="module")
def recorded(golden):
    found = np.load(golden / "point_net.npz")
    index = [torch.from_numpy(found[f"index_{i}"]).int()[None] for i in range(5)]
    batch = PointBatch(
        torch.from_numpy(found["points"]).T[None].contiguous(), index[:3], [one[..., 0] for one in index[3:]]
    )
    return found, batch


@pytest.mark.parametrize(("name", "count"), [("s3dis", 1_973_312), ("semantickitti", 689_566)])
def test_published_configurations(name, count):
    network = SMPointSeg(**CONFIGS[name])
    assert sum(one.numel() for one in network.parameters()) == count


@pytest.mark.parametrize(("which", "config"), [("small", SMALL), ("s3dis", CONFIGS["s3dis"])])
def test_keys_and_shapes_are_the_public_ones(golden, which, config):
    known = json.loads((golden / "point_keys.json").read_text())[which]
    assert {key: list(value.shape) for key, value in SMPointSeg(**config).state_dict().items()} == known


@pytest.mark.parametrize("name", BACKENDS)
def test_released_inference(recorded, name):
    found, batch = recorded
    network = fill(SMPointSeg(**SMALL, reading=Reading(index_rule="round", tail_bias_count=2, point_mask="all"))).eval()
    with torch.no_grad(), backend(name):
        torch.testing.assert_close(
            network(batch), torch.from_numpy(found["released_inference_logits"]), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", ["native", "gather"])
def test_published_training_form(recorded, name):
    found, batch = recorded
    network = fill(SMPointSeg(**SMALL, reading=Reading(s2d="full")))
    network.noise = False
    set_training(network, freeze_bn=True)
    network.tail[1].eval()  # no dropout
    with torch.no_grad(), backend(name):
        out = network(batch)
    torch.testing.assert_close(out, torch.from_numpy(found["train_noise_free_eval_bn_logits"]), rtol=0, atol=1e-5)
    assert float(mean_kept(network)) == pytest.approx(float(found["train_noise_free_density"]), abs=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_files_load_strictly(tmp_path, prefix, wrapped):
    torch.manual_seed(0)
    own = SMPointSeg(**CONFIGS["semantickitti"])
    state = {prefix + key: value for key, value in own.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state} if wrapped else state, tmp_path / "epoch_3.pth")
    network = load_smpointseg(tmp_path / "epoch_3.pth")
    assert network.config == own.config  # the radius is that of the published widths
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), own.state_dict().values(), strict=True))
    del state[prefix + "tail.0.body.0.conv_1x1.weight"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(UseError, match="tail.0.body.0.conv_1x1.weight"):
        load_smpointseg(tmp_path / "torn.pth")


def test_a_shared_file_says_what_weights_do_not(tmp_path):
    network = small()
    save_smpointseg(tmp_path / "n.safetensors", network)
    again = load_smpointseg(tmp_path / "n.safetensors")
    assert again.config == network.config and again.radius == 0.1 and again.n_neighbors == 8


@pytest.mark.parametrize("s2d", ["gated", "full"])
@pytest.mark.parametrize("kind", ["mixed", "all dense", "all sparse", "none kept", "all kept"])
@pytest.mark.parametrize("name", ["native", "gather"])
def test_skipping_equals_multiplying(name, kind, s2d):
    network = settle(small(s2d=s2d), kind)
    batch = crop(samples=2)
    with torch.no_grad():
        with backend(name):
            found = network(batch)
            masks = network.masks
        with backend("reference"):
            right = network(batch)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    kept = [float(mask.float().mean()) for mask in masks]
    if kind in ("none kept", "all kept"):
        assert kept == [float(kind == "all kept")] * 3
    elif kind == "mixed":
        assert not torch.equal(masks[0][0], masks[0][1])  # each sample has a mask of its own


@pytest.mark.parametrize("name", BACKENDS)
def test_samples_of_a_batch_do_not_see_each_other(name):
    network, batch = settle(small(), "mixed"), crop(samples=3)
    with torch.no_grad(), backend(name):
        whole = network(batch)
        alone = torch.cat([network(part(batch, number)) for number in range(3)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=2e-6)


def test_after_inference_mode_it_runs_without():
    network, batch = settle(small(), "mixed"), crop(count=4096)
    with torch.inference_mode():
        first = network(batch).clone()
    with torch.no_grad():
        torch.testing.assert_close(network(batch), first)


@pytest.mark.parametrize("name", ["native", "gather"])
def test_with_everything_kept_it_is_the_dense_network(name):
    network, batch = settle(small(), "all kept"), crop()
    space = spaces.get("smpointseg")
    with torch.no_grad(), backend(name):
        torch.testing.assert_close(network(batch), space.dense_form(network)(batch), rtol=1e-5, atol=1e-5)


def test_training_with_saturated_logits_is_the_hard_network():
    network, batch = settle(small(), "mixed"), crop()
    with torch.no_grad():
        for block in network.encoder:
            block.pt_mask[2].conv.conv_1x1.weight.mul_(1e4)
        hard = network(batch)
        network.tau = 0.1
        set_training(network, freeze_bn=True)
        network.tail[1].eval()
        torch.testing.assert_close(network(batch), hard, rtol=1e-4, atol=1e-4)


def test_gradients_reach_all_masks():
    network = small(training=True)
    network(crop(samples=2)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("name", ["native", "gather"])
def test_training_is_the_same_on_every_backend(name):
    batch, grads = crop(samples=2), []
    for chosen in (name, "gather"):
        network = small(training=True).to(torch.float64 if chosen == "gather" and name == "gather" else torch.float32)
        network.noise, network.tail[1].p = False, 0.0
        with backend(chosen):
            network(batch.to("cpu", next(network.parameters()).dtype)).square().mean().backward()
        grads.append([p.grad.float() for p in network.parameters()])
    for mine, right in zip(*grads, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("kind", "share"), [("all dense", 1.0), ("all sparse", None), ("none kept", None)])
def test_kept_fraction(kind, share):
    network, batch = settle(small(), kind), crop()
    with torch.no_grad():
        network(batch)
    found = float(mean_kept(network))
    # By the definition: over all layers, K·(C_in + 1) times the computed channels and points.
    counted = whole = 0
    for block, mask in zip(network.encoder, network.masks, strict=True):
        dense = block.ch_mask[..., 0] >= block.ch_mask[..., 1]
        ins = [block.inputs, block.outputs]
        for own, width in zip(dense, ins, strict=True):
            kept = int(own.sum()) * mask.numel() + int((~own).sum()) * int(mask.sum())
            counted += 8 * (width + 1) * kept
            whole += 8 * (width + 1) * mask.numel() * block.outputs
    assert found == pytest.approx(counted / whole, abs=1e-6)
    assert share is None or found == pytest.approx(share)


@pytest.mark.parametrize("kind", ["mixed", "all kept", "none kept"])
def test_counted_multiply_adds_are_the_executed_ones(kind):
    network, batch = settle(small(), kind), crop()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch)
    counted = counter.get_total_flops() // 2
    branches = dense = 0
    for block, n in zip(network.encoder, batch.sizes, strict=True):
        narrow = block.inputs // 4
        # A branch is not computed where its mask is the same for every input.
        branches += (kind == "mixed") * n * (block.inputs * narrow + (narrow + 3) * (narrow + 2) + 8 * (narrow + 2))
    wanted = branches + multiply_adds(network, batch.sizes)
    for block, mask in zip(network.encoder, network.masks, strict=True):
        out, lost = block.outputs, int((~mask).sum())
        first, second = (block.ch_mask[..., 0] < block.ch_mask[..., 1]).sum(1).tolist()  # sparse channels
        dense += lost * (8 * (first + second) + first * out + out * (first + second))
    assert counted == wanted - dense


@pytest.mark.parametrize(("name", "billions"), [("s3dis", 6.65), ("semantickitti", 6.85)])
def test_the_paper_s_count(name, billions):
    network = SMPointSeg(**CONFIGS[name])
    sizes = [50_000 // 4**level for level in range(len(network.channels))]
    assert multiply_adds(network, sizes, published=True) / 1e9 == pytest.approx(billions, abs=0.005)


def test_pooling_and_copying_on_a_toy_cloud():
    from sparsemask.spaces.smpointseg.layers import Join
    from sparsemask.spaces.smpointseg.network import _pool

    near = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]], dtype=torch.int32)
    rows = torch.tensor([[1.0], [3.0], [7.0], [9.0]])
    # The first two points go on, each as the mean of what is around it.
    for grad in (True, False):
        assert _pool(rows.clone().requires_grad_(grad), near, 1, 2).tolist() == [[2.0], [5.0]]
    stage = Join(2, 1).eval()
    with torch.no_grad():
        stage.conv.conv_1x1.weight.copy_(torch.tensor([[[1.0], [10.0]]]))  # coarser features first
        found = stage.infer(torch.tensor([[2.0], [5.0]]), torch.tensor([0, 1, 1, 0], dtype=torch.int32), rows)
    torch.testing.assert_close(found, torch.tensor([[12.0], [35.0], [75.0], [92.0]]), rtol=1e-4, atol=1e-4)


def test_masks_are_read_out_and_put_in():
    network, other = settle(small(), "mixed"), small(seed=1)
    apply_masks(other, hard_masks(network), 0.7)
    assert all(np.array_equal(a, b) for a, b in zip(*(hard_masks(n).values() for n in (network, other)), strict=True))
    assert [block.pt_mask.threshold for block in other.encoder] == [0.7] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: PointBatch(b.features[:, :5], b.neighbours, b.upsample), "channels"),
        (lambda b: PointBatch(b.features, b.neighbours[:2], b.upsample[:1]), "levels"),
        (lambda b: PointBatch(b.features, [n[..., :4] for n in b.neighbours], b.upsample), "neighbours"),
    ],
)
def test_crops_of_another_network_are_refused(change, said):
    with pytest.raises(UseError, match=said):
        small()(change(crop()))


@pytest.mark.parametrize("wrong", [{"index_rule": "floor"}, {"s2d": "none"}, {"tail_bias_count": 3}])
def test_unknown_readings_are_refused(wrong):
    with pytest.raises(UseError, match="known are"):
        Reading(**wrong)
