"""Label maps in colours: single files, and grids of image, truth and prediction."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures import style

VOID = 255
_VOID_COLOUR = (224, 224, 192)  # the colour of VOC's own label files
_LIGHT, _DARK = 226, 168  # the stripes of void in the grids
_WIDE, _GAP = 2.3, 0.08  # inches
GRID_WIDTH = 3 * _WIDE + 4 * _GAP + 0.1
_LONGEST = 640  # pixels; larger samples are drawn smaller

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def save_prediction(path: str | os.PathLike, index_map: np.ndarray, palette: np.ndarray) -> Path:
    """Write a label map as a palette PNG, whose pixels are the class indices.

    Args:
        path: the file to write (.png).
        index_map: class indices (H, W), 255 void.
        palette: colours (N, 3) in 0..255 in which the indices are shown.

    Returns:
        The path.

    Raises:
        UseError: indices that the palette does not have, or a suffix other than .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UseError(f"{path}: label maps are written as .png")
    index_map, palette = _checked(index_map, palette)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    if len(palette) <= VOID:
        colours[VOID] = _VOID_COLOUR
    image = Image.fromarray(index_map)
    image.putpalette(colours.tobytes())
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    write_bytes(path, data.getvalue())
    return path


def colourise(index_map: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) uint8 of a label map; void (255) in grey stripes."""
    index_map, palette = _checked(index_map, palette)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    image = colours[index_map]
    rows, columns = np.indices(index_map.shape)
    stripe = max(2, max(index_map.shape) // 80)
    void = index_map == VOID
    image[void] = np.where((rows + columns) // stripe % 2, _LIGHT, _DARK)[void][:, None]
    return image


def draw_predictions(
    samples: Sequence[Sample],
    path: str | os.PathLike,
    class_names: Sequence[str],
    palette: np.ndarray,
) -> Path:
    """Draw a grid image | truth | prediction with a legend of the classes that occur; return the path.

    Args:
        samples: (image uint8 (H, W, 3), truth (H, W), prediction (H, W)); indices of classes, 255 = void.
        path: the file to write (.png, .svg, .pdf).
        class_names: name of each class.
        palette: colours (N, 3) in 0..255, one per class at least.

    Raises:
        UseError: samples whose parts differ in size, or indices without a colour.
    """
    rows = [_row(sample, palette, k) for k, sample in enumerate(samples)]
    occurring = sorted(set().union(*(np.unique(part).tolist() for _, *parts in samples for part in parts)))
    columns = max(3, int(GRID_WIDTH / (0.5 + 0.075 * max(map(len, [*class_names, "void"])))))
    below = 0.2 * -(-len(occurring) // columns) + 0.15
    legend = lambda fig, share: _legend(fig, occurring, class_names, np.asarray(palette), columns, share)
    return draw_grid(rows, path, below, legend)


def draw_grid(rows: Sequence[Sequence[np.ndarray]], path: str | os.PathLike, below: float = 0.0, finish=None) -> Path:
    """Draw rows of image | truth | prediction, (H, W, 3) each, and return the path.

    Args:
        below: inches left free under them, for finish(figure, their share of its height).

    Raises:
        UseError: no rows.
    """
    path = style.check_path(path)
    if not rows:
        raise UseError(f"{path}: no samples to draw")
    tall = [_WIDE * min(row[0].shape[0] / row[0].shape[1], 1.5) for row in rows]
    height = 0.32 + sum(tall) + _GAP * len(tall) + below
    with style.drawing():
        fig = style.figure(GRID_WIDTH, height)
        top = height - 0.32
        for number, (images, high) in enumerate(zip(rows, tall, strict=True)):
            top -= high
            for k, image in enumerate(images):
                axes = style.place(fig, 0.05 + _GAP + k * (_WIDE + _GAP), top, _WIDE, high)
                axes.imshow(image, interpolation="nearest" if k else "antialiased")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=True, color=style.PALE, lw=0.6)
                if number == 0:
                    axes.set_title(("picture", "truth", "prediction")[k], loc="center", pad=5)
            top -= _GAP
        if finish is not None:
            finish(fig, below / height)
        return style.save(fig, path)


def shrunk(sample: Sample, number: int) -> list[np.ndarray]:
    """The parts of sample `number`, large ones smaller; UseError unless they are of one size."""
    image, *maps = (np.asarray(array) for array in sample)
    sizes = {array.shape[:2] for array in (image, *maps)}
    if image.ndim != 3 or image.shape[2] != 3 or len(sizes) != 1 or any(m.ndim != 2 for m in maps):
        shapes = ", ".join(str(array.shape) for array in (image, *maps))
        raise UseError(f"sample {number}: picture, truth and prediction have shapes {shapes}; expected one size")
    step = -(-max(image.shape[:2]) // _LONGEST)  # every step-th pixel: labels must not be mixed
    return [array[::step, ::step] for array in (image, *maps)]


def _row(sample: Sample, palette: np.ndarray, number: int) -> list[np.ndarray]:
    image, *maps = shrunk(sample, number)
    return [image, *(colourise(m, palette) for m in maps)]


def _checked(index_map: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index_map, palette = np.asarray(index_map), np.asarray(palette)
    if index_map.ndim != 2 or index_map.dtype.kind not in "iub":
        raise UseError(f"a label map is a whole-number array (H, W), this one is {index_map.dtype} {index_map.shape}")
    if palette.ndim != 2 or palette.shape[1] != 3 or not 0 < len(palette) <= 256:
        raise UseError(f"a palette is an array (N, 3) with N up to 256, this one has shape {palette.shape}")
    wrong = (index_map != VOID) & ((index_map < 0) | (index_map >= len(palette)))
    if wrong.any():
        raise UseError(f"label {int(index_map[wrong][0])} has no colour in a palette of {len(palette)}")
    return index_map.astype(np.uint8), palette.astype(np.uint8)


def _legend(fig, occurring: list[int], class_names: Sequence[str], palette, columns: int, share: float) -> None:
    from matplotlib.patches import Patch

    patches = []
    for index in occurring:
        if index == VOID:
            patches.append(Patch(fc="#E2E2E2", ec="#A8A8A8", hatch="//////", lw=0.5, label="void"))
        else:
            name = class_names[index] if index < len(class_names) else f"class {index}"
            patches.append(Patch(fc=palette[index] / 255, ec=style.GREY, lw=0.5, label=name))
    fig.legend(
        handles=patches, loc="center", bbox_to_anchor=(0.5, share / 2), ncols=min(columns, len(patches)),
        handlelength=1.2, handleheight=0.9, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
