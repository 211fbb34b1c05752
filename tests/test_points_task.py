"""The tasks on clouds: whose data, published numbers, what is refused, files of predictions."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from small_clouds import options, rooms
from sparsemask import datasets, tasks
from sparsemask.devices import arithmetic
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.points.layouts import semantickitti
from sparsemask.tasks.points.layouts.labels import class_weights
from sparsemask.tasks.points.prepare.command import prepare_semantickitti_scans
from sparsemask.tasks.points.task import PointsTask
from sparsemask.tasks.protocol import EvaluationContext

POINTS = ["s3dis", "sample", "semantickitti"]


@pytest.fixture(scope="module")
def room_folder(tmp_path_factory):
    return rooms(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two prepared scans of sequence 00 and one of 08, with labels and projections."""
    folder, rng = tmp_path_factory.mktemp("kitti"), np.random.default_rng(0)
    known = np.array(sorted(semantickitti.LEARNING_MAP), np.uint32)
    for name in ("00/000000", "00/000001", "08/000000"):
        sequence, scan = name.split("/")
        for part in ("velodyne", "labels"):
            (folder / "sequences" / sequence / part).mkdir(parents=True, exist_ok=True)
        xyz = rng.normal(0, 4, (600, 4)).astype("<f4")
        xyz[:, 3] = abs(xyz[:, 3])  # remission
        xyz.tofile(folder / "sequences" / sequence / "velodyne" / f"{scan}.bin")
        rng.choice(known, 600).astype("<u4").tofile(folder / "sequences" / sequence / "labels" / f"{scan}.label")
    prepare_semantickitti_scans(folder, project=True, jobs=1)
    return folder


def constant(classes: int, which: int):
    """A network that always answers one class."""

    def answer(batch):
        out = torch.zeros(len(batch), classes, batch.shape[2])
        out[:, which] = 1
        return out

    return answer


def test_the_tasks_belong_together():
    for name in POINTS:
        assert tasks.siblings(name) == sorted(POINTS) and tasks.own_flags(name)
        assert issubclass(tasks.find(name), PointsTask)
    assert "s3dis" not in tasks.siblings("segmentation") and tasks.siblings("super_resolution") == ["super_resolution"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "s3dis",
            {"channels": [32, 64, 128, 256, 512], "radius": 0.05, "grid": 0.04, "n_points": 40960, "train_steps": 500,
             "val_steps": 100, "vote_smooth": 0.95, "d_in": 6, "n_class": 13},
        ),
        (
            "semantickitti",
            {"channels": [36, 72, 144, 288], "radius": 0.1, "grid": 0.06, "n_points": 45056, "train_steps": 3000,
             "val_steps": 500, "vote_smooth": 0.98, "d_in": 3, "n_class": 19},
        ),
    ],
)  # fmt: skip
def test_published_numbers_where_nobody_says_otherwise(name, expected):
    unsaid = tasks.get(name, options(**dict.fromkeys(expected))).config
    assert {key: unsaid[key] for key in expected} == expected
    said = tasks.get(name, options(n_points=64, channels=[4, 8])).config
    assert (said["n_points"], said["channels"]) == (64, [4, 8])


def test_data_is_named_or_the_rooms_are_taken():
    assert datasets.choose_data({"task": "s3dis", "data_root": "x"}) == ({}, "short", None)
    chosen, preset, line = datasets.choose_data({"task": "sample"})
    assert chosen == {"sample": True} and preset == "sample"
    assert "prepare-points" in line and "generated rooms" in line and "\n" not in line
    with pytest.raises(UseError, match="none comes with the toolkit"):
        datasets.choose_data({"task": "semantickitti"})


def test_rooms_of_one_area_validate_the_others(room_folder):
    task = tasks.get("s3dis", options(data_root=str(room_folder), grid=0.25))
    task.check()
    areas = [{name[:6] for name in task.clouds(which).names} for which in ("training", "eval")]
    assert areas == [{"Area_2"}, {"Area_1"}]
    assert len(task.train_data) == 8 and len(task.eval_data) == 4  # steps times batch
    crop, labels = task.eval_data[0]
    assert crop.shape == (1, 6, 64) and labels.shape == (64,)


def test_generated_rooms_have_weights_of_their_own(room_folder, monkeypatch):
    monkeypatch.setattr("sparsemask.synthetic.rooms.sample_folder", lambda: room_folder)
    task = tasks.get("sample", options(grid=0.25))
    cloud = task.clouds("training")[0]
    counts = np.bincount(cloud.labels, minlength=13)
    assert task.weights.numpy() == pytest.approx(class_weights(counts))


def test_scans_are_chosen_by_sequence_or_by_name(scans):
    task = tasks.get("semantickitti", options(data_root=str(scans)))
    assert task.clouds("training").names == ["00/000000", "00/000001"] and task.clouds("eval").names == ["08/000000"]
    named = options(data_root=str(scans), train_scans=["00/000000"], eval_scans=["00/000001"])
    task = tasks.get("semantickitti", named)
    task.check()
    assert [task.clouds(which).names for which in ("training", "eval")] == [["00/000000"], ["00/000001"]]
    assert task.train_data.sample(0, np.random.default_rng(0))[0].shape == (1, 3, 64)


