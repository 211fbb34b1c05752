"""Preparing VOC and SBD: from small archives made here, hostile ones and interrupted runs included."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from sparsemask.errors import UseError
from VOC12 import convert_labels, convert_mat_to_png, prepare
from VOC12.convert import looks_whole
from VOC12.lists import is_prepared, pairs_from_lists
from VOC12.palette import (
    VOC_CLASSES,
    VOC_COLOURS,
    ColourLabelError,
    colourise,
    encode_colours,
    out_of_range,
    read_label,
    save_label,
)

ROOT = Path(__file__).resolve().parents[1]
TRAIN, VAL = ["2007_000001", "2007_000002", "2007_000003"], ["2007_000101", "2007_000102"]
# SBD labels a training and a validation picture of VOC too, and pictures of its own.
SBD_TRAIN, SBD_VAL = ["2007_000001", "2008_000201", "2008_000202"], ["2007_000101", "2008_000203"]
OWN = ["2008_000201", "2008_000202", "2008_000203"]
EXPECT = (3, 2, 6)
FROM_VOC, FROM_SBD = 5, 7  # the class each set paints, so that outputs say where they come from


def picture(grey: int, size: tuple[int, int] = (12, 9)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def label(value: int, size: tuple[int, int] = (12, 9)) -> np.ndarray:
    array = np.zeros(size[::-1], np.uint8)
    array[2:6, 3:8] = value
    array[6] = 255
    return array


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette_png(index: np.ndarray) -> bytes:
    image = Image.fromarray(index)
    image.putpalette(VOC_COLOURS.tobytes())
    return png(image)


def mat(index: np.ndarray) -> bytes:
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": index, "CategoriesPresent": [[int(index[3, 4])]]}})
    return file.getvalue()


def text(names: list[str]) -> bytes:
    return ("\n".join(names) + "\n").encode()


def voc_files(train: list[str] = TRAIN, val: list[str] = VAL) -> dict[str, bytes]:
    base = "VOCdevkit/VOC2012/"
    files = {f"{base}JPEGImages/{name}.jpg": picture(50) for name in (*train, *val)}
    files |= {f"{base}SegmentationClass/{name}.png": palette_png(label(FROM_VOC)) for name in (*train, *val)}
    # One of them in colours, as other tools write them.
    colours = Image.fromarray(colourise(label(FROM_VOC)))
    files[f"{base}SegmentationClass/{train[1]}.png"] = png(colours)
    for name, names in (("train", train), ("val", val), ("trainval", [*train, *val])):
        files[f"{base}ImageSets/Segmentation/{name}.txt"] = text(names)
    files[f"{base}Annotations/{train[0]}.xml"] = b"<annotation/>"
    return files


def sbd_files(train: list[str] = SBD_TRAIN, val: list[str] = SBD_VAL) -> dict[str, bytes]:
    base = "benchmark_RELEASE/dataset/"
    files = {f"{base}img/{name}.jpg": picture(200) for name in (*train, *val)}
    files |= {f"{base}cls/{name}.mat": mat(label(FROM_SBD)) for name in (*train, *val)}
    return files | {f"{base}train.txt": text(train), f"{base}val.txt": text(val)}


def pack(path: Path, files: dict[str, bytes], extra: list[tarfile.TarInfo] = ()) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return path


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    return pack(tmp_path / "voc.tar", voc_files()), pack(tmp_path / "benchmark.tgz", sbd_files())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.rglob("*"))}


def check_output(out: Path) -> None:
    names = {
        name: (out / f"{name}.txt").read_text().split() for name in ("train", "val", "trainval", "train_aug")
    }
    assert names["train"] == TRAIN and names["val"] == VAL and names["trainval"] == sorted(TRAIN + VAL)
    # (SBD train + SBD val + VOC train) - VOC val: SBD's own three and VOC's training three, no VAL.
    assert names["train_aug"] == sorted(TRAIN + OWN)
    for name in (*TRAIN, *VAL, *OWN):
        path = out / "gt" / f"{name}.png"
        with Image.open(path) as image:
            assert image.mode == "P"
        # The VOC label wins wherever there is one, also where SBD labels the same picture.
        np.testing.assert_array_equal(read_label(path), label(FROM_SBD if name in OWN else FROM_VOC))
        # Pictures travel byte for byte, VOC's before SBD's.
        assert (out / "img" / f"{name}.jpg").read_bytes() == picture(200 if name in OWN else 50)
    assert is_prepared(out)
    assert not list(out.rglob("*.part"))
    for part in ("img", "gt"):
        assert len(list((out / part).iterdir())) == len(TRAIN + VAL + OWN)


def test_archives(archives, tmp_path):
    sizes = prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    assert sizes == {"train": 3, "val": 2, "trainval": 5, "train_aug": 6}
    check_output(tmp_path / "out")
    assert (
        len(pairs_from_lists(tmp_path / "out/img", tmp_path / "out/gt", tmp_path / "out/train_aug.txt")) == 6
    )


@pytest.mark.parametrize("voc_part", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("sbd_part", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_unpacked_folders_at_any_depth(voc_part, sbd_part, tmp_path):
    voc, sbd = unpack(tmp_path / "v", voc_files()), unpack(tmp_path / "s", sbd_files())
    prepare.prepare(voc / voc_part, sbd / sbd_part, tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")


def test_sbd_pictures_may_be_absent_where_voc_has_them(tmp_path):
    voc, sbd = voc_files(), {name: data for name, data in sbd_files().items() if "/img/" not in name}
    voc |= {f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": picture(200) for name in OWN}
    prepare.prepare(
        pack(tmp_path / "v.tar", voc), unpack(tmp_path / "s", sbd), tmp_path / "out", expect=EXPECT
    )
    check_output(tmp_path / "out")


def test_second_run_touches_nothing_and_needs_no_archives(archives, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.prepare(*archives, out, expect=EXPECT)
    before = state(out)
    capsys.readouterr()
    for archive in archives:
        archive.unlink()
    argv = ["--voc", str(archives[0]), "--sbd", str(archives[1]), "--out", str(out), "--expect", "3,2,6"]
    assert prepare.main(argv) == 0
    said = capsys.readouterr().out
    assert "complete" in said and said.count("\n") == 1
    assert state(out) == before


def test_what_is_missing_or_torn_is_written_again(archives, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.prepare(*archives, out, expect=EXPECT)
    before = state(out)
    (out / "prepared.json").unlink()
    torn, gone = out / "gt" / f"{TRAIN[0]}.png", out / "img" / f"{OWN[0]}.jpg"
    torn.write_bytes(torn.read_bytes()[:-6])  # another program's doing: ours cannot leave such a file
    gone.unlink()
    (out / "gt" / ".x.png.abc.part").write_bytes(b"left by a killed run")
    capsys.readouterr()
    prepare.prepare(*archives, out, expect=EXPECT)
    assert "2 files written, 14 were there already" in capsys.readouterr().out
    check_output(out)
    untouched = [
        path for path in before if path.endswith((".jpg", ".png")) and Path(path) not in (torn, gone)
    ]
    after = state(out)
    assert len(untouched) == 14 and all(after[path] == before[path] for path in untouched)


def test_a_removed_output_is_noticed_in_spite_of_the_stamp(archives, tmp_path):
    prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    (tmp_path / "out" / "gt" / f"{OWN[2]}.png").unlink()
    prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_is_completed(workers, tmp_path):
    own = [f"2009_{i:06d}" for i in range(400)]
    voc, sbd = pack(tmp_path / "v.tar", voc_files()), pack(tmp_path / "s.tgz", sbd_files(own, OWN))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "VOC12" / "prepare.py"), "--voc", voc, "--sbd", sbd, "--out", out]
    command += ["--expect", "3,2,406", "--workers", str(workers)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None and len(list(out.glob("*/*.png"))) < 40:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not is_prepared(out)
    written = list(out.glob("gt/[0-9]*.png"))
    assert 40 <= len(written) < 408
    assert all(looks_whole(path) for path in written)  # whatever bears its final name is whole
    before = {path: path.stat().st_mtime_ns for path in written}

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((out / "gt").iterdir())) == len(list((out / "img").iterdir())) == 408
    assert is_prepared(out) and not list(out.rglob("*.part"))
    assert all(
        path.stat().st_mtime_ns == time_ for path, time_ in before.items()
    )  # completed, not begun again
    for name in (own[0], own[-1]):
        np.testing.assert_array_equal(read_label(out / "gt" / f"{name}.png"), label(FROM_SBD))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_in_one_line_and_leaves_nothing_torn(workers, tmp_path):
    own = [f"2009_{i:06d}" for i in range(400)]
    voc, sbd = pack(tmp_path / "v.tar", voc_files()), pack(tmp_path / "s.tgz", sbd_files(own, OWN))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "VOC12" / "prepare.py"), "--voc", voc, "--sbd", sbd, "--out", out]
    command += ["--expect", "3,2,406", "--workers", str(workers)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None and len(list(out.glob("gt/[0-9]*"))) < 20:
        time.sleep(0.002)
    run.send_signal(signal.SIGINT)
    error = run.communicate()[1]
    assert run.returncode == 130, error
    assert "stopped" in error.splitlines()[-1] and "Traceback" not in error
    assert not is_prepared(out) and not list(out.rglob("*.part"))


def test_workers_of_a_killed_run_do_not_stay(tmp_path):
    script = (
        "import os, sys, time\n"
        "from VOC12.workers import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    for pid in run_jobs(os.getpid, ((),) * 400, 400, 'x', 2): pass\n"
        "    jobs = ((60,) for _ in range(400))\n"
        "    import threading, multiprocessing\n"
        "    threading.Thread(target=lambda: (time.sleep(1.5), print(*[p.pid for p in "
        "multiprocessing.active_children()], flush=True))).start()\n"
        "    for _ in run_jobs(time.sleep, jobs, 400, 'x', 2): pass\n"
    )
    (tmp_path / "long.py").write_text(script)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "long.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_hostile_members_are_not_extracted(tmp_path):
    """Members that climb, are absolute, are links or devices change nothing outside, nor the result."""
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    voc = voc_files()
    voc["VOCdevkit/VOC2012/JPEGImages/../../../../evil.jpg"] = picture(1)
    voc["../evil.jpg"] = picture(1)
    voc[str(tmp_path / "absolute.jpg")] = picture(1)
    special = []
    for name, kind, to in (
        ("JPEGImages/2008_000201.jpg", tarfile.SYMTYPE, str(victim)),  # a picture SBD has too
        ("JPEGImages/2008_000202.jpg", tarfile.LNKTYPE, "../../victim.txt"),
        ("JPEGImages/2008_000203.jpg", tarfile.CHRTYPE, ""),
        ("out", tarfile.SYMTYPE, str(tmp_path)),
    ):
        member = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
        member.type, member.linkname = kind, to
        special.append(member)
    before = {path.name for path in tmp_path.iterdir()}
    archives = pack(tmp_path / "v.tar", voc, special), pack(tmp_path / "s.tgz", sbd_files())
    prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")
    assert victim.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == before | {"v.tar", "s.tgz", "out"}


def test_disguised_link_in_place_of_a_wanted_file_is_missing(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(3))
    voc = voc_files()
    del voc[f"VOCdevkit/VOC2012/JPEGImages/{TRAIN[2]}.jpg"]
    link = tarfile.TarInfo(f"VOCdevkit/VOC2012/JPEGImages/{TRAIN[2]}.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    archives = pack(tmp_path / "v.tar", voc, [link]), pack(tmp_path / "s.tgz", sbd_files())
    with pytest.raises(UseError, match=f"first picture {TRAIN[2]}.jpg"):
        prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)


V, S = "VOCdevkit/VOC2012/", "benchmark_RELEASE/dataset/"


def _drop(part: str):
    return lambda files: {name: data for name, data in files.items() if part not in name}


def _put(name: str, data: bytes):
    return lambda files: files | {name: data}


@pytest.mark.parametrize(
    "voc_change, sbd_change, message",
    [
        (_drop("SegmentationClass"), None, r"SegmentationClass/ not found.*VOCdevkit/VOC2012"),
        (_drop("ImageSets"), None, r"train\.txt.* not found.*PASCAL VOC"),
        (None, _drop("/cls/"), r"cls/ not found.*benchmark_RELEASE"),
        (_drop(f"JPEGImages/{VAL[1]}"), None, rf"1 listed files.*picture {VAL[1]}"),
        (None, _drop(f"cls/{OWN[1]}"), rf"1 listed files.*label {OWN[1]}"),
        (None, _put(f"{S}cls/{OWN[0]}.mat", b"MATLAB 5.0 but not really" * 9), rf"{OWN[0]}\.mat.*SBD label"),
        (None, _put(f"{S}cls/{OWN[0]}.mat", mat(label(FROM_SBD))[:150]), rf"{OWN[0]}\.mat.*SBD label"),
        (None, _put(f"{S}cls/{OWN[0]}.mat", mat(label(77))), rf"{OWN[0]}\.mat: values 0 to 255"),
        (
            _put(f"{V}JPEGImages/{VAL[0]}.jpg", picture(9, (99, 99))[:-300]),
            None,
            rf"{VAL[0]}\.jpg: not readable",
        ),
        (_put(f"{V}SegmentationClass/{VAL[0]}.png", b"<html>"), None, rf"{VAL[0]}\.png: not readable"),
        (
            _put(f"{V}SegmentationClass/{VAL[0]}.png", png(Image.new("RGB", (12, 9), (1, 2, 3)))),
            None,
            rf"{VAL[0]}\.png: 108 pixels have no VOC colour \(first \(1, 2, 3\)\)",
        ),
        (
            _put(f"{V}ImageSets/Segmentation/train.txt", text(TRAIN[:2])),
            None,
            "2 names for train, expected 3",
        ),
        (
            _put(f"{V}ImageSets/Segmentation/val.txt", text(["../../evil"])),
            None,
            "'../../evil' is no picture name",
        ),
    ],
)
def test_bad_archives_are_one_line(voc_change, sbd_change, message, tmp_path, capsys):
    voc = pack(tmp_path / "v.tar", voc_change(voc_files()) if voc_change else voc_files())
    sbd = pack(tmp_path / "s.tgz", sbd_change(sbd_files()) if sbd_change else sbd_files())
    out = tmp_path / "out"
    with pytest.raises(UseError, match=message) as caught:
        prepare.prepare(voc, sbd, out, expect=EXPECT)
    assert "\n" not in str(caught.value)
    assert not is_prepared(out) and not list(out.rglob("*.part"))
    argv = ["--voc", str(voc), "--sbd", str(sbd), "--out", str(out), "--expect", "3,2,6"]
    assert prepare.main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("which", [0, 1])
def test_truncated_archives(cut, which, archives, tmp_path):
    data = archives[which].read_bytes()
    archives[which].write_bytes(data[: int(len(data.rstrip(b"\0")) * cut)])
    # Cut between two members, a plain tar is shorter but sound: then its files are missing.
    with pytest.raises(UseError, match="truncated or damaged|not found in it|in neither archive"):
        prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    assert not is_prepared(tmp_path / "out")


def test_no_archive_and_not_an_archive(archives, tmp_path):
    with pytest.raises(UseError, match="archive or folder not found: .*absent.tar"):
        prepare.prepare(tmp_path / "absent.tar", archives[1], tmp_path / "out", expect=EXPECT)
    (tmp_path / "page.tgz").write_text("<html>moved</html>")
    with pytest.raises(UseError, match="page.tgz: not a readable tar archive"):
        prepare.prepare(archives[0], tmp_path / "page.tgz", tmp_path / "out", expect=EXPECT)
    assert not (tmp_path / "out").exists()


def test_expected_sizes_are_the_published_ones_by_default(archives, tmp_path):
    with pytest.raises(UseError, match="3 names for train, expected 1464"):
        prepare.prepare(*archives, tmp_path / "out")


# ---- label formats


def test_palette_is_the_devkits():
    # Known entries: aeroplane, person, tvmonitor, void.
    assert VOC_COLOURS[[0, 1, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES[15] == "person"


def test_colours_round_trip():
    index = np.append(np.arange(21), 255).astype(np.uint8).reshape(2, 11)
    np.testing.assert_array_equal(encode_colours(colourise(index)), index)
    with pytest.raises(ColourLabelError, match=r"first \(224, 224, 193\)"):
        encode_colours(np.array([[[224, 224, 193]]], np.uint8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_formats_read_by_index(bits, tmp_path):
    index = (np.arange(63).reshape(7, 9) % min(2**bits, 21)).astype(np.uint8)
    image = Image.fromarray(index)
    image.save(tmp_path / "grey.png")
    image.putpalette(VOC_COLOURS.tobytes())
    image.save(tmp_path / "palette.png", bits=bits)
    for name in ("grey.png", "palette.png"):
        np.testing.assert_array_equal(read_label(tmp_path / name), index)


def test_colour_labels_are_refused_unless_asked_for(tmp_path):
    Image.fromarray(colourise(label(4))).save(tmp_path / "colour.png")
    with pytest.raises(ColourLabelError, match="RGB picture where class indices are expected"):
        read_label(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_label(tmp_path / "colour.png", colours="decode"), label(4))


def test_reordered_palette_is_decoded_by_its_colours(tmp_path):
    order = np.array([4, 0, 255], np.uint8)  # entry 0 is the boat's colour: reading indices would be wrong
    image = Image.fromarray(np.array([[0, 1, 2, 0]], np.uint8))
    image.putpalette(VOC_COLOURS[order].tobytes())
    image.save(tmp_path / "x.png")
    assert read_label(tmp_path / "x.png", colours="decode").tolist() == [[4, 0, 255, 4]]


def test_save_label(tmp_path):
    save_label(tmp_path / "a" / "x.png", label(3).astype(np.int64))
    np.testing.assert_array_equal(read_label(tmp_path / "a" / "x.png"), label(3))
    for wrong in (np.full((2, 2), -1), np.full((2, 2), 256), np.zeros((2, 2, 3))):
        with pytest.raises(UseError, match="a label is"):
            save_label(tmp_path / "a" / "wrong.png", wrong)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    "values, n_class, wrong",
    [
        ([0, 20, 255], 21, []),
        ([0, 21, 254], 21, [21, 254]),
        ([1], 1, [1]),
        ([254, 255], 255, []),
        ([], 3, []),
    ],
)
def test_out_of_range(values, n_class, wrong):
    assert out_of_range(np.array(values, np.uint8), n_class) == wrong


# ---- the public helper commands


def test_convert_mat_to_png_completes_an_interrupted_conversion(tmp_path, capsys):
    root = unpack(tmp_path, sbd_files()) / "benchmark_RELEASE"
    target = root / "dataset" / "cls_png"
    target.mkdir()  # the folder being there must not mean that the work is done
    (target / f"{OWN[0]}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert convert_mat_to_png.main(["--sbd_path", str(root)]) == 0
    assert len(list(target.iterdir())) == 5
    np.testing.assert_array_equal(read_label(target / f"{OWN[0]}.png"), label(FROM_SBD))
    before = state(target)
    assert convert_mat_to_png.convert(root) == (0, 5)
    assert state(target) == before
    assert convert_mat_to_png.main(["--sbd_path", str(tmp_path / "nothing")]) == 2
    assert "error: SBD folder not found" in capsys.readouterr().err


def test_convert_labels(tmp_path, capsys):
    root = unpack(tmp_path, voc_files()) / "VOCdevkit" / "VOC2012"
    names = root / "ImageSets" / "Segmentation" / "trainval.txt"
    argv = [str(root / "SegmentationClass"), str(names), str(tmp_path / "new")]
    assert convert_labels.main(argv) == 0
    for name in TRAIN + VAL:  # TRAIN[1] is in colours
        np.testing.assert_array_equal(read_label(tmp_path / "new" / f"{name}.png"), label(FROM_VOC))
    before = state(tmp_path / "new")
    assert convert_labels.main(argv) == 0
    assert state(tmp_path / "new") == before and "0 labels converted, 5 were there" in capsys.readouterr().out
    (tmp_path / "bad.txt").write_text("../../x\n")
    for wrong in ([argv[0], argv[1], argv[0]], [argv[0], str(tmp_path / "bad.txt"), argv[2]]):
        assert convert_labels.main(wrong) == 2


def test_mat_layout_is_sbds():
    """The struct these tests write reads like SBD's: GTcls(1,1).Segmentation."""
    data = loadmat(io.BytesIO(mat(label(2))))
    assert data["GTcls"].shape == (1, 1) and "Segmentation" in data["GTcls"].dtype.names
