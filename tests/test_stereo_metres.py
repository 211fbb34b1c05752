"""sparsemask disparity in metres: calibration files, depth maps, coloured points; folders of pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemask import UseError
from sparsemask.cli import disparity
from sparsemask.spaces.smstereo.checkpoints import save_smstereo
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.sparse import backend
from sparsemask.synthetic.stereo_scenes import make_scene
from sparsemask.tasks.stereo.calibration import Camera, read_calibration, write_depth
from sparsemask.tasks.stereo.files import read_disparity
from spoilt import listing, truncate
from tiny import ROOT, borrow_kernels, fails

# The first lines are those of KITTI 2012's training/calib/000000.txt.
KITTI_2012 = """\
P0: 7.070912e+02 0.000000e+00 6.018873e+02 0.000000e+00 0.000000e+00 7.070912e+02 1.831104e+02 0.000000e+00 \
0.000000e+00 0.000000e+00 1.000000e+00 0.000000e+00
P1: 7.070912e+02 0.000000e+00 6.018873e+02 -3.798145e+02 0.000000e+00 7.070912e+02 1.831104e+02 0.000000e+00 \
0.000000e+00 0.000000e+00 1.000000e+00 0.000000e+00
P2: 7.070912e+02 0 6.018873e+02 4.688783e+01 0 7.070912e+02 1.831104e+02 1.178601e-01 0 0 1 6.203223e-03
P3: 7.070912e+02 0 6.018873e+02 -3.334597e+02 0 7.070912e+02 1.831104e+02 1.930130e+00 0 0 1 3.318498e-03
"""
KITTI_2015 = """\
calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
P_rect_02: 7.215377e+02 0 6.095593e+02 4.485728e+01 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03
P_rect_03: 7.215377e+02 0 6.095593e+02 -3.395242e+02 0 7.215377e+02 1.728540e+02 2.199936e+00 0 0 1 2.729905e-03
"""
MIDDLEBURY = """\
cam0=[3979.911 0 1244.772; 0 3979.911 1019.507; 0 0 1]
cam1=[3979.911 0 1369.115; 0 3979.911 1019.507; 0 0 1]
doffs=124.343
baseline=193.001
width=2964
height=1988
"""
SIZE = (33, 58)


@pytest.fixture(autouse=True, scope="module")
def plain_arithmetic():
    """One backend and one thread: for so few pixels more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("reference"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A random network, as a file."""
    path = tmp_path_factory.mktemp("weights") / "smstereo.safetensors"
    torch.manual_seed(0)
    save_smstereo(path, SMStereo(maxdisp=16))
    return path


@pytest.fixture
def place(weights, tmp_path, monkeypatch) -> Path:
    """A pair, folders of three pairs, a calibration, and a network that is found in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    home = borrow_kernels(tmp_path / "home")
    monkeypatch.setenv("SPARSEMASK_HOME", str(home))
    (home / "weights").mkdir()
    (home / "weights" / weights.name).symlink_to(weights)
    Path("calib.txt").write_text(KITTI_2012)
    for number in range(3):
        scene = make_scene(np.random.default_rng(number), *SIZE, 12)
        for side in ("left", "right"):
            Path(side).mkdir(exist_ok=True)
            Image.fromarray(getattr(scene, side)).save(f"{side}/{number:04d}.png")
    for side in ("left", "right"):
        shutil.copy(f"{side}/0000.png", f"{side}.png")
    return tmp_path


def read_points(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, 3) and colours (N, 3) of a binary little-endian PLY of floats and bytes."""
    head, _, body = Path(path).read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    assert [line.split()[1:] for line in lines if line.startswith("property")] == [
        ["float", "x"], ["float", "y"], ["float", "z"], ["uchar", "red"], ["uchar", "green"], ["uchar", "blue"],
    ]  # fmt: skip
    table = np.frombuffer(body, [("at", "<f4", 3), ("colour", "u1", 3)])
    assert len(table) == count
    return table["at"], table["colour"]


# ---- calibration


def test_kittis_cameras(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text(KITTI_2012)
    grey = read_calibration(path, "training/image_0/000000_10.png")
    assert (grey.focal, grey.centre, grey.offset) == (707.0912, (601.8873, 183.1104), 0)
    assert grey.baseline == pytest.approx(379.8145 / 707.0912)  # 0.537 m, as published
    colour = read_calibration(path, "training/colored_0/000000_10.png")
    assert colour.baseline == pytest.approx((46.88783 + 333.4597) / 707.0912)
    assert read_calibration(path, "anywhere/a.png") == colour == read_calibration(path, "raw/image_02/data.png")
    path.write_text(KITTI_2015)
    assert read_calibration(path, "training/image_2/a.png").baseline == pytest.approx(384.38148 / 721.5377)
    with pytest.raises(UseError, match="no matrices of cameras 0 and 1"):
        read_calibration(path, "training/image_0/a.png")


def test_middleburys_cameras(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text(MIDDLEBURY)
    camera = read_calibration(path)
    assert (camera.focal, camera.baseline, camera.offset) == (3979.911, pytest.approx(0.193001), 124.343)
    # As its page says: Z = baseline * f / (d + doffs), here for d = 100.
    assert camera.depth(np.array([[100.0]]))[0, 0] == pytest.approx(193.001 * 3979.911 / 224.343 / 1000)


BAD = {
    "nothing": ("a b c\n", "no calibration of KITTI"),
    "few": ("P0: 1 2 3\n", "'1 2 3' are not 12 finite numbers"),
    "words": ("cam0=[a 0 0; 0 1 0; 0 0 1]\nbaseline=1\n", "not 9 finite numbers"),
    "nan": ("baseline=nan\n", "not 1 finite numbers"),
    "behind": (KITTI_2012.replace("-3.798145e+02", "3.798145e+02"), "both must be above 0"),
    "no focal": ("P0: " + "0 " * 12 + "\nP1: " + "0 " * 12 + "\n", "both must be above 0"),
    "alone": (KITTI_2012.splitlines()[0] + "\n", "no matrices of cameras 0 and 1"),
    "binary": ("\0", "not a text file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_calibration(tmp_path, kind):
    text, words = BAD[kind]
    path = tmp_path / "calib.txt"
    path.write_text(text)
    with pytest.raises(UseError, match=words):
        read_calibration(path, "image_0/a.png")


# ---- depth and points


def test_depth_is_focal_times_baseline_over_disparity():
    camera = Camera(700.0, 0.5)
    given = np.array([[1.0, 7.0, 0.0], [np.nan, -1.0, 350.0]])
    np.testing.assert_allclose(camera.depth(given), [[350, 50, np.nan], [np.nan, np.nan, 1]], rtol=1e-6)
    np.testing.assert_allclose(camera.depth(given, 60.0), [[np.nan, 50, np.nan], [np.nan, np.nan, 1]], rtol=1e-6)
    assert camera.farthest == 350
    offset = Camera(700.0, 0.5, offset=7.0).depth(np.array([[0.0, -3.0, 3.0]]))
    np.testing.assert_allclose(offset, [[np.nan, np.nan, 35]])  # what has no disparity has no depth


def test_points_project_to_their_pixels():
    camera = Camera(50.0, 0.2, (10.25, 4.5))
    depth = np.random.default_rng(0).uniform(1, 9, (8, 20)).astype(np.float32)
    x, y, z = np.moveaxis(camera.points(depth), -1, 0)
    rows, columns = np.indices(depth.shape)
    np.testing.assert_allclose(50 * x / z + 10.25, columns, atol=1e-4)
    np.testing.assert_allclose(50 * y / z + 4.5, rows, atol=1e-4)
    assert Camera(50.0, 0.2).points(np.ones((3, 5), np.float32))[1, 2].tolist() == [0, 0, 1]  # the middle


def test_what_a_png_cannot_hold_is_said(tmp_path):
    depth = np.array([[0.0001, 1.2347, 65.535, 65.536, np.nan]], np.float32)
    notes = write_depth(tmp_path / "z.png", depth)
    assert np.array(Image.open(tmp_path / "z.png")).tolist() == [[1, 1235, 65535, 0, 0]]
    assert len(notes) == 1 and "20.0% of the pixels are farther than 65.5 m" in notes[0]
    assert write_depth(tmp_path / "z.npy", depth) == []
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), depth)


# ---- the command


def test_all_in_metres_is_made_of_the_disparities(place, capfd):
    argv = ["left.png", "right.png", "out.png", "--pfm", "d.pfm", "--depth", "z.npy", "--cloud", "p.ply"]
    assert disparity.main([*argv, "--focal", "40", "--baseline", "0.1"]) == 0
    said = capfd.readouterr().out
    assert "z.npy" in said and "p.ply" in said
    pixels = read_disparity("d.pfm")
    depth = np.load("z.npy")
    np.testing.assert_allclose(depth, 4 / pixels, rtol=1e-5)
    at, colour = read_points("p.ply")
    near = depth <= 4  # a pixel of disparity
    assert len(at) == near.sum() > 100
    np.testing.assert_allclose(at[:, 2], depth[near], rtol=1e-6)
    np.testing.assert_array_equal(colour, np.array(Image.open("left.png"))[near])
    rows, columns = np.nonzero(near)
    np.testing.assert_allclose(at[:, 0], (columns - 28.5) * depth[near] / 40, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(at[:, 1], (rows - 16) * depth[near] / 40, rtol=1e-4, atol=1e-6)
    assert disparity.main([*argv[:3], "--depth", "z.png", "--calib", "calib.txt", "--max-depth", "60"]) == 0
    metres = np.array(Image.open("z.png")) / 1000
    wanted = 707.0912 * (46.88783 + 333.4597) / 707.0912 / pixels
    np.testing.assert_allclose(metres, np.where(wanted <= 60, wanted, 0), atol=6e-4)


def test_folders_of_pairs(place, capfd):
    truncate(place / "right/0001.png")
    Path("right/0002.png").rename("right/other.png")
    kinds = ["colours", "png16", "pfm", "depth", "depth-npy", "cloud"]
    argv = ["left", "right", "--out-dir", "out", "--write", *kinds, "--calib", "calib.txt"]
    assert disparity.main(argv) == 1
    said = capfd.readouterr()
    errors = said.err.splitlines()
    assert len(errors) == 2 and "right/0001.png" in errors[0] and "left/0002.png: there is no right" in errors[1]
    assert said.out.splitlines()[-1].endswith(", 2 failed (named above)") and "1 of 3 pairs matched" in said.out
    ends = [".ply", ".pfm", ".png", "_depth.npy", "_depth.png", "_disparity.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(f"0000{end}" for end in ends)
    assert disparity.main(["left/0000.png", "right/0000.png", "one.pfm"]) == 0
    assert np.array_equal(read_disparity("one.pfm"), read_disparity("out/0000.pfm"))
    # What was written is no pair of the next call; patterns serve as well.
    assert disparity.main(["left/*0.png", "right", "--out-dir", "out"]) == 0
    assert "1 of 1 pairs matched" in capfd.readouterr().out


@pytest.mark.parametrize("names", [("left_{}", "right_{}"), ("{}_left", "{}_right"), ("{}-Left", "{}-Right")])
def test_both_sides_in_one_folder(place, names):
    Path("both").mkdir()
    for number in (0, 1):
        for side, name in zip(("left", "right"), names, strict=True):
            shutil.copy(f"{side}/000{number}.png", f"both/{name.format(number)}.png")
    assert disparity.main(["both", "both", "--out-dir", "out", "--write", "pfm"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.pfm", "1.pfm"]


def test_a_calibration_for_each_pair(place, capfd):
    Path("calib").mkdir()
    for number, focal in ((0, 100), (1, 200)):
        matrices = [f"P{k}: {focal} 0 5 {-t} 0 {focal} 5 0 0 0 1 0" for k, t in ((0, 0), (1, focal))]
        Path(f"calib/000{number}.txt").write_text("\n".join(matrices))
    argv = ["left", "right", "--out-dir", "out", "--write", "pfm", "depth-npy", "--calib", "calib"]
    assert disparity.main(argv) == 1
    assert "--calib calib: no 0002.txt in this folder" in capfd.readouterr().err
    for number, focal in ((0, 100), (1, 200)):
        pixels, metres = read_disparity(f"out/000{number}.pfm"), np.load(f"out/000{number}_depth.npy")
        np.testing.assert_allclose(metres, focal / pixels, rtol=1e-5)


PAIR = ["left.png", "right.png", "out.png"]
METRES = ["--focal", "700", "--baseline", "0.5"]
WRONG = {
    "no camera": ([*PAIR, "--depth", "z.png"], ["depth needs --focal PIXELS and --baseline METRES, or --calib FILE"]),
    "half": ([*PAIR, "--cloud", "p.ply", "--focal", "700"], ["depth needs --focal"]),
    "both": ([*PAIR, "--cloud", "p.ply", *METRES, "--calib", "calib.txt"], ["--calib calib.txt says"]),
    "for nothing": ([*PAIR, *METRES], ["are for depth: add --depth FILE or --cloud FILE"]),
    "gone": ([*PAIR, "--depth", "z.png", "--calib", "gone.txt"], ["--calib gone.txt: no such file"]),
    "depth name": ([*PAIR, "--depth", "z.jpg", *METRES], ["z.jpg: depth is written as .png or .npy"]),
    "cloud name": ([*PAIR, "--cloud", "p.pcd", *METRES], ["p.pcd: expected a name that ends in .ply"]),
    "one name": ([*PAIR, "--depth", "out.png", *METRES], ["out.png: named twice, for"]),
    "negative": ([*PAIR, "--depth", "z.png", "--focal", "-3", "--baseline", "1"], ["--focal"]),
    "two": (PAIR[:2], ["expected LEFT RIGHT OUT, or two folders"]),
    "folders": (["left", "right", "out.png"], ["need --out-dir FOLDER instead of out.png"]),
    "write": ([*PAIR, "--write", "pfm"], ["--write is for --out-dir"]),
    "three": ([*PAIR, "--out-dir", "out"], ["--out-dir needs two folders"]),
    "file flag": (["left", "right", "--out-dir", "out", "--pfm", "a.pfm"], ["--pfm a.pfm: is for one pair"]),
    "no pairs": (["left", "odd", "--out-dir", "out"], ["odd: no picture here has the name of one in left, as 0000"]),
    "no sides": (["left", "left", "--out-dir", "out"], ["no pictures with 'left' in their names"]),
    "replaced": (["left", "right", "--out-dir", "left"], ["would be replaced"]),
    "empty": (["home", "right", "--out-dir", "out"], ["home: no pictures in this folder"]),
    "kind": (["left", "right", "--out-dir", "out", "--write", "clouds"], ["did you mean 'cloud'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_line_and_nothing_written(place, capfd, case):
    Path("odd").mkdir()
    shutil.copy("right.png", "odd/x.png")
    argv, words = WRONG[case]
    before = listing(place)
    fails(capfd, disparity.main, argv, words)
    assert listing(place) == before


def test_without_weights_it_says_how_to_train_some(place, capfd):
    (place / "home/weights/smstereo.safetensors").unlink()
    fails(capfd, disparity.main, PAIR, ["no weights: give --weights FILE", "--space smstereo", "GwcNet"])


@pytest.mark.real
def test_real_pairs(tmp_path, monkeypatch, weights, shared_data, capfd):
    monkeypatch.chdir(tmp_path)
    folder = shared_data / "kitti2012_sample/training"
    for side in ("image_0", "image_1"):
        Path(side).mkdir()
        for name in ("000000_10.png", "000010_10.png"):
            Image.open(folder / side / name).crop((500, 120, 660, 216)).save(f"{side}/{name}")
    Path("calib").mkdir()
    for name in ("000000", "000010"):
        Path(f"calib/{name}.txt").write_text(KITTI_2012)
    argv = ["image_0", "image_1", "--out-dir", "out", "--write", "depth", "cloud", "--calib", "calib"]
    assert disparity.main([*argv, "--weights", str(weights)]) == 0
    assert "2 of 2 pairs matched" in capfd.readouterr().out
    at, colour = read_points("out/000010_10.ply")
    assert len(at) > 1000 and at[:, 2].min() > 379 / 16 - 1 and colour.std() > 5


def test_the_pages_commands_run(place):
    """docs/stereo.md: every command of the parts on metres and folders, on small pictures."""
    page = (ROOT / "docs/stereo.md").read_text().partition("### Metres")[2].partition("\n## ")[0]
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    sparsemask ")]
    assert len(commands) == 3
    shutil.copytree("left", "image_2")
    shutil.copytree("right", "image_3")
    Path("calib").mkdir()
    shutil.copy("calib.txt", "calib")
    for side in ("LEFT", "RIGHT"):
        shutil.copy(f"{side.lower()}.png", f"{side}.png")
    for verb, *argv in commands:
        assert verb == "disparity" and disparity.main(argv) == 0
    for name in ("Z.png", "Z.npy", "P.ply", "OUTS/0002.ply"):
        assert Path(name).is_file()
