"""Runs without images: nothing is drawn within, everything as before after it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from sparsemask import pictures, report
from sparsemask.spaces.connectivity import named_mask
from without_images import without_images


def test_nothing_is_drawn_within_and_everything_afterwards(tmp_path, monkeypatch):
    before = {name: value for name, value in vars(pictures).items() if name.startswith("draw_")}
    assert len(before) > 5
    page = report.write_report
    later = ModuleType("sparsemask.loaded_later")  # as a module that a run loads within
    with pytest.raises(RuntimeError), without_images():
        assert pictures.draw_architecture(named_mask("unet", 9), tmp_path / "a.png") == tmp_path / "a.png"
        assert pictures.draw_architecture(named_mask("unet", 9), path=tmp_path / "b.png") == tmp_path / "b.png"
        assert report.write_report is not page
        later.draw = pictures.draw_architecture
        monkeypatch.setitem(sys.modules, later.__name__, later)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    assert all(getattr(pictures, name) is value for name, value in before.items()) and report.write_report is page
    assert later.draw is pictures.draw_architecture
    assert pictures.draw_architecture(named_mask("unet", 9), tmp_path / "a.png").stat().st_size > 5000
