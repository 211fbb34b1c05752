"""Backbones: sizes, end points, and importing other people's weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from skimage.transform import resize

from filling import fill
from sparsemask import UseError
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones.weights import load_backbone_weights

CHANNELS = [1280, 320, 160, 96, 64, 32, 24, 16, 32]
REPEATS = [1, 2, 3, 4, 3, 3, 1]


@pytest.mark.parametrize("first_expansion, parameters", [(True, 2_224_960), (False, 2_223_872)])
def test_mobilenet_v2_has_the_published_size(first_expansion, parameters):
    net = backbones.create("mobilenet_v2", first_expansion=first_expansion)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 31)])
def test_end_points_come_deepest_first_with_the_promised_channels_and_strides(size):
    net = backbones.create("mobilenet_v2", in_channels=4).eval()
    assert net.channels == CHANNELS
    with torch.no_grad():
        points = net(torch.randn(1, 4, *size))
    wanted = [(c, *(-(-s // stride) for s in size)) for c, stride in zip(CHANNELS, net.strides, strict=True)]
    assert [tuple(p.shape[1:]) for p in points] == wanted


def test_end_points_are_taken_before_the_activation():
    torch.manual_seed(0)
    with torch.no_grad():
        points = backbones.create("mobilenet_v2")(torch.randn(2, 3, 64, 64))
    # An in-place ReLU6 in the encoder would have cut the negative halves off.
    assert all((p < 0).float().mean() > 0.2 for p in points)


def test_names_are_checked():
    assert "mobilenet_v2" in backbones.available()
    with pytest.raises(UseError, match="unknown backbone 'vgg'; known: .*mobilenet_v2"):
        backbones.create("vgg")


def torchvision_key(layer: str) -> str | None:
    """torchvision's name of one of our layers, written out independently of the importer."""
    if layer in ("conv1", "bn1"):
        return f"features.0.{int(layer == 'bn1')}"
    if layer in ("conv_last", "bn_last"):
        return f"features.18.{int(layer == 'bn_last')}"
    stage, block = layer.split(".")[2].removeprefix("LinearBottleneck").split("_")
    number = 1 + sum(REPEATS[: int(stage)]) + int(block)
    leaf = layer.split(".")[3]
    places = {"conv1": "0.0", "bn1": "0.1", "conv2": "1.0", "bn2": "1.1", "conv3": "2", "bn3": "3"}
    if number == 1:
        places = {"conv2": "0.0", "bn2": "0.1", "conv3": "1", "bn3": "2"}
    return f"features.{number}.conv.{places[leaf]}"


def timm_key(layer: str) -> str:
    """timm's name of one of our layers."""
    whole = {"conv1": "conv_stem", "bn1": "bn1", "conv_last": "conv_head", "bn_last": "bn2"}
    if layer in whole:
        return whole[layer]
    stage, block = layer.split(".")[2].removeprefix("LinearBottleneck").split("_")
    names = {
        "conv1": "conv_pw",
        "conv2": "conv_dw",
        "conv3": "conv_pwl",
        "bn1": "bn1",
        "bn2": "bn2",
        "bn3": "bn3",
    }
    if stage == "0":
        names = {"conv2": "conv_dw", "bn2": "bn1", "conv3": "conv_pw", "bn3": "bn2"}
    return f"blocks.{stage}.{block}.{names[layer.split('.')[3]]}"


def renamed(state, key_of):
    return {f"{key_of(k.rpartition('.')[0])}.{k.rpartition('.')[2]}": v for k, v in state.items()}


def plain():
    return fill(backbones.create("mobilenet_v2", first_expansion=False)).state_dict()


def public():
    return fill(backbones.create("mobilenet_v2")).state_dict()


