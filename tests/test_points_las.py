"""LAS and LAZ in and out, folders of clouds, weights that are looked for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsemask import UseError, spaces
from sparsemask.cli.segment_points import main
from sparsemask.tasks.points.clouds import las
from sparsemask.tasks.points.clouds.cloud import read_cloud
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.tasks.points.layouts import semantickitti
from spoilt import listing, truncate
from test_points_segment import network
from tiny import ROOT, fails

FAR = np.array([431_000.0, 5_412_000.0, 120.0])  # georeferenced, as surveys are


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Weights for scans and for rooms, a folder of three scans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    for name, shape in (("scan", (3, 19)), ("room", (6, 13))):
        spaces.get("smpointseg").save(f"{name}.safetensors", network(*shape))
    rng = np.random.default_rng(0)
    Path("scans").mkdir()
    for number in range(3):
        (rng.normal(0, 5, (400, 4)) * [1, 1, 1, 0]).astype("<f4").tofile(f"scans/{number:06d}.bin")
    return tmp_path


def survey(path: str, point_format: int = 7, n: int = 600, colours: bool = True, **more) -> np.ndarray:
    """Write a survey by laspy itself; returns its coordinates."""
    laspy = pytest.importorskip("laspy")
    rng = np.random.default_rng(1)
    header = laspy.LasHeader(version="1.4" if point_format > 5 else "1.2", point_format=point_format)
    header.scales, header.offsets = np.full(3, 0.01), FAR
    data = laspy.LasData(header)
    xyz = FAR + rng.uniform(0, 4, (n, 3))
    data.x, data.y, data.z = xyz.T
    data.intensity = rng.integers(0, 60000, n)
    data.classification = rng.integers(0, 3, n)
    data.gps_time = np.arange(n)
    if colours:
        data.red, data.green, data.blue = rng.integers(0, 65535, (3, n))
    data.write(path)
    return np.stack([data.x, data.y, data.z], 1)


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("point_format", [3, 7])
def test_a_survey_keeps_all_but_its_classification(place, suffix, point_format, capfd):
    laspy = pytest.importorskip("laspy")
    xyz = survey(f"in.{suffix}", point_format)
    assert main([f"in.{suffix}", f"out.{suffix}", "--weights", "room.safetensors", "--grid", "0.3"]) == 0
    assert "in." + suffix + " (600 points)" in capfd.readouterr().out
    before, after = laspy.read(f"in.{suffix}"), laspy.read(f"out.{suffix}")
    assert (after.header.point_format, after.header.version) == (before.header.point_format, before.header.version)
    assert after.header.are_points_compressed == (suffix == "laz")
    for name in before.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(after[name], before[name], name)
    np.testing.assert_allclose(np.stack([after.x, after.y, after.z], 1), xyz, atol=1e-9)
    assert main([f"in.{suffix}", "out.ply", "--weights", "room.safetensors", "--grid", "0.3"]) == 0
    table = read_ply("out.ply")
    np.testing.assert_array_equal(np.asarray(after.classification), table["pred"])
    np.testing.assert_allclose(np.stack([table[axis] for axis in "xyz"], 1), xyz, atol=1e-4)
    names = next(record for record in after.header.vlrs if record.user_id == "sparsemask")
    assert json.loads(names.record_data_bytes())[:3] == ["ceiling", "floor", "wall"]


def test_what_a_survey_holds_is_read(place):
    xyz = survey("a.laz")
    cloud = read_cloud("a.laz")
    np.testing.assert_allclose(cloud.coordinates, xyz, atol=1e-3)
    assert cloud.offset.any() and cloud.colours.shape == (600, 3) and 0.4 < cloud.colours.mean() < 0.6
    assert set(cloud.labels.tolist()) == {0, 1, 2}
    survey("b.las", 6, colours=False)
    assert read_cloud("b.las").colours is None


def test_eight_bits_in_sixteen(place):
    laspy = pytest.importorskip("laspy")
    survey("a.las")
    data = laspy.read("a.las")
    for name in ("red", "green", "blue"):
        data[name] = data[name] >> 8
    data.write("b.las")
    np.testing.assert_allclose(read_cloud("b.las").colours, read_cloud("a.las").colours, atol=1 / 250)


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_a_scan_becomes_a_survey(place, suffix):
    laspy = pytest.importorskip("laspy")
    out = f"out.{suffix}"
    assert main(["scans/000000.bin", out, "--weights", "scan.safetensors"]) == 0
    given, made = read_cloud("scans/000000.bin"), laspy.read(out)
    np.testing.assert_allclose(np.stack([made.x, made.y, made.z], 1), given.xyz, atol=5.1e-4)
    classes = np.asarray(made.classification)
    rgb = np.stack([made.red, made.green, made.blue], 1)
    assert classes.max() < 19 and rgb.max() > 255
    assert len({(k, *colour) for k, colour in zip(classes.tolist(), rgb.tolist(), strict=True)}) == len(set(classes))


def test_classes_beyond_an_old_format_are_refused(place):
    survey("a.las", 3)
    with pytest.raises(UseError, match="point format 3 has no room for class 40"):
        las.write_las(Path("b.las"), np.zeros((600, 3)), np.full(600, 40), ["a"], np.zeros((600, 3)), Path("a.las"))
    assert not Path("b.las").exists()


def test_a_source_that_changed_is_refused(place):
    survey("a.las")
    with pytest.raises(UseError, match="changed while it was read: 600 points, before 500"):
        las.write_las(Path("b.las"), np.zeros((500, 3)), np.zeros(500, int), ["a"], np.zeros((500, 3)), Path("a.las"))
    assert not Path("b.las").exists()


def claims_more(path: Path) -> None:
    """The header's count of points, at byte 247 of LAS 1.4, says four billion."""
    data = bytearray(path.read_bytes())
    data[247:255] = (1 << 32).to_bytes(8, "little")
    path.write_bytes(data)


