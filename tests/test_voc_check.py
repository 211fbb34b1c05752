"""Lists, devkit folders, and the check that opens every pair."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.VOC12 import check
from sparsemask.VOC12.lists import devkit_pairs, load_class_names, pairs_from_lists, read_list
from sparsemask.VOC12.palette import VOC_CLASSES, VOC_COLOURS, save_label


def save_pair(folder: Path, name: str, size: tuple[int, int] = (16, 10), suffix: str = ".jpg") -> None:
    for part in ("img", "gt"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 20, 30)).save(folder / "img" / f"{name}{suffix}")
    save_label(folder / "gt" / f"{name}.png", np.full(size[::-1], 2, np.uint8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    names = ["a", "b", "c"]
    for name in names:
        save_pair(tmp_path, name)
    (tmp_path / "list.txt").write_text("\n".join(names))
    return tmp_path


def run_check(data: Path, *more: str) -> int:
    parts = ("--im_path", data / "img", "--gt_path", data / "gt", "--list", data / "list.txt")
    return check.main([*map(str, parts), *more])


def test_clean_set_exits_0(data, capsys):
    assert run_check(data) == 0
    assert capsys.readouterr().out == "3 pairs checked: no faults\n"


def noise(size: tuple[int, int], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "break_it, kind, path, text",
    [
        (lambda d: (d / "img/b.jpg").unlink(), "missing", "img/b.jpg", "no such file"),
        (lambda d: (d / "gt/b.png").unlink(), "missing", "gt/b.png", "no such file"),
        # Opening alone would not show it: only a full decode does.
        (
            lambda d: (d / "img/b.jpg").write_bytes(noise((64, 64), "JPEG")[:-900]),
            "unreadable",
            "img/b.jpg",
            "trunc",
        ),
        (lambda d: (d / "gt/b.png").write_bytes(b""), "unreadable", "gt/b.png", "not readable"),
        (
            lambda d: save_label(d / "gt/b.png", np.zeros((10, 15), np.uint8)),
            "sizes",
            "gt/b.png",
            "15x10.*16x10",
        ),
        (
            lambda d: save_label(d / "gt/b.png", np.full((10, 16), 21)),
            "range",
            "gt/b.png",
            "label 21 beyond the 21 classes",
        ),
        (
            lambda d: Image.new("RGB", (16, 10)).save(d / "gt/b.png"),
            "colours",
            "gt/b.png",
            "indices are expected",
        ),
    ],
)
def test_each_fault_is_found_and_named(break_it, kind, path, text, data, capsys):
    break_it(data)
    pairs = [(data / "img" / f"{name}.jpg", data / "gt" / f"{name}.png") for name in "abc"]
    faults = check.check_all(pairs, 21).faults
    assert [(fault.kind, fault.path) for fault in faults] == [(kind, str(data / path))]
    assert run_check(data) == 2
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{data / path}: ") and line.count(str(data / path)) == 1

    assert re.search(text, line)
    assert summary == f"3 pairs checked: 1 {check.KINDS[kind]}"


def test_several_processes_find_the_same(data):
    for i in range(150):
        save_pair(data, f"x{i}")
    for i in (3, 17, 138):
        (data / "gt" / f"x{i}.png").write_bytes(b"\x89PNG")
    pairs = [(data / "img" / f"x{i}.jpg", data / "gt" / f"x{i}.png") for i in range(150)]
    alone, together = (check.check_all(pairs, 21, workers).faults for workers in (1, 2))
    assert alone == together and len(alone) == 3


def test_n_class_is_respected(data, capsys):
    assert run_check(data, "--n_class", "2") == 2  # every label is 2
    assert "3 label beyond the classes" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_no_workers_is_an_error_of_use(workers, data, capsys):
    assert run_check(data, "--workers", workers) == 2
    assert "give at least 1" in capsys.readouterr().err


# ---- lists


def test_read_list(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text("\ufeffb\r\n\n# a comment\n  a  \nb\n")
    assert read_list(path) == ["b", "a", "b"]  # order and duplicates kept
    for text in ("", "\n\n# only this\n"):
        path.write_text(text)
        with pytest.raises(UseError, match="list is empty"):
            read_list(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UseError, match="not a text file"):
        read_list(path)
    with pytest.raises(UseError, match="list not found"):
        read_list(tmp_path / "none.txt")


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG"])
@pytest.mark.parametrize("listed", ["{name}", "{name}{suffix}", "{name}{suffix} {name}.png"])
@pytest.mark.parametrize("name", ["a", "my.photo-1"])
def test_pairs_from_lists(suffix, listed, name, tmp_path):
    save_pair(tmp_path, name, suffix=suffix)
    (tmp_path / "l.txt").write_text(listed.format(name=name, suffix=suffix))
    pairs = pairs_from_lists(tmp_path / "img", tmp_path / "gt", tmp_path / "l.txt")
    assert pairs == [(tmp_path / "img" / f"{name}{suffix}", tmp_path / "gt" / f"{name}.png")]


def test_names_with_spaces_and_folders(tmp_path):
    save_pair(tmp_path, "my photo")
    for part in ("img", "gt"):
        (tmp_path / part / "city").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "img" / "city" / "x.png")
    save_label(tmp_path / "gt" / "city" / "x.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "l.txt").write_text("my photo\ncity/x\n")
    pairs = pairs_from_lists(tmp_path / "img", tmp_path / "gt", tmp_path / "l.txt")
    assert [path.name for path, _ in pairs] == ["my photo.jpg", "x.png"]


def test_absent_pictures_are_counted_and_the_first_named(data):
    (data / "list.txt").write_text("a\nghost\nb\nspectre\n")
    with pytest.raises(UseError, match=r"2 of 4 pictures absent, first .*ghost\.jpg"):
        pairs_from_lists(data / "img", data / "gt", data / "list.txt")
    (data / "gt" / "c.png").unlink()
    (data / "list.txt").write_text("a\nc\n")
    with pytest.raises(UseError, match=r"1 of 2 labels absent, first .*c\.png"):
        pairs_from_lists(data / "img", data / "gt", data / "list.txt")
    with pytest.raises(UseError, match="picture folder not found"):
        pairs_from_lists(data / "no", data / "gt", data / "list.txt")


def test_class_names(tmp_path):
    assert load_class_names(None, 21) == list(VOC_CLASSES)
    assert load_class_names(None, 3) == ["class 0", "class 1", "class 2"]
    (tmp_path / "names.txt").write_text("background\nlesion\n")
    assert load_class_names(tmp_path / "names.txt", 2) == ["background", "lesion"]
    with pytest.raises(UseError, match="2 class names for 5 classes"):
        load_class_names(tmp_path / "names.txt", 5)


# ---- the devkit's folders


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
        (root / name).mkdir()
    for name, folders in (
        ("voc", ("SegmentationClass", "SegmentationClassAug")),
        ("sbd", ("SegmentationClassAug",)),
    ):
        Image.new("RGB", (6, 5)).save(root / "JPEGImages" / f"{name}.jpg")
        for folder in folders:
            save_label(root / folder / f"{name}.png", np.zeros((5, 6), np.uint8))
    for name, names in (("train", "voc"), ("train_aug", "voc\nsbd"), ("mixed", "sbd\nvoc"), ("val", "voc")):
        (lists / f"{name}.txt").write_text(names)
    return tmp_path


@pytest.mark.parametrize("part", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize(
    "list_name, gt_folder, used",
    [
        ("train", None, "SegmentationClass"),
        ("train.txt", None, "SegmentationClass"),
        ("train_aug", None, "SegmentationClassAug"),
        ("mixed", None, "SegmentationClassAug"),  # only there are all its labels
        ("train", "SegmentationClassAug", "SegmentationClassAug"),
    ],
)
def test_devkit_pairs(part, list_name, gt_folder, used, devkit):
    pairs = devkit_pairs(devkit / part, list_name, gt_folder)
    assert {label.parent.name for _, label in pairs} == {used}
    assert {picture.parent.name for picture, _ in pairs} == {"JPEGImages"}


def test_public_two_column_list_of_a_devkit(devkit):
    """Public train_aug lists write paths from the devkit's root, with a leading slash."""
    root = devkit / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Segmentation" / "two.txt").write_text("/JPEGImages/sbd.jpg /SegmentationClassAug/sbd.png\n")
    assert devkit_pairs(root, "two") == [(root / "JPEGImages/sbd.jpg", root / "SegmentationClassAug/sbd.png")]


def test_devkit_errors(devkit, tmp_path):
    with pytest.raises(UseError, match="no list 'tain' in .*there are: mixed, train, train_aug, val"):
        devkit_pairs(devkit, "tain")
    with pytest.raises(UseError, match="1 of 2 labels absent, first .*sbd.png"):
        devkit_pairs(devkit, "mixed", "SegmentationClass")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UseError, match="no JPEGImages below it"):
        devkit_pairs(tmp_path / "empty", "train")


def test_check_of_a_devkit(devkit, capsys):
    assert check.main(["--voc_root", str(devkit)]) == 0
    (devkit / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt").unlink()
    assert check.main(["--voc_root", str(devkit)]) == 0  # a raw devkit has no train_aug: then train
    assert check.main(["--voc_root", str(devkit), "--list", "mixed", "val"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 pairs checked: no faults"


@pytest.mark.real
def test_shared_sample_is_clean(shared_data):
    pairs = devkit_pairs(shared_data / "voc_sample", "train")
    assert len(pairs) == 131 and check.check_all(pairs[:40], 21, workers=1).faults == []


def test_palette_entries_are_distinct():
    assert len(np.unique(VOC_COLOURS, axis=0)) == 256  # else colours could not be decoded
