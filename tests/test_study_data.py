"""A study knows its data and its flags, and is joined by nothing else; it says once that its storage is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.search.studies import plan as study_plan
from sparsemask.search.studies.data import describe
from sparsemask.search.studies.plan import ADDED, difference
from sparsemask.search.studies.storage import Store
from sparsemask.search.study import settle
from studies import flags, start, wait_for
from tiny import make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)


@pytest.fixture
def other(data, tmp_path) -> Path:
    """A copy of the data in another place."""
    return Path(shutil.copytree(data, tmp_path / "elsewhere"))


def joined(data: Path, cwd: Path, *more: str) -> Store:
    plan, _ = settle(flags(data, cwd, "s", *more))
    return Store(plan)


def refused(data: Path, cwd: Path, *more: str) -> str:
    with pytest.raises(UseError, match="study 's' exists, and ") as caught:
        joined(data, cwd, *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_picture(folder: Path) -> None:
    path = folder / "img" / "001.png"
    picture = np.array(Image.open(path))
    picture[0, 0, 0] ^= 1
    Image.fromarray(picture).save(path)


def change_label(folder: Path) -> None:
    path = folder / "gt" / "011.png"  # the last one of the validation list
    label = np.array(Image.open(path))
    label[-1, -1] = 3 - label[-1, -1]
    Image.fromarray(label).save(path)


def change_order(folder: Path) -> None:
    lines = (folder / "train.txt").read_text().split()
    (folder / "train.txt").write_text("\n".join(reversed(lines)) + "\n")


def change_names(folder: Path) -> None:
    for part in ("img", "gt"):
        (folder / part / "000.png").rename(folder / part / "zero.png")
    (folder / "train.txt").write_text((folder / "train.txt").read_text().replace("000", "zero"))


def change_length(folder: Path) -> None:
    (folder / "val.txt").write_text("009\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_picture, "data: training is"),
        (change_label, "data: validation is"),
        (change_order, "data: training is"),
        (change_names, "data: training is"),
        (change_length, 'data: validation is "3 samples'),
    ],
)
def test_other_data_are_refused_with_what_differs(data, other, tmp_path, change, said):
    joined(data, tmp_path)
    change(other)
    message = refused(other, tmp_path)
    assert said in message and "take another --study" in message


def test_the_same_data_in_another_place_are_the_same(data, other, tmp_path):
    assert joined(data, tmp_path).study.user_attrs["id"] == joined(other, tmp_path).study.user_attrs["id"]
    for path in other.rglob("*.png"):  # written anew, by another program as it were
        Image.open(path).save(path, compress_level=1)
    assert joined(other, tmp_path).study.user_attrs["id"] == joined(data, tmp_path).study.user_attrs["id"]


def test_other_class_names_and_other_weights_are_other_data(data, tmp_path, monkeypatch):
    joined(data, tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("sky\nsea\nland\nroad\n")
    assert "data: classes" in refused(data, tmp_path, "--class_names", str(names))
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"other weights")
    monkeypatch.setenv("SPARSEMASK_WEIGHTS", str(weights))
    assert 'data: weights is "none" there' in refused(data, tmp_path)


def test_flags_that_presets_give_count_too(data, tmp_path, monkeypatch):
    joined(data, tmp_path)
    preset = study_plan.plain
    other = {"decay": 0.3}  # as a preset of another version may have it
    monkeypatch.setattr(study_plan, "plain", lambda flags: {**preset(flags), **(other if "decay" in flags else {})})
    assert "settled flags: decay is" in refused(data, tmp_path)


def test_what_is_only_of_a_machine_may_differ(data, tmp_path):
    first = joined(data, tmp_path, "--n_worker", "0")
    assert joined(data, tmp_path, "--n_worker", "3", "--gpu", "-1").study.user_attrs == first.study.user_attrs


def test_a_study_of_an_older_version_goes_on_and_knows_its_data_from_then_on(data, other, tmp_path):
    study = joined(data, tmp_path).study
    known = study.user_attrs["sparsemask"]
    study.set_user_attr("sparsemask", {k: v for k, v in known.items() if k not in ADDED})
    assert joined(data, tmp_path).study.user_attrs["sparsemask"] == known
    change_picture(other)
    assert "data: training" in refused(other, tmp_path)


def test_differences_are_named():
    mine, theirs = {"a": 1, "data": {"training": "9 samples, ab"}}, {"a": 1, "data": {"training": "9 samples, cd"}}
    assert difference(mine, mine) == ""
    assert difference(mine, theirs) == 'data: training is "9 samples, cd" there and "9 samples, ab" here'
    assert difference(mine, {"a": 1}) == "" and difference({"a": 2}, theirs | {"a": 1}) == "a is 1 there and 2 here"


class Tensors:
    """A source of a task of the user's own: samples, no files."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return np.float32(self.values[index]), index % 2

    def sample(self, index, rng):
        return np.float32(self.values[index] + rng.random()), index % 2


@pytest.mark.parametrize("training", [True, False])
def test_sources_without_files_are_described_by_their_samples(training):
    found = [describe(Tensors(values), training) for values in ([1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 2])]
    assert found[0] == found[1] and len(set(found)) == 3 and found[0].startswith("3 samples, ")


@pytest.mark.slow
def test_a_storage_that_goes_away_is_said_once(data, tmp_path):
    database = tmp_path / "study.db"
    argv = flags(data, tmp_path, "s", "--storage", f"sqlite:///{database}", "--trials", "2", "--workers", "2")
    process = start(argv, tmp_path)
    folder = tmp_path / "runs" / "s"
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("trial-*/search/config.yaml"))) == 2)
    for path in tmp_path.glob("study.db*"):
        path.write_bytes(b"no database any more\n" * 1000)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 2 and "Traceback" not in error, error
    lines = [line for line in error.splitlines() if "cannot be used" in line]
    assert len(lines) == 1 and lines[0].startswith("error: storage sqlite"), error
    assert json.loads((folder / "trial-0000" / "trial.json").read_text())["id"]  # what was computed stays
