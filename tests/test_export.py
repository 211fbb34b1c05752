"""retrain/export.py: what is written runs elsewhere with the same numbers, and bad input ends in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config

from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from small_hinge import hinged
from sparsemask import exporting, spaces
from sparsemask.exporting.validation import opened
from sparsemask.masks import save_mask
from sparsemask.retrain import export
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.sparse import backend
from sparsemask.timing import evaluating
from test_smsr import network as smsr
from tiny import data_flags, fails, make_data

ONNX = ("onnx", "onnxscript", "onnxruntime")
DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"


def small_pyramid(in_channels: int = 3, momentum: float = 0.1) -> Pyramid:
    return Pyramid()


@pytest.fixture(scope="module")
def network() -> PrunedNetwork:
    """All connections on a tiny encoder, with statistics."""
    torch.manual_seed(0)
    made = PrunedNetwork(named_mask("dense", 4), Pyramid(), depth=6, num_classes=4).train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(4, 3, 40, 40))
    return made.eval()


@pytest.fixture
def place(network, tmp_path, monkeypatch) -> Path:
    """A working directory with its weights, its mask and pictures."""
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", small_pyramid)
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    torch.save({"model": network.state_dict()}, "weights.pt")
    save_mask("mask.npy", named_mask("dense", 4), {"backbone_name": "small_pyramid", "strides": [8, 4, 4, 2]})
    return tmp_path


def command(*more: str) -> list[str]:
    """The command line for that directory."""
    return ["--pretrained_model", "weights.pt", "--mask_path", "mask.npy", "--backbone_name", "small_pyramid",
            "--depth", "6", "--crop_size", "33", *data_flags(Path("data")), "--repeats", "1", *more]  # fmt: skip


def needs_onnx() -> None:
    for package in ONNX:
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")


def documented(language: str) -> list[str]:
    """The snippets of docs/export.md."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_command_writes_tries_and_times_all_formats(place, network, capfd):
    needs_onnx()
    files = ["net.safetensors", "net.pt2", "net.onnx"]
    assert export.main(command("--out", *files)) == 0, capfd.readouterr().err
    text = capfd.readouterr().out
    assert all(re.search(rf"{name}\s+[\d.]+\s+[\d.e+-]+\s+[\d.]+\s+[\d.]+", text) for name in files[1:]), text
    assert re.search(rf"{files[0]}\s+[\d.]+\s+0.0e\+00\s+-", text), text  # weights are no program: not timed
    # Through the files, as the documentation has it, at other sizes and numbers of pictures than were tried.
    for block in documented("python")[:2]:
        said: dict = {}
        exec(block, said)
        x = torch.as_tensor(said["picture"]) if "picture" in said else None
        if x is not None:
            with torch.no_grad():
                np.testing.assert_allclose(said["scores"], network(x), atol=1e-5)
        assert said["scores"].shape == (1, 4, 48, 64)
    # Nothing that was pruned away or folded is in the ONNX file.
    import onnx

    model = onnx.load("net.onnx")
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, "height", "width",
    ]  # fmt: skip
    assert {entry.key: entry.value for entry in model.metadata_props}["space"] == '"connectivity"'
    assert not list(place.glob("*.tmp*"))  # written beside and renamed


def test_a_program_takes_any_size_and_number(network, tmp_path):
    batch = torch.randn(1, 3, 40, 52)
    made = spaces.get("connectivity").exportable(network, batch, {"n_class": 4})
    path = exporting.export_program(made, tmp_path / "net.pt2", {"space": "connectivity"})
    run, _ = opened(path, made)
    batches = [batch, torch.randn(2, 3, 33, 35), torch.randn(3, 3, 17, 24)]
    found = exporting.validate(path, run, made, batches, rounds=0)
    assert found.difference < 1e-5 and found.milliseconds is None
    names = [str(node.target) for node in torch.export.load(path).graph.nodes]
    assert not any("batch_norm" in name for name in names)
    # The comparison can fail: other outputs are noticed.
    wrong = exporting.validate(path, lambda x: run(x) + 0.01, made, batches, rounds=0)
    assert not wrong.good


def test_the_network_itself_is_left_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with evaluating(network):
        spaces.get("connectivity").exportable(network, torch.zeros(1, 3, 33, 33), {"n_class": 4})
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# arguments: words of the one line
BAD = {
    (): ["--out is missing"],
    ("--out", "net.pth"): ["net.pth", ".onnx"],
    ("--out", "absent/net.onnx"): ["no folder absent"],
    ("--out", "net.pt2", "--type", "float64"): ["float64", "float32"],
    ("--out", "net.pt2", "--run", "nowhere"): ["--run nowhere and --pretrained_model"],
}


@pytest.mark.parametrize("more", BAD)
def test_bad_input_is_one_line(place, capfd, more):
    fails(capfd, export.main, command(*more), BAD[more])
    assert not list(place.glob("net*"))


def test_an_absent_package_is_one_line(place, capfd, monkeypatch):
    monkeypatch.setattr("sparsemask.exporting.exportable.missing", lambda names: [*names][:1])
    fails(capfd, export.main, command("--out", "net.onnx"), ["onnx", "pip install"])


def test_spaces_that_cannot_are_named(place, capfd):
    able = spaces.get("connectivity")

    class Unexportable(type(able)):
        exportable = None

    spaces.register("connectivity", Unexportable())
    try:
        fails(capfd, export.main, command("--out", "net.pt2"), ["connectivity", "smsr"])
    finally:
        spaces.register("connectivity", able)


@pytest.mark.slow
def test_pruned_classifiers_are_written_too(tmp_path):
    needs_onnx()
    batches = [torch.randn(2, 3, 8, 8), torch.randn(5, 3, 8, 8)]
    found = spaces.get("hinge").exportable(hinged().network, batches[0], None)
    for write, suffix in ((exporting.export_program, ".pt2"), (exporting.export_onnx, ".onnx")):
        path = write(found, tmp_path / f"net{suffix}")
        run, note = opened(path, found)
        result = exporting.validate(path, run, found, batches, rounds=1, note=note)
        assert result.good and result.eager > 0, (suffix, result)
    assert "plain network" in exporting.why_not(".safetensors", found)  # it has no mask: nothing says how it is built


def test_super_resolution_is_shared_with_its_threshold(tmp_path):
    # What programs and ONNX files of these networks give stands in test_smsr_export.py.
    made, x = smsr(n_layers=2), 255 * torch.rand(1, 3, 8, 12)
    set_threshold(made, 0.3)
    spaces.get("smsr").exportable(made, x, None).save(tmp_path / "smsr.safetensors")
    again = spaces.get("smsr").load(tmp_path / "smsr.safetensors").network
    assert again.body[0].spa_mask.threshold == 0.3
    with backend("reference"), torch.no_grad():
        torch.testing.assert_close(again(x), made(x))
