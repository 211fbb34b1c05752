"""Shared fixtures: the golden results, and the folder of real samples beside the checkout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, one core each; read when torch loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

HERE = Path(__file__).resolve().parent


def _shared_data() -> Path | None:
    named = os.environ.get("SPARSEMASK_DATA")
    folder = Path(named) if named else HERE.parents[1] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded reference results (tests/golden)."""
    return HERE / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures, scans and weights; skips, saying so, where it is absent."""
    folder = _shared_data()
    if folder is None:
        pytest.skip("shared data absent: put it beside the checkout as ../shared/data or set SPARSEMASK_DATA")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    # Two cores are the machine we promise to run on; more threads than cores only slow small tests down.
    import torch

    beside = "PYTEST_XDIST_WORKER" in os.environ  # threads of two processes would wait for each other
    torch.set_num_threads(1 if beside else max(1, min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with data, one finished search (runs/s) and a mask; not to be touched."""
    from spaces.connectivity.named_masks import named_mask
    from sparsemask.masks import save_mask
    from tiny import SMALL, data_flags, make_data, verb

    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    flags = ["--search", *data_flags(folder / "data"), *SMALL, "--max_iter", "3", "--name", "s"]
    run = verb("search/run.py", flags, folder)
    assert run.returncode == 0, run.stderr
    save_mask(folder / "mask.npy", named_mask("unet", 9))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may spoil, as working directory."""
    from tiny import borrow_kernels

    folder = tmp_path / "place"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return folder
