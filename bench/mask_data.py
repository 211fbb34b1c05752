"""Pictures as tensors in memory, drawn once: what the trainings of mask_table.py and decoders.py read.

Every training of one of these benches sees the same crops of the same pictures. They are drawn once, a fixed number of
views a picture, and lie in files that all processes map: a training reads them by index, without a loader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.datasets import sample_folder
from sparsemask.errors import UseError
from sparsemask.files import atomic_write, read_json, write_json
from sparsemask.tasks.segmentation.scores import SegmentationScores
from sparsemask.VOC12.augment import View, augment, draw_view
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.lists import devkit_pairs, pairs_from_lists

N_CLASS, IGNORE = 21, 255


@dataclass(frozen=True)
class Pictures:
    """Which views of which pictures are drawn.

    Attributes:
        name: "sample", the embedded set, or "voc", a VOC devkit.
        root: the devkit of "voc"; empty for the sample set.
        crop: side of training views, pixels.
        views: training views of each picture: scale, position and flip drawn once.
        scales: the factors of training views.
        side: side of validation views, which hold the whole picture, padded; pixels.
        scale: the factor of validation views.
        held_out: validation pictures, spread evenly over their list.
        limit: training pictures at most, spread evenly; 0: all.
        seed: of the views.
    """

    name: str
    root: str
    crop: int
    views: int
    scales: tuple[float, ...]
    side: int
    scale: float
    held_out: int
    limit: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        """A short word that differs where the views do."""
        return f"{self.name}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:10]}"

    def pairs(self, training: bool) -> list[tuple[Path, Path]]:
        """(image, label) files of the training or of the validation part."""
        if self.name == "voc":
            pairs = devkit_pairs(self.root, "train_aug" if training else "val")
        else:
            folder = sample_folder()
            listed = folder / ("train.txt" if training else "val.txt")
            pairs = pairs_from_lists(folder / "img", folder / "gt", listed)
        return spread_evenly(pairs, (self.limit if training else self.held_out) or len(pairs))


def choose_pictures(voc_root: str | None, crop: int | None = None, side: int | None = None, **changes) -> Pictures:
    """The views of the set that a command line names: a VOC devkit, else the embedded sample set.

    Args:
        voc_root: a VOC devkit's folder, or None.
        crop: side of training views; None: 129 (VOC), 97 (sample set).
        side: side of validation views; None: 257 (VOC at half of its size), 129.
        changes: other fields of :class:`Pictures`; those that are None are left alone.
    """
    if voc_root:
        root = str(Path(voc_root).resolve())
        fields = dict(name="voc", root=root, crop=crop or 129, views=4, scales=(0.5, 0.75, 1.0), side=side or 257)
        fields |= dict(scale=0.5, held_out=120)
    else:
        fields = dict(name="sample", root="", crop=crop or 97, views=8, scales=(0.75, 1.0, 1.25), side=side or 129)
        fields |= dict(scale=1.0, held_out=60)
    return Pictures(**(fields | {key: value for key, value in changes.items() if value is not None}))


def spread_evenly(items: list, count: int) -> list:
    """`count` items of a list at even distances, or all where there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


@dataclass(frozen=True)
class Pool:
    """Views of pictures.

    Attributes:
        images: float16 (N, 3, H, W), normalised.
        labels: uint8 (N, H, W), 255 to ignore.
    """

    images: Tensor
    labels: Tensor


