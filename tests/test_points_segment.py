"""segment-points: anybody's cloud to a labelled one, in one pass and by votes; what cannot be is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from small_clouds import cloud
from sparsemask import spaces
from sparsemask.cli.main import VERBS
from sparsemask.cli.segment_points import main
from sparsemask.devices import arithmetic
from sparsemask.tasks.points.clouds.cloud import Cloud
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.points.layouts import semantickitti
from sparsemask.tasks.points.whole import recipe, segment
from spoilt import listing
from tiny import fails


def network(d_in: int, n_class: int, **more):
    torch.manual_seed(0)
    given = {"d_in": d_in, "n_class": n_class, "channels": [4, 8], "n_neighbors": 4, "radius": 0.3, **more}
    return spaces.get("smpointseg").supernet(given).eval()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with weights for scans and for rooms, a scan and a room."""
    monkeypatch.chdir(tmp_path)
    for name, shape in (("scan", (3, 19)), ("room", (6, 13))):
        spaces.get("smpointseg").save(f"{name}.safetensors", network(*shape))
    rng = np.random.default_rng(0)
    (rng.normal(0, 5, (700, 4)) * [1, 1, 1, 0] + [0, 0, 0, 0.5]).astype("<f4").tofile("scan.bin")
    one = cloud(0, 500)
    colours = np.rint(255 * one.colours).astype(np.uint8)
    columns = zip(("x", "y", "z", "red", "green", "blue"), (*one.xyz.T, *colours.T), strict=True)
    write_ply("room.ply", dict(columns) | {"class": one.labels.astype(np.int32)})
    return tmp_path


def test_a_scan_becomes_raw_labels(place, capfd):
    assert main(["scan.bin", "out.label", "--weights", "scan.safetensors"]) == 0
    raw = np.fromfile("out.label", "<u4")
    assert len(raw) == 700 and set(raw.tolist()) <= set(semantickitti.INVERSE_MAP[1:])
    said = capfd.readouterr().out
    for word in ("scan.bin (700 points)", "0.06 m apart", " s (read", "neighbours", "network", "kept "):
        assert word in said


@pytest.mark.parametrize("way", [[], ["--whole"], ["--votes", "--n_points", "64"]], ids=lambda v: v[0] if v else "")
def test_a_room_becomes_a_labelled_cloud_with_pictures(place, capfd, way):
    argv = ["room.ply", "out.ply", "--weights", "room.safetensors", "--grid", "0.1", "--show", "pictures", *way]
    assert main(argv) == 0
    columns, given = read_ply("out.ply"), read_ply("room.ply")
    assert all(np.array_equal(columns[axis], given[axis]) for axis in "xyz")
    assert columns["pred"].max() < 13 and np.array_equal(columns["label"], given["class"])
    # Points of one class have one colour.
    seen = {tuple(columns[c][n] for c in ("pred", "red", "green", "blue")) for n in range(500)}
    assert len(seen) == len(set(columns["pred"].tolist()))
    names = [f"room_{kind}.png" for kind in ("bird", "kept", "perspective")]
    assert sorted(p.name for p in Path("pictures").iterdir()) == names
    assert ("votes" in capfd.readouterr().out) == (way != ["--whole"])  # rooms vote where nothing else is said


def test_arrays_in_arrays_out(place):
    np.save("scan.npy", np.random.default_rng(1).normal(0, 5, (300, 3)))
    assert main(["scan.npy", "out.npz", "--weights", "scan.safetensors"]) == 0
    with np.load("out.npz", allow_pickle=False) as found:
        assert found["xyz"].shape == (300, 3) and found["pred"].dtype == np.uint8
        assert found["names"].tolist() == list(semantickitti.NAMES)


