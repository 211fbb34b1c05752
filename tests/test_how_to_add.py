"""The section "How to add" of docs/architecture.md, walked through: only the files that it names are touched.

In a copy of the product a backbone, a space, a task, a backend and an operator are added, and a process that knows
nothing of them but their names uses them. What each promises is judged by the contract tests
(test_space_contracts, test_task_contracts, test_backend_contract, test_family_contracts).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from house import ROOMS
from tiny import ROOT, environment

BACKBONE = '''
"""A backbone of two end points."""

from torch import nn

from sparsemask.spaces.backbones.registry import register


class Steps(nn.Module):
    channels, strides = (6, 4), (4, 2)

    def __init__(self, in_channels):
        super().__init__()
        self.one, self.two = nn.Conv2d(in_channels, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x):
        x = self.one(x)
        return [self.two(x), x]


@register
def steps(in_channels=3, momentum=0.1):
    return Steps(in_channels)
'''
TASK = '''
"""Segmentation whose pixel accuracy decides."""

from sparsemask.tasks.segmentation.task import SegmentationTask


class RoughTask(SegmentationTask):
    primary = "pixel_accuracy"
'''
BACKEND = '''
"""Convolves everything, as the reference does."""

from sparsemask.backends import Backend
from sparsemask.backends.reference import BACKEND as REFERENCE


class Toy(Backend):
    name = "toy"

    def why_not(self, device, dtype):
        return None

    def conv(self, call):
        return REFERENCE.conv(call)


BACKEND = Toy()
'''
OPERATOR = '''
"""y = 2 x."""

import torch

from sparsemask.ops.registration import register


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


register("toy_twice", twice, fake=lambda x: torch.empty_like(x), flops=lambda x, *, out_val=None: 7)
'''
USE = """
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsemask import spaces, tasks
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import FullyDenseNetwork
from sparsemask.sparse import SparseMaskBlock, available_backends, backend

network = FullyDenseNetwork("steps", depth=4, num_classes=4)
assert network(torch.randn(2, 3, 32, 32)).shape[1] == 4 and "steps" in backbones.available()

space = spaces.get("toy_channels")
assert space.supernet({"hidden": 3})(torch.randn(1, 3, 8, 8)).shape == (1, 4)

assert tasks.find("rough").primary == "pixel_accuracy" and "rough" in tasks.siblings("segmentation")

assert available_backends()["toy"] is None
block, x, mask = SparseMaskBlock(4, 2).eval(), torch.randn(2, 4, 5, 5), torch.rand(2, 1, 5, 5) < 0.5
with torch.no_grad(), backend("toy"):
    y, _ = block(x, mask)
with torch.no_grad(), backend("reference"):
    assert torch.allclose(y, block(x, mask)[0], atol=1e-6)

import sparsemask.sparse.every
with FlopCounterMode(display=False) as counter:
    assert torch.equal(torch.ops.sparsemask.toy_twice(x), 2 * x)
assert counter.get_total_flops() == 7
print("all there")
"""


def insert(path: Path, after: str, line: str) -> None:
    """Put one line into a file."""
    text = path.read_text()
    assert text.count(after) == 1, (path, after)
    path.write_text(text.replace(after, after + line))


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    """A copy of the product with one of each added."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (folder / "spaces/backbones/steps.py").write_text(BACKBONE)
    (folder / "spaces/toy").mkdir()
    shutil.copy(ROOT / "tests/toy_space.py", folder / "spaces/toy/space.py")
    (folder / "spaces/toy/__init__.py").write_text('"""A toy."""\n')
    with (folder / "spaces/toy/space.py").open("a") as file:
        file.write('\n\nspaces.register("toy_channels", ToySpace())\n')
    insert(folder / "spaces/__init__.py", "_MODULES = {\n", '    "toy_channels": "sparsemask.spaces.toy.space",\n')
    (folder / "sparsemask/tasks/rough").mkdir()
    (folder / "sparsemask/tasks/rough/__init__.py").write_text('"""A toy."""\n')
    (folder / "sparsemask/tasks/rough/task.py").write_text(TASK)
    insert(
        folder / "sparsemask/tasks/__init__.py",
        "_TASKS = {\n",
        '    "rough": _Entry("sparsemask.tasks.rough.task:RoughTask"),\n',
    )
    (folder / "sparsemask/backends/toy.py").write_text(BACKEND)
    (folder / "sparsemask/ops/toy_twice.py").write_text(OPERATOR)
    insert(folder / "sparsemask/ops/register_all.py", "    predict_mask,\n", "    toy_twice,\n")
    return folder


def test_one_of_each_is_added_by_the_files_that_the_page_names(product, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    home = environment(tmp_path / "home", PYTHONPATH=str(product))
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=home, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("all there\n"), done.stderr


def test_the_page_names_files_that_are_there():
    page = (ROOT / "docs/architecture.md").read_text()
    section = page[page.index("## How to add") : page.index("## Where we left")]
    named = set(re.findall(r"`((?:[\w-]+/)+[\w-]*(?:\.\w+)?)`", section))
    tests = {"test_space_contracts", "test_task_contracts", "test_family_contracts", "test_backend_contract"}
    assert tests <= {Path(path).stem for path in named}
    exists = lambda path: (ROOT / path).exists() or (ROOT / "sparsemask" / path).exists()
    assert not [path for path in named if "NAME" not in path and not exists(path)]
    assert not [path for path in named if "NAME" in path and not exists(path.partition("NAME")[0])]
