"""Encoders from timm: the backbones' contract, weights from files, the verbs; and plain words where it is absent."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sparsemask import UseError
from sparsemask.masks import DOWN, UP
from sparsemask.pictures import draw_architecture
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search.losses import sparse_loss
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones.weights import load_backbone_weights
from sparsemask.spaces.connectivity import ConnectivityConfig, FullyDenseNetwork, PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.mask_source import carry_mask
from sparsemask.weights import unbuilt_parts, under
from timm_models import STANDINS, forget, importable_timm
from tiny import SMALL, data_flags, environment, make_data, verb

MOBILENET = [32, 32, 32, 16, 16, 8, 4, 2, 2]


@pytest.fixture(scope="module")
def timm():
    with importable_timm() as module:
        yield module


# Channels and strides, deepest first.
CONTRACTS = {
    "resnet18": ([512, 256, 128, 64, 64], [32, 16, 8, 4, 2]),
    "resnet50": ([2048, 1024, 512, 256, 64], [32, 16, 8, 4, 2]),
    "vgg16": ([512, 512, 512, 256, 128], [32, 16, 8, 4, 2]),  # less the one of stride 1
    "timm/efficientnet_b0": ([320, 112, 40, 24, 16], [32, 16, 8, 4, 2]),
    "resnet18.a1_in1k": ([512, 256, 128, 64, 64], [32, 16, 8, 4, 2]),
    "test_convnext": ([64, 48, 32, 24], [32, 16, 8, 4]),  # layer norms only
    "test_mambaout": ([64, 48, 32, 16], [32, 16, 8, 4]),  # features come channels last
    "dla34": ([512, 256, 128, 64, 32], [32, 16, 8, 4, 2]),  # only takes multiples of 32: padded
    "legacy_xception": ([2048, 728, 256, 128, 64], [32, 16, 8, 4, 2]),  # features by hooks
}


# Models that timm builds whole whatever features are asked for.
WHOLE = ("legacy_xception",)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_timm_model_keeps_the_backbones_contract(timm, name):
    channels, strides = CONTRACTS[name]
    torch.manual_seed(0)
    net = backbones.create(name, in_channels=4, momentum=0.02).eval()
    assert (net.channels, net.strides, backbones.strides(name)) == (channels, strides, strides)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (name not in ("vgg16", "test_convnext", "test_mambaout"))
    assert all(norm.momentum == 0.02 for norm in norms)
    for size in ((64, 96), (65, 97)):
        with torch.no_grad():
            points = net(torch.randn(2, 4, *size))
        assert [p.shape[:2] for p in points] == [(2, c) for c in channels]
        # Models round as they like, up, down or by unpadded convolutions; never far from size / stride.
        for point, stride in zip(points, strides, strict=True):
            assert all(abs(side - whole / stride) < 4 for side, whole in zip(point.shape[2:], size, strict=True))


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_truncated_timm_model_gives_the_same_features_and_keeps_their_names(timm, name):
    torch.manual_seed(0)
    net = backbones.create(name, momentum=0.02)
    last = len(net.strides) - 1
    x = torch.randn(2, 3, 65, 97)
    whole, state = copy.deepcopy(net), net.state_dict()
    for deepest in (2, last):
        removed = backbones.truncate_(net, deepest)
        assert bool(removed) == (name not in WHOLE), removed
        left = net.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in left.items())
        assert [key for key in state if key not in left] == [key for key in state if under(key, unbuilt_parts(net))]
        with torch.no_grad():
            points = [n.eval()(x) for n in (whole, net)]
        if removed:
            assert points[1][:deepest] == [None] * deepest
        for theirs, ours in zip(*(found[deepest:] for found in points), strict=True):
            assert torch.equal(theirs, ours)
        net.load_state_dict(state)
    assert all(norm.momentum == 0.02 for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))


def test_a_network_on_a_truncated_timm_model_learns_as_on_the_whole_one(timm):
    mask = np.zeros((5, 5, 2), bool)
    mask[3, 3, DOWN] = mask[4, 4, DOWN] = mask[4, 4, UP] = True
    nets = [PrunedNetwork(mask, "resnet18", 8, num_classes=3, whole_encoder=whole) for whole in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, grads = torch.randn(2, 3, 64, 64), []
    for net in nets:
        net.train()(x).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert not any(name.startswith("backbone.timm.layer2") for name in grads[1])
    assert all(torch.equal(grad, grads[0][name]) for name, grad in grads[1].items())


def test_building_repeats_whether_or_not_the_trial_run_was_made(timm):
    from sparsemask.spaces.backbones.timm_features import model_traits

    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(backbones.create("resnet18").state_dict())
    model_traits.cache_clear()
    torch.manual_seed(3)
    nets.append(backbones.create("resnet18").state_dict())
    assert all(torch.equal(nets[0][key], net[key]) for net in nets[1:] for key in net)


WRONG_NAMES = {
    "resnet5": "unknown backbone 'resnet5'; known: mobilenet_v2, and timm's, such as .*resnet",
    "hf-hub:someone/model": "unknown backbone",  # never a hub
    "timm/hf-hub:someone/model": "unknown backbone",
    "local-dir:/tmp": "unknown backbone",
    "timm/mobilenet_v2": "unknown backbone",
    "vit_tiny_patch16_224": "does not take pictures of any size",
    "swin_tiny_patch4_window7_224": "does not take pictures of any size",
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_names_are_checked(timm, name):
    with pytest.raises(UseError, match=WRONG_NAMES[name]):
        backbones.create(name)


def test_pictures_too_small_are_said(timm):
    with pytest.raises(UseError, match="pictures of 24x40 are too small"):
        backbones.create("vgg11")(torch.zeros(1, 3, 24, 40))


def test_where_timm_is_absent_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for make in (lambda: backbones.create("resnet50"), lambda: ConnectivityConfig(backbone_name="resnet50")):
        with pytest.raises(UseError, match=r"unknown backbone 'resnet50'; known: mobilenet_v2, .*'sparsemask\[timm\]'"):
            make()
    backbones.create("mobilenet_v2")


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "does not import .*nms.* belongs to torch"),
        ("import ctypes; ctypes.CDLL('libcudart.so.0')", "does not import .*libcudart"),
        ("import torchvision_of_another_world", "it needs torchvision_of_another_world"),
    ],
)
def test_where_torchvision_is_broken_it_is_said(tmp_path, monkeypatch, code, words):
    (tmp_path / "timm.py").write_text(code)
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "timm"}
    forget("timm")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UseError, match=words):
        backbones.create("resnet50")
    forget("timm")
    sys.modules.update(kept)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "test_convnext", "test_resnet"])
def test_timms_own_files_load(timm, name, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name, pretrained=False).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    found = load_backbone_weights(tmp_path / "w.pth", name)
    assert f"backbone {name}: " in found.message and "(timm layout); not used: " in found.message
    assert ("fc (2 tensors)" if "resnet" in name else "tensors)") in found.message.partition("not used")[2]
    net = backbones.create(name).eval()
    net.load_state_dict(found.state)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        if name == "efficientnet_b0":
            deepest = whole.blocks(whole.bn1(whole.conv_stem(x)))
        elif name == "test_convnext":
            deepest = whole.stages(whole.stem(x))
        else:
            deepest = whole.forward_features(x)
        torch.testing.assert_close(net(x)[0], deepest)


def vgg_file(net: nn.Module) -> dict:
    """What torchvision's VGG files look like, by hand: features.N, and a classifier of its own."""
    state = {k.removeprefix("timm.").replace("features_", "features."): v for k, v in net.state_dict().items()}
    return state | {f"classifier.{i}.{leaf}": torch.zeros(2, 2) for i in (0, 3, 6) for leaf in ("weight", "bias")}


