"""Preparing from archives that are hostile, torn, incomplete or something else."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.VOC12 import prepare
from sparsemask.VOC12.lists import STAMP
from voc_archives import (
    EXPECT,
    FROM_SBD,
    OWN,
    TRAIN,
    VAL,
    check_output,
    label,
    mat,
    pack,
    picture,
    png,
    sbd_files,
    text,
    voc_files,
)


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    return pack(tmp_path / "voc.tar", voc_files()), pack(tmp_path / "benchmark.tgz", sbd_files())


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
    assert not (out / STAMP).is_file() and not list(out.rglob("*.part"))
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
    assert not (tmp_path / "out" / STAMP).is_file()


def test_no_archive_and_not_an_archive(archives, tmp_path):
    with pytest.raises(UseError, match="archive or folder not found: .*absent.tar"):
        prepare.prepare(tmp_path / "absent.tar", archives[1], tmp_path / "out", expect=EXPECT)
    (tmp_path / "page.tgz").write_text("<html>moved</html>")
    with pytest.raises(UseError, match="page.tgz: is a web page"):
        prepare.prepare(archives[0], tmp_path / "page.tgz", tmp_path / "out", expect=EXPECT)
    (tmp_path / "text.tgz").write_text("moved")
    with pytest.raises(UseError, match="text.tgz: not a readable tar archive"):
        prepare.prepare(archives[0], tmp_path / "text.tgz", tmp_path / "out", expect=EXPECT)
    assert not (tmp_path / "out").exists()


def test_expected_sizes_are_the_published_ones_by_default(archives, tmp_path):
    with pytest.raises(UseError, match="3 names for train, expected 1464"):
        prepare.prepare(*archives, tmp_path / "out")
