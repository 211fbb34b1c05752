"""Headerless scans: the layout by suffix and by flag, values that cannot be, and coordinates far from the origin."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from sparsemask import UseError, spaces
from sparsemask.cli.segment_points import main
from sparsemask.coordinates import near_origin
from sparsemask.devices import arithmetic
from sparsemask.pictures.point_clouds.render import checked
from sparsemask.pictures.point_clouds.viewer import write_viewer
from sparsemask.points import read_cloud
from sparsemask.tasks.points.clouds.cloud import Cloud
from sparsemask.tasks.points.clouds.grid import grid_subsample
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.points.clouds.scans import read_scan
from sparsemask.tasks.points.layouts import s3dis
from sparsemask.tasks.points.prepare.command import main as prepare
from sparsemask.tasks.points.prepare.command import prepare_s3dis_rooms
from sparsemask.tasks.points.whole import recipe, segment
from test_points_segment import network
from tiny import fails

HERE = np.array([512_345.0, 4_012_345.0, 310.0])  # metres, as of a map's zone


def scan(columns: int, points: int = 960, seed: int = 0) -> np.ndarray:
    """A street as a sensor sees it: wide, flat, remission (0 to 1) or intensity (0 to 255) and ring behind."""
    rng = np.random.default_rng(seed)
    angle, far = rng.uniform(0, 2 * np.pi, points), rng.gamma(2, 8, points)
    xyz = np.stack([far * np.cos(angle), far * np.sin(angle), rng.uniform(-1.8, 2.5, points)], 1)
    bright = rng.random((points, 1)) * (255 if columns == 5 else 1)
    more = [bright, rng.integers(0, 32, (points, 1)), rng.random((points, 3))]
    return np.concatenate([xyz, *more], 1)[:, :columns].astype("<f4")


def room(columns: int, points: int = 960) -> np.ndarray:
    """A room in the positive octant: nothing in it is negative."""
    rng = np.random.default_rng(1)
    return (rng.random((points, columns)) * [8, 5, 2.7, 1, 32, 1, 1, 1][:columns]).astype("<f4")


@pytest.mark.parametrize("make", [scan, room])
@pytest.mark.parametrize("columns", [3, 5, 6])
def test_another_number_of_columns_is_refused_with_the_right_one(columns, make, tmp_path):
    make(columns).tofile(tmp_path / "a.bin")
    with pytest.raises(UseError, match=rf"a\.bin: read as 4 float32 a point, .*: it looks like {columns} \(--bin_col"):
        read_cloud(tmp_path / "a.bin")
    found = read_cloud(tmp_path / "a.bin", columns)
    np.testing.assert_array_equal(found.xyz, make(columns)[:, :3])


@pytest.mark.parametrize("points", [959, 961])
def test_a_size_that_does_not_fit_gets_the_hint_too(points, tmp_path):
    scan(3, points).tofile(tmp_path / "a.bin")
    with pytest.raises(UseError, match="no whole number of points.*it looks like 3: --bin_columns 3"):
        read_scan(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(scan(4).tobytes()[:-4])
    with pytest.raises(UseError, match="truncated"):
        read_scan(tmp_path / "b.bin")


@pytest.mark.parametrize("make", [scan, room])
def test_the_usual_layouts_are_read_by_their_suffix(make, tmp_path):
    for name, columns in (("a.bin", 4), ("a.pcd.bin", 5), ("b.PCD.BIN", 5)):
        for points in (5, 960):
            make(columns, points).tofile(tmp_path / name)
            np.testing.assert_array_equal(read_cloud(tmp_path / name).xyz, make(columns, points)[:, :3])
    for spread in (np.zeros((960, 4)), np.random.default_rng(0).random((960, 4))):  # nothing tells columns apart
        spread.astype("<f4").tofile(tmp_path / "c.bin")
        np.testing.assert_array_equal(read_scan(tmp_path / "c.bin"), spread[:, :3].astype("<f4"))
    for most in (255, 65535):
        table = scan(4) * np.float32([1, 1, 1, most])
        table.tofile(tmp_path / "d.bin")
        np.testing.assert_array_equal(read_scan(tmp_path / "d.bin"), table[:, :3])


@pytest.mark.parametrize("draw", ["random", "standard_exponential"])
def test_small_scans_are_not_refused_by_chance(draw, tmp_path):
    for seed in range(60):
        for points in (24, 120, 300, 960):
            table = getattr(np.random.default_rng(seed), draw)((points, 4)).astype("<f4")
            table.tofile(tmp_path / "a.bin")
            np.testing.assert_array_equal(read_scan(tmp_path / "a.bin"), table[:, :3])


IMPOSSIBLE = {
    "remission": (lambda t: t * np.float32([1, 1, 1, -1]), "remission would be -.* to -.*--bin_columns N"),
    "too bright": (lambda t: t * np.float32([1, 1, 1, 1e6]), "remission would be"),
    "ranges": (lambda t: t * np.float32([1e8, 1, 1, 1]), "coordinates reach"),
    "doubles": (lambda t: np.random.default_rng(0).normal(0, 9, (960, 2)).astype("<f8"), "coordinates|remission"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_values_that_cannot_be_are_refused(what, tmp_path):
    spoil, words = IMPOSSIBLE[what]
    spoil(scan(4)).tofile(tmp_path / "a.bin")
    with pytest.raises(UseError, match=words):
        read_scan(tmp_path / "a.bin")


def test_who_names_the_layout_may_have_any_remission(tmp_path):
    (scan(4) - np.float32([0, 0, 0, 0.5])).tofile(tmp_path / "a.bin")
    assert len(read_scan(tmp_path / "a.bin", 4)) == 960
    with pytest.raises(UseError, match="3 to 16 are read"):
        read_scan(tmp_path / "a.bin", 2)


@pytest.mark.real
def test_a_real_scan_is_what_it_says(shared_data, tmp_path):
    path = shared_data / "semantickitti_sample/sequences/00/velodyne/000000.bin"
    table = np.fromfile(path, "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(read_scan(path), table[:, :3])
    for columns, made in ((3, table[:99_999, :3]), (5, np.column_stack([table, np.arange(len(table)) % 64])[:99_996])):
        made.astype("<f4").tofile(tmp_path / "a.bin")
        with pytest.raises(UseError, match=f"it looks like {columns}"):
            read_scan(tmp_path / "a.bin")
        np.testing.assert_array_equal(read_scan(tmp_path / "a.bin", columns), made[:, :3].astype("<f4"))


# Coordinates


def save(path, xyz, colours):
    kind = path.suffix
    if kind == ".ply":
        columns = dict(zip(("x", "y", "z", "red", "green", "blue"), (*xyz.T, *colours.T), strict=True))
        write_ply(path, columns)
    elif kind == ".npy":
        np.save(path, np.column_stack([xyz, colours]))
    elif kind == ".npz":
        np.savez(path, xyz=xyz, colours=colours)
    else:
        rows = "\n".join(" ".join(f"{v:.4f}" for v in row) + " 9 9 9" for row in xyz)
        names = "".join(f"property double {a}\n" for a in "xyz") + "".join(
            f"property uchar {c}\n" for c in ("red", "green", "blue")
        )
        head = f"ply\nformat ascii 1.0\nelement vertex {len(xyz)}\n{names}end_header\n"
        path.with_suffix(".ply").write_text(head + rows + "\n")


@pytest.fixture(scope="module")
def inside():
    """A room's points in millimetres from its corner, and colours."""
    rng = np.random.default_rng(3)
    return np.round(rng.random((700, 3)) * [4, 3, 2], 3), rng.integers(0, 256, (700, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.ply", "a.npy", "a.npz", "a.ascii"])
def test_every_reader_keeps_what_float32_cannot_hold(name, inside, tmp_path):
    xyz, colours = inside
    save(tmp_path / name, xyz + HERE, colours)
    cloud = read_cloud((tmp_path / name).with_suffix(".ply" if name == "a.ascii" else (tmp_path / name).suffix))
    assert cloud.xyz.dtype == np.float32 and np.abs(cloud.xyz).max() < 20
    assert cloud.coordinates.dtype == np.float64
    assert np.abs(cloud.coordinates - (xyz + HERE)).max() < 2e-6
    apart = np.linalg.norm(xyz[1:] - xyz[:-1], axis=1)
    np.testing.assert_allclose(np.linalg.norm(cloud.xyz[1:] - cloud.xyz[:-1], axis=1), apart, atol=2e-6)


def test_clouds_near_the_origin_are_not_moved(inside):
    for xyz in (inside[0], inside[0].astype(np.float32) - 50, np.array([[0.0, 0, 0], [1e6, 1e6, 0], [2, 1, 0]])):
        found, offset = near_origin(xyz)
        np.testing.assert_array_equal(found, xyz.astype(np.float32))
        assert not offset.any()
    assert Cloud("a", found).coordinates is found


def test_coordinates_that_the_file_has_rounded_are_named(inside, tmp_path, capsys):
    np.save(tmp_path / "a.npy", (inside[0] + HERE).astype(np.float32))
    read_cloud(tmp_path / "a.npy")
    assert "note: " in (said := capsys.readouterr().err) and "rounded to 0.25 m" in said
    np.save(tmp_path / "a.npy", inside[0] + HERE)
    read_cloud(tmp_path / "a.npy")
    assert not capsys.readouterr().err


def test_grids_keep_the_precision_they_are_given(inside):
    near, far = (grid_subsample(inside[0] + shift, 0.25)[0] for shift in (0, np.array([500_000.0, 4_000_000, 300])))
    assert far.dtype == np.float64 and len(near) == len(far)
    np.testing.assert_allclose(far - [500_000, 4_000_000, 300], near, atol=1e-8)


@pytest.mark.parametrize("shape", [(6, 13), (3, 19)], ids=["centred, by votes", "from the sensor, in one pass"])
def test_where_a_cloud_lies_does_not_change_its_classes(shape, inside, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    spaces.get("smpointseg").save("w.safetensors", network(*shape))
    xyz = inside[0] - [2, 1.5, 0]  # as a sensor's: about the origin
    shift = 12 * np.round(HERE / 12)
    for name, place in (("near", 0), ("far", shift)):
        np.savez(f"{name}.npz", xyz=xyz + place, colours=inside[1])
        for out in (f"{name}_out.ply", f"{name}_out.npz"):
            argv = [f"{name}.npz", out, "--weights", "w.safetensors", "--grid", "0.48", "--n_points", "128"]
            assert main([*argv, "--backend", "reference"]) == 0, capfd.readouterr().err
    near, far = (read_ply(f"{name}_out.ply") for name in ("near", "far"))
    assert (near["pred"] == far["pred"]).mean() > 0.99 and near["x"].dtype == np.float32
    written = np.stack([far[axis] for axis in "xyz"], 1)
    assert np.abs(written - (xyz + shift)).max() < 2e-6
    with np.load("far_out.npz") as found:
        assert np.abs(found["xyz"] - (xyz + shift)).max() < 2e-6
        np.testing.assert_array_equal(found["pred"], far["pred"])


def test_clouds_made_in_memory_may_lie_anywhere(inside):
    made = recipe(net := network(6, 13), {}, n_points=128, grid=0.48)
    colours = (inside[1] / 255).astype(np.float32)
    shift = 12 * np.round(HERE / 12)
    near, far = (
        segment(Cloud("a", xyz, colours), net, made, arithmetic(-1)).classes
        for xyz in (inside[0].astype(np.float32), inside[0] + shift)
    )
    assert (near == far).mean() > 0.99


def test_pictures_and_pages_of_far_clouds(inside, tmp_path):
    near, far = checked(inside[0]), checked(inside[0] + HERE)
    np.testing.assert_allclose(far - far[0], near - near[0], atol=2e-6)
    pytest.importorskip("trimesh")
    layer = {"colours": inside[1]}
    pages = []
    for name, xyz in (("near", inside[0]), ("far", inside[0] + 12 * np.round(HERE / 12))):
        write_viewer(tmp_path / f"{name}.html", xyz, layer)
        pages.append((tmp_path / f"{name}.html").read_text())
    points = [page.partition('"points":"')[2].partition('"')[0] for page in pages]
    a, b = (np.frombuffer(base64.b64decode(text), "<u2").astype(int) for text in points)
    assert np.abs(a - b).max() <= 1


def test_the_flag_reaches_the_reader(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    spaces.get("smpointseg").save("w.safetensors", network(3, 19))
    scan(3).tofile("a.bin")
    argv = ["a.bin", "out.label", "--weights", "w.safetensors", "--backend", "reference"]
    fails(capfd, main, argv, ["a.bin", "it looks like 3 (--bin_columns 3)"])
    assert main([*argv, "--bin_columns", "3"]) == 0
    assert len(np.fromfile("out.label", "<u4")) == 960
    np.save("a.npy", scan(3))
    fails(capfd, main, ["a.npy", *argv[1:], "--bin_columns", "3"], ["a.npy", ".bin files only"])


def test_preparing_scans_of_another_layout(tmp_path, capfd):
    folder = tmp_path / "sequences/00/velodyne"
    folder.mkdir(parents=True)
    scan(5).tofile(folder / "000000.bin")
    argv = ["semantickitti", str(tmp_path), "--project", "--jobs", "1"]
    fails(capfd, prepare, argv, ["000000.bin", "it looks like 5 (--bin_columns 5)"])
    assert prepare([*argv, "--bin_columns", "5"]) == 0
    with np.load(tmp_path / "sequences_0.06/00/proj/000000_proj.npz") as found:
        assert len(found["projection"]) == 960
    assert prepare([*argv, "--bin_columns", "5", "--check"]) == 0


def test_preparing_georeferenced_rooms(inside, tmp_path):
    clouds = []
    for name, place in (("near", np.zeros(3)), ("far", HERE)):
        folder = tmp_path / name / "Area_1/office_1/Annotations"
        folder.mkdir(parents=True)
        with open(folder / "chair_1.txt", "wb") as file:
            np.savetxt(file, np.column_stack([inside[0] + place, inside[1]]), "%.3f %.3f %.3f %d %d %d")
        prepare_s3dis_rooms(tmp_path / name, tmp_path / f"{name}_out", 0.12, 1)
        clouds.append([s3dis.read_original(f) for f in s3dis.list_clouds(tmp_path / f"{name}_out", grid=0.12)][0])
    np.testing.assert_allclose(clouds[1].xyz, clouds[0].xyz, atol=2e-6)
    # Prepared clouds of other tools may keep their coordinates.
    path = tmp_path / "kept/S3DIS_ply/sub_0.120/Area_1_office_1.ply"
    names = ("x", "y", "z", "red", "green", "blue")
    columns = dict(zip(names, [*(inside[0] + HERE).T, *inside[1].T], strict=True))
    write_ply(path, columns | {"class": np.zeros(700, np.uint8)})
    [file] = s3dis.list_clouds(tmp_path / "kept", grid=0.12)
    assert np.abs(file.read().coordinates - (inside[0] + HERE)).max() < 2e-6