def test_torchvisions_vgg_files_load(timm, tmp_path):
    net = backbones.create("vgg11")
    state = vgg_file(net)
    assert state["features.0.weight"].shape == (64, 3, 3, 3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    found = load_backbone_weights(tmp_path / "w.pth", "vgg11")
    assert found.message.endswith("not used: classifier (6 tensors)")
    assert all(torch.equal(found.state[k], v) for k, v in net.state_dict().items())
    # Older files have no counters of batches; other channels repeat the first filters.
    own = backbones.create("resnet18").state_dict()
    older = {k.removeprefix("timm."): v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "r.pth")
    found = load_backbone_weights(tmp_path / "r.pth", "resnet18", in_channels=1)
    assert "first filters adapted to 1 channels" in found.message and found.message.endswith("nothing")
    assert found.state["timm.conv1.weight"].shape == (64, 1, 7, 7) and set(found.state) == set(own)


def test_the_backbone_of_a_whole_network_loads(timm, tmp_path):
    net = PrunedNetwork(named_mask("unet", 5), "resnet18", 8, num_classes=3)
    for state, rest in ((net.state_dict(), "decoders"), (net.backbone.state_dict(), "nothing")):
        torch.save(state, tmp_path / "w.pth")
        found = load_backbone_weights(tmp_path / "w.pth", "resnet18")
        assert "(sparsemask layout)" in found.message and rest in found.message
        assert all(torch.equal(found.state[k], v) for k, v in net.backbone.state_dict().items())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), "1 missing .*layer2.0.conv1.weight"),
        (lambda s: s.update({"layer9.conv.weight": torch.zeros(1)}), "1 not known .*layer9"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), "1 of another shape .*conv1"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.zeros(64, 3, 3, 3)}), "1 of another shape"),
        (lambda s: (s.clear(), s.update({"features.0.weight": torch.zeros(1)})), "missing .* 1 not known"),
    ],
)
def test_loading_is_strict(timm, change, words, tmp_path):
    state = {k.removeprefix("timm."): v for k, v in backbones.create("resnet18").state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UseError, match=f"w.pth: not weights of resnet18 .timm layout.: .*{words}"):
        load_backbone_weights(tmp_path / "w.pth", "resnet18")