def test_a_page_to_turn_the_cloud_in(place):
    pytest.importorskip("trimesh")
    assert main(["room.ply", "out.ply", "--weights", "room.safetensors", "--grid", "0.1", "--web", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "prediction" in page and "colours" in page and "http://" not in page.split("<script")[0]


def test_a_runs_configuration_says_how_it_was_trained(place):
    config = {"task": "s3dis", "n_points": 64, "grid": 0.2, "vote_smooth": 0.9, "space": "smpointseg"}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    made = recipe(network(6, 13), config)
    assert (made.settings.n_points, made.grid, made.smooth) == (64, 0.2, 0.9) and made.settings.centred
    assert recipe(network(6, 13), config, grid=0.1).grid == 0.1  # what is asked for wins
    published = recipe(network(3, 19), {})
    assert (published.settings.n_points, published.grid, published.smooth) == (45056, 0.06, 0.98)
    assert main(["room.ply", "out.ply", "--weights", "room.safetensors"]) == 0


def test_duplicates_share_their_class_and_one_pass_is_order_free():
    xyz = np.repeat(np.random.default_rng(0).random((100, 3)) * 5, 2, 0).astype(np.float32)
    made, where = recipe(network(3, 19), {}, grid=0.2), arithmetic(-1)
    found = segment(Cloud("a", xyz), network(3, 19), made, where)
    assert len(found.classes) == 200 and np.array_equal(found.classes[::2], found.classes[1::2])
    backwards = segment(Cloud("a", xyz[::-1].copy()), network(3, 19), made, where)
    assert np.array_equal(backwards.classes[::-1], found.classes)
    assert len(found.masks) == 2 and len(found.masks[0]) == len(found.thin) == len(found.crop)


def truncated(place):
    (place / "scan.bin").write_bytes((place / "scan.bin").read_bytes()[:-3])


def nan(place):
    xyz = np.zeros((9, 4), "<f4")
    xyz[2, 1] = np.nan
    xyz.tofile(place / "scan.bin")


def empty(place):
    (place / "scan.bin").write_bytes(b"")


def few(place):
    np.zeros((3, 4), "<f4").tofile(place / "scan.bin")


def nothing(place):
    pass


SCAN = ["scan.bin", "out.label", "--weights", "scan.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "argv", "words"),
    [
        (truncated, SCAN, ["scan.bin", "truncated"]),
        (nan, SCAN, ["1 of 9 points"]),
        (empty, SCAN, ["no points"]),
        (few, SCAN, ["1 points are too few"]),
        (nothing, ["gone.bin", *SCAN[1:]], ["gone.bin"]),
        (nothing, ["scan.bin", "out.obj", *SCAN[2:]], ["out.obj", ".ply, .label, .npz"]),
        (nothing, ["scan.bin", "no/out.ply", *SCAN[2:]], ["no such folder"]),
        (nothing, [*SCAN, "--web", "page.txt"], [".html"]),
        (nothing, [*SCAN, "--show", "scan.bin"], ["--show"]),
        (nothing, [*SCAN[:3], "gone.pt"], ["gone.pt"]),
        (nothing, [*SCAN[:3], "scan.bin"], ["scan.bin"]),
        (nothing, [*SCAN[:3], "room.safetensors"], ["out.label", "SemanticKITTI"]),
        (nothing, ["scan.bin", "out.ply", "--weights", "room.safetensors"], ["no colours"]),
        (nothing, [*SCAN, "--votes", "--whole"], ["not allowed"]),
    ],
    ids=lambda v: getattr(v, "__name__", " ".join(v[-2:]) if isinstance(v, list) else ""),
)
def test_bad_input(place, capfd, spoil, argv, words):
    spoil(place)
    before = listing(place)
    fails(capfd, main, argv, words)
    assert listing(place) == before


def test_networks_of_other_classes_are_refused():
    with pytest.raises(Exception, match="5 classes"):
        recipe(network(3, 5), {})


def test_the_command_knows_it():
    assert VERBS["segment-points"] == "sparsemask.cli.segment_points" and "prepare-points" in VERBS


@pytest.mark.real
def test_a_real_scan(tmp_path, monkeypatch, capfd, shared_data):
    monkeypatch.chdir(tmp_path)
    spaces.get("smpointseg").save("scan.safetensors", network(3, 19))
    scan = shared_data / "semantickitti_sample/sequences/00/velodyne/000000.bin"
    assert main([str(scan), "out.label", "--weights", "scan.safetensors"]) == 0
    assert Path("out.label").stat().st_size == 4 * 124668
    assert "83889 points 0.06 m apart" in capfd.readouterr().out
