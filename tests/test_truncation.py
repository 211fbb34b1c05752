"""Encoders without the blocks that nothing reads: same outputs and gradients, fewer parameters, files of both kinds."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from filling import fill
from pyramid import Pyramid
from sparsemask import UseError, spaces
from sparsemask.costs import measure
from sparsemask.engine.loop import Fit
from sparsemask.inference import optimize_for_inference
from sparsemask.masks import DOWN, UP, check_mask, save_mask
from sparsemask.masks.groups import GroupMask
from sparsemask.plugins import trust
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import train as retrain_train
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork, load_network, named_mask, pruned_network, save_network
from sparsemask.spaces.connectivity.encoding import mask_word
from sparsemask.spaces.connectivity_pruned_encoder.space import small_widths
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.spaces.specialized.onnx_form import PlainForm
from sparsemask.weights import load_strictly, load_weights, unbuilt_parts, under
from test_specialize_network import lively
from tiny import SMALL, data_flags, make_data


class Steps(Pyramid):
    """A user's backbone whose end points come one after the other."""

    def truncate_(self, deepest: int) -> None:
        del self.layers[len(self.channels) - deepest :]

    def forward(self, x):
        points = super().forward(x)
        return [None] * (len(self.channels) - len(points)) + points


NAME = "test_truncation:Steps"
PARTS = ("weight", "bias", "running_mean", "running_var")
BACKBONES = {"mobilenet_v2": lambda: "mobilenet_v2", "own": Steps}


def random_mask(rng: np.random.Generator, features: int, deepest: int) -> np.ndarray:
    """A mask whose live stages read `deepest` and nothing deeper; a stage that nobody takes reads the deepest one."""
    allowed = np.tril(np.ones((features, features), bool))[..., None] & (rng.random((features, features, 2)) < 0.4)
    allowed[deepest:, :deepest, DOWN] = False
    allowed[deepest:, : deepest + 1, UP] = deepest == 0
    allowed[:deepest] = False
    allowed[-1, deepest, DOWN] = True
    for stage in range(features - 1):
        if not allowed[stage].any():
            allowed[:, stage + 1, UP] = False
    if deepest:
        allowed[deepest - 1, 0, DOWN] = True
    return check_mask(allowed)


def pair(backbone, mask: np.ndarray, **options) -> tuple[PrunedNetwork, PrunedNetwork]:
    """The whole network and the one that is truncated, of equal weights."""
    whole = fill(PrunedNetwork(mask, backbone(), 6, num_classes=3, bn_momentum=0.1, whole_encoder=True, **options))
    cut = PrunedNetwork(mask, backbone(), 6, num_classes=3, bn_momentum=0.1, **options)
    cut.load_state_dict(whole.state_dict())
    return whole, cut


