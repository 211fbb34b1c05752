"""Predictions under a scan's name are of all its points: carried back, or refused before any work."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from small_clouds import options, rooms
from sparsemask import UseError, spaces, tasks
from sparsemask.cli.segment_points import main
from sparsemask.devices import arithmetic
from sparsemask.tasks.points.clouds.graph import nearest
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.tasks.points.layouts import s3dis, semantickitti
from sparsemask.tasks.points.prepare.command import prepare_semantickitti_scans
from sparsemask.tasks.protocol import EvaluationContext
from test_points_segment import network
from test_points_task import constant
from tiny import fails

HERE = EvaluationContext(arithmetic=arithmetic(-1))
POINTS = 600


@pytest.fixture
def scans(tmp_path):
    """A scan of a training sequence, prepared without projection, as published."""
    rng = np.random.default_rng(0)
    for part in ("velodyne", "labels"):
        (tmp_path / "sequences/00" / part).mkdir(parents=True)
    xyz = rng.normal(0, 2, (POINTS, 4)).astype("<f4")
    xyz[:, 3] = 0.5
    xyz.tofile(tmp_path / "sequences/00/velodyne/000000.bin")
    rng.choice([10, 40, 70], POINTS).astype("<u4").tofile(tmp_path / "sequences/00/labels/000000.label")
    prepare_semantickitti_scans(tmp_path, grid=1.0, jobs=1)
    assert not (tmp_path / "sequences_1.00/00/proj").exists()
    return tmp_path


def kitti(folder):
    given = options(task="semantickitti", data_root=str(folder), train_scans=["00"], eval_scans=["00"], grid=1.0)
    return tasks.get("semantickitti", given), given


def test_a_scan_without_projection_is_carried_back(scans):
    task, given = kitti(scans)
    cloud = task.clouds("eval")[0]
    assert cloud.projection is None and len(cloud) < POINTS
    classes = np.arange(len(cloud)) % 19
    raw = np.fromfile(task.write(scans / "out", 0, classes), "<u4")
    xyz = np.fromfile(scans / "sequences/00/velodyne/000000.bin", "<f4").reshape(-1, 4)[:, :3]
    assert len(raw) == POINTS
    np.testing.assert_array_equal(raw, semantickitti.raw_labels(classes[nearest(cloud.xyz, xyz)]))
    seen = []
    write = lambda index, found: seen.append(task.write(scans / "voted", index, found))
    task.evaluate(constant(19, 8), HERE, on_prediction=write)
    assert seen[0].stat().st_size == 4 * POINTS


def test_without_the_scan_it_is_refused_before_the_work(scans):
    shutil.rmtree(scans / "sequences")
    task, given = kitti(scans)
    with pytest.raises(UseError, match=r"000000\.npy: a thinned-out cloud.*000000_proj\.npz.*--project makes it"):
        task.evaluate(lambda _: pytest.fail("the network was called"), HERE, on_prediction=lambda *_: None)
    assert task.evaluate(constant(19, 8), HERE).matrix.sum()  # scores alone need no other points


def test_predictions_of_another_number_of_points_are_refused(scans):
    with pytest.raises(UseError, match="7 predictions for"):
        kitti(scans)[0].write(scans / "out", 0, np.zeros(7, int))
    assert not (scans / "out").exists()


def test_a_room_without_projection_is_carried_back(tmp_path):
    folder = rooms(tmp_path)
    for path in folder.rglob("*_proj.npz"):
        path.unlink()
    given = options(data_root=str(folder), grid=0.25)
    task = tasks.get("s3dis", given)
    room = task.clouds("eval")[0]
    full = s3dis.read_original(task.clouds("eval").files[0])
    classes = np.arange(len(room)) % 13
    columns = read_ply(task.write(tmp_path / "out", 0, classes))
    np.testing.assert_array_equal(columns["pred"], classes[nearest(room.xyz, full.xyz)])
    np.testing.assert_array_equal(columns["label"], full.labels)
    for path in folder.rglob("original/*.ply"):
        path.unlink()
    with pytest.raises(UseError, match="a thinned-out cloud"):
        task.evaluate(lambda _: pytest.fail("the network was called"), HERE, on_prediction=lambda *_: None)


@pytest.mark.parametrize("projected", [False, True])
def test_segment_points_labels_the_whole_scan(scans, projected, monkeypatch, capfd):
    monkeypatch.chdir(scans)
    if projected:
        prepare_semantickitti_scans(scans, grid=1.0, jobs=1, project=True)
        shutil.rmtree("sequences")
    spaces.get("smpointseg").save("w.safetensors", network(3, 19))
    thin = "sequences_1.00/00/velodyne/000000.npy"
    argv = [thin, "000000.label", "--weights", "w.safetensors", "--grid", "0.5", "--backend", "reference"]
    assert main(argv) == 0
    assert len(np.fromfile("000000.label", "<u4")) == POINTS and f"all {POINTS} points" in capfd.readouterr().out
    assert main([thin, "out.npz", *argv[2:]]) == 0  # which says where its points are
    with np.load("out.npz") as found:
        assert len(found["pred"]) == len(found["xyz"]) == len(np.load(thin))


def test_segment_points_refuses_a_thinned_scan_alone(scans, monkeypatch, capfd):
    monkeypatch.chdir(scans)
    shutil.rmtree("sequences")
    spaces.get("smpointseg").save("w.safetensors", network(3, 19))
    argv = ["sequences_1.00/00/velodyne/000000.npy", "000000.label", "--weights", "w.safetensors"]
    fails(capfd, main, argv, ["000000.npy: a thinned-out cloud", "--project"])
    assert not (scans / "000000.label").exists()
