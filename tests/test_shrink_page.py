"""docs/shrink.md: its Python runs as it stands, in its order, on a small network."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from hinge import lively, one_thread  # noqa: F401
from tiny import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def trained(network: nn.Module) -> None:
    assert isinstance(network, nn.Module)


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {
        "net": lively("resnet20"),
        "example": torch.zeros(1, 3, 32, 32),
        "net_class": lambda: lively("resnet20", seed=1),
        "batches": [(torch.randn(4, 3, 32, 32), torch.arange(4))],
        "fine_tune": trained,
    }
    found = blocks("docs/shrink.md")
    assert len(found) == 6
    for block in found:
        exec(compile(block, "docs/shrink.md", "exec"), space)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert space["again"].eval()(x).shape == (2, 10)
    printed = capsys.readouterr().out
    assert "0.5 of the multiply-adds" in printed and "can go" in printed
    assert space["small"].report.after.multiply_adds < 0.45 * space["small"].report.before.multiply_adds