def test_scores_while_training_are_of_crops_and_afterwards_of_all_points(room_folder):
    task = tasks.get("s3dis", options(data_root=str(room_folder), grid=0.25))
    here = EvaluationContext(arithmetic=arithmetic(-1))
    quick = task.evaluate(constant(13, 2), here, quick=True)
    assert quick.count == 4 and quick.matrix.sum() == 4 * 64 and quick.matrix[:, 2].sum() == 4 * 64
    assert task.evaluate(constant(13, 2), here, limit=3, quick=True).matrix.sum() == 3 * 64
    assert task.metrics(quick)["oa"] == quick.oa
    found = []
    whole = task.evaluate(constant(13, 2), here, on_prediction=lambda number, classes: found.append(len(classes)))
    room = task.clouds("eval")[0]
    assert whole.count == 1 and found == [len(room.projection)] and whole.matrix.sum() == len(room.full_labels)
    assert np.array_equal(whole.matrix.sum(1), np.bincount(room.full_labels, minlength=13))
    assert set(task.record(whole)["iou"]) == set(task.classes)
    assert "wall" in task.report(whole)


def test_predictions_of_rooms_are_ply(room_folder, tmp_path):
    task = tasks.get("s3dis", options(data_root=str(room_folder), grid=0.25))
    room = task.clouds("eval")[0]
    path = task.write(tmp_path, 0, np.full(len(room.projection), 4))
    columns = read_ply(path)
    assert path.name == f"{room.name}.ply" and (columns["pred"] == 4).all()
    assert np.array_equal(columns["label"], room.full_labels)


def test_predictions_of_scans_are_raw_labels(scans, tmp_path):
    task = tasks.get("semantickitti", options(data_root=str(scans)))
    cloud = task.clouds("eval")[0]
    classes = np.arange(600) % 19
    path = task.write(tmp_path, 0, classes)
    assert path == tmp_path / "sequences" / "08" / "predictions" / "000000.label"
    raw = np.fromfile(path, "<u4")
    assert len(raw) == len(cloud.projection) == 600
    assert np.array_equal(semantickitti.map_labels(raw) - 1, classes)  # there and back
    scores = task.evaluate(constant(19, 8), EvaluationContext(arithmetic=arithmetic(-1)))
    assert scores.matrix.sum() == (cloud.full_labels >= 0).sum()  # the unlabelled are counted nowhere


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("s3dis", {}, "--data_root FOLDER is missing"),
        ("semantickitti", {}, "--data_root FOLDER is missing"),
        ("semantickitti", {"sample": True}, "no drawn scans"),
        ("semantickitti", {"data_root": "."}, "."),
        ("sample", {"data_root": "x"}, "of which layout"),
        ("s3dis", {"data_root": "nowhere"}, "nowhere"),
        ("s3dis", {"data_root": "ROOMS", "grid": 0.25, "test_area": 9}, "area 9"),
        ("s3dis", {"data_root": "ROOMS", "grid": 0.25, "n_points": 3}, "--n_points 3"),
    ],
)
def test_what_cannot_be_is_one_line(room_folder, name, given, words):
    given = {k: str(room_folder) if v == "ROOMS" else v for k, v in given.items()}
    with pytest.raises(UseError, match=words) as error:
        tasks.get(name, options(**given)).check()
    assert "\n" not in str(error.value)


def relabelled(room_folder, folder, change):
    """A copy of the rooms with other labels in them."""
    shutil.copytree(room_folder, folder)
    for path in sorted(folder.rglob("sub_*/*.ply")):
        content = read_ply(path)
        columns = {name: np.asarray(content[name]) for name in content}
        columns["class"] = change(path.stem, columns["class"]).astype(columns["class"].dtype)
        write_ply(path, columns)
    return folder


def test_labels_of_points_that_teach_nothing_are_refused_and_absent_classes_named(room_folder, tmp_path, capsys):
    tasks.get("s3dis", options(data_root=str(room_folder), grid=0.25)).check()
    capsys.readouterr()
    one = relabelled(room_folder, tmp_path / "one", lambda name, old: np.full_like(old, 2))
    with pytest.raises(UseError, match="one class alone occurs in the 1 training clouds .2 wall.: nothing to tell"):
        tasks.get("s3dis", options(data_root=str(one), grid=0.25)).check()
    few = relabelled(room_folder, tmp_path / "few", lambda name, old: np.arange(len(old)) % 3)
    tasks.get("s3dis", options(data_root=str(few), grid=0.25)).check()
    training, validation = capsys.readouterr().err.splitlines()
    assert training.startswith("note: 10 of 13 classes never occur in the 1 training clouds: 3 beam, 4 column")
    assert "validation clouds" in validation


def test_scans_without_labels_are_no_training_data(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "scans")
    for path in (tmp_path / "scans").glob("*/00/labels/*.npy"):
        path.unlink()
    with pytest.raises(UseError, match="no point has a class in the 2 training clouds"):
        tasks.get("semantickitti", options(task="semantickitti", data_root=str(tmp_path / "scans"))).check()
