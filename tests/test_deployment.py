"""Trained networks outside of Python and in OpenVINO: examples/cpp is built and run, bench/deployment.py compares."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyramid import Pyramid
from small_pictures import scene
from sparsemask import exporting, spaces
from sparsemask.errors import UseError
from sparsemask.prediction import Description, Predictor
from sparsemask.spaces.connectivity.pruned_network import FCN
from sparsemask.sparse import backend
from test_smsr import network as smsr
from tiny import ROOT, fails

EXAMPLE = ROOT / "examples" / "cpp"
CLASSES = ("background", "brick", "leaf", "sky")


def load(path: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FCN(Pyramid(), num_classes=len(CLASSES)).eval()


@pytest.fixture(scope="module")
def program(network, tmp_path_factory) -> Path:
    """The network as it is exported, saying what its classes are."""
    described = Description(CLASSES, input_size=40)
    made = spaces.get("connectivity").exportable(network, torch.zeros(1, 3, 40, 56), {"n_class": len(CLASSES)})
    return exporting.export_program(
        made.fixed(torch.zeros(1, 3, 40, 56)), tmp_path_factory.mktemp("program") / "net.pt2", described.entries()
    )


def run(*words: object, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True)


def built(folder: Path, *flags: str) -> Path:
    """The folder of the example's programs, as far as what these flags of CMake name has what they need."""
    if not shutil.which("cmake") or not shutil.which("g++"):
        pytest.skip("cmake or g++ is not installed")
    build = folder / "build"
    for words in (["-S", EXAMPLE, "-B", build, *flags, "-DCMAKE_CXX_FLAGS=-O0"], ["--build", build]):
        done = run("cmake", *words, folder=folder)
        assert done.returncode == 0, done.stderr[-2000:]
    return build


def refusals(program: Path, network: str, folder: Path) -> None:
    """What is wrong with a picture is one line."""
    (folder / "short.ppm").write_bytes((folder / "photo.ppm").read_bytes()[:500])
    (folder / "huge.ppm").write_bytes(b"P6 99999999 99999999 255\n")
    for name, word in (("none.ppm", "no binary PPM"), ("short.ppm", "ends before"), ("huge.ppm", "no size")):
        done = run(program, network, name, "out", folder=folder)
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_cpp_gives_the_labels_of_python(network, program, tmp_path, monkeypatch):
    build = built(tmp_path, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    compile_network = load(EXAMPLE / "compile.py")
    haste = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    with torch._inductor.config.patch(haste):
        assert compile_network.main([str(program), str(tmp_path / "compiled.pt2")]) == 0
    pixels = scene(1, (31, 56))  # lower than the network's input: padded
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    done = run(build / "segment", "compiled.pt2", "photo.ppm", "labels.pgm", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "labels.pgm"))
    expected = Predictor(network, Description(CLASSES, input_size=40))(pixels).labels
    assert len(np.unique(expected)) > 1 and labels.shape == expected.shape
    assert (labels == expected).mean() > 0.999  # equal but for scores that are equal up to rounding
    assert done.stdout.startswith("56x31, ") and "class " in done.stdout
    refusals(build / "segment", "compiled.pt2", tmp_path)


@pytest.fixture
def enlarging(tmp_path) -> tuple[exporting.Exportable, torch.Tensor, np.ndarray]:
    """SMSR with masks, the image of photo.ppm but for its odd column, and that enlarged."""
    masked, pixels = smsr(scale=2), scene(1, (24, 33))
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    even = torch.from_numpy(pixels[:, :32].copy()).permute(2, 0, 1)[None].float()
    with backend("reference"), torch.no_grad():
        expected = masked(even)[0].clamp(0, 255).permute(1, 2, 0).numpy()
    assert 0 < float(masked.masks[0].float().mean()) < 1
    return spaces.get("smsr").exportable(masked, even, None), even, expected


def enlarges(program: Path, expected: np.ndarray, folder: Path, *library: str) -> None:
    done = run(program, "net.onnx", "photo.ppm", "larger.ppm", *library, folder=folder)
    assert done.returncode == 0, done.stderr
    larger = np.asarray(Image.open(folder / "larger.ppm"))
    assert larger.shape == expected.shape and np.abs(larger - expected).max() < 0.51  # rounded to whole levels


@pytest.mark.slow
def test_cpp_enlarges_by_masks_as_python_does(enlarging, tmp_path):
    cmake = pytest.importorskip("openvino.utils", reason="openvino is not installed").get_cmake_path()
    build, (exportable, even, expected) = built(tmp_path, f"-DCMAKE_PREFIX_PATH={cmake}"), enlarging
    exporting.export_onnx(exportable.fixed(even), tmp_path / "net.onnx")
    enlarges(build / "enlarge", expected, tmp_path)
    refusals(build / "enlarge", "net.onnx", tmp_path)


