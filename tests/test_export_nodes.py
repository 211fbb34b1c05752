"""ONNX files that skip: nodes of the domain "sparsemask", run by a library of operators, have the network's numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from literal_sparse import one_thread  # noqa: F401
from sparsemask import exporting, spaces
from sparsemask.backends.native import onnx_plan
from sparsemask.errors import UseError
from sparsemask.exporting.nodes import DOMAIN, WithNodes
from sparsemask.exporting.validation import opened
from sparsemask.ops import activation as act
from sparsemask.ops import register_all  # noqa: F401
from sparsemask.ops.conv import geometry_of
from sparsemask.ops.kept_conv import kept_features, kept_places
from sparsemask.retrain import export
from sparsemask.spaces import sr_networks
from test_export import command, network, place  # noqa: F401  a directory with a network without masks
from test_export_masked import (
    decide,
    stereo,  # noqa: F401
)
from test_export_masked import network as specialised
from test_smpointseg import crop, settle, small
from test_smsr import network as smsr
from test_smsr import pictures
from test_smstereo import pair
from test_sparsify import SMALL, without_dense_layers
from test_sr_masked import _state, half, image, masked


@pytest.fixture(scope="module", autouse=True)
def library() -> Path:
    """The operators' library."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return exporting.operators_library()


def kinds(path: Path) -> set[str]:
    """The nodes of a file that are ours."""
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN}


def same(made: exporting.Exportable, batches: list, path: Path) -> None:
    """A file that skips has the network's numbers on all batches."""
    exporting.export_onnx(made, path, {"space": "any"}, form=exporting.SKIP)
    run, note = opened(path, made)
    found = exporting.validate(path, run, made, batches, rounds=0, note=note)
    assert found.good and not note, found


def single(
    nodes: str | set[str], module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, library: Path
) -> np.ndarray:
    """What ONNX Runtime computes of a module of operators of these kinds."""
    import onnxruntime

    names = tuple(f"in{k}" for k in range(len(inputs)))
    made = exporting.Exportable(
        network=module, fast=module, save=lambda path: None, program=module.eval(), plain=module,
        inputs=dict(zip(names, inputs, strict=True)), outputs=("out",), dense=module,
    )  # fmt: skip
    exporting.export_onnx(made, path, form=exporting.SKIP)
    assert kinds(path) == ({nodes} if isinstance(nodes, str) else nodes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(os.fspath(library))
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})[0]


class Convolution(nn.Module):
    """One sparse mask convolution."""

    def __init__(self, shape: tuple[int, ...], ins: int, outs: int, share: float, geometry: tuple, activation: str):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape), False)
        self.bias = nn.Parameter(torch.randn(outs), False)
        self.register_buffer("ins", torch.rand(ins) < share)
        self.register_buffer("outs", torch.rand(outs) < share)
        self.geometry, self.activation = geometry, activation

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.ops.sparsemask.conv(
            x, self.weight, self.bias, mask, self.ins, self.outs, *self.geometry, self.activation, "auto"
        )


# weights, channels of inputs and outputs, size; stride, padding, dilation, output padding, transposed, groups
CONVOLUTIONS = {
    "3x3": ((12, 16, 3, 3), 16, 12, (9, 11), ([1, 1], [1, 1], [1, 1], [0, 0], False, 1)),
    "stride": ((20, 8, 3, 3), 8, 20, (9, 12), ([2, 2], [1, 1], [1, 1], [0, 0], False, 1)),
    "dilated": ((6, 8, 3, 3), 8, 6, (12, 9), ([1, 1], [2, 2], [2, 2], [0, 0], False, 1)),
    "groups": ((8, 4, 3, 3), 8, 8, (7, 6), ([1, 1], [1, 1], [1, 1], [0, 0], False, 2)),
    "depthwise": ((24, 1, 5, 5), 24, 24, (8, 9), ([1, 1], [2, 2], [1, 1], [0, 0], False, 24)),
    "volume": ((10, 8, 3, 3, 3), 8, 10, (5, 6, 7), ([1] * 3, [1] * 3, [1] * 3, [0] * 3, False, 1)),
    "transposed": ((8, 10, 3, 3, 3), 8, 10, (3, 4, 2), ([2] * 3, [1] * 3, [1] * 3, [1] * 3, True, 1)),
    "transposed 4x4": ((8, 40, 4, 4), 8, 40, (5, 3), ([2, 2], [1, 1], [1, 1], [0, 0], True, 1)),
}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution(tmp_path, library, name, share):
    shape, ins, outs, size, geometry = CONVOLUTIONS[name]
    torch.manual_seed(3)
    module = Convolution(shape, ins, outs, share, geometry, "leaky_relu:0.1" if share == 0.4 else "relu")
    x = torch.randn(2, ins, *size)
    x[:, ~module.ins] *= torch.rand(2, 1, *size) < 0.5
    output = geometry_of(module.weight, *geometry).output_size(size)
    for kept in (0.5,) if share != 0.4 else (0.0, 0.5, 1.0):
        mask = torch.rand(2, 1, *output) < kept
        wanted = module(x, mask)
        found = single("Conv", module, (x, mask), tmp_path / f"{kept}.onnx", library)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=1e-4)


