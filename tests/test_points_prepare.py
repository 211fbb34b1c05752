"""Preparing S3DIS and SemanticKITTI from small raw folders: what comes out, what is refused, runs that are killed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from raw_clouds import TEXT, raw_rooms, raw_scans, state
from sparsemask.errors import UseError
from sparsemask.points import grid_subsample, nearest, read_ply
from sparsemask.tasks.points.layouts import s3dis, semantickitti
from sparsemask.tasks.points.prepare import s3dis as prepare_s3dis
from sparsemask.tasks.points.prepare.command import main, prepare_s3dis_rooms, prepare_semantickitti_scans
from tiny import fails


@pytest.fixture
def rooms(tmp_path) -> Path:
    return raw_rooms(tmp_path)


@pytest.fixture
def scans(tmp_path) -> Path:
    return raw_scans(tmp_path)


def test_s3dis(rooms, tmp_path, capsys):
    assert prepare_s3dis_rooms(rooms, jobs=1) == (2, 0)
    out = tmp_path / "S3DIS_ply"
    table = read_ply(out / "original/Area_1_office_1.ply")
    assert {name: values.dtype.str for name, values in table.items()} == {
        **dict.fromkeys(("x", "y", "z"), "<f4"),
        **dict.fromkeys(("red", "green", "blue", "class"), "|u1"),
    }
    # The least coordinates become 0, and stairs are clutter.
    np.testing.assert_allclose(table["x"], [0, 0.01, 2, 1], atol=1e-6)
    np.testing.assert_allclose(table["y"], [4.5, 4.51, 0, 2.5], atol=1e-6)
    np.testing.assert_array_equal(table["class"], [8, 8, 8, 12])
    (file,) = s3dis.list_clouds(out, "val", test_area=5)
    cloud = file.read()
    assert len(cloud) == 3  # two chair points share a voxel
    np.testing.assert_array_equal(np.sort(cloud.labels), [8, 8, 12])
    np.testing.assert_array_equal(cloud.full_labels, [8, 8, 8, 12])
    assert cloud.projection[0] == cloud.projection[1]
    np.testing.assert_allclose(cloud.colours[cloud.projection[0]], np.array([15, 25, 35]) / 255, atol=1e-6)
    before = state(tmp_path)
    assert prepare_s3dis_rooms(rooms, jobs=1) == (0, 2) and state(tmp_path) == before
    assert main(["s3dis", str(rooms), "--check"]) == 0 and main(["s3dis", str(out), "--check"]) == 0
    assert "Area_1 1 of 44, Area_5 1 of 68" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, z, red",
    [
        (b"1 2 3.5 185\x10187 4\n", 3.5, 185),
        (b"1 2 3.\x105 185 187 4\n", 3.05, 185),
        (b"1 2 3.5 185 1\xff7 4\n", 3.5, 185),
    ],
)
def test_a_damaged_character_is_mended(line, z, red, rooms):
    path = rooms / "Area_5/hallway_6/Annotations/ceiling_1.txt"
    path.write_bytes(TEXT.encode() + line + TEXT.encode())
    table, mended = prepare_s3dis.read_annotation(path)
    # In place of a space it was a space; where all columns are there, it was a digit.
    assert table.shape == (7, 6) and table[3, 2] == z and table[3, 3] == red
    assert len(mended) == 1 and "hallway_6" in mended[0] and "line 4" in mended[0]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.txt")], ["Area_1_office_1", "no points"]),
        (lambda folder: (folder / "wall_1.txt").write_text("1 2 3 4 5 6\n1 2 3 4\n"), ["wall_1.txt", "not a table"]),
        (lambda folder: (folder / "wall_1.txt").write_text("1 2 3 4 5\n"), ["wall_1.txt", "5 columns"]),
        (lambda folder: (folder / "wall_1.txt").write_text("hello, world\n"), ["wall_1.txt", "line 1"]),
        (lambda folder: (folder / "wall_1.txt").write_text("nan 2 3 4 5 6\n"), ["1 of 5 points", "not finite"]),
        (lambda folder: (folder / "wall_1.txt").write_text("1 2 3 4 5 600\n"), ["colours", "0 and 255"]),
    ],
)
def test_rooms_that_cannot_be_prepared(spoil, words, rooms, tmp_path, capfd):
    spoil(rooms / "Area_1/office_1/Annotations")
    if "no points" in words:
        words = [str(rooms / "Area_1/office_1"), "no points"]
    fails(capfd, main, ["s3dis", str(rooms), "--jobs", "1"], words)
    assert not list(tmp_path.glob("S3DIS_ply/*/*office*"))  # nothing of that room was written


def test_semantickitti(scans, capsys):
    assert main(["semantickitti", str(scans), "--jobs", "1"]) == 0
    out = scans / "sequences_0.06"
    assert sorted(str(path) for path in state(out)) == [
        "00/labels/000000.npy",
        "00/velodyne/000000.npy",
        "08/labels/000000.npy",
        "08/proj/000000_proj.npz",
        "08/velodyne/000000.npy",
        "11/proj/000000_proj.npz",
        "11/velodyne/000000.npy",
    ]
    raw = scans / "sequences/08"
    points = np.fromfile(raw / "velodyne/000000.bin", "<f4").reshape(-1, 4)[:, :3]
    mapped = semantickitti.read_labels(raw / "labels/000000.label", 300)
    sub, _, voted = grid_subsample(points, 0.06, labels=mapped)
    for part, count in (("train", 1), ("val", 1), ("test", 1), ("all", 3)):
        assert len(semantickitti.list_clouds(scans, part)) == count
    (file,) = semantickitti.list_clouds(out, "val")
    cloud = file.read()
    assert cloud.name == "08/000000" and cloud.colours is None
    np.testing.assert_array_equal(cloud.xyz, sub)
    np.testing.assert_array_equal(cloud.labels, voted.astype(int) - 1)
    np.testing.assert_array_equal(cloud.full_labels, mapped.astype(int) - 1)
    np.testing.assert_array_equal(cloud.projection, nearest(sub, points))
    test = semantickitti.list_clouds(scans, only=["11/000000"])[0].read()
    assert test.labels is None and test.full_labels is None and len(test.projection) == 300
    assert prepare_semantickitti_scans(scans, jobs=1) == (0, 3)
    # Projections of training scans are an option; only what they lack is made.
    assert prepare_semantickitti_scans(scans, project=True, jobs=1) == (1, 2)
    assert len(semantickitti.list_clouds(scans, "train")[0].read().projection) == 300
    assert main(["semantickitti", str(scans), "--check"]) == 0 == main(["semantickitti", str(out), "--check"])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: os.truncate(folder / "velodyne/000000.bin", 4790), ["000000.bin", "4790 bytes", "truncated"]),
        (lambda folder: os.truncate(folder / "velodyne/000000.bin", 0), ["000000.bin", "no points"]),
        (lambda folder: os.truncate(folder / "labels/000000.label", 1196), ["299 labels", "300 points"]),
        (lambda folder: np.full(1200, np.nan, "f4").tofile(folder / "velodyne/000000.bin"), ["300 of 300 points"]),
        (lambda folder: np.full(300, 12, "u4").tofile(folder / "labels/000000.label"), ["does not know: 12"]),
        (lambda folder: (folder / "velodyne/000001.bin").write_bytes(bytes(16)), ["1 scans have no labels", "000001"]),
    ],
)
def test_scans_that_cannot_be_prepared(spoil, words, scans, capfd):
    spoil(scans / "sequences/08")
    fails(capfd, main, ["semantickitti", str(scans), "--sequences", "08", "--jobs", "1"], words)
    assert not list(scans.glob("sequences_0.06/*/*/*"))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["s3dis", "{}"], ["no rooms"]),
        (["semantickitti", "{}"], ["sequences/NN/velodyne"]),
        (["s3dis", "{}", "--check"], ["prepare-points s3dis"]),
        (["semantickitti", "{}", "--check"], ["prepare-points semantickitti"]),
        (["s3dis", "{}", "--grid", "0"], ["--grid 0"]),
    ],
)
def test_nothing_there(argv, words, tmp_path, capfd):
    fails(capfd, main, [text.format(tmp_path) for text in argv], words)


def test_folders_prepared_by_the_public_code(rooms, scans, tmp_path):
    """Projections as pickles, a search tree that is never opened, colours and labels of other types."""
    prepare_s3dis_rooms(rooms, jobs=1)
    prepare_semantickitti_scans(scans, jobs=1)
    (room,) = s3dis.list_clouds(tmp_path / "S3DIS_ply", "val", test_area=5)
    (scan,) = semantickitti.list_clouds(scans, "val")
    ours = [room.read(), scan.read()]
    stem = room.path.with_suffix("")
    for proj, content in (
        (stem.with_name(f"{stem.name}_proj"), [ours[0].projection, ours[0].full_labels.astype(np.uint8)]),
        (scan.path.parents[1] / "proj/000000_proj", [ours[1].projection]),
    ):
        proj.with_suffix(".npz").unlink()
        proj.with_suffix(".pkl").write_bytes(pickle.dumps(content))
    stem.with_name(f"{stem.name}_KDTree.pkl").write_bytes(b"not to be read")
    labels = scan.path.parents[1] / "labels/000000.npy"
    np.save(labels, np.load(labels).astype(np.int32)[:, None])
    for file, expected in zip((room, scan), ours, strict=True):
        found = file.read()
        for name in ("xyz", "labels", "projection", "full_labels"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert main(["s3dis", str(tmp_path / "S3DIS_ply"), "--check"]) == 0
    assert main(["semantickitti", str(scans / "sequences_0.06"), "--check"]) == 0


def test_real_scans(shared_data, tmp_path):
    folder = shared_data / "semantickitti_sample"
    assert prepare_semantickitti_scans(folder, tmp_path / "p", project=True, jobs=1) == (2, 0)
    one, other = (file.read() for file in semantickitti.list_clouds(tmp_path / "p", "train"))
    assert len(one.projection) == 124668 and 80_000 < len(one) < 90_000 and len(other) != len(one)
    # Thinning out changes few labels: those of the nearest thinned-out points are nearly all right.
    assert (one.labels[one.projection] == one.full_labels).mean() > 0.98


def test_a_name_that_is_no_rooms():
    with pytest.raises(UseError, match="no room's name"):
        s3dis.area_of("kitchen")
