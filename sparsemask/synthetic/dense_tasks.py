"""Drawn images for the other dense tasks, in the layouts of the data sets they stand in for.

Every image is a function of (seed, number, size), like those of the embedded sample set, whose scenes and outlines
they use. `--sample` draws each set once into the cache folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import distance_transform_edt

from sparsemask.files import write_text
from sparsemask.synthetic import outlines, textures
from sparsemask.synthetic.canvas import REFERENCE, VOID, Canvas
from sparsemask.synthetic.folders import once
from sparsemask.synthetic.objects import CLASS_NAMES
from sparsemask.synthetic.scenes import draw_scene, generator, ground, sky
from sparsemask.synthetic.segmentation import encode_picture

VERSION = 1  # of the drawings: raise it when any pixel changes
ANNOTATORS = 3
_SALIENCY, _EDGES = 101, 102  # streams of randomness
_VIVID = ((0.90, 0.12, 0.15), (0.95, 0.75, 0.05), (0.10, 0.25, 0.85), (0.85, 0.15, 0.70), (0.05, 0.65, 0.60))
_DULL = ((0.62, 0.60, 0.54), (0.52, 0.55, 0.48), (0.68, 0.64, 0.60))


def make_saliency(folder: Path, count: int = 240, size: int = REFERENCE, seed: int = 0) -> None:
    """Draw `count` images in ECSSD's layout: images/ and ground_truth_mask/."""
    for number in range(count):
        image, mask = draw_salient(seed, number, size)
        _write(folder / "images" / f"{number:04d}.jpg", encode_picture(image))
        _save_grey(folder / "ground_truth_mask" / f"{number:04d}.png", mask)


