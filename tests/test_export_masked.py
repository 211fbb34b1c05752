"""Exports of networks with fine-grained masks: both forms have the network's numbers, at other sizes too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from literal_sparse import one_thread  # noqa: F401
from sparsemask import exporting, spaces
from sparsemask.exporting.validation import opened
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.spaces.specialized.onnx_form import PlainForm, constant
from sparsemask.sparse import backend
from test_smpointseg import crop, settle, small
from test_smstereo import pair
from test_specialize_network import lively


@pytest.fixture(autouse=True)
def one_backend():
    with backend("reference"):
        yield


class Encoder(nn.Module):
    """Two inverted residuals: with a shortcut, and of stride 2."""

    channels, strides = (12, 8, 8), (4, 2, 2)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.first = LinearBottleneck(8, 8, 1, 1, False, 0.1)
        self.second = LinearBottleneck(8, 8, 1, 4, True, 0.1)
        self.third = LinearBottleneck(8, 12, 2, 4, True, 0.1)

    def forward(self, x):
        x = self.first(self.bn1(self.conv1(x)).relu())
        y = self.second(x)
        return [self.third(y), y, x]


def network(share: float = 0.5, threshold: float = 0.5, **more) -> SpecializedNetwork:
    torch.manual_seed(0)
    made = lively(SpecializedNetwork(named_mask("dense", 3), Encoder(), depth=8, num_classes=4, **more))
    for one in made.modules():
        if hasattr(one, "ch_mask"):
            dense = (torch.rand(one.ch_mask.shape[1]) < share).float()
            one.ch_mask.data = torch.stack([dense, 1 - dense], -1)[None]
        if hasattr(one, "logits"):
            nn.init.normal_(one[-1].weight)  # of both signs: what they say depends on the picture
    set_threshold(made, threshold)
    return made


def decide(net: SpecializedNetwork, keep: bool) -> None:
    """Make every second mask branch one that keeps everything, or nothing, whatever it sees."""
    for module in [one for one in net.masked.values() if getattr(one, "locate", None) is not None][::2]:
        last = module.locate[-1]
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.0, 1.0] if keep else [1.0, 0.0])


SPECIALISED = [  # share of dense channels, threshold, what some branches always say
    (0.5, 0.5, None), (0.5, 0.6, None), (0.0, 0.5, None), (1.0, 0.5, None), (0.5, 0.5, True), (0.5, 0.5, False),
    (0.0, 0.5, False),
]  # fmt: skip


@pytest.mark.parametrize(("share", "threshold", "always"), SPECIALISED)
@pytest.mark.parametrize("more", [{}, {"scale": 2}, {"place_stride": 2}, {"place_stride": 1}])
def test_specialised_forms_have_the_network_s_numbers(share, threshold, always, more):
    net = network(share, threshold, **more)
    if always is not None:
        decide(net, always)
    pictures = 255 if "scale" in more else 1
    made = spaces.get("specialized").exportable(net, torch.zeros(1, 3, 20, 20), None)
    for size in ((1, 3, 21, 34), (2, 3, 24, 32)):
        x = torch.rand(size) * pictures
        with torch.no_grad():
            wanted = net(x)
            for form in (made.program, made.plain, made.fast):
                assert torch.allclose(form(x), wanted, atol=1e-4 * max(1, float(wanted.abs().max())))


def count(net: SpecializedNetwork) -> int:
    return sum(one.weight.numel() for one in PlainForm(net).modules() if isinstance(one, nn.Conv2d))


def test_what_masks_never_keep_is_not_there():
    plain = network()
    whole = count(plain)
    decide(plain, False)
    assert [constant(one.locate) for one in plain.masked.values()][:2] == [False, None]
    dropped = count(plain)
    assert dropped < 0.9 * whole  # channels, and mask branches that have nothing to say
    decide(plain, True)
    assert constant(next(iter(plain.masked.values())).locate) is True
    kept = count(plain)
    assert dropped < kept < whole  # only those branches are gone
    # Modules with a channel mask alone have the channels that are left.
    assert count(network(0.2, place_stride=1)) < 0.6 * count(network(1.0, place_stride=1))


@pytest.mark.slow
def test_specialised_files_take_any_size(tmp_path):
    net = network(place_stride=2)  # modules with data masks, and without
    made = spaces.get("specialized").exportable(net, torch.zeros(1, 3, 20, 20), None)
    written(made, tmp_path, [torch.randn(1, 3, 33, 47), torch.randn(3, 3, 24, 64)], keeps="inverted_residual")


READINGS = [{}, {"s2d": "full"}, {"tail_bias_count": 2, "index_rule": "round"}, {"point_mask": "all"}]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["half", "all dense", "all sparse", "none kept", "all kept"])
def test_forms_of_points_have_the_network_s_numbers(kind, reading):
    net = settle(small(**reading), kind)
    batch = crop(seed=5)
    made = spaces.get("smpointseg").exportable(net, batch, None)
    for name in ("reference", "auto"):
        with torch.no_grad(), backend(name):
            wanted = net(batch)
            for form in (made.program, made.plain):
                torch.testing.assert_close(form(*made.tensors(batch)), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_files_of_points_take_any_number(tmp_path):
    net = settle(small(), "half")
    made = spaces.get("smpointseg").exportable(net, crop(seed=1), None)
    written(made, tmp_path, [crop(seed=2), crop(256, seed=3)], keeps="packed_point_network")


@pytest.fixture(scope="module")
def stereo():
    """A stereo network with fewer encoder layers, statistics, and masks that keep some."""
    from sparsemask.spaces.smstereo.network import SMStereo

    torch.manual_seed(0)
    made = SMStereo(16, concat=4).train()
    made.feature_extraction.layer2 = made.feature_extraction.layer2[:1]
    with torch.no_grad():
        made(pair(2))
        for one in made.modules():
            if hasattr(one, "ch_mask"):
                one.ch_mask.copy_(torch.rand_like(one.ch_mask))
            if hasattr(one, "locate"):
                one.locate[5].weight.normal_()
    return made.eval()


def test_forms_of_stereo_have_the_network_s_numbers(stereo):
    made = spaces.get("smstereo").exportable(stereo, pair(), None)
    for one in (pair(), pair(1, 48, 32)):
        with torch.no_grad():
            wanted = stereo(one)
            assert any(0 < float(mask.float().mean()) < 1 for mask in stereo.masks)
            for form in (made.program, made.plain):
                torch.testing.assert_close(form(*made.tensors(one)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_files_of_stereo(tmp_path, stereo):
    made = spaces.get("smstereo").exportable(stereo, pair(), None)
    written(made.fixed(pair()), tmp_path, [pair()], keeps="conv")


def written(made: exporting.Exportable, folder, batches: list, keeps: str) -> None:
    """Write both formats, run them on batches: the program at open sizes; ONNX, which is slow to trace so, at one."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    for write, suffix in ((exporting.export_program, ".pt2"), (exporting.export_onnx, ".onnx")):
        if suffix == ".onnx":
            made, batches = made.fixed(batches[0]), batches[:1]
        path = write(made, folder / f"net{suffix}", {"space": "any"})
        run, note = opened(path, made)
        found = exporting.validate(path, run, made, batches, rounds=0, note=note)
        assert found.good and not note, (suffix, found)
    names = [str(node.target) for node in torch.export.load(folder / "net.pt2").graph.nodes]
    assert any(f"sparsemask.{keeps}." in name for name in names)  # what skips is still in it