class Cache:
    """Arrays in a folder, each made once and mapped by every process that opens it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether an array is there."""
        return (self.folder / f"{name}.npy").exists()

    def write(self, name: str, shape: tuple[int, ...], dtype: str, rows: Iterator[np.ndarray]) -> None:
        """Make an array from blocks of its rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / f"{name}.npy") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            written = 0
            for block in rows:
                file.write(np.ascontiguousarray(block, dtype).tobytes())
                written += len(block)
            if written != shape[0]:
                raise UseError(f"{name}: {written} rows of {shape[0]}")

    def read(self, name: str, device: str = "cpu") -> Tensor:
        """An array as a tensor: mapped from its file on a CPU, copied to a GPU."""
        array = np.load(self.folder / f"{name}.npy", mmap_mode="c")
        return torch.from_numpy(array).to(device)


def prepare_pool(pictures: Pictures, cache: Cache) -> None:
    """Draw the views of both parts into the cache, where they are not there."""
    for part in ("train", "val"):
        if cache.has(f"{part}_labels"):
            continue
        training = part == "train"
        side = pictures.crop if training else pictures.side
        data = SegmentationDataset(pictures.pairs(training), N_CLASS, crop_size=side, scales=pictures.scales)
        count = len(data) * (pictures.views if training else 1)
        labels = np.empty((count, side, side), np.uint8)

        def blocks(data=data, training=training, side=side, labels=labels) -> Iterator[np.ndarray]:
            row = 0
            for index in range(len(data)):
                image, label = data.load(index)
                rng = np.random.default_rng((pictures.seed, index))
                for _ in range(pictures.views if training else 1):
                    view = View(pictures.scale, 0, 0, False)
                    if training:
                        view = draw_view(label.shape, side, pictures.scales, rng)
                    drawn, target = augment(image, label, view, side)
                    labels[row] = target.numpy()
                    row += 1
                    yield drawn[None].numpy()

        cache.write(f"{part}_images", (count, 3, side, side), "float16", blocks())
        cache.write(f"{part}_labels", labels.shape, "uint8", iter([labels]))


def load_pool(cache: Cache, part: str, device: str = "cpu") -> Pool:
    """The views of the "train" or the "val" part."""
    return Pool(cache.read(f"{part}_images", device), cache.read(f"{part}_labels", device))


def batch_indices(count: int, steps: int, batch: int, seed: int) -> Tensor:
    """Rows of every step's batch, int64 (steps, batch): passes over all rows, each in an order of its own."""
    rng = np.random.default_rng((seed, 1))
    passes = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return torch.from_numpy(order[: steps * batch].reshape(steps, batch))


def learning_rates(steps: int, warmup: int = 15, power: float = 0.9) -> Tensor:
    """Factor of the learning rate at every step, float32 (steps,): a linear warm-up, then a polynomial to zero."""
    step = torch.arange(steps, dtype=torch.float32)
    warm = min(warmup, max(1, steps // 4))
    decay = (1 - (step - warm).clamp(min=0) / max(1, steps - warm)).clamp(min=0) ** power
    return torch.minimum((step + 1) / warm, decay)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (B, C, h, w) scores of the labels' size against (B, H, W) labels."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE)


def add_confusion(total: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch to a confusion matrix (C + 1, C): rows truth, columns prediction, the last row what is ignored."""
    rows, columns = total.shape
    truth = labels.long().clamp(max=rows - 1)
    index = truth * columns + logits.argmax(1)
    total += torch.bincount(index.flatten(), minlength=rows * columns).reshape(rows, columns)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU over the classes that occur in the truth, of :func:`add_confusion`'s matrix."""
    scores = SegmentationScores(confusion[:-1].cpu().numpy())
    return float(scores.iou[scores.present].mean())


class Log:
    """A run's results, one line of JSON each; a line that a kill has cut is left out.

    Args:
        folder: of the run; made where it is absent.
        settings: what all results have in common; a folder with results of other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        settings = json.loads(json.dumps(settings))
        noted = folder / "settings.json"
        if noted.exists() and (former := read_json(noted)) != settings:
            odd = sorted(key for key in {*former, *settings} if former.get(key) != settings.get(key))
            raise UseError(f"{folder}: results of other settings ({', '.join(odd)}); give another --out")
        write_json(noted, settings)

    def rows(self) -> list[dict]:
        """All results so far."""
        return read_log(self.path)

    def add(self, row: dict) -> None:
        """Append a result; it begins a line of its own even behind one that was cut."""
        with self.path.open("ab+") as file:
            file.seek(0)
            size = file.seek(0, 2)
            cut = False
            if size:
                file.seek(size - 1)
                cut = file.read(1) != b"\n"
            file.write((b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")


def read_log(path: Path) -> list[dict]:
    """The results of a log's file so far, none where it is absent; a line that was cut is left out."""
    found = []
    for line in path.read_text().split("\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
