"""ONNX files of lower precision, and dense super-resolution networks in other programs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from small_pictures import make_folder, scene
from sparsemask import exporting, spaces
from sparsemask.exporting import precision as precisions
from sparsemask.exporting.validation import of_any_size, opened
from sparsemask.retrain import export, super_resolution
from sparsemask.spaces import sr_networks
from sparsemask.sparse import backend
from test_export import command, network, place  # noqa: F401  # of a segmentation network
from test_sr_masked import KINDS, masked
from tiny import fails
from without_images import without_images

SPACE = spaces.get("sr")


def needs(*packages: str) -> None:
    for package in packages or ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")


def small(convs: int = 3, slopes: bool = True) -> sr_networks.SRVGGNetCompact:
    """A network whose PReLUs have slopes of any sign and size."""
    torch.manual_seed(0)
    made = sr_networks.SRVGGNetCompact(2, 16, convs).eval()
    with torch.no_grad():
        for layer in made.body:
            if isinstance(layer, nn.PReLU) and slopes:
                layer.weight.copy_(torch.linspace(-0.5, 1.5, 16))
            elif isinstance(layer, nn.Conv2d):
                layer.bias.normal_(0, 0.1)
    return made.requires_grad_(False)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a dense network and pictures of odd sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    sr_networks.save("small.safetensors", small())
    make_folder(tmp_path / "photos", 4, (66, 50))
    return tmp_path


def argv(*more: str) -> list[str]:
    return ["--space", "sr", "--weights", "small.safetensors", "--data_test", "photos", "--repeats", "0",
            "--out", "net.onnx", *more]  # fmt: skip


def image(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(scene(3, (height, width)))).permute(2, 0, 1)[None].float()


def run_file(path: Path | str, made, x: torch.Tensor) -> torch.Tensor:
    run, note = opened(path, SPACE.exportable(made, None, {}))
    assert not note
    return torch.as_tensor(run(x))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_weights_in_16_bits(folder, capfd, name):
    """The numbers of the network with rounded weights, in about half as many bytes."""
    needs()
    assert export.main(argv("--precision", name)) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "the same in float32" in said and "psnr" in said
    made, x = small(), image(21, 34)
    rounded = copy.deepcopy(made)
    for layer in rounded.body:
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(layer.weight.to(getattr(torch, name)).float())
    wanted = rounded(x)
    assert not torch.equal(wanted, made(x))
    torch.testing.assert_close(run_file("net.onnx", made, x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    plain = exporting.export_onnx(SPACE.exportable(made, None, {}), folder / "plain.onnx")
    weights = 2 * sum(p.numel() for p in made.parameters() if p.ndim == 4)
    assert abs(plain.stat().st_size - Path("net.onnx").stat().st_size - weights) < 0.2 * weights
    assert exporting.read_exported("net.onnx").entries["precision"] == name


def test_integers(folder, capfd):
    """The inner layers in integers, the ends as they are; weights to half a step of 7 bits, channel by channel."""
    needs()
    import onnx
    from onnx import numpy_helper

    assert export.main(argv("--precision", "int8", "--calibrate", "photos")) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "the same in float32" in said and "Collecting" not in said
    made, graph = small(), onnx.load("net.onnx").graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    by_output = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    assert [node.input[1] in held for node in layers] == [True, False, False, False, True]
    for number, node in list(enumerate(layers))[1:-1]:
        weights, steps = (held[name] for name in by_output[node.input[1]].input[:2])
        exact = made.body[2 * number].weight.numpy()
        assert weights.dtype == np.int8 and np.abs(weights).max() <= 64
        np.testing.assert_allclose(steps, np.abs(exact).max((1, 2, 3)) / 63.5, rtol=0.02)
        assert (np.abs(weights * steps[:, None, None, None] - exact) <= 0.51 * steps[:, None, None, None]).all()
    x = image(33, 40)
    wanted, got = made(x), run_file("net.onnx", made, x)
    assert 0 < float((got - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    assert not list(folder.glob("*.tmp*"))


def test_integers_are_calibrated_on_the_pictures(folder, capfd):
    """Of dark pictures other ranges come than of the given ones."""
    needs()
    (folder / "dark").mkdir()
    Image.fromarray((scene(3, (66, 50)) // 16).astype(np.uint8)).save("dark/a.png")
    for name in ("photos", "dark"):
        assert export.main(argv("--precision", "int8", "--calibrate", name, "--out", f"{name}.onnx")) in (0, 1)
    x = image(33, 40)
    exact = small()(x)
    errors = [float((run_file(f"{name}.onnx", small(), x) - exact).abs().mean()) for name in ("photos", "dark")]
    assert errors[1] > 2 * errors[0]


def test_prelu_is_spelled_out(tmp_path):
    needs()
    import onnx

    made, x = small(), image(20, 31)
    path = exporting.export_onnx(SPACE.exportable(made, None, {}), tmp_path / "net.onnx")
    graph = onnx.load(path).graph
    assert not [node for node in graph.node if node.op_type == "PRelu"]
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    wanted = made(x)
    torch.testing.assert_close(run_file(path, made, x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def graph_of(*nodes: tuple[str, str, list[str], str]):
    """A graph of nodes (operator, name, inputs, output) whose last output is "y"."""
    from onnx import TensorProto, helper

    made = [helper.make_node(kind, inputs, [output], name=name) for kind, name, inputs, output in nodes]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph(made, "g", [value("x")], [value("y")])


def test_what_stays_in_float():
    """The first and the last layers of every path, and layers that only decide; what also computes does not."""
    needs("onnx")
    graph = graph_of(
        ("Conv", "first", ["x", "w"], "a"), ("Conv", "inner", ["a", "w"], "b"), ("Conv", "decides", ["b", "w"], "m"),
        ("Conv", "decides too", ["m", "w"], "n"), ("Greater", "g", ["n", "zero"], "mask"),
        ("Conv", "masked", ["b", "w"], "c"), ("Where", "where", ["mask", "c", "b"], "d"),
        ("Conv", "last", ["d", "w"], "e"), ("Conv", "skip", ["x", "w"], "f"), ("Add", "add", ["e", "f"], "y"),
    )  # fmt: skip
    assert precisions._kept_in_float(graph) == ["first", "decides", "decides too", "last", "skip"]


# flags: words of the one line
BAD = {
    ("--precision", "int8"): ["--calibrate FOLDER is missing"],
    ("--calibrate", "photos"): ["--calibrate photos", "int8"],
    ("--precision", "int8", "--calibrate", "nowhere"): ["--calibrate nowhere", "no such folder"],
    ("--precision", "int8", "--calibrate", "empty"): ["empty", "no pictures"],
    ("--precision", "int8", "--calibrate", "tiny"): ["a.png", "20x40", "32x32"],
    ("--precision", "int8", "--calibrate", "broken"): ["a.png"],
    ("--precision", "int8", "--calibrate", "photos", "--weights", "two.safetensors"): ["none of", "2 layers"],
    ("--precision", "float16", "--weights", "large.safetensors"): ["float16", "1e+06"],
    ("--precision", "float16", "--out", "net.pt2"): ["float16", ".onnx", ".pt2"],
    ("--weights", "absent.safetensors"): ["absent.safetensors"],
    ("--run", "runs/x"): ["--weights small.safetensors and --run runs/x"],
    ("--scale", "3"): ["--scale 3", "has 2"],
}


@pytest.mark.parametrize("more", BAD)
def test_bad_input_is_one_line(folder, capfd, more):
    needs("onnx", "onnxscript", "onnxruntime")
    for name in ("empty", "tiny", "broken"):
        (folder / name).mkdir()
    Image.fromarray(scene(1, (40, 20))).save("tiny/a.png")
    Path("broken/a.png").write_bytes(b"no picture")
    sr_networks.save("two.safetensors", small(0))
    large = small()
    large.body[2].weight[0, 0, 0, 0] = 1e6
    sr_networks.save("large.safetensors", large)
    fails(capfd, export.main, argv(*more), BAD[more])
    assert not list(folder.glob("net*"))


def test_pictures_smaller_than_files_take(folder, capfd):
    """One that is too small is left out, none at all is one line."""
    make_folder(folder / "mixed", 1, (12, 64))
    make_folder(folder / "mixed", 1, (66, 50), first=2)
    make_folder(folder / "narrow", 2, (12, 64))
    assert export.main(argv("--data_test", "mixed", "--out", "net.pt2")) == 0
    assert "over 1 input(s)" in capfd.readouterr().out
    more = ["--data_test", "narrow", "--out", "other.pt2"]
    fails(capfd, export.main, argv(*more), ["no validation picture", "8x8"])
    assert not Path("other.pt2").exists()


def test_an_absent_package_is_one_line(folder, capfd, monkeypatch):
    monkeypatch.setattr(precisions, "missing", lambda names: [name for name in names if name == "onnxruntime"])
    monkeypatch.setattr("sparsemask.exporting.exportable.missing", lambda names: [])
    words = ["int8", "onnxruntime", "pip install"]
    fails(capfd, export.main, argv("--precision", "int8", "--calibrate", "photos"), words)


@torch.no_grad()
def test_files_that_take_multiples_are_scored_on_any_size():
    double = lambda images: images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    seen = []
    run = of_any_size(lambda images: seen.append(images.shape[-2:]) or double(images), 4)
    x = torch.rand(1, 3, 9, 8)
    assert torch.equal(run(x), double(x)) and seen == [(12, 8)]


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_dense_networks_as_functions_of_images(name):
    torch.manual_seed(0)
    made = KINDS[name]().eval()
    form, x = SPACE.exportable(made, None, {}), image(33, 50)
    wanted = made(x)
    for function in (form.program, form.plain, form.fast):
        torch.testing.assert_close(function(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_dense_networks_in_other_programs(name, suffix, tmp_path):
    needs()
    torch.manual_seed(0)
    made = KINDS[name]().eval()
    form = SPACE.exportable(made, None, {})
    write = {".pt2": exporting.export_program, ".onnx": exporting.export_onnx}[suffix]
    path = write(form, tmp_path / f"net{suffix}", {"space": "sr"})
    for size in ((64, 96), (33, 51), (made.smallest_traced, 25)):
        x = image(*size)
        wanted = made(x)
        torch.testing.assert_close(run_file(path, made, x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_dense_run_is_exported(folder, capfd):
    """By --run as other runs are; safetensors that `sparsemask upscale` reads."""
    flags = ["--architecture", "SRVGGNetCompact", "--n_feats", "8", "--n_blocks", "1", "--hr_path", "photos"]
    with without_images():
        assert super_resolution.main([*flags, "--max_iter", "2", "--batch_size", "2", "--patch_size", "12",
                                      "--eval_interval", "2", "--n_worker", "0", "--name", "d"]) == 0  # fmt: skip
        assert export.main(["--run", "runs/d", "--out", "net.safetensors", "net.pt2", "--repeats", "0"]) == 0
    trained, again = (sr_networks.load(path) for path in ("runs/d/network.safetensors", "net.safetensors"))
    x = image(20, 30)
    with torch.no_grad():
        assert torch.equal(trained(x), again(x))
        torch.testing.assert_close(run_file("net.pt2", trained, x), trained(x), rtol=0, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_masks_in_integers_are_the_network_s(tmp_path):
    """Branches that decide stay in float32; what they decide on is of integers, so that few locations differ."""
    needs()
    import onnx

    with backend("reference"):
        made, x = masked("EDSR"), image(64, 96)
        form = SPACE.exportable(made, None, {}).fixed(x)
        plain = exporting.export_onnx(form, tmp_path / "plain.onnx")
        (tmp_path / "net.onnx").write_bytes(exporting.reduced(plain, "int8", [{"picture": x.numpy()}]))
        graph = onnx.load(tmp_path / "net.onnx").graph
        stored = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
        assert any(".body." in name for name in stored) and not [name for name in stored if "spa_mask" in name]
        wanted, got = made(x), run_file(tmp_path / "net.onnx", made, x)
    assert float((got - wanted).abs().mean()) < 0.02 * float(wanted.abs().max())


@pytest.mark.slow
def test_segmentation_in_integers(place, capfd):  # noqa: F811
    """Any network of pictures: the table has the task's metric."""
    needs()
    more = ("--out", "net.onnx", "--precision", "int8", "--calibrate", "data/img")
    assert export.main(command(*more)) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "miou" in said.lower() and "the same in float32" in said
    assert exporting.read_exported("net.onnx").entries["precision"] == "int8"
