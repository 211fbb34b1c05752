"""The embedded sample set: reproducible, whole after a kill, true to its own description."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from sparsemask import UseError
from sparsemask.synthetic import outlines, segmentation
from sparsemask.synthetic.objects import CLASS_NAMES, INDEX
from sparsemask.synthetic.scenes import draw_scene, things_of
from sparsemask.VOC12 import sample
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.lists import load_class_names, pairs_from_lists


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Labels of the first 72 pictures, four rounds of every deck."""
    return np.stack([draw_scene(0, number)[1] for number in range(72)])


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_reads_as_a_dataset(tmp_path):
    stamp = segmentation.make_sample(tmp_path / "set", train=3, val=2, size=64)
    assert stamp == json.loads((tmp_path / "set/STAMP.json").read_text())
    lists = {name: (tmp_path / f"set/{name}.txt").read_text().split() for name in ("train", "val", "train_aug")}
    assert lists == {"train": ["0000", "0001", "0002"], "val": ["0003", "0004"], "train_aug": lists["train"]}
    names = load_class_names(tmp_path / "set/class_names.txt", 21)
    pairs = pairs_from_lists(tmp_path / "set/img", tmp_path / "set/gt", tmp_path / "set/trainval.txt")
    data = SegmentationDataset(pairs, classes=names, crop_size=64, training=False)
    for image, label in (data[i] for i in range(len(data))):
        assert image.shape == (3, 64, 64) and label.shape == (64, 64)


def test_same_seed_same_bytes_and_second_call_touches_nothing(tmp_path):
    for name in "ab":
        segmentation.make_sample(tmp_path / name, train=2, val=1, size=64, seed=7)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    segmentation.make_sample(tmp_path / "a", train=2, val=1, size=64, seed=7)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}


def test_other_settings_other_pictures():
    base = draw_scene(0, 0, 64)[0]
    assert all((draw_scene(*key)[0] != base).any() for key in ((1, 0, 64), (0, 1, 64)))


@pytest.mark.parametrize("lost", ["img/0001.jpg", "gt/0000.png"])
def test_half_made_folder_is_completed(tmp_path, monkeypatch, lost):
    whole, half = tmp_path / "whole", tmp_path / "half"
    segmentation.make_sample(whole, train=2, val=1, size=64)

    def killed(out, name, seed, size, draw=segmentation._draw):
        if name == "0002":
            raise KeyboardInterrupt
        draw(out, name, seed, size)

    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "_draw", killed)
        with pytest.raises(KeyboardInterrupt):
            segmentation.make_sample(half, train=2, val=1, size=64)
    # A folder without the stamp must not pass for a whole one.
    assert not (half / "STAMP.json").exists()
    (half / "img/.0002.jpg.1.part").write_bytes(b"torn")
    segmentation.make_sample(half, train=2, val=1, size=64)
    assert content(half) == content(whole)
    (half / lost).unlink()
    segmentation.make_sample(half, train=2, val=1, size=64)
    assert content(half) == content(whole)


def test_other_settings_replace_the_former_set(tmp_path):
    segmentation.make_sample(tmp_path / "a", train=4, val=1, size=64, seed=1)
    (tmp_path / "a/img/holiday.jpg").write_bytes(b"mine")
    segmentation.make_sample(tmp_path / "a", train=2, val=1, size=64, seed=2)
    segmentation.make_sample(tmp_path / "b", train=2, val=1, size=64, seed=2)
    # The user's own file stays, the former set's surplus pictures do not.
    assert content(tmp_path / "a") == {**content(tmp_path / "b"), "img/holiday.jpg": b"mine"}


def test_folder_of_someone_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert sample.main(["--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 8}, {"seed": -1}, {"train": 10**6}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(UseError, match=next(iter(wrong))):
        segmentation.make_sample(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_every_class_occurs_often_enough(labels):
    assert set(np.unique(labels)) == {*range(len(CLASS_NAMES)), 255}
    share = {name: (labels == INDEX[name]).any((1, 2)).mean() for name in CLASS_NAMES}
    assert min(share.values()) >= 0.08, share
    # Neither a set of mere background nor one without any.
    assert 0.4 < (labels == 0).mean() < 0.65
    assert (labels == 255).mean() < 0.06


def test_void_is_a_border(labels):
    inner = (labels == 255)[:, 1:-1, 1:-1]
    neighbours = np.stack([labels[:, 1 + dy : 127 + dy, 1 + dx : 127 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    # One pixel wide: nearly every void pixel touches a labelled one.
    assert (neighbours.min(0)[inner] < 255).mean() > 0.98


def test_scene_decides_kite_or_tent_and_star_or_starfish(labels):
    sky = (labels == INDEX["kite"]).any((1, 2)) | (labels == INDEX["star"]).any((1, 2))
    ground = (labels == INDEX["tent"]).any((1, 2)) | (labels == INDEX["starfish"]).any((1, 2))
    assert sky.any() and ground.any() and not (sky & ground).any()


def test_deck_deals_every_kind_once_a_round():
    dealt = [kind for number in range(18) for kind in things_of(3, number)]
    assert all(sorted(dealt[at : at + 18]) == list(range(18)) for at in range(0, 90, 18))


def test_drawing_scales_with_the_picture():
    small, large = draw_scene(0, 5, 96)[1], draw_scene(0, 5, 192)[1]
    both = (small != 255) & (large[::2, ::2] != 255)
    assert (small == large[::2, ::2])[both].mean() > 0.97


def test_thin_strokes_survive_the_file():
    picture = draw_scene(0, 0)[0]
    read = np.asarray(Image.open(io.BytesIO(segmentation.encode_picture(picture)))).astype(int)
    # Full-resolution chroma: half of it would blur a 4-pixel stroke's colour into the background.
    assert np.abs(read - picture).mean() < 4


GRID = np.meshgrid(np.arange(-19.95, 20, 0.1), np.arange(-19.95, 20, 0.1))


@pytest.mark.parametrize(
    ("distance", "area"),
    [
        (outlines.disc(*GRID, 10), 100 * np.pi),
        (outlines.ellipse(*GRID, 12, 6), 72 * np.pi),
        (outlines.square(*GRID, 10, 2), 400 - (4 - np.pi) * 4),
        (outlines.diamond(*GRID, 8, 12), 192),
        (outlines.ring(*GRID, 12, 2), np.pi * (14**2 - 10**2)),
        # Ten triangles between the middle, a tip and an inner corner.
        (outlines.star(*GRID, 15, 5, 0.42), 5 * 15 * 15 * 0.42 * np.sin(np.pi / 5)),
        (outlines.strokes(*GRID, [(-8, 0, 8, 0)], 2), 64 + 4 * np.pi),
    ],
    ids=["disc", "ellipse", "square", "diamond", "ring", "star", "strokes"],
)
def test_outlines_enclose_the_right_area(distance, area):
    assert (distance < 0).sum() * 0.01 == pytest.approx(area, rel=0.02)