SPOILT = {
    "cut": lambda path: truncate(path, 0.6),
    "header": lambda path: truncate(path, 0.01),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"LASF and nothing else"),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:400] + bytes(5000)),
    "claims": claims_more,
}


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_files_are_one_line(place, capfd, how, suffix):
    survey(f"in.{suffix}")
    SPOILT[how](Path(f"in.{suffix}"))
    before = listing(place)
    fails(capfd, main, [f"in.{suffix}", "out.ply", "--weights", "room.safetensors"], [f"in.{suffix}"])
    assert listing(place) == before


def test_without_laspy_it_says_what_to_install(place, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    Path("a.las").write_bytes(b"LASF")
    words = ["LAS and LAZ files need laspy: pip install 'sparsemask[las]'"]
    fails(capfd, main, ["a.las", "out.ply", "--weights", "scan.safetensors"], words)
    fails(capfd, main, ["scans/000000.bin", "out.laz", "--weights", "scan.safetensors"], words)
    assert main(["scans/000000.bin", "out.ply", "--weights", "scan.safetensors"]) == 0


# ---- folders


def test_a_folder_of_scans(place, capfd):
    truncate(place / "scans/000001.bin", 0.501)
    argv = ["scans", "--out-dir", "out", "--weights", "scan.safetensors"]
    assert main([*argv, "--show", "pictures"]) == 1
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1 and "scans/000001.bin" in said.err
    assert "2 of 3 clouds labelled" in said.out.splitlines()[-1] and "1 failed" in said.out.splitlines()[-1]
    assert sorted(path.name for path in Path("out").iterdir()) == ["000000.ply", "000002.ply"]
    assert len(list(Path("pictures").iterdir())) == 6
    assert main(["scans/000000.bin", "one.ply", "--weights", "scan.safetensors"]) == 0
    assert Path("one.ply").read_bytes() == Path("out/000000.ply").read_bytes()
    assert main(["scans/*0.bin", "scans/000002.bin", *argv[1:], "--format", "label"]) == 0
    raw = np.fromfile("out/000002.label", "<u4")
    assert len(raw) == 400 and set(raw.tolist()) <= set(semantickitti.INVERSE_MAP[1:])


BAD = {
    "one word": (["scans/000000.bin"], ["expected IN OUT"]),
    "folder": (["scans", "out.ply"], ["scans: a folder of clouds needs --out-dir"]),
    "format": (["scans/000000.bin", "out.ply", "--format", "ply"], ["--format is for --out-dir"]),
    "web": (["scans", "--out-dir", "out", "--web", "a.html"], ["--web a.html: is for one cloud"]),
    "replaced": (["one", "--out-dir", "one", "--format", "ply"], ["would be replaced"]),
    "empty": (["home", "--out-dir", "out"], ["home: no clouds in this folder"]),
    "file": (["scans", "--out-dir", "scan.safetensors"], ["is a file, expected a folder"]),
    "labels": (["scans", "--out-dir", "out", "--format", "label", "--weights", "room.safetensors"], ["SemanticKITTI"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_line(place, capfd, case):
    Path("home").mkdir(exist_ok=True)
    Path("one").mkdir()
    shutil.copy("scans/000000.bin", "a.bin")
    Path("one/a.ply").write_bytes(b"ply\n")
    argv, words = BAD[case]
    before = listing(place)
    fails(capfd, main, [*argv, *([] if "--weights" in argv else ["--weights", "scan.safetensors"])], words)
    assert listing(place) == before


def test_weights_are_looked_for_and_else_how_to_train_some_is_said(place, capfd):
    fails(capfd, main, ["scans/000000.bin", "out.ply"], ["no weights: give --weights FILE", "--space smpointseg"])
    Path("home/weights").mkdir(parents=True)
    shutil.copy("scan.safetensors", "home/weights/smpointseg.safetensors")
    assert main(["scans/000000.bin", "out.ply"]) == 0
    assert "home/weights/smpointseg.safetensors" in capfd.readouterr().out


def test_without_lazrs_laz_alone_is_refused(place, capfd, monkeypatch):
    laspy = pytest.importorskip("laspy")
    survey("a.laz")
    monkeypatch.setattr(laspy.LazBackend, "detect_available", lambda: ())
    words = ["LAZ files need lazrs beside laspy", "sparsemask[las]"]
    fails(capfd, main, ["scans/000000.bin", "out.laz", "--weights", "scan.safetensors"], words)
    fails(capfd, main, ["a.laz", "out.ply", "--weights", "scan.safetensors"], words)
    assert main(["scans/000000.bin", "out.las", "--weights", "scan.safetensors"]) == 0


def test_the_pages_commands_run(place):
    """docs/point_clouds.md: the commands on many clouds."""
    page = (ROOT / "docs/point_clouds.md").read_text().partition("**Many clouds.**")[2].partition("\n**Weights.**")[0]
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    sparsemask ")]
    assert len(commands) == 2
    shutil.copytree("scans", "sequences/08/velodyne")
    shutil.copy("scan.safetensors", "network.safetensors")
    Path("tiles").mkdir()
    survey("tiles/a.laz")
    for verb, *argv in commands:
        assert verb == "segment-points" and main(argv) == 0
    assert Path("labels/000002.label").is_file() and Path("labelled/a.laz").is_file()


@pytest.mark.real
def test_a_real_scan_as_a_survey(place, shared_data):
    laspy = pytest.importorskip("laspy")
    scan = shared_data / "semantickitti_sample/sequences/00/velodyne/000000.bin"
    assert main([str(scan), "out.laz", "--weights", "scan.safetensors"]) == 0
    made = laspy.read("out.laz")
    xyz = np.fromfile(scan, "<f4").reshape(-1, 4)[:, :3]
    np.testing.assert_allclose(np.stack([made.x, made.y, made.z], 1), xyz, atol=5.1e-4)
    assert main(["out.laz", "out.ply", "--weights", "scan.safetensors"]) == 0
    assert len(read_ply("out.ply")["pred"]) == 124668