class Joined(nn.Module):
    """An unmasked convolution over several features, with an addend."""

    def __init__(self, channels: tuple[int, ...], outs: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outs, sum(channels), kernel, kernel), False)
        self.bias = nn.Parameter(torch.randn(outs), False)

    def forward(self, add: torch.Tensor, *xs: torch.Tensor) -> torch.Tensor:
        return torch.ops.sparsemask.joined_conv(list(xs), self.weight, self.bias, add, "relu", "auto")


@pytest.mark.parametrize(("channels", "outs", "kernel"), [((8, 4), 8, 3), ((8, 16), 40, 3), ((5,), 20, 1)])
def test_a_convolution_over_several_features(tmp_path, library, channels, outs, kernel):
    """Of few channels, of squares with an odd line and column left, pointwise."""
    torch.manual_seed(6)
    module = Joined(channels, outs, kernel)
    add, xs = torch.randn(2, outs, 7, 9), [torch.randn(2, one, 7, 9) for one in channels]
    found = single("JoinedConv", module, (add, *xs), tmp_path / "net.onnx", library)
    weight, bias = module.weight.double(), module.bias.double()
    wanted = torch.relu(nn.functional.conv2d(torch.cat(xs, 1).double(), weight, bias, padding=kernel // 2) + add)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_plan_knows_its_tensors_by_more_than_an_address():
    """The address of a tensor that is gone may be another's, and the beginning of one has the whole one's."""
    writer = onnx_plan._Writer()
    passing = torch.ones(4)
    alive = weakref.ref(passing)
    writer.tensor(passing)
    del passing
    assert alive() is not None
    whole = torch.arange(64.0)
    for part in (whole, whole, whole[:8]):
        writer.tensor(part)
    plan = writer.plan("any")
    assert [len(one) for one in plan.tensors] == [4, 64, 8]
    assert plan.words[2 : 3 * 4 : 3].tolist() == [0, 1, 1, 2]


class Module(nn.Module):
    """A module of layers and their fusion, with channel attention or without."""

    def __init__(self, attended: bool, share: float):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(8, 8, 3, 3) / 5, False) for _ in range(3))
        self.register_buffer("dense", torch.rand(3, 8) < share)
        self.collect = nn.Parameter(torch.randn(8, 24, 1, 1), False)
        self.bias = nn.Parameter(torch.randn(8), False) if share else None
        shapes = [(2, 8, 1, 1), (2,), (8, 2, 1, 1), (8,)] if attended else []
        self.attention = nn.ParameterList(nn.Parameter(torch.randn(shape), False) for shape in shapes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        given = (x, mask, list(self.weights), self.dense, self.collect, self.bias)
        if len(self.attention):
            return torch.ops.sparsemask.attended_block(*given, list(self.attention), "relu", "auto")
        return torch.ops.sparsemask.block(*given, "relu", "auto")


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_module(tmp_path, library, attended, share):
    torch.manual_seed(4)
    module = Module(attended, share)
    x, mask = torch.randn(2, 8, 7, 9), torch.rand(2, 1, 7, 9) < 0.5
    found = single("Block", module, (x, mask), tmp_path / "net.onnx", library)
    np.testing.assert_allclose(found, module(x, mask).numpy(), atol=1e-4, rtol=1e-4)


class Region(nn.Module):
    """A residual region at kept locations: two convolutions, which read all locations and kept ones, and a bypass.

    The second one reads what the first one gives plus the region's input, so that a sum stands between them.
    """

    def __init__(self, channels: int, kernel: int, dilation: int, groups: int, activation: str, prelu: bool):
        super().__init__()
        self.padding, self.dilation, self.groups = [dilation * (kernel // 2)] * 2, [dilation] * 2, groups
        self.activation = activation
        own = (channels, channels // groups, kernel, kernel)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(own) / kernel, False) for _ in range(2))
        self.biases = nn.ParameterList(nn.Parameter(torch.randn(channels), False) for _ in range(2))
        self.slopes = nn.Parameter(torch.rand(channels) - 0.5, False) if prelu else None
        self.bypass = nn.Parameter(torch.randn(channels, channels // groups, 1, 1), False)
        self.offset = nn.Parameter(torch.randn(channels), False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = kept_places(mask)

        def conv(x, number, kept):
            return torch.ops.sparsemask.kept_conv(
                x, self.weights[number], self.biases[number], mask, places, self.padding, self.dilation, self.groups,
                kept, self.activation, self.slopes, "auto",
            )  # fmt: skip

        y = conv(conv(x, 0, False) + kept_features(x, places), 1, True)
        return torch.ops.sparsemask.merge_kept(y, x, mask, places, self.bypass, self.offset, "auto")

    def literal(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Whole maps in float64."""
        y, x = x.double(), x.double()
        for number in range(2):
            given = self.weights[number].double(), self.biases[number].double()
            y = nn.functional.conv2d(y, *given, 1, self.padding, self.dilation, self.groups)
            y = act.apply(self.activation, y)
            y = y if self.slopes is None else nn.functional.prelu(y, self.slopes.double())
            y = (y + x if number == 0 else y) * mask
        other = nn.functional.conv2d(x, self.bypass.double(), self.offset.double(), groups=self.groups)
        return torch.where(mask, y, other)


# channels, kernel, dilation, groups, activation, PReLU
REGIONS = {
    "few channels": (8, 3, 1, 1, "none", True),  # several steps of the depth at a time
    "squares": (24, 3, 1, 1, "none", True),
    "squares of many": (64, 3, 1, 1, "relu", False),
    "5x5": (20, 5, 1, 1, "leaky_relu:0.1", False),
    "dilated": (16, 3, 2, 1, "none", False),
    "pointwise": (16, 1, 1, 1, "relu", False),
    "depth-wise": (24, 3, 1, 24, "none", True),
    "PReLU behind ReLU": (16, 3, 1, 1, "relu", True),
    "PReLU behind leaky ReLU": (8, 3, 1, 1, "leaky_relu:0.1", True),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_at_kept_locations(tmp_path, library, name):
    """Against whole maps in float64, two pictures; some, and of two kinds of products none and all locations kept."""
    torch.manual_seed(5)
    module = Region(*REGIONS[name])
    cases = ((0.7, (11, 14)), (0.0, (6, 8)), (1.0, (7, 9)))
    for kept, size in cases if name in ("few channels", "squares") else cases[:1]:
        x, mask = torch.randn(2, REGIONS[name][0], *size), torch.rand(2, 1, *size) < kept
        found = single({"KeptTables", "KeptConv", "MergeKept"}, module, (x, mask), tmp_path / f"{kept}.onnx", library)
        wanted = module.literal(x, mask)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_mask_has_one_node_of_tables(tmp_path, library):
    """Which its convolutions of one geometry share."""
    import onnx

    module, size = Region(*REGIONS["squares"]), (6, 7)
    given = torch.randn(1, 24, *size), torch.rand(1, 1, *size) < 0.5
    single({"KeptTables", "KeptConv", "MergeKept"}, module, given, tmp_path / "net.onnx", library)
    names = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert names.count("KeptConv") == 2 and names.count("KeptTables") == 1


@pytest.mark.parametrize(("share", "always"), [(0.5, None), (0.0, False), (1.0, True)])
def test_specialised_networks(tmp_path, share, always):
    net = specialised(share, place_stride=2)
    if always is not None:
        decide(net, always)
    made = spaces.get("specialized").exportable(net, torch.zeros(1, 3, 20, 20), None)
    batch = torch.randn(1, 3, 33, 47)
    same(made.fixed(batch), [batch], tmp_path / "net.onnx")
    masks = set() if always else {"PredictMask"}  # what keeps everything has no mask
    assert kinds(tmp_path / "net.onnx") == {"InvertedResidual", "MultiscaleSum"} | masks


@pytest.mark.slow
def test_specialised_networks_of_any_size(tmp_path):
    made = spaces.get("specialized").exportable(specialised(), torch.zeros(1, 3, 20, 20), None)
    same(made, [torch.randn(1, 3, 33, 47), torch.randn(3, 3, 24, 64)], tmp_path / "net.onnx")


def test_smsr_of_any_size(tmp_path):
    net = smsr(n_layers=2)
    made = spaces.get("smsr").exportable(net, pictures(8, 12), None)
    same(made, [pictures(8, 12), pictures(10, 18), pictures(4, 4)], tmp_path / "net.onnx")
    assert kinds(tmp_path / "net.onnx") == {"Block", "JoinedConv", "PredictMask"}


@pytest.mark.slow
def test_super_resolution_with_masks_of_any_size(tmp_path):
    net = masked("SRVGGNetCompact")
    made = spaces.get("sr").exportable(net, image(16, 16), None)
    same(made, [image(16, 16), image(24, 20)], tmp_path / "net.onnx")
    assert kinds(tmp_path / "net.onnx") == {"Conv", "PredictMask"}


IN_ROWS = [
    pytest.param(name, marks=[pytest.mark.slow] if name not in ("SRVGGNetCompact", "EDSR") else []) for name in SMALL
]


@pytest.mark.parametrize("name", IN_ROWS)
def test_regions_of_networks_are_computed_at_kept_locations(tmp_path, name):
    """As the eager network has it, whichever backend it has; batches, odd sides."""
    net, batch = without_dense_layers(name), image(25, 34).repeat(2, 1, 1, 1)
    batch[1] = batch[1].flip(-1)
    made = spaces.get("sr").exportable(net, batch, None)
    same(made.fixed(batch), [batch], tmp_path / "net.onnx")
    assert {"KeptConv", "MergeKept"} <= kinds(tmp_path / "net.onnx") and "Conv" not in kinds(tmp_path / "net.onnx")


@pytest.mark.slow
def test_regions_at_kept_locations_of_any_size(tmp_path):
    """Files of open sizes take odd sides, too."""
    made = spaces.get("sr").exportable(without_dense_layers("SRVGGNetCompact"), image(16, 16), None)
    same(made, [image(16, 16), image(24, 20), image(23, 35)], tmp_path / "net.onnx")


@pytest.mark.parametrize("scale", [3, 4])
def test_channels_become_pixels_in_rows(tmp_path, scale):
    """Of wide upsamplers, one and two in turn, at any size, without the runtime's own convolutions."""
    import onnx

    torch.manual_seed(0)
    net = half(spaces.get("sr").build(_state(sr_networks.EDSR(scale, 32, 1)), "EDSR"))
    with torch.no_grad():
        net.region_masks[0].ch_mask.copy_(torch.tensor([0.0, 1.0]))
    made = spaces.get("sr").exportable(net, image(16, 16), None)
    same(made, [image(16, 16), image(11, 14)], tmp_path / "net.onnx")
    assert not {"Conv", "DepthToSpace"} & {
        node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node if node.domain != DOMAIN
    }


@pytest.mark.parametrize("kept", [0, 1])
def test_regions_of_nothing_and_of_all(tmp_path, kept):
    net, x = without_dense_layers("SRVGGNetCompact"), image(20, 18)
    for masks in net.region_masks:
        masks.spa_mask[-1].weight.data.mul_(1e-6)  # not zero, so that no mask is constant
        masks.spa_mask[-1].bias.data.copy_(torch.tensor([-1e3, 1e3]) * (1 if kept else -1))
    made = spaces.get("sr").exportable(net, x, None)
    same(made.fixed(x), [x], tmp_path / "net.onnx")
    assert {float(mask.float().mean()) for mask in net.masks} == {float(kept)}
    assert "KeptConv" in kinds(tmp_path / "net.onnx")


@pytest.mark.slow
def test_stereo(tmp_path, stereo):  # noqa: F811
    made = spaces.get("smstereo").exportable(stereo, pair(), None)
    same(made.fixed(pair()), [pair()], tmp_path / "net.onnx")
    assert kinds(tmp_path / "net.onnx") == {"Conv", "CorrelationVolume"}


@pytest.mark.parametrize("kind", ["half", "none kept", "all kept"])
def test_points_of_any_number(tmp_path, kind):
    made = spaces.get("smpointseg").exportable(settle(small(), kind), crop(seed=1), None)
    same(made, [crop(seed=2), crop(256, seed=3)], tmp_path / "net.onnx")
    assert kinds(tmp_path / "net.onnx") == {"PointNetwork"}  # all of it


DENSE = {
    "specialized": lambda: (specialised(0.5, place_stride=2), torch.randn(1, 3, 33, 47)),
    "smsr": lambda: (smsr(n_layers=2), pictures(8, 12)),
    "sr": lambda: (masked("EDSR"), image(16, 16)),
    "smpointseg": lambda: (settle(small(), "half"), crop(seed=1)),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_forms_are_the_networks_without_masks(name):
    net, batch = DENSE[name]()
    space = spaces.get(name)
    made = space.exportable(net, batch, None)
    with torch.no_grad():
        wanted, found = space.dense_form(net)(batch), made.dense(*made.tensors(batch))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, net(batch), atol=1e-3)  # the masks did something


def test_dense_stereo_is_the_network_without_masks(stereo):  # noqa: F811
    made = spaces.get("smstereo").exportable(stereo, pair(), None)
    with torch.no_grad():
        found = made.dense(*made.tensors(pair()))
        torch.testing.assert_close(found, spaces.get("smstereo").dense_form(stereo)(pair()), atol=1e-4, rtol=1e-4)


# The command


@pytest.mark.slow
def test_the_command_says_which_form_is_faster(tmp_path):
    net, batch = smsr(n_layers=2), pictures(8, 12)
    made = spaces.get("smsr").exportable(net, batch, None).fixed(batch)
    path = tmp_path / "net.onnx"
    work = export.Export(made, [batch], {"space": "smsr"}, 1, lambda path: net, onnx=exporting.SKIP)
    found = export.export(path, work)
    assert [one.title for one in found] == ["", "the same, masks multiply", "the same without masks"]
    assert all(one.good and one.milliseconds > 0 for one in found)
    assert sorted(one.name for one in tmp_path.iterdir()) == [exporting.LIBRARY, "net.onnx"]

    def at(*times: float) -> list[str]:
        timed = [
            exporting.Validation(one.path, 1.0, 0.0, time, 1.0, title=one.title)
            for one, time in zip(found, times, strict=True)
        ]
        return export.advice(path, timed, exporting.SKIP)

    assert [re.findall(r"--form \w+", line) for line in at(1.0, 3.0, 2.0)] == [[]]
    assert "--form dense" in at(3.0, 3.0, 2.0)[1] and "another function" in at(3.0, 3.0, 2.0)[1]
    assert "--form plain" in at(3.0, 1.0, 2.0)[1]


BAD = {
    ("--out", "net.pt2", "--form", "skip"): ["--form skip", ".onnx"],
    ("--out", "net.onnx", "--form", "skip"): ["no masks", "plain"],
    ("--out", "net.onnx", "--form", "dense", "--precision", "float16"): ["--form dense", "plain"],
}


@pytest.mark.parametrize("more", BAD)
def test_bad_input_is_one_line(place, capfd, more):  # noqa: F811
    from tiny import fails

    fails(capfd, export.main, command(*more), BAD[more])
    assert not list(place.glob("net*"))


def test_without_a_compiler_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("sparsemask.datasets.cache", lambda: tmp_path / "cache")
    monkeypatch.setattr("sparsemask.backends.native.build.cache", lambda: tmp_path / "cache")
    with pytest.raises(UseError, match="no-such-compiler"):
        exporting.operators_library()


def test_an_operator_without_a_node_is_named():
    class Means(nn.Module):
        def forward(self, rows: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
            return torch.ops.sparsemask.point_means(rows, neighbours)

    with pytest.raises(UseError, match="point_means"):
        WithNodes(Means(), (torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.int32)))


# Files of others


def test_files_that_were_not_written_here_are_refused(tmp_path):
    made = spaces.get("smsr").exportable(smsr(n_layers=2), pictures(8, 12), None).fixed(pictures(8, 12))
    exporting.export_onnx(made, tmp_path / "net.onnx", form=exporting.SKIP)
    with pytest.raises(UseError, match="refused"):
        exporting.read_exported(tmp_path / "net.onnx")


def test_another_version_is_refused(tmp_path, library):
    import onnx
    import onnxruntime

    made = spaces.get("smsr").exportable(smsr(n_layers=2), pictures(8, 12), None).fixed(pictures(8, 12))
    path = exporting.export_onnx(made, tmp_path / "net.onnx", {"a": 1}, form=exporting.SKIP)
    model = onnx.load(path)
    assert json.loads({one.key: one.value for one in model.metadata_props}["a"]) == 1
    for node in model.graph.node:
        for one in node.attribute:
            if node.domain == DOMAIN and one.name == "version":
                one.i = 99
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(os.fspath(library))
    with pytest.raises(Exception, match="export the network again"):
        onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
