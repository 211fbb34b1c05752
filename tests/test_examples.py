"""The scripts of examples/, each in reduced form: they train, shrink, fine-tune, save, and load what they saved."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import sparsemask
from literal_sparse import one_thread  # noqa: F401
from timm_models import importable_timm
from tiny import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = {
    "classifier": ["--model", "resnet10t", "--images", "40"],
    "detector": ["--images", "16"],
    "segmentation": ["--encoder", "resnet10t", "--images", "8"],
    "super_resolution": ["--count", "8"],
}
NEED_TIMM = ("classifier", "segmentation")


@pytest.fixture(scope="module")
def timm():
    with importable_timm() as module:
        yield module


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path, monkeypatch, capsys, request):
    if name in NEED_TIMM:
        request.getfixturevalue("timm")
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, "--steps", "4", *EXAMPLES[name]])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert Path(f"{name}.safetensors").is_file()
    share = next(float(line.split()[-1].rstrip("%")) for line in lines if line.startswith("multiply-adds"))
    assert abs(share - 50) < 3
    fine_tuned = [line for line in lines if line.startswith("fine-tuned")][-1]
    assert lines[-1].split(": ")[1] == fine_tuned.split(": ")[1].replace(" of the shapes found", "")


def test_the_detectors_targets_and_score_agree():
    """Outputs made of the targets find every shape."""
    spec = importlib.util.spec_from_file_location("example_detector", ROOT / "examples" / "detector.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, targets, shapes = module.images(range(8))

    class Perfect(torch.nn.Module):
        def forward(self, given):
            at = [int((x == one).flatten(1).all(1).nonzero()[0]) for one in given]
            scores = [20 * (t[at, : len(module.CLASSES)] - 0.5) for t in targets]
            boxes = [t[at, len(module.CLASSES) :].nan_to_num() for t in targets]
            return [torch.cat(pair, 1) for pair in zip(scores, boxes, strict=True)]

    assert module.found(Perfect(), x, shapes) == 1.0
    assert module.loss(Perfect()(x), targets) < 0.05


def test_halves_of_the_detectors_blocks_go():
    spec = importlib.util.spec_from_file_location("example_detector", ROOT / "examples" / "detector.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.Detector()
    small = sparsemask.shrink(network, torch.zeros(1, 3, module.SIZE, module.SIZE), 0.5, timed=False)
    blocks = [name for name, part in network.named_modules() if isinstance(part, module.C2f)]
    assert len(blocks) == 5
    for name in blocks:
        before, after = (net.get_submodule(f"{name}.split.0").out_channels for net in (network, small))
        assert after < before