def make_edges(folder: Path, train: int = 160, test: int = 24, size: int = REFERENCE, seed: int = 0) -> None:
    """Draw images in BSDS500's layout: images/ and groundTruth/, train, val and test (val is half of test)."""
    splits = ["train"] * train + ["val"] * (test // 2) + ["test"] * test
    for number, split in enumerate(splits):
        image, segmentations = draw_regions(seed, number, size)
        _write(folder / "images" / split / f"{number:04d}.jpg", encode_picture(image))
        save_annotations(folder / "groundTruth" / split / f"{number:04d}.mat", segmentations)


def make_ade20k(folder: Path, train: int = 160, val: int = 40, size: int = REFERENCE, seed: int = 0) -> None:
    """Draw the sample set's scenes in ADE20K's layout; its 21 classes are 1 to 21, ignored pixels 0."""
    for number in range(train + val):
        split = "training" if number < train else "validation"
        image, label = draw_scene(seed, number, size)
        _write(folder / "images" / split / f"{number:04d}.jpg", encode_picture(image))
        _save_grey(folder / "annotations" / split / f"{number:04d}.png", label + np.uint8(1))  # 255 wraps to 0
    rows = [f"{k}\t0\t{train}\t{val}\t0\t{name}" for k, name in enumerate(CLASS_NAMES, 1)]
    write_text(folder / "objectInfo150.txt", "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")


def saliency_sample() -> Path:
    """The saliency set of --sample."""
    return once(f"saliency-{VERSION}", "saliency", make_saliency)


def edges_sample() -> Path:
    """The edge set of --sample."""
    return once(f"edges-{VERSION}", "edges", make_edges)


def ade20k_sample() -> Path:
    """The ADE20K set of --sample."""
    return once(f"ade20k-{VERSION}", "ade20k", make_ade20k)


def draw_salient(seed: int, number: int, size: int = REFERENCE) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (size, size, 3) and its mask uint8 (size, size), 255 on one or two large vivid objects.

    Smaller dull objects are not salient. Borders of the masks are grey, as antialiased borders are.
    """
    rng = generator(seed, _SALIENCY, number)
    canvas = Canvas((sky if rng.integers(2) else ground)(rng, size))
    for _ in range(rng.integers(5, 10)):
        _paint(canvas, rng, 0, rng.uniform(8, REFERENCE - 8, 2), rng.uniform(4, 8), _DULL)
    canvas.label[:] = 0
    centres = [(0.5, 0.5)] if rng.random() < 0.6 else [(0.3, 0.4), (0.7, 0.6)]
    for centre in centres:
        middle = REFERENCE * (np.array(centre) + rng.uniform(-0.12, 0.12, 2))
        _paint(canvas, rng, 1, middle, rng.uniform(17, 30 if len(centres) == 1 else 22), _VIVID)
    mask = np.zeros(256, np.uint8)
    mask[[1, VOID]] = 255, 128
    return _noisy(canvas, rng), mask[canvas.label]


def draw_regions(seed: int, number: int, size: int = REFERENCE) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image uint8 (size, size, 3) of overlapping objects before a horizon, and simulated annotations of it.

    Each annotator gives a segmentation (size, size) of regions numbered from 0, lacks some regions, and is up to one
    pixel off.
    """
    rng = generator(seed, _EDGES, number)
    horizon = int(size * rng.uniform(0.3, 0.7))
    below = np.arange(size)[:, None] >= horizon + np.rint(size * 0.03 * np.sin(np.arange(size) / size * 9)).astype(int)
    canvas = Canvas(np.where(below[..., None], ground(rng, size), sky(rng, size)))
    canvas.label[below] = 1
    regions = range(2, int(rng.integers(5, 8)))
    for region in regions:
        spot = rng.uniform(20, REFERENCE - 20, 2)
        _paint(canvas, rng, region, spot, rng.uniform(12, 24), _VIVID + _DULL)
    complete = _fill(canvas.label, canvas.label == VOID)
    segmentations = []
    for annotator in range(ANNOTATORS):
        segmentation = complete
        for region in regions:
            if annotator and rng.random() < 0.15:
                segmentation = _fill(segmentation, segmentation == region)
        shift = rng.integers(-1, 2, 2) if annotator else (0, 0)
        segmentations.append(np.pad(segmentation, 1, "edge")[1 + shift[0] :, 1 + shift[1] :][:size, :size])
    return _noisy(canvas, rng), segmentations


def boundaries(segmentation: np.ndarray) -> np.ndarray:
    """Bool (H, W): pixels whose right or lower neighbour is of another region."""
    edges = np.zeros(segmentation.shape, bool)
    edges[:, :-1] |= segmentation[:, :-1] != segmentation[:, 1:]
    edges[:-1] |= segmentation[:-1] != segmentation[1:]
    return edges


def save_annotations(path: Path, segmentations: list[np.ndarray]) -> None:
    """Write a BSDS500 ground-truth file: a cell array of structs with Segmentation and Boundaries."""
    cells = np.empty((1, len(segmentations)), object)
    for k, segmentation in enumerate(segmentations):
        cells[0, k] = {
            "Segmentation": segmentation.astype(np.uint16) + 1,
            "Boundaries": boundaries(segmentation).astype(np.uint8),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": cells}, do_compression=True)


def _paint(canvas: Canvas, rng: Generator, index: int, centre, radius: float, colours: tuple) -> None:
    """Paint one object of random outline, colour and, sometimes, texture."""
    base = np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0, 0.03, 3), 0, 1)
    darker, period = np.clip(base * rng.uniform(0.6, 0.8), 0, 1), rng.uniform(6, 9)
    kind, striped = int(rng.integers(5)), rng.random() < 0.3
    dents = int(rng.integers(1 << 30))

    def outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if kind == 0:
            return outlines.disc(x, y, radius)
        if kind == 1:
            return outlines.square(x, y, 0.85 * radius)
        if kind == 2:
            return outlines.ellipse(x, y, radius, 0.65 * radius)
        if kind == 3:
            return outlines.star(x, y, 1.2 * radius)
        return outlines.blob(generator(dents), x, y, radius)

    def colour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        lit = (1.0 - 0.15 * y / radius)[..., None]
        stripes = textures.stripes(x, period, 0.0) if striped else np.zeros_like(x)
        return textures.mix(base, darker, stripes) * lit

    canvas.paint(index, (float(centre[0]), float(centre[1])), 1.35 * radius, outline, colour, rng.uniform(-0.6, 0.6))


def _fill(label: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Give the pixels of `holes` the nearest label outside them."""
    nearest = distance_transform_edt(holes, return_distances=False, return_indices=True)
    return label[tuple(nearest)]


def _noisy(canvas: Canvas, rng: Generator) -> np.ndarray:
    canvas.image = canvas.image + rng.normal(0, 0.018, canvas.image.shape)
    return canvas.picture()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _save_grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
