"""One-shot searches that take seconds, for tests: their flags, made-up costs, the front that they leave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

import pyramid  # noqa: F401  (a backbone of a user's own)
import tiny
from fake_costs import use_fake_costs
from sparsemask.search import run as search_run
from sparsemask.search.connectivity.front import mask_key
from sparsemask.spaces.connectivity.front_files import read_front

SMALL = [*tiny.SMALL, "--backbone_name", "pyramid:Pyramid", "--bn_momentum", "0.1", "--depth", "16"]
# A handful of candidates and finalists.
FEW = ["--candidates", "6", "--finalists", "3", "--tune_steps", "1", "--final_times", "2"]


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with costs made up."""
    patch.chdir(folder)
    patch.setenv("SPARSEMASK_HOME", str(tiny.borrow_kernels(folder / "home")))
    patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    use_fake_costs(patch, 4)


@pytest.fixture(name="here")
def folder_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data as working directory, with costs made up."""
    tiny.make_data(tmp_path / "data")
    use(tmp_path, monkeypatch)
    return tmp_path


def command_line(name: str, *more: str, steps: int = 2) -> list[str]:
    """Flags of a search of the data in the working directory, in one process."""
    data = tiny.data_flags(Path("data").resolve())
    flags = ["--method", "one-shot", "--front_workers", "1", "--max_iter", str(steps), "--name", name]
    return ["--search", *data, *SMALL, *flags, *more]


def search(name: str, *more: str, steps: int = 2) -> int:
    """Search; the exit status."""
    return search_run.main(command_line(name, *more, steps=steps))


def refuses(capfd: pytest.CaptureFixture, wrong: Iterable[tuple[str, str]]) -> None:
    """A flag with a wrong value is one line that names both, and leaves nothing."""
    for flag, value in wrong:
        tiny.fails(capfd, search_run.main, command_line("x", flag, value), [flag, value])
    assert not Path("runs/x").exists()


def points(name: str) -> list[tuple[str, float, float | None, int]]:
    """The masks of a run's front with their scores, milliseconds and steps trained whole."""
    return [(mask_key(p.mask), p.score, p.ms, p.steps) for p in read_front(Path("runs") / name)]
