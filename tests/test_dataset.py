"""Reading and augmenting pairs: equal to the plain way of doing it, and clear about broken data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.VOC12.augment import IMAGENET_MEAN, IMAGENET_STD, SCALES, View, augment, draw_view, pad, scaled_size
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.lists import devkit_pairs
from sparsemask.VOC12.palette import save_label


def random_pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 21, (height, width), np.uint8)
    label[rng.random((height, width)) < 0.1] = 255
    return rng.integers(0, 256, (height, width, 3), np.uint8), label


def reference(picture, label, view: View, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain way, in float64: resize all, pad, crop, flip; the image in 0 to 255, not normalised."""
    height, width = (scaled_size(n, view.scale) for n in label.shape)
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    image = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False, antialias=False)[0]
    # Nearest with half-pixel centres, by whole numbers: floor((i + 1/2) * in / out).
    rows, columns = (
        [(2 * i + 1) * old // (2 * new) for i in range(new)]
        for old, new in zip(label.shape, (height, width), strict=True)
    )
    target = torch.from_numpy(label[np.ix_(rows, columns)].astype(np.int64))
    tall, wide = max(height, crop), max(width, crop)
    top, left = (tall - height) // 2, (wide - width) // 2
    padded = (torch.tensor(IMAGENET_MEAN, dtype=torch.float64) * 255)[:, None, None].repeat(1, tall, wide)
    padded[:, top : top + height, left : left + width] = image
    padded_target = torch.full((tall, wide), 255)
    padded_target[top : top + height, left : left + width] = target
    window = np.s_[..., view.top : view.top + crop, view.left : view.left + crop]
    image, target = padded[window], padded_target[window]
    return (image.flip(-1), target.flip(-1)) if view.flip else (image, target)


def denormalise(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.double() * std + mean) * 255


SIZES = [(37, 50), (50, 37), (24, 24), (65, 31), (1, 9), (9, 1), (120, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [*SCALES, 0.613, 2.71])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_resizing_everything(size, scale, flip):
    picture, label = random_pair(*size)
    rng = np.random.default_rng(1)
    for crop in (16, 33, 64):
        drawn = draw_view(size, crop, (scale,), rng)
        view = View(scale, drawn.top, drawn.left, flip)
        image, target = augment(picture, label, view, crop)
        expected, expected_target = reference(picture, label, view, crop)
        # 1e-3 of 255 levels: float32 weights and normalisation, nothing else.
        assert (denormalise(image) - expected).abs().max() < 1e-3
        assert torch.equal(target, expected_target)


def test_agrees_with_torch_in_float32():
    """The usual float32 interpolation: its own coordinates are only good to about 1e-2 levels."""
    picture, label = random_pair(75, 100)
    for scale in SCALES:
        height, width = scaled_size(75, scale), scaled_size(100, scale)
        crop = max(height, width)
        image, target = augment(picture, label, View(scale, 0, 0, False), crop)
        top, left = (crop - height) // 2, (crop - width) // 2
        inside = np.s_[..., top : top + height, left : left + width]
        plain = F.interpolate(
            torch.from_numpy(picture).permute(2, 0, 1)[None].float(), size=(height, width), mode="bilinear"
        )[0]
        assert (denormalise(image)[inside] - plain).abs().max() < 2e-2


def test_padding_is_the_mean_and_255():
    picture, label = random_pair(10, 10)
    image, target = augment(picture, label, View(1.0, 0, 0, False), 17)
    outside = torch.ones(17, 17, dtype=torch.bool)
    outside[3:13, 3:13] = False  # centred: 3 before, 4 behind
    assert (image[:, outside] == 0).all() and (target[outside] == 255).all()
    np.testing.assert_array_equal(target[3:13, 3:13].numpy(), label)


def test_draws_cover_the_choices():
    rng = np.random.default_rng(0)
    views = [draw_view((40, 60), 32, SCALES, rng) for _ in range(600)]
    assert {view.scale for view in views} == set(SCALES)
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6
    doubled = [view for view in views if view.scale == 2.0]
    # Every place of the crop is possible, the last one included.
    assert 0 <= min(v.top for v in doubled) < 8 and 40 < max(v.top for v in doubled) <= 80 - 32
    assert 80 < max(v.left for v in doubled) <= 120 - 32
    assert all(view.top == 0 for view in views if view.scale <= 0.75)  # 30 rows: padded, nothing to choose


def test_rounding_of_sizes():
    assert [scaled_size(n, s) for n, s in ((375, 0.5), (333, 0.75), (10, 1.25), (1, 0.25))] == [
        188,
        250,
        13,
        1,
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, size in enumerate([(20, 30), (40, 25), (33, 33)]):
        picture, label = random_pair(*size, seed=i)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        save_label(tmp_path / f"{i}_label.png", label)
    return tmp_path


def dataset(folder: Path, **options) -> SegmentationDataset:
    pairs = [(folder / f"{i}.png", folder / f"{i}_label.png") for i in range(3)]
    return SegmentationDataset(pairs, **{"crop_size": 32, **options})


def test_sample(folder):
    data = dataset(folder)
    for i in range(3):
        image, label = data.sample(i, np.random.default_rng(5))
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and image.is_contiguous()
        assert label.shape == (32, 32) and label.dtype == torch.int64
        again = data.sample(i, np.random.default_rng(5))
        assert torch.equal(image, again[0]) and torch.equal(label, again[1])  # the generator decides everything
        other = data.sample(i, np.random.default_rng(6))
        assert not torch.equal(image, other[0])


def test_training_items_follow_torchs_seed(folder):
    data = dataset(folder)
    items = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        items.append(data[0][0])
    assert torch.equal(items[0], items[1]) and not torch.equal(items[0], items[2])


def test_whole_pictures_for_evaluation(folder):
    data = dataset(folder, training=False)
    for i, (height, width) in enumerate([(20, 30), (40, 25), (33, 33)]):
        image, label = data[i]
        assert image.shape[1:] == label.shape == (max(height, 32), max(width, 32))
        picture, plain = data.load(i)
        top, left = (label.shape[0] - height) // 2, (label.shape[1] - width) // 2
        inside = np.s_[..., top : top + height, left : left + width]
        assert (denormalise(image)[inside] - torch.from_numpy(picture).permute(2, 0, 1)).abs().max() < 1e-4
        np.testing.assert_array_equal(label[inside].numpy(), plain)
        assert (label == 255).sum() == (plain == 255).sum() + label.numel() - plain.size


def test_pad_equals_the_view_of_the_whole():
    picture, label = random_pair(20, 31)
    whole, view = pad(picture, label, 48), augment(picture, label, View(1.0, 0, 0, False), 48)
    assert torch.equal(whole[0], view[0]) and torch.equal(whole[1], view[1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_become_rgb(mode, folder):
    Image.open(folder / "0.png").convert(mode).save(folder / ("0.tif" if mode == "CMYK" else "0.png"))
    path = folder / ("0.tif" if mode == "CMYK" else "0.png")
    data = SegmentationDataset([(path, folder / "0_label.png")], crop_size=32)
    assert data.load(0)[0].shape == (20, 30, 3)


def test_any_classes(folder):
    save_label(folder / "0_label.png", np.full((20, 30), 149))
    data = dataset(folder, n_class=150, classes=[f"thing {i}" for i in range(150)])
    assert data.load(0)[1].max() == 149 and data.classes[149] == "thing 149"
    assert dataset(folder, n_class=3).classes == ["class 0", "class 1", "class 2"]
    assert data.name(1) == "1" and len(data) == 3


def _truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda d: save_label(d / "0_label.png", np.full((20, 30), 21)),
            r"0_label\.png: label 21 beyond the 21",
        ),
        (lambda d: save_label(d / "0_label.png", np.full((20, 30), 254)), r"0_label\.png: label 254 beyond"),
        (
            lambda d: save_label(d / "0_label.png", np.zeros((30, 20))),
            r"0_label\.png: 20x30 .*0\.png has 30x20",
        ),
        (lambda d: _truncate(d / "0.png", 0.5), r"0\.png: not readable as a picture"),
        (lambda d: _truncate(d / "0_label.png", 0.9), r"0_label\.png: not readable as a picture"),
        (lambda d: (d / "0.png").write_bytes(b""), r"0\.png: not readable as a picture"),
        (lambda d: (d / "0.png").unlink(), r"0\.png: no such file"),
        (lambda d: Image.new("RGB", (30, 20)).save(d / "0_label.png"), r"0_label\.png: an RGB picture where"),
        (lambda d: Image.new("LA", (30, 20)).save(d / "0_label.png"), r"0_label\.png: mode LA is no label"),
        (
            lambda d: Image.fromarray(np.full((20, 30), 300, np.uint16)).save(d / "0_label.png"),
            r"0_label\.png: values 300",
        ),
        (
            lambda d: Image.fromarray(np.full((20, 30), 300, np.uint16)).save(d / "0.png"),
            r"0\.png: .*mode I.*convert it to 8 bits",
        ),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_broken_data_is_named(break_it, message, training, folder):
    break_it(folder)
    data = dataset(folder, training=training)
    with pytest.raises(UseError, match=message) as caught:
        data[0]
    assert "\n" not in str(caught.value)
    data[1]  # the others are still readable


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_class": 0}, "0 classes"),
        ({"n_class": 256}, "256 classes"),
        ({"crop_size": 0}, "must be positive"),
        ({"scales": ()}, "must be positive"),
        ({"scales": (0.0, 1.0)}, "must be positive"),
        ({"classes": ["a", "b"]}, "2 class names for 21 classes"),
    ],
)
def test_impossible_settings(options, message, folder):
    with pytest.raises(UseError, match=message):
        dataset(folder, **options)


def test_empty_set():
    with pytest.raises(UseError, match="data set is empty"):
        SegmentationDataset([])


def test_errors_cross_worker_processes(folder):
    """A UseError raised in a loader's worker arrives as one, so that the command can end in one line."""
    _truncate(folder / "1.png", 0.5)
    loader = torch.utils.data.DataLoader(dataset(folder), batch_size=1, num_workers=1)
    with pytest.raises(UseError, match="not readable as a picture"):
        list(loader)


@pytest.mark.real
@pytest.mark.slow
def test_real_pictures_equal_the_plain_way(shared_data):
    data = SegmentationDataset(devkit_pairs(shared_data / "voc_sample", "train_aug"), crop_size=513)
    rng = np.random.default_rng(3)
    for i in (0, 400):
        picture, label = data.load(i)
        view = draw_view(label.shape, 513, SCALES, rng)
        image, target = augment(picture, label, view, 513)
        expected, expected_target = reference(picture, label, view, 513)
        assert (denormalise(image) - expected).abs().max() < 1e-3
        assert torch.equal(target, expected_target)