@pytest.mark.parametrize("name", ["resnet50", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_the_published_mask_carried_to_another_encoder_builds_trains_a_step_and_draws(timm, name, tmp_path):
    torch.manual_seed(0)
    strides = backbones.strides(name)
    mask = carry_mask(named_mask("sparsemask-voc", 9), MOBILENET, strides)
    net = PrunedNetwork(mask, name, 64, num_classes=21, bn_momentum=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, label = torch.randn(2, 3, 65, 49), torch.randint(0, 21, (2, 65, 49))
    losses = []
    for _ in range(2):
        scores = net(x, (65, 49))
        assert scores.shape == (2, 21, 65, 49)
        losses.append(nn.functional.cross_entropy(scores, label))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    # Every weight that the output depends on has moved, the encoder's first included, and the loss has fallen.
    assert all(p.grad is not None for p in net.decoders.parameters())
    assert next(net.backbone.parameters()).grad.abs().sum() > 0
    assert losses[1] < losses[0]
    picture = draw_architecture(mask, tmp_path / "a.png", net.backbone.strides, net.backbone.channels)
    assert picture.stat().st_size > 5000


def test_the_fully_dense_network_trains_a_step_on_a_timm_encoder(timm):
    torch.manual_seed(0)
    net = FullyDenseNetwork("resnet18", 8, num_classes=3, bn_momentum=0.1)
    assert len(list(net.raw_weights())) == 5
    frozen = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert frozen and not any(p.requires_grad for m in frozen for p in m.parameters())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    loss = net(torch.randn(2, 3, 65, 65), (65, 65)).square().mean() + sum(map(sparse_loss, net.connection_weights()))
    loss.backward()
    optimizer.step()
    net.clamp_weights_()
    assert all((w != 1).all() and w.min() >= 0 and w.max() <= 2 for w in net.raw_weights())


@pytest.mark.slow
def test_the_verbs_chain_on_a_timm_encoder_and_on_to_another(timm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    light = ["--gpu", "-1", "--n_worker", "0"]
    common = [*SMALL, *data_flags(make_data(tmp_path / "data")), *light, "--max_iter", "3"]
    torch.save(backbones.create("resnet18").state_dict(), "r.pth")
    # As a user would, and resumed by another process: the network is rebuilt from the checkpoint's own configuration.
    standin = {"PYTHONPATH": str(STANDINS)} if hasattr(sys.modules["torchvision"], "STANDIN") else {}
    env = environment(tmp_path / "home", **standin)
    searched = ["--backbone_name", "resnet18", "--pretrained_model", "r.pth", "--name", "s"]
    done = verb("search/run.py", ["--search", *common, *searched], tmp_path, env=env)
    assert "backbone resnet18: 120 tensors from " in done.stdout
    assert "r.pth (sparsemask layout); not used: nothing" in done.stdout
    assert done.returncode == 0, done.stderr
    done = verb("search/run.py", ["--resume", "runs/s", "--gpu", "-1"], tmp_path, env=env)
    assert done.returncode == 0 and "resuming runs/s after step 3" in done.stdout

    assert prune_prune.main([]) == 0
    assert "stage 4 (/2) <- " in capsys.readouterr().out
    retrained = [*common, "--mask_path", "mask.npy", "--backbone_name", "resnet18", "--name", "r", "--inherit", "all"]
    assert retrain_train.main(retrained) == 0
    assert "carried" not in capsys.readouterr().out
    # On to MobileNetV2, and to a VGG without batch norm, whose features have the same strides.
    for name in ("mobilenet_v2", "vgg11"):
        argv = [*common, "--mask_path", "mask.npy", "--backbone_name", name, "--name", name]
        assert retrain_train.main(argv) == 0
        assert ("mask carried from resnet18" in capsys.readouterr().out) == (name == "mobilenet_v2")
        assert retrain_eval.main(["--run", f"runs/{name}", *light]) == 0
