"""SMSR: the public checkpoint's published numbers, and what holds for networks of any width, depth, scale and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemask import costs
from sparsemask.errors import UseError
from sparsemask.spaces.smsr.dense import MaskedForm, multiply_adds
from sparsemask.spaces.sparse_conv import SMSR, DenseForm, apply_masks, fix_masks, hard_masks, load_smsr, save_smsr
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.spaces.sparse_conv.schedules import published_epoch, sparse_weight, temperature
from sparsemask.sparse import available_backends, backend
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise, ssim
from sparsemask.weights import load_weights

# Specification of SMSR, section 4: PSNR, and the share of kept pixels by module where it is given.
SET5 = {
    "baby": (38.888, (0.08, 0.19, 0.40, 0.06, 0.15)),
    "bird": (43.282, None),
    "butterfly": (35.382, (0.48, 0.58, 0.74, 0.68, 0.64)),
    "head": (35.988, None),
    "woman": (36.415, None),
}
DENSE = [[24, 9, 3, 0], [16, 4, 1, 0], [16, 7, 1, 0], [3, 0, 0, 0], [14, 5, 0, 0]]
REASONS = available_backends()


@pytest.fixture(autouse=True)
def one_backend():
    """Not whichever is fastest at the moment; a test may choose another inside."""
    with backend("gather"):
        yield


@pytest.fixture(scope="module")
def public(shared_data) -> SMSR:
    return load_smsr(shared_data / "smsr_x2.pt")


@pytest.fixture(scope="module")
def set5(shared_data) -> dict:
    def read(path):
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()

    folder = shared_data / "set5"
    return {n: (read(folder / f"LR_bicubic/X2/{n}.png"), read(folder / f"HR/{n}.png")) for n in SET5}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "gather", "native", "triton"])
def test_public_checkpoint_scores_as_published(public, set5, name):
    if REASONS.get(name) is not None:
        pytest.skip(f"backend {name}: {REASONS[name]}")
    found = {}
    with torch.no_grad(), backend(name):
        for picture, (lr, hr) in set5.items():
            sr = quantise(public(lr))
            hr = hr[..., : sr.shape[2], : sr.shape[3]]
            found[picture] = psnr(sr, hr, 2), ssim(sr, hr, 2, divisor=255)
            assert found[picture][0] == pytest.approx(SET5[picture][0], abs=0.005), picture
            if SET5[picture][1]:
                kept = [float(mask.float().mean()) for mask in public.masks]
                assert kept == pytest.approx(SET5[picture][1], abs=0.005), picture
    means = np.mean(list(found.values()), axis=0)
    assert means[0] == pytest.approx(37.991, abs=0.005)
    assert means[1] == pytest.approx(0.9601, abs=0.0001)


@pytest.mark.real
def test_public_checkpoint_is_the_published_network(public):
    assert [mask.sum(1).tolist() for mask in hard_masks(public).values()] == DENSE
    assert public.config == {"scale": 2, "n_feats": 64, "n_modules": 5, "n_layers": 4, "reduction": 16}
    logits = sum(module.body.ch_mask.numel() for module in public.body)
    assert costs.count_parameters(public) - logits == 984746  # the published 985 K
    # As the paper counts, and as it is.
    assert multiply_adds(public, 360, 640, published=True) == pytest.approx(224.1e9, abs=0.05e9)
    assert multiply_adds(public, 360, 640) == pytest.approx(223.80e9, abs=0.005e9)


def network(seed: int = 0, **config) -> SMSR:
    """A small one whose masks keep some and drop some."""
    torch.manual_seed(seed)
    made = SMSR(**{"n_feats": 8, "n_modules": 2, "n_layers": 3, "reduction": 2, **config}).eval()
    with torch.no_grad(), backend("reference"):
        x = made.begin(pictures(24, 24, seed=9))[2]
        for module in made.body:
            drop, keep = module.spa_mask.logits(x).split(1, 1)
            module.spa_mask[-1].bias[1] -= (keep - drop).median()
            x = module(x)[0]
    return made


def pictures(*size: int, seed: int = 1) -> torch.Tensor:
    return 255 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 5), (2, 1), (1, 1)])
def test_any_size_and_the_masked_form_agree(scale, size):
    # Odd sides and single pixels too: the mask branch halves and doubles, the public code crops.
    net, x = network(scale=scale), pictures(*size)
    with torch.no_grad():
        out = net(x)
        assert out.shape == (1, 3, scale * size[0], scale * size[1])
        torch.testing.assert_close(out, MaskedForm(net)(x), atol=1e-3, rtol=1e-5)
        set_threshold(net, 0.0)  # every P(keep) is above it
        torch.testing.assert_close(net(x), DenseForm(net)(x), atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(DenseForm(net)(x), MaskedForm(net, open=True)(x), atol=1e-3, rtol=1e-5)
    assert all((one == 1).all() for one in net.kept)


def test_masks_drop_something_in_these_tests():
    # Or their agreement would prove little.
    net = network()
    with torch.no_grad():
        net(pictures(24, 24))
    assert all(0.05 < float(mask.float().mean()) < 0.95 for mask in net.masks)


def test_batches_are_pictures_one_by_one():
    net, both = network(), torch.cat([pictures(10, 9), pictures(10, 9, seed=2)])
    with torch.no_grad():
        torch.testing.assert_close(net(both), torch.cat([net(one[None]) for one in both]), atol=1e-3, rtol=1e-5)


def test_training_reaches_every_parameter():
    # Soft masks: the task's loss alone moves weights, channel logits and mask branches.
    net = network().train()
    net(pictures(12, 12)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []
    assert all(one.requires_grad for one in net.kept)
    assert all(((mask > 0) & (mask < 1)).all() for mask in net.masks)


def test_fixed_masks_train_the_weights_alone_and_are_those_of_evaluation():
    net, x = network(), pictures(12, 12)
    with torch.no_grad():
        wanted = net(x)
    fix_masks(net)
    out = net.train()(x)
    torch.testing.assert_close(out.detach(), wanted, atol=1e-3, rtol=1e-5)
    out.sum().backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None}
    assert {name for name, _ in net.named_parameters()} - moved == {
        name for name, _ in net.named_parameters() if "spa_mask" in name or "ch_mask" in name
    }


def test_hard_kept_is_what_evaluation_keeps():
    # The budget's figure in training: the masks as they would be hard, on the same features where there is one module.
    net, x = network(n_modules=1), pictures(12, 12)
    with torch.no_grad():
        net(x)
        wanted = net.kept[0]
        net.train()(x)
    torch.testing.assert_close(net.hard_kept[0], wanted)
    assert not torch.equal(net.kept[0], wanted)


def test_gradients_in_evaluation_go_by_the_masked_form():
    net, x = network(), pictures(8, 8).requires_grad_()
    assert torch.autograd.grad(net(x).sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_multiply_adds_of_everything_kept_are_those_counted(size):
    net = network()
    set_threshold(net, 0.0)
    assert costs.multiply_adds(net, pictures(*size)) == multiply_adds(net, *size)


def test_fewer_kept_are_fewer_multiply_adds():
    net, x, counts = network(), pictures(16, 16), []
    for threshold in (0.0, 0.5, 0.999999):
        set_threshold(net, threshold)
        counts.append(costs.multiply_adds(net, x))
    assert counts[0] > counts[1] > counts[2] > 0


def test_compiles_without_a_break():
    net, x = network(), pictures(9, 8)
    with torch.no_grad(), backend("reference"):
        compiled = torch.compile(net, fullgraph=True, backend="eager", dynamic=False)
        torch.testing.assert_close(compiled(x), net(x), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("config", [{"scale": 3}, {"n_feats": 12, "n_modules": 1}, {"n_layers": 2, "reduction": 4}])
def test_a_file_says_what_to_build(tmp_path, config):
    net, x = network(**config), pictures(6, 6)
    set_threshold(net, 0.25)
    save_smsr(tmp_path / "n.safetensors", net, None)
    torch.save({"model": net.state_dict(), "mask": {"threshold": 0.25}}, tmp_path / "n.pt")
    shared, saved = load_smsr(tmp_path / "n.safetensors"), load_smsr(tmp_path / "n.pt")
    assert shared.config == saved.config == net.config
    assert shared.body[0].spa_mask.threshold == 0.5  # of the masks that were not given
    with torch.no_grad():
        assert torch.equal(saved(x), net(x))


def missing(state):
    del state["body.0.body.collect.bias"]


def surplus(state):
    state["body.9.body.ch_mask"] = state["body.0.body.ch_mask"]


def other_std(state):
    state["sub_mean.weight"] = 2 * state["sub_mean.weight"]


def foreign(state):
    state.clear()
    state["fc.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "1 tensors are missing"),
        (surplus, "modules missing"),
        (other_std, "identity"),
        (foreign, "no weights"),
    ],
)
def test_other_weights_are_refused(tmp_path, spoil, words):
    state = network().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "n.pt")
    with pytest.raises(UseError, match=words):
        load_smsr(tmp_path / "n.pt")


@pytest.mark.parametrize(("name", "value"), [("scale", 5), ("n_feats", 2), ("n_modules", 0), ("n_layers", 0)])
def test_impossible_networks_are_refused(name, value):
    with pytest.raises(UseError, match=f"{value}"):
        SMSR(**{name: value})


def test_masks_put_in_are_the_masks_read_out():
    net = network()
    rng = np.random.default_rng(0)
    wanted = {name: rng.random(mask.shape) < 0.5 for name, mask in hard_masks(net).items()}
    apply_masks(net, wanted, 0.3)
    assert all((mask == wanted[name]).all() for name, mask in hard_masks(net).items())
    assert [module.spa_mask.threshold for module in net.body] == [0.3, 0.3]
    with pytest.raises(UseError, match="another network"):
        apply_masks(net, {"body.0.body": wanted["body.0.body"]})
    with pytest.raises(UseError, match="layers x channels"):
        apply_masks(net, {name: mask[:, :4] for name, mask in wanted.items()})


def test_new_mask_branches_do_not_begin_as_a_checkerboard():
    # The four phases of the upsampling agree on a constant input, away from the rim.
    torch.manual_seed(0)
    up = SMSR(n_feats=16, n_modules=1).body[0].spa_mask[-1]
    with torch.no_grad():
        inside = up(torch.ones(1, 4, 8, 8))[..., 2:-2, 2:-2]
    assert float(inside.std(dim=(2, 3)).max()) < 1e-5


@pytest.mark.parametrize(
    ("epoch", "tau", "weight"), [(1, 1, 0), (26, 0.95, 0.5), (51, 0.9, 1), (251, 0.5, 1), (301, 0.4, 1)]
)
def test_schedules_as_intended(epoch, tau, weight):
    assert temperature(epoch) == pytest.approx(tau)
    assert sparse_weight(epoch) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("step", "steps", "epoch"), [(0, 1000000, 1), (999, 1000000, 1), (1000, 1000000, 2), (50, 100, 501), (99, 100, 991)]
)
def test_epochs_are_thousandths_of_the_run(step, steps, epoch):
    # For the published run, 1000 epochs of 1000 steps, exactly its own.
    assert published_epoch(step, steps) == epoch


@pytest.mark.real
def test_weights_come_back_as_they_were(public, shared_data):
    # Strictly: all 99 tensors, the two shifts of the mean included.
    state = load_weights(shared_data / "smsr_x2.pt")
    assert len(state) == 99
    assert all(torch.equal(value, public.state_dict()[name]) for name, value in state.items())