@pytest.mark.slow
def test_cpp_enlarges_in_onnx_runtime(enlarging, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    capi = Path(importlib.util.find_spec("onnxruntime").submodule_search_locations[0]) / "capi"
    if not list(capi.glob("libonnxruntime.so*")):
        pytest.skip("this wheel of ONNX Runtime has no library for other programs")
    build, (exportable, _, expected) = built(tmp_path, f"-DONNXRUNTIME_FOLDER={capi}") / "enlarge_ort", enlarging
    exporting.export_onnx(exportable, tmp_path / "net.onnx")
    enlarges(build, expected, tmp_path)
    refusals(build, "net.onnx", tmp_path)
    exporting.export_onnx(exportable, tmp_path / "net.onnx", form=exporting.SKIP)
    shutil.copy(exporting.operators_library(), tmp_path / "libsparsemask_onnxruntime.so")
    without = run(build, "net.onnx", "photo.ppm", "out", folder=tmp_path)  # its operators are nobody's
    assert without.returncode == 2 and without.stderr.startswith("error: ") and "sparsemask" in without.stderr
    enlarges(build, expected, tmp_path, "./libsparsemask_onnxruntime.so")
    absent = run(build, "net.onnx", "photo.ppm", "out", "./absent.so", folder=tmp_path)
    assert absent.returncode == 2 and "absent.so" in absent.stderr


def test_what_cpp_does_not_have_is_said(program, tmp_path, capfd):
    compile_network = load(EXAMPLE / "compile.py")
    fails(capfd, compile_network.main, [str(program), str(program)], ["another name"])
    nameless = tmp_path / "nameless.pt2"
    exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(exported, nameless)
    with pytest.raises(UseError, match="does not say what its classes are"):
        compile_network.compiled(nameless, tmp_path / "out.pt2")
    masked, picture = smsr(scale=2, n_modules=1, n_layers=2), torch.zeros(1, 3, 8, 8)
    exportable = spaces.get("smsr").exportable(masked, picture, None).fixed(picture)
    masks = exporting.export_program(exportable, tmp_path / "masks.pt2")
    with pytest.raises(UseError, match=r"calls sparsemask\..* export it as ONNX"):
        compile_network.compiled(masks, tmp_path / "out.pt2")
    assert not list(tmp_path.glob("out*"))


def test_the_page_s_commands_are_those_of_the_files():
    page = (ROOT / "docs/deployment.md").read_text()
    assert "examples/cpp/compile.py" in page and "cmake -S examples/cpp" in page
    for name in ("segment", "enlarge", "enlarge_ort"):
        usage = re.search(rf"usage: ({name} [\w. ]+\w)", (EXAMPLE / f"{name}.cpp").read_text())[1]
        assert f"build/cpp/{usage.lower()}" in page


# ---- OpenVINO


@pytest.fixture(scope="module")
def bench():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    return load(ROOT / "bench" / "deployment.py")


def small(bench, name: str):
    case = bench.CASES[name]
    made, mask = bench.build(case)
    config = {**spaces.get(case.space).section().values(), **case.config}
    return spaces.get(case.space).exportable(made, case.inputs(), config, mask).fixed(case.inputs()), case.inputs()


def test_the_bench_finds_other_outputs_and_refusals(bench, network, tmp_path, monkeypatch):
    batch = torch.zeros(1, 3, 40, 56)
    exportable = spaces.get("connectivity").exportable(network, batch, {"n_class": len(CLASSES)}).fixed(batch)
    right = bench.READERS["onnxruntime"]

    def refuses(path):
        raise RuntimeError("no such operator\nin line 3")

    readers = {"onnxruntime": lambda path: lambda *x: right(path)(*x) + 0.01, "openvino": refuses}
    monkeypatch.setattr(bench, "READERS", readers)
    row = bench.measure("fcn", exportable, [batch], tmp_path / "net.onnx", 0)
    assert row["onnxruntime_difference"] > 1e-3 and "openvino_difference" not in row
    assert row["note"] == "ONNX Runtime: other outputs; OpenVINO refuses it: no such operator in line 3"
    assert bench.difference(torch.full((2,), torch.nan), torch.zeros(2)) == float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["connectivity", "hinge", "smsr"])
def test_openvino_gives_the_outputs(bench, name, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    exportable, batch = small(bench, name)
    row = bench.measure(name, exportable, [batch], tmp_path / "net.onnx", 0)
    assert row["note"] is None and row["openvino_difference"] < 1e-4, row


def test_the_bench_s_command(bench, tmp_path, capfd):
    fails(capfd, bench.main, ["--only", "smrs", "--out", str(tmp_path)], ["did you mean 'smsr'"])
    assert "bench/deployment.py" in (ROOT / "docs/export.md").read_text()
