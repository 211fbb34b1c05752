"""Generated rooms: the same every time, in S3DIS's layouts, with all classes; half-made sets are completed."""

from __future__ import annotations

import numpy as np
import pytest

from raw_clouds import state
from sparsemask.errors import UseError
from sparsemask.synthetic.rooms import make_rooms, room
from sparsemask.tasks.points.layouts import s3dis
from sparsemask.tasks.points.layouts.s3dis import NAMES
from sparsemask.tasks.points.prepare.command import main

SMALL = {"areas": 2, "rooms": 2, "points": 600}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "r"
    make_rooms(folder, raw=True, **SMALL)
    return folder


def test_prepared_clouds(rooms):
    assert [file.name for file in s3dis.list_clouds(rooms)] == [
        f"Area_{area}_{kind}_1" for area in (1, 2) for kind in ("conferenceRoom", "office")
    ]
    (held_out, _) = s3dis.list_clouds(rooms / "S3DIS_ply", "val", test_area=2)
    assert held_out.name == "Area_2_conferenceRoom_1" and len(s3dis.list_clouds(rooms, "train", test_area=2)) == 2
    cloud, full = held_out.read(), s3dis.read_original(held_out)
    assert len(cloud.projection) == len(cloud.full_labels) == len(full) == 600 > len(cloud)
    # A room's corner is its origin; it is as large as a room.
    np.testing.assert_array_equal(full.xyz.min(0), 0)
    assert (full.xyz.max(0) > 2.4).all() and (full.xyz.max(0) < 5.5).all()
    assert 0 <= cloud.colours.min() and cloud.colours.max() <= 1
    distance = np.linalg.norm(full.xyz - cloud.xyz[cloud.projection], axis=1)
    assert distance.max() < 0.04 * np.sqrt(3)  # the nearest is no farther than the mean of the point's own voxel
    np.testing.assert_array_equal(cloud.full_labels, full.labels)


def test_all_classes_occur_and_lie_where_they_should():
    seen, heights = set(), {name: [] for name in NAMES}
    for name in ("Area_1_office_1", "Area_2_lounge_1", "Area_3_conferenceRoom_1", "Area_4_office_2"):
        xyz, colours, annotations = room(name, 0, 3000)
        assert list(annotations) == sorted(annotations)
        kinds = np.array([text.split("_")[0] for text in annotations])
        for kind in set(kinds):
            heights[kind].append((xyz[kinds == kind, 2].mean(), xyz[:, 2].max(), colours[kinds == kind].mean()))
        seen |= set(kinds)
    assert seen == set(NAMES)
    assert all(mean < 0.02 for mean, _, _ in heights["floor"])
    assert all(mean > top - 0.1 for mean, top, _ in heights["ceiling"])
    assert all(0.2 < mean < 0.9 for kind in ("table", "chair", "sofa") for mean, _, _ in heights[kind])


def test_the_same_seed_gives_the_same_files_and_another_does_not(rooms, tmp_path):
    make_rooms(tmp_path / "again", **SMALL, jobs=2)
    assert state(tmp_path / "again/S3DIS_ply") == state(rooms / "S3DIS_ply")
    assert not np.array_equal(room("Area_1_office_1", 1, 500)[0], room("Area_1_office_1", 0, 500)[0])
    assert not np.array_equal(room("Area_1_office_2", 0, 500)[0], room("Area_1_office_1", 0, 500)[0])


def test_the_raw_rooms_prepare_to_the_same_clouds(rooms, tmp_path, capsys):
    assert main(["s3dis", str(rooms / "raw"), "--out", str(tmp_path / "p"), "--jobs", "1"]) == 0
    assert "4 prepared, 0 were there already" in capsys.readouterr().out
    assert state(tmp_path / "p") == state(rooms / "S3DIS_ply")


def test_what_is_there_is_left_and_what_is_missing_is_made_again(rooms, tmp_path):
    folder = tmp_path / "r"
    make_rooms(folder, **SMALL)
    before = state(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ply")}
    make_rooms(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.ply")} == times
    torn = folder / "S3DIS_ply/sub_0.040/Area_1_office_1.ply"
    torn.write_bytes(torn.read_bytes()[:-3])
    (folder / "S3DIS_ply/sub_0.040/Area_2_office_1_proj.npz").unlink()
    make_rooms(folder, **SMALL)
    assert state(folder) == before


def test_other_settings_replace_the_rooms_but_no_folder_of_others(tmp_path):
    make_rooms(tmp_path / "r", areas=1, rooms=2, points=300)
    make_rooms(tmp_path / "r", areas=1, rooms=1, points=200)
    assert [len(file.read().projection) for file in s3dis.list_clouds(tmp_path / "r")] == [200]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UseError, match="not empty"):
        make_rooms(tmp_path / "mine", **SMALL)
    assert [path.name for path in (tmp_path / "mine").glob("[!.]*")] == ["letter.txt"]


@pytest.mark.parametrize("flags", [{"points": 3}, {"areas": 0}, {"seed": -1}, {"grid": 0}])
def test_impossible_settings(flags, tmp_path):
    with pytest.raises(UseError):
        make_rooms(tmp_path / "r", **SMALL | flags)


def test_command(tmp_path, capsys):
    flags = ["rooms", str(tmp_path / "r"), "--areas", "1", "--rooms", "1", "--points", "400", "--jobs", "1"]
    assert main(flags) == 0 and main([*flags, "--check"]) == 0
    assert "all is well" in capsys.readouterr().out
