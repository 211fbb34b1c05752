"""Predictions of different files never share a name, whatever the task and however the files are named."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import small_classes
import small_pictures
from small_pairs import options as stereo_options
from sparsemask import tasks
from sparsemask.devices import Arithmetic
from sparsemask.families import Restored
from sparsemask.files import distinct_names
from sparsemask.retrain import connectivity
from sparsemask.tasks.classification.data import Part
from sparsemask.tasks.saliency.data import SaliencyDataset
from sparsemask.tasks.stereo.files import read_disparity, write_disparity
from sparsemask.VOC12.dataset import SegmentationDataset

CPU = Arithmetic(torch.device("cpu"))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.png", "y/b.png"], ["a", "b"]),
        (["s/a/0000.png", "s/b/0000.png", "s/b/1.png"], ["a/0000", "b/0000", "b/1"]),
        (["s/0.png", "s/0.jpg", "s/1.png"], ["0.png", "0.jpg", "1"]),
        (["s/0.png", "s/./t/../0.png", "s/1.png"], ["0", "0", "1"]),  # one file, named twice
        (["s/0.png", "t/0.png", "s/0.png"], ["s/0", "t/0", "s/0"]),
        (["/p/q/0.png", "/p/0.png"], ["q/0", "0"]),
        (["../a/0.png", "0.png", "../a/1.png"], None),
        (["s/0.png", "s/0.jpg", "s/0.png.png"], ["0.png", "0.jpg", "0.png.png"]),
        ([], []),
    ],
)
def test_names(paths, names):
    found = distinct_names(paths)
    assert names is None or found == names
    assert not any(name.startswith("/") or ".." in name.split("/") for name in found)


def test_names_with_suffixes():
    assert distinct_names(["a/0.png", "b/1.png"], suffix=True) == ["0.png", "1.png"]
    assert distinct_names(["a/0.png", "b/0.png"], suffix=True) == ["a/0.png", "b/0.png"]


@pytest.fixture
def twins(tmp_path):
    """Lists of pictures a/0000 and b/0000 with labels."""
    rng = np.random.default_rng(0)
    for part in ("img/a", "img/b", "gt/a", "gt/b"):
        value = 0 if part.endswith("a") else 1
        size = (24, 32, 3) if part.startswith("img") else (24, 32)
        picture = rng.integers(0, 9, size) if len(size) == 3 else np.full(size, value)
        small_pictures.write(tmp_path / part / "0000.png", picture.astype(np.uint8))
    (tmp_path / "val.txt").write_text("a/0000\nb/0000\n")
    return tmp_path


def test_eval_writes_a_file_for_every_picture_of_a_list(twins):
    from sparsemask.retrain import eval as retrain_eval

    flags = ["--im_path", str(twins / "img"), "--gt_path", str(twins / "gt"), "--n_class", "2", "--gpu", "-1"]
    flags += ["--training_list", str(twins / "val.txt"), "--eval_list", str(twins / "val.txt"), "--n_worker", "0"]
    made = retrain_eval.parser()
    options = made.resolve({**made.given([*flags, "--crop_size", "16", "--out", str(twins / "out")])})
    task = tasks.get("segmentation", options)
    dark = [float(task.eval_data[i][0].mean()) for i in range(2)]

    class Network(torch.nn.Module):
        """Class 0 for the one picture, 1 for the other."""

        def forward(self, x):
            out = torch.zeros(len(x), 2, *x.shape[-2:])
            out[:, int(abs(float(x.mean()) - dark[1]) < abs(float(x.mean()) - dark[0]))] = 1
            return out

    assert connectivity.FAMILY.evaluate(Restored(options, Network(), CPU)) == 0
    written = {path.relative_to(twins / "out").as_posix(): path for path in (twins / "out").rglob("*.png")}
    assert set(written) == {"a/0000.png", "b/0000.png"}
    assert [np.unique(np.array(Image.open(written[name]))).tolist() for name in sorted(written)] == [[0], [1]]


@pytest.mark.parametrize("kind", [SegmentationDataset, SaliencyDataset])
def test_every_dense_task_keeps_folders(kind, twins):
    pairs = [(twins / f"img/{name}/0000.png", twins / f"gt/{name}/0000.png") for name in "ab"]
    made = kind(pairs, 2, ("no", "yes")) if kind is SegmentationDataset else kind(pairs, ("no", "yes"))
    assert [made.name(i) for i in range(2)] == ["a/0000", "b/0000"]


def test_super_resolution_keeps_pictures_of_two_suffixes_apart(tmp_path):
    for name in ("0001.png", "0001.bmp", "0002.png"):
        small_pictures.write(tmp_path / "set" / name, small_pictures.scene(len(name)))
    options = small_pictures.options(hr_path=tmp_path / "set", data_test=tmp_path / "set")
    task = tasks.get("super_resolution", options)
    for index in range(3):
        task.write(tmp_path / "out", index, torch.full((3, 4, 4), float(index)))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0001.bmp.png", "0001.png.png", "0002.png"]


def test_stereo_keeps_scenes_of_one_name_apart(tmp_path):
    rng = np.random.default_rng(0)
    for group in ("indoor", "outdoor"):
        for side in ("im0", "im1"):
            picture = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
            small_pictures.write(tmp_path / "mb" / group / "chair" / f"{side}.png", picture)
        write_disparity(tmp_path / "mb" / group / "chair" / "disp0.pfm", np.full((24, 32), 5.0))
    (tmp_path / "list.txt").write_text(
        "".join(f"{group}/chair/im0.png {group}/chair/im1.png\n" for group in ("indoor", "outdoor"))
    )
    options = stereo_options(data_root=tmp_path / "mb", eval_list=tmp_path / "list.txt")
    listed = tasks.get("stereo", options).eval_data
    assert len({listed.name(i) for i in range(2)}) == 2
    options = stereo_options(data_root=tmp_path / "mb")
    task = tasks.get("stereo", options)
    frames = type(task.eval_data.frames)(task.files("training")[1] + task.files("eval")[1])
    assert [frames.name(i) for i in range(2)] == ["indoor/chair/im0", "outdoor/chair/im0"]
    task.eval_data.frames = frames
    for index in range(2):
        task.write(tmp_path / "out", index, torch.full((24, 32), 1.0 + index))
    found = [float(read_disparity(tmp_path / f"out/{g}/chair/im0.png").max()) for g in ("indoor", "outdoor")]
    assert found == [1, 2]


def test_tables_of_classified_pictures_tell_them_apart(tmp_path):
    small_classes.write_classes(tmp_path / "d" / "train", {"cat": 2, "dog": 2}, (80, 90))
    small_classes.write_classes(tmp_path / "d" / "val", {"cat": 2, "dog": 2}, (80, 90))
    options = small_classes.options(data_root=tmp_path / "d")
    task = tasks.get("classification", options)
    task.save(tmp_path / "p.csv", {i: torch.zeros(2) for i in range(4)})
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["picture"] for row in rows] == ["cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png"]
    assert Part([tmp_path / "cat/7.png"], np.zeros(1)).name(0) == "7.png"