def check_alike(whole: nn.Module, cut: nn.Module, size: tuple[int, int] = (65, 97)) -> None:
    """Equal outputs in evaluation; equal outputs, gradients and statistics in training."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(whole.eval()(x), cut.eval()(x))
    for net in (whole, cut):
        net.train()(x).square().sum().backward()
    theirs = dict(whole.named_parameters())
    for name, parameter in cut.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # no unused parameters
            assert torch.equal(parameter.grad, theirs[name].grad), name
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in cut.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_truncated_network_computes_what_the_whole_one_does(name):
    rng, backbone = np.random.default_rng(0), BACKBONES[name]
    features = 9 if name == "mobilenet_v2" else 4
    for deepest in range(0, features, 2):
        whole, cut = pair(backbone, random_mask(rng, features, deepest))
        names = list(cut.state_dict())
        assert names == [key for key in whole.state_dict() if key in cut.state_dict()]
        assert (len(names) < len(whole.state_dict())) == (deepest > 0)
        assert list(cut.backbone.channels) == list(whole.backbone.channels)
        check_alike(whole, cut)


MASK = random_mask(np.random.default_rng(3), 9, 5)


def test_only_what_is_used_is_counted():
    counted = [measure(net.eval(), (1, 3, 64, 64), time=False) for net in pair(lambda: "mobilenet_v2", MASK)]
    assert counted[1].parameters < counted[0].parameters / 5
    assert counted[1].multiply_adds < counted[0].multiply_adds
    named = [PrunedNetwork(named_mask(name, 9)) for name in ("sparsemask-voc", "dense", "unet")]
    assert not any(unbuilt_parts(net) for net in named)


def test_weights_of_the_whole_encoder_load_with_a_line(capsys):
    whole, cut = pair(lambda: "mobilenet_v2", MASK)
    fresh = PrunedNetwork(MASK, depth=6, num_classes=3)
    load_strictly(fresh, whole.state_dict(), "whole.pt")
    line = capsys.readouterr().out
    assert line.startswith("whole.pt: ") and line.count("\n") == 1 and "backbone.bottlenecks.Bottlenecks_4" in line
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in fresh.state_dict().items())
    load_strictly(fresh.backbone, whole.backbone.state_dict(), "encoder")
    assert "left out" in capsys.readouterr().out
    load_strictly(fresh, cut.state_dict(), "cut.pt")
    assert not capsys.readouterr().out
    for changed in ({"backbone.extra.weight": torch.ones(1)}, {"decoders.Decoders_0.bn.more": torch.ones(1)}):
        with pytest.raises(UseError, match="do not belong here"):
            load_strictly(fresh, {**whole.state_dict(), **changed}, "whole.pt")
    missing = {k: v for k, v in whole.state_dict().items() if k != "backbone.conv1.weight"}
    with pytest.raises(UseError, match="missing"):
        load_strictly(fresh, missing, "whole.pt")
    with pytest.raises(RuntimeError):
        fresh.load_state_dict(missing)


def test_shared_files_of_both_kinds_load(tmp_path, capsys):
    nets = pair(lambda: "mobilenet_v2", MASK)
    config = {"backbone_name": "mobilenet_v2", "depth": 6}
    x = torch.randn(1, 3, 64, 64)
    for net, lines in zip(nets, (1, 0), strict=True):
        save_network(tmp_path / "net.safetensors", net, config, 3)
        loaded = load_network(tmp_path / "net.safetensors")
        assert capsys.readouterr().out.count("left out") == lines
        assert unbuilt_parts(loaded) and torch.equal(loaded(x), net.eval()(x))


def test_a_copy_and_the_folded_form_of_a_truncated_network_are_truncated():
    _, cut = pair(lambda: "mobilenet_v2", MASK)
    whole_state = pair(lambda: "mobilenet_v2", MASK)[0].state_dict()
    copied = copy.deepcopy(cut.eval())
    copied.load_state_dict(whole_state)
    x = torch.randn(1, 3, 65, 97)
    fast = optimize_for_inference(cut, x, compiled=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), copied(x), rtol=1e-4, atol=1e-4)


def test_a_truncated_backbone_is_no_longer_one_for_deeper_masks():
    backbone = backbones.create("mobilenet_v2")
    assert backbones.truncate_(backbone, 0) == [] and backbones.truncate_(Pyramid(), 2) == []
    removed = backbones.truncate_(backbone, 3)
    assert removed[0] == "bottlenecks.Bottlenecks_5" and "conv_last" in removed
    assert backbones.truncate_(backbone, 3) == []
    assert backbones.truncate_(backbone, 8)
    points = backbone(torch.randn(1, 3, 32, 32))
    assert points[:8] == [None] * 8 and points[8].shape == (1, 32, 16, 16)
    with pytest.raises(UseError, match="end point 8"):
        PrunedNetwork(MASK, backbone)


def test_widths_of_a_truncated_encoder():
    whole, _ = pair(lambda: "mobilenet_v2", MASK)
    state = whole.state_dict()
    block = "backbone.bottlenecks.Bottlenecks_1.LinearBottleneck1_1"
    for name in ("conv1.weight", "conv2.weight", *(f"bn{n}.{part}" for n in (1, 2) for part in PARTS)):
        state[f"{block}.{name}"] = state[f"{block}.{name}"][:100]
    state[f"{block}.conv3.weight"] = state[f"{block}.conv3.weight"][:, :100]
    cut_state = {name: value for name, value in state.items() if not under(name, unbuilt_parts(PrunedNetwork(MASK)))}
    options = {"depth": 6, "n_class": 3}
    widths = small_widths(MASK, options, state)
    assert widths == small_widths(MASK, options, cut_state)
    nets = [PrunedNetwork(MASK, depth=6, num_classes=3, widths=widths, whole_encoder=whole) for whole in (True, False)]
    for net in nets:
        load_strictly(net, state, "narrow.pt")
    check_alike(*nets)


def specialized(whole_encoder: bool) -> SpecializedNetwork:
    return SpecializedNetwork(MASK, depth=8, num_classes=3, max_stride=16, whole_encoder=whole_encoder)


def test_a_truncated_specialised_network_skips_as_the_whole_one():
    torch.manual_seed(0)
    nets = [specialized(True), specialized(False)]
    lively(nets[0])
    load_strictly(nets[1].eval(), nets[0].state_dict(), "whole.pt")
    assert set(nets[1].masked) < set(nets[0].masked)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = nets[0](x)
        assert torch.equal(nets[1](x), wanted)
        for chained in (True, False):
            fast = copy.deepcopy(nets[1])
            fast.fold(chained)
            torch.testing.assert_close(fast(x), wanted, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(PlainForm(nets[1])(x), wanted, rtol=1e-3, atol=1e-4)
    assert nets[1].dense_multiply_adds < nets[0].dense_multiply_adds
    apply_masks(nets[1], hard_masks(nets[0]))
    with torch.no_grad():
        assert torch.equal(nets[1](x), wanted)


def test_an_encoder_of_a_single_layer_specialises():
    mask = np.zeros((9, 9, 2), bool)
    mask[8, 8, DOWN] = True
    net = lively(SpecializedNetwork(mask, depth=8, num_classes=3))
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        wanted = net(x)
        net.fold()
        torch.testing.assert_close(net(x), wanted, rtol=1e-3, atol=1e-4)


@pytest.fixture
def run_flags(tmp_path, monkeypatch) -> list[str]:
    """Flags that retrain a network on a user's encoder, of which a part is not read."""
    trust(NAME, Steps)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    mask = random_mask(np.random.default_rng(2), 4, 2)
    save_mask("mask.npy", mask, {"backbone_name": NAME, "strides": list(Steps.strides)})
    make_data(tmp_path / "data", n=8)
    return ["--mask_path", "mask.npy", *data_flags(tmp_path / "data"), *SMALL, "--backbone_name", NAME]


