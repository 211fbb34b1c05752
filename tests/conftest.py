"""Shared fixtures: the golden results, and the folder of real samples beside the checkout."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, one core each; read when torch loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

HERE = Path(__file__).resolve().parent
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
_MUCH = 50 << 20  # bytes


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

    # Threads of two processes would wait for each other.
    torch.set_num_threads(1 if SIDE_BY_SIDE else max(1, min(2, os.cpu_count() or 1)))


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests come first: begun last, they would keep one process at work when the others have finished.
    long = {item.path for item in items if item.get_closest_marker("slow")}
    if SIDE_BY_SIDE:
        items.sort(key=lambda item: item.path not in long)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Give back, after a file that took much memory, compiled graphs and what malloc keeps for later."""
    before = _resident_bytes()
    yield
    if _resident_bytes() < before + _MUCH:
        return
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@pytest.fixture
def no_images() -> Iterator[None]:
    """Runs draw no images and write no report."""
    from without_images import without_images

    with without_images():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with data, one finished search (runs/s) and a mask; not to be touched."""
    from sparsemask.masks import save_mask
    from sparsemask.search import run as search_run
    from sparsemask.spaces.connectivity.named_masks import named_mask
    from tiny import SMALL, borrow_kernels, data_flags, make_data
    from without_images import without_images

    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    flags = ["--search", *data_flags(folder / "data"), *SMALL, "--max_iter", "3", "--name", "s"]
    with pytest.MonkeyPatch.context() as patch, without_images():
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
        assert search_run.main(flags) == 0
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
