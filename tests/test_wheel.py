"""What an installation is: one name in site-packages, beside packages that have names which a checkout uses too."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tiny import ROOT, SMALL, data_flags, make_data
from wheels import FOLDERS, build, copy_source, install, make_environment, run


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment in which the wheel is installed."""
    made = make_environment(tmp_path_factory.mktemp("environment") / "env")
    install(made, str(wheel))
    return made


WHERE = """
import search, spaces
assert search.STANDIN and spaces.STANDIN
import sparsemask.search.losses, sparsemask.spaces, sparsemask.VOC12.lists
from sparsemask.prune.connectivity import prune_connectivity
from sparsemask.search.losses import sparse_loss
from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork
from sparsemask.spaces.sparse_conv import SMPointSeg, load_smsr
assert len(sparsemask.spaces.available()) > 5 and spaces.STANDIN
print(sparsemask.__file__, sparsemask.spaces.__file__, sep="\\n")
"""


def test_a_wheel_has_one_name_at_its_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sparsemask"}
    ours = {path.relative_to(ROOT) for top in FOLDERS for path in (ROOT / top).rglob("*.py")}
    wanted = {str(path) if path.parts[0] == "sparsemask" else f"sparsemask/{path}" for path in ours}
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "sparsemask/py.typed" in names
    data = [path.relative_to(ROOT) for path in (ROOT / "sparsemask").rglob("*") if path.suffix in DATA]
    assert data and {str(path) for path in data} <= set(names)


DATA = (".yaml", ".css", ".js", ".cpp", ".h", ".safetensors")


@pytest.mark.slow
def test_the_commands_of_a_wheel_run_beside_packages_of_the_same_names(python, tmp_path):
    toolkit, spaces = map(Path, run([python, "-c", WHERE], tmp_path).split())
    assert spaces.is_relative_to(toolkit.parent) and toolkit.is_relative_to(python.parents[1])
    command = python.with_name("sparsemask")
    assert run([command, "--version"], tmp_path).startswith("sparsemask ")

    # One trial of a study is a search, a pruning and a retraining, in a process that the command starts.
    few = ["--trials", "1", "--max_iter", "2", "--retrain_iter", "2", "--hopeless", "0"]
    run([command, "study", "--study", "t", *few, *data_flags(make_data(tmp_path / "data")), *SMALL], tmp_path)
    retrained = next((tmp_path / "runs" / "t").glob("trial-*/retrain"))
    said = run([command, "eval", "--run", retrained], tmp_path)
    assert "mIoU" in said or "miou" in said


@pytest.mark.slow
def test_an_editable_installation_runs_beside_packages_of_the_same_names(source, tmp_path):
    python = make_environment(tmp_path / "env")
    install(python, "--no-build-isolation", "-e", str(source))
    toolkit, spaces = map(Path, run([python, "-c", WHERE], tmp_path).split())
    assert toolkit.is_relative_to(source) and spaces == source / "spaces" / "__init__.py"
    assert run([python.with_name("sparsemask"), "--version"], tmp_path).startswith("sparsemask ")
    assert "usage: python search/run.py" in run([python, source / "search" / "run.py", "--help"], tmp_path)