CLASSIFIER = {"classifier.weight": torch.zeros(10, 1280), "classifier.bias": torch.zeros(10)}
LAYOUTS = {
    "torchvision": (lambda: renamed(plain(), torchvision_key) | CLASSIFIER, False, "classifier (2 tensors)"),
    "timm": (lambda: renamed(plain(), timm_key) | CLASSIFIER, False, "classifier (2 tensors)"),
    "timm without a classifier": (lambda: renamed(plain(), timm_key), False, "not used: nothing"),
    "bare, public form": (public, True, "not used: nothing"),
    "bare, plain form": (plain, False, "no first expansion"),
    "public checkpoint": (
        lambda: {
            "iter": 7,
            "optimizer": {"state": {}},
            "state_dict": {f"module.backbone.{k}": v for k, v in public().items()}
            | {"module.fc_conv.weight": torch.zeros(2, 64, 1, 1)},
        },
        True,
        "fc_conv (1 tensors)",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_tensors_under_our_names(name, tmp_path):
    make, first_expansion, words = LAYOUTS[name]
    torch.save(make(), tmp_path / "w.pth")
    found = load_backbone_weights(tmp_path / "w.pth", "mobilenet_v2")
    assert found.form == {"first_expansion": "yes" if first_expansion else "no"}
    assert words in found.message and "\n" not in found.message
    net = backbones.create("mobilenet_v2", first_expansion=first_expansion)
    net.load_state_dict(found.state)
    wanted = public() if first_expansion else plain()
    assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())


def test_timm_names_are_those_of_mobilenetv2_100():
    # A few names read off timm's own model, so that the inverse mapping above is anchored.
    keys = set(renamed(plain(), timm_key))
    for key in (
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
        "blocks.0.0.bn1.running_var",
        "blocks.0.0.conv_pw.weight",
        "blocks.0.0.bn2.bias",
        "blocks.1.1.conv_pwl.weight",
        "blocks.6.0.bn3.weight",
        "conv_head.weight",
        "bn2.weight",
    ):
        assert key in keys
    assert keys >= {"bn1.weight"} and "blocks.0.0.conv_pwl.weight" not in keys


def test_other_numbers_of_input_channels_keep_the_response_to_equal_channels(tmp_path):
    torch.save(plain(), tmp_path / "w.pth")
    three = load_backbone_weights(tmp_path / "w.pth", "mobilenet_v2").state["conv1.weight"]
    for channels in (1, 4, 7):
        found = load_backbone_weights(tmp_path / "w.pth", "mobilenet_v2", in_channels=channels)
        assert f"adapted to {channels} channels" in found.message
        assert found.state["conv1.weight"].shape[1] == channels
        if channels == 1:
            assert torch.allclose(found.state["conv1.weight"][:, 0], three[:, 0] * 3)


def broken(change):
    state = renamed(plain(), torchvision_key)
    change(state)
    return state


WRONG = {
    "a missing tensor": (
        lambda s: s.pop("features.3.conv.2.weight"),
        "1 missing .*Bottlenecks_1.*conv3.weight",
    ),
    "a foreign tensor": (lambda s: s.update({"features.19.weight": torch.zeros(1)}), "not of mobilenet_v2"),
    "a wrong width": (
        lambda s: s.update({"features.18.0.weight": torch.zeros(1600, 320, 1, 1)}),
        "another shape",
    ),
    "another network": (
        lambda s: (s.clear(), s.update({"layer1.0.weight": torch.zeros(3)})),
        "not weights of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_loading_is_strict(name, tmp_path):
    change, words = WRONG[name]
    torch.save(broken(change), tmp_path / "w.pth")
    with pytest.raises(UseError, match=words):
        load_backbone_weights(tmp_path / "w.pth", "mobilenet_v2")


def test_public_key_names(golden):
    keys = json.loads((golden / "connectivity_keys.json").read_text())["derived"]
    wanted = {k.removeprefix("backbone."): v for k, v in keys.items() if k.startswith("backbone.")}
    own = backbones.create("mobilenet_v2").state_dict()
    assert {k: list(v.shape) for k, v in own.items()} == wanted


@pytest.mark.real
def test_real_imagenet_weights_classify_real_pictures(shared_data):
    path = shared_data / "weights" / "mobilenet_v2_imagenet.pth"
    found = load_backbone_weights(path, "mobilenet_v2")
    assert "torchvision layout, no first expansion" in found.message and found.form == {"first_expansion": "no"}
    net = backbones.create("mobilenet_v2", first_expansion=False).eval()
    net.load_state_dict(found.state)
    head = torch.load(path, weights_only=True)
    cases = [  # ImageNet classes: cats 281-285; cup, coffee mug, espresso; missile, projectile, space shuttle
        (data.cat()[:, 60:360], range(281, 286)),
        (data.coffee()[:, 100:500], (504, 967, 968)),
        (data.rocket()[:, 107:534], (657, 744, 812)),
    ]
    for picture, classes in cases:
        x = resize(picture, (224, 224), anti_aliasing=True)
        x = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            feature = F.relu6(net(torch.from_numpy(x).float().permute(2, 0, 1)[None])[0]).mean((2, 3))
            scores = F.linear(feature, head["classifier.1.weight"], head["classifier.1.bias"])
        assert int(scores.argmax()) in classes