@pytest.mark.usefixtures("no_images")
def test_a_run_that_began_with_the_whole_encoder_ends_with_it(run_flags, monkeypatch, capsys):
    flags = [*run_flags, "--max_iter", "4"]
    assert retrain_train.main([*flags, "--name", "cut"]) == 0
    step = Fit.train_step

    def stopped(self, parts):
        if self.step == 3:
            raise KeyError("stopped")
        return step(self, parts)

    with monkeypatch.context() as patch:  # as the version before built it
        patch.setattr(pruned_network, "truncate_", lambda *_: [])
        assert retrain_train.main([*flags, "--name", "whole"]) == 0
        patch.setattr(Fit, "train_step", stopped)
        with pytest.raises(KeyError):
            retrain_train.main([*flags, "--name", "stopped"])
    assert retrain_train.main(["--resume", "runs/stopped"]) == 0
    whole, resumed, cut = (load_weights(f"runs/{name}/checkpoints/last.pt") for name in ("whole", "stopped", "cut"))
    assert whole.keys() == resumed.keys() > cut.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert all(torch.equal(value, whole[name]) for name, value in cut.items())  # the same from the same seed
    capsys.readouterr()
    scores = []
    for name, lines in (("whole", 1), ("cut", 0)):
        assert retrain_eval.main(["--run", f"runs/{name}"]) == 0
        assert capsys.readouterr().out.count("left out") == lines
        scores.append(json.loads(Path(f"runs/{name}/run.json").read_text())["eval"])
    assert scores[0] == scores[1]
    assert retrain_train.main([*flags, "--name", "tuned", "--ft_model", "runs/whole/network.safetensors"]) == 0
    assert capsys.readouterr().out.count("left out") == 1
    assert load_weights("runs/tuned/network.safetensors").keys() == cut.keys()


@pytest.mark.parametrize("before", [True, False], ids=["recipe of the version before", "recipe of today"])
def test_groups_of_weights_of_a_truncated_encoder(before, capsys):
    mask = np.zeros((9, 9, 2), bool)  # a chain from E_5 on: every stage reaches the output
    for stage in range(5, 9):
        mask[stage, stage] = True, stage > 5
    slim, options = spaces.get("slim"), {"depth": 6, "n_class": 3, "connectivity": mask_word(mask)}
    config = slim.config(options, (3, 33, 33))
    if before:
        del config["arch_options"]["whole_encoder"]
    torch.manual_seed(0)
    hinged = slim.hinged(lively(slim.plain(config)), config)
    network, rng = hinged.network.eval(), np.random.default_rng(0)
    assert bool(unbuilt_parts(network)) != before
    kept = {s.name: np.append(True, rng.random(s.count - 1) < 0.6) for s in hinged.reduction.sets}
    state = slim.compressed(hinged, GroupMask(config, kept, space="slim", sha256="0")).network.state_dict()
    left = spaces.get("connectivity").network(mask, {**options, "widths": small_widths(mask, options, state)})
    load_strictly(left.eval(), state, "small.npz")
    assert capsys.readouterr().out.count("left out") == before
    zeroed, x = hinged.reduction.removal.zero_(copy.deepcopy(network), kept), torch.randn(2, 3, 65, 80)
    with torch.no_grad():
        torch.testing.assert_close(left(x), zeroed(x), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_images")
def test_a_truncated_network_is_exported(run_flags, capsys):
    assert retrain_train.main([*run_flags, "--max_iter", "1", "--name", "r"]) == 0
    assert retrain_export.main(["--run", "runs/r", "--out", "net.pt2", "--repeats", "0"]) == 0
    network = load_network("runs/r/network.safetensors", Steps).eval()
    assert unbuilt_parts(network)
    x = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.isfinite(network(x)).all()
