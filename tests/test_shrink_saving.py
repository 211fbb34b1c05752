"""Every way of saving a small network keeps its outputs, and its report."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

import sparsemask
from hinge import SmallUNet, enliven, lasting, lively, one_thread  # noqa: F401
from sparsemask import UseError
from sparsemask.spaces.group_sparsity.compression.border import Bordered
from sparsemask.timing import thread_count
from sparsemask.weights import metadata

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.zeros(1, 3, 32, 32)
CLASSES = {"unet": lambda: lasting(SmallUNet()), "resnet": lambda: lasting(lively("resnet20", seed=3))}


def whole(name: str) -> nn.Module:
    torch.manual_seed(0)
    return enliven(CLASSES[name](), (4, 3, 32, 32))


@pytest.fixture(scope="module", params=CLASSES)
def case(request):
    """Name, small network, an image and what the network makes of it."""
    with thread_count(1), torch.no_grad():
        small = sparsemask.shrink(whole(request.param), IMAGE, 0.5, timed=False).eval()
        x = torch.randn(2, 3, 32, 32)
        assert any(isinstance(module, Bordered) for module in small.modules())
        return request.param, small, x, small(x)


def same(network: nn.Module, case) -> bool:
    _, _, x, wanted = case
    with torch.no_grad():
        return torch.equal(network(x), wanted)


def test_copies_and_pickles(case):
    small = case[1]
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(file, weights_only=False)):
        assert same(again, case) and again.report == small.report and type(again) is type(small)


def test_a_state_dict_into_a_network_rebuilt_from_the_recipe(case, tmp_path):
    name, small, *_ = case
    torch.save(small.state_dict(), tmp_path / "state.pt")
    again = small.report.recipe.rebuild(CLASSES[name]())
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(again.eval(), case)


def test_files_carry_the_recipe(case, tmp_path):
    name, small, *_ = case
    sparsemask.save(small, tmp_path / "small.safetensors")
    again = sparsemask.load(tmp_path / "small.safetensors", CLASSES[name]()).eval()
    assert same(again, case) and again.report == small.report and str(again.report) == str(small.report)
    sparsemask.save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes()


def test_a_network_that_was_shrunk_twice_is_saved_from_the_original_class(case, tmp_path):
    name, small, x, _ = case
    less = sparsemask.shrink(small, IMAGE, 0.7, timed=False).eval()
    sparsemask.save(less, tmp_path / "less.safetensors")
    again = sparsemask.load(tmp_path / "less.safetensors", CLASSES[name]()).eval()
    with torch.no_grad():
        assert torch.equal(again(x), less(x))


def runs(network, load) -> int:
    """How often a network runs while something is done with it."""
    count = 0

    def add(*_):
        nonlocal count
        count += 1

    hook = network.register_forward_hook(add)
    load(network)
    hook.remove()
    return count


def test_a_network_of_many_steps_is_loaded_as_quickly_as_one_of_one(case, tmp_path):
    name, one, x, _ = case
    sparsemask.save(one, tmp_path / "one.safetensors")
    *_, small = sparsemask.plan(whole(name), IMAGE).steps(4, 0.4, timed=False)
    sparsemask.save(small, tmp_path / "four.safetensors")
    counts = {
        file: runs(CLASSES[name](), lambda net, file=file: sparsemask.load(tmp_path / f"{file}.safetensors", net))
        for file in ("one", "four")
    }
    assert counts["four"] == counts["one"]
    again = sparsemask.load(tmp_path / "four.safetensors", CLASSES[name]()).eval()
    with torch.no_grad():
        assert torch.equal(again(x), small(x)) and again.report == small.report


@pytest.mark.parametrize("last", [torch.channels_last, torch.contiguous_format])
def test_weights_keep_their_memory_format(case, tmp_path, last):
    name = case[0]
    network = whole(name).to(memory_format=last)
    small = sparsemask.shrink(network, IMAGE.to(memory_format=last), 0.5, timed=False)
    sparsemask.save(small, tmp_path / "small.safetensors")
    again = sparsemask.load(tmp_path / "small.safetensors", CLASSES[name]().to(memory_format=last))
    for net in (small, again):
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert convs and all(m.weight.is_contiguous(memory_format=last) for m in convs)
        wide = next(m.weight for m in convs if m.weight.shape[1] > 1)
        assert wide.is_contiguous(memory_format=torch.channels_last) == (last is torch.channels_last)


def test_a_data_parallel_network(case, tmp_path):
    small = copy.deepcopy(case[1])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(small)
        assert same(parallel.eval(), case)
        parallel.train()(case[2]).sum().backward()
        assert all(p.grad is not None for p in small.parameters())
        with pytest.raises(UseError, match="no report"):
            sparsemask.save(parallel, tmp_path / "a.safetensors")
        sparsemask.save(parallel.module, tmp_path / "a.safetensors")
    finally:
        dist.destroy_process_group()


def test_a_compiled_network(case):
    _, small, x, wanted = case
    compiled = torch.compile(copy.deepcopy(small), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), wanted, atol=1e-5)
    compiled.train()(x).sum().backward()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program(case, tmp_path, strict):
    _, small, x, wanted = case
    program = torch.export.export(copy.deepcopy(small), (x,), strict=strict)
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "net.pt2").module()(x), wanted, atol=1e-5)


def test_onnx(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, small, x, wanted = case
    torch.onnx.export(copy.deepcopy(small), (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)


def test_jit_traces(case):
    _, small, x, wanted = case
    with torch.no_grad():
        assert torch.allclose(torch.jit.trace(copy.deepcopy(small), x)(x), wanted, atol=1e-5)


def spoilt(path, target, change) -> None:
    """A copy of a file whose report is changed."""
    entries = metadata(path)["shrunk"]
    change(entries)
    save_file(load_file(path), target, {"shrunk": json.dumps(entries)})


SPOILT = {
    "readable of the channels": lambda entries: entries["recipe"].update(kept={"last.weight:0": "4:zz"}),
    "readable of the": lambda entries: entries["recipe"].update(kept={"last.weight": "3:80"}),
    "says nothing readable": lambda entries: entries["recipe"].update(former=3),
    "has 8 channels": lambda entries: entries["recipe"]["kept"].update({"first.0.weight:0": "9:ff80"}),
    "parameter 'absent.weight'": lambda entries: entries["recipe"]["kept"].update({"absent.weight:0": "8:ff"}),
    "cannot be removed": lambda entries: entries["recipe"]["kept"].update({"last.weight:0": "3:80"}),
    "do not fit": lambda entries: entries["recipe"]["kept"].update({"first.0.weight:0": "8:80"}),
    "inputs are not readable": lambda entries: entries["recipe"].update(inputs={"shape": [1, "x"]}),
    "report is not readable": lambda entries: entries.pop("before"),
    "has a layer 'absent'": lambda entries: entries["recipe"]["added"].append("absent.bias"),
}


@pytest.mark.parametrize("message", SPOILT)
def test_spoilt_files_are_refused_in_one_line(tmp_path, message):
    small = sparsemask.shrink(whole("unet"), IMAGE, 0.5, timed=False)
    sparsemask.save(small, tmp_path / "a.safetensors")
    spoilt(tmp_path / "a.safetensors", tmp_path / "b.safetensors", SPOILT[message])
    with pytest.raises(UseError, match=message) as refused:
        sparsemask.load(tmp_path / "b.safetensors", SmallUNet())
    assert "\n" not in str(refused.value) and "b.safetensors" in str(refused.value)


def test_other_networks_and_files_are_refused(tmp_path):
    small = sparsemask.shrink(whole("unet"), IMAGE, 0.5, timed=False)
    with pytest.raises(UseError, match="safetensors"):
        sparsemask.save(small, tmp_path / "a.pt")
    with pytest.raises(UseError, match="no report"):
        sparsemask.save(SmallUNet(), tmp_path / "a.safetensors")
    sparsemask.save(small, tmp_path / "a.safetensors")
    with pytest.raises(UseError, match="channels"):
        sparsemask.load(tmp_path / "a.safetensors", lively("resnet20"))
    save_file(small.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(UseError, match="written by sparsemask.save"):
        sparsemask.load(tmp_path / "bare.safetensors", SmallUNet())
    with pytest.raises(UseError, match="not found"):
        sparsemask.load(tmp_path / "absent.safetensors", SmallUNet())
