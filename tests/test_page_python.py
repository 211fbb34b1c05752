"""Python of the documentation's pages runs as it stands, on small networks; pages whose own tests do so are named."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import literal_sr
from hinge import lively
from literal_sparse import one_thread  # noqa: F401
from page_commands import PAGES
from pyramid import Pyramid
from sparsemask import exporting, spaces
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask, save_network
from sparsemask.spaces.connectivity.pruned_network import FCN
from sparsemask.sparse import backend
from test_smsr import network as smsr
from test_specialize_network import network as specialised_network
from tiny import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

RUN_ELSEWHERE = {
    "docs/export.md": "test_export.py",
    "docs/guides.md": "test_guides.py",
    "docs/predict.md": "test_predict.py",
    "docs/python.md": "test_api.py",
    "docs/shrink.md": "test_shrink_page.py",
    "docs/tasks.md": "test_training_habits.py",
    "docs/tracking.md": "test_tracking.py",
}
NOT_RUN = {
    "docs/architecture.md": "a backend whose kernel is the reader's; tests/test_backend_contract.py has one of its own",
    "docs/api/predict.md": "what docs/predict.md has",
    "docs/api/python.md": "what docs/python.md has",
}
# Other packages, and what takes the time of a machine.
NEEDS = ("openvino", "ncnn")
INSTEAD = {'budget="12 ms"': "keep=0.9", "512, 512": "64, 64", "memory=800e6": "memory=8e9"}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def readme(folder: Path) -> dict[str, Any]:
    network = PrunedNetwork(named_mask("unet", 9), depth=8, num_classes=4).eval()
    save_network(
        made(folder / "runs/NAME") / "network.safetensors", network, {"backbone_name": "mobilenet_v2", "depth": 8}, 4
    )
    return {
        **networks(folder), "net_class": lambda: lively("resnet20", seed=1),
    }  # fmt: skip


def specialised(folder: Path) -> dict[str, Any]:
    spaces.get("smsr").save(folder / "network.safetensors", smsr(n_modules=1))
    file = made(folder / "runs/NAME") / "network.safetensors"
    spaces.get("specialized").save(file, specialised_network(max_stride=8))
    return {"images": torch.rand(1, 3, 32, 48)}


def enlarging(folder: Path) -> dict[str, Any]:
    torch.save(literal_sr.fill(literal_sr.span_layout(2, 24, 6), dtype=torch.float32), folder / "spanx2_ch48.pth")
    torch.save(smsr(scale=2).state_dict(), folder / "smsr_x2.pt")
    return {"pictures": torch.rand(1, 3, 16, 24) * 255}


def one_onnx(folder: Path) -> dict[str, Any]:
    """A file in ONNX, and where pnnx is installed what it makes of it."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    picture = torch.zeros(1, 3, 96, 128)
    exportable = spaces.get("connectivity").exportable(FCN(Pyramid(), num_classes=4).eval(), picture, {"n_class": 4})
    exporting.export_onnx(exportable.fixed(picture), folder / "net.onnx")
    if shutil.which("pnnx"):
        subprocess.run(["pnnx", "net.onnx", "fp16=0"], cwd=folder, check=True, capture_output=True)
    return {}


def layers(folder: Path) -> dict[str, Any]:
    return {
        "x": torch.rand(1, 64, 8, 8), "keep": torch.ones(1, 1, 8, 8, dtype=torch.bool), "model": torch.nn.Sequential(),
        "in_dense": torch.arange(64) < 9, "out_dense": torch.arange(64) < 7,
    }  # fmt: skip


def networks(folder: Path) -> dict[str, Any]:
    return {"net": lively("resnet20"), "example": torch.zeros(1, 3, 32, 32)}


PREPARE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": readme,
    "docs/deployment.md": one_onnx,
    "docs/specialize.md": specialised,
    "docs/super_resolution.md": enlarging,
    "docs/api/connectivity.md": lambda folder: {},
    "docs/api/group_sparsity.md": lambda folder: {},
    "docs/api/shrink.md": networks,
    "docs/api/sparse.md": layers,
    "docs/api/sparse_conv.md": lambda folder: {},
    "docs/api/sparsemask.md": lambda folder: {},
}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PREPARE)
def test_a_page_s_python_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparsemask.inference._can_compile", lambda device: False)  # minutes
    space = PREPARE[page](tmp_path)
    known = [block for block in blocks(page) if not (wanted(block) - installed())]
    if not known:
        pytest.skip("openvino and ncnn are not installed")
    with backend("reference"):
        for block in known:
            for words, instead in INSTEAD.items():
                block = block.replace(words, instead)
            exec(compile(block, page, "exec"), space)
    if "scores" in space:  # of whichever program
        assert torch.as_tensor(space["scores"]).isfinite().all()


def wanted(block: str) -> set[str]:
    return {name for name in NEEDS if re.search(rf"^import {name}$", block, re.MULTILINE)}


def installed() -> set[str]:
    return {name for name in NEEDS if importlib.util.find_spec(name)}


def test_every_page_with_python_is_run_or_named():
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    with_python = {page for page in pages if blocks(page)}
    assert with_python == set(PREPARE) | set(RUN_ELSEWHERE) | set(NOT_RUN)
    assert len(with_python) == len(PREPARE) + len(RUN_ELSEWHERE) + len(NOT_RUN)
    for page, file in RUN_ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / file).read_text()
    # What stands in a block for other words is still there.
    text = "".join(block for page in PREPARE for block in blocks(page))
    assert all(words in text for words in (*INSTEAD, *NEEDS))
