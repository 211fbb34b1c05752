"""Small VOC and SBD archives and folders, made for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from sparsemask.VOC12.lists import STAMP
from sparsemask.VOC12.palette import VOC_COLOURS, colourise, read_label

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


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.rglob("*"))}


def check_output(out: Path) -> None:
    names = {name: (out / f"{name}.txt").read_text().split() for name in ("train", "val", "trainval", "train_aug")}
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
    assert (out / STAMP).is_file()
    assert not list(out.rglob("*.part"))
    for part in ("img", "gt"):
        assert len(list((out / part).iterdir())) == len(TRAIN + VAL + OWN)
