"""Zeros after ReLUs, counted against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sparsemask.activations import zero_shares
from sparsemask.errors import UseError
from sparsemask.pictures.activations import draw_zeros
from sparsemask.pictures.overlay import draw_masks, overlay, shortened


class Odd(nn.Module):
    """ReLUs as a module, as a function, twice in one module, as ReLU6, and of single places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        self.six = nn.ReLU6()

    def forward(self, x):
        x = self.first(x)
        x = F.relu(x - 0.1) + F.relu(x - 0.2)
        return self.six(x) * F.relu(x.mean((2, 3), keepdim=True))


def test_shares_are_those_counted_by_hand():
    torch.manual_seed(0)
    net, inputs = Odd(), [torch.randn(2, 3, 8, 9), torch.randn(1, 3, 6, 6)]
    found = {layer.name: layer for layer in zero_shares(net, inputs)}
    assert list(found) == ["first.1", "", " (2)", "six"]
    with torch.no_grad():
        first = torch.cat([net.first(x).transpose(0, 1).flatten(1) for x in inputs], 1)
    torch.testing.assert_close(found["first.1"].zeros, (first == 0).double().mean(1))
    torch.testing.assert_close(found[" (2)"].zeros, (first <= 0.2).double().mean(1))
    assert found["first.1"].count == first.shape[1]
    assert found["first.1"].above(0.0) == int(((first == 0).sum(1) > 0).sum())


def test_nothing_is_left_behind():
    net = Odd().train()
    zero_shares(net, [torch.randn(1, 3, 8, 8)])
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_overlay_keeps_and_darkens():
    picture = np.full((4, 6, 3), 200, np.uint8)
    mask = np.zeros((2, 3), bool)  # of half the size: every place is four pixels
    mask[0, 0] = True
    shown = overlay(picture, mask)
    assert (shown[:2, :2] == 200).all() and (shown[2:] < 130).all() and (shown[:2, 2:] < 130).all()
    with pytest.raises(UseError, match="does not fit"):
        overlay(picture, np.zeros((3, 3), bool))


def test_pictures_of_nothing_are_refused(tmp_path):
    with pytest.raises(UseError, match="no masks"):
        draw_masks(np.zeros((4, 4, 3), np.uint8), [], tmp_path / "a.png")
    with pytest.raises(UseError, match="no layers"):
        draw_zeros([], [], tmp_path / "a.png")


def test_modules_that_keep_everything_share_one_picture(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    every, half = np.ones((20, 30), bool), np.arange(30)[None].repeat(20, 0) < 15
    sizes = {}
    for name, masks in {"all": [every] * 11, "some": [every] * 10 + [half], "one": [every, half]}.items():
        with Image.open(draw_masks(image, masks, tmp_path / f"{name}.png")) as drawing:
            sizes[name] = drawing.size
    assert sizes["all"][0] < sizes["some"][0] < sizes["one"][0]  # one, two and three panels
    assert sizes["all"][1] == sizes["some"][1] == sizes["one"][1]


def test_captions_end_with_their_panels(tmp_path):
    """Paths of somebody's modules below the picture and below a mask."""
    every, half = np.ones((20, 30), bool), np.arange(30)[None].repeat(20, 0) < 15
    names = [f"backbone.bottlenecks.Bottlenecks_{k}.LinearBottleneck{k}_0.channels" for k in range(3)]
    with Image.open(
        draw_masks(np.zeros((20, 30, 3), np.uint8), [every, every, half], tmp_path / "m.png", None, names)
    ) as m:
        grey = np.array(m.convert("L"))
    assert grey[:, :3].min() == grey[:, -3:].min() == 255
    wide = draw_masks(np.zeros((20, 30, 3), np.uint8), [every, every, half], tmp_path / "w.png", None, ["a", "b", "c"])
    with Image.open(wide) as m:
        assert m.size == grey.shape[::-1]


def test_names_in_a_line():
    assert shortened(["module 1", "module 2", "module 5"]) == "module 1, 2, 5"
    assert shortened([f"module {k}" for k in range(1, 30)], 20) == "module 1, 2, 3, 4, 5, ... (29)"
    assert shortened(["a", "b c"]) == "a, b c"
