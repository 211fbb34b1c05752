"""Images and masks of MSRA-B or ECSSD folders.

--data_root is either layout:

    ECSSD     images/ and ground_truth_mask/, images of any suffix under the same names
    MSRA-B    images and *.png side by side, in the folder or in its Imgs/

Masks are grey, salient from 128 on. --training_list and --eval_list are files of names, a line each, or the word
`all`. With one list, the remaining images are the other split; without lists every tenth image is for validation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.tasks.dense.data import MapDataset, Pair, folder_pairs, read_grey
from sparsemask.VOC12.images import SUFFIXES, without_suffix
from sparsemask.VOC12.lists import read_names

SALIENT = 128
ALL = "all"


class SaliencyDataset(MapDataset):
    """Images with their masks."""

    def read(self, path: str) -> np.ndarray:
        """A mask, uint8 (H, W): 1 where salient."""
        return (read_grey(path) >= SALIENT).astype(np.uint8)


def all_pairs(root: Path) -> list[Pair]:
    """Every (image, mask) below a folder in ECSSD's or MSRA-B's layout."""
    must_exist(root, "data folder")
    if (root / "ground_truth_mask").is_dir() or (root / "images").is_dir():
        return folder_pairs(root / "images", root / "ground_truth_mask", (".png", *SUFFIXES))
    inner = root / "Imgs" if (root / "Imgs").is_dir() else root
    return folder_pairs(inner, inner)


def split(pairs: list[Pair], subset: str, training_list: str | None, eval_list: str | None) -> list[Pair]:
    """The training or validation part of pairs, by two optional lists; see the module's docstring.

    Args:
        pairs: (image, mask) files.
        subset: "training" or "eval".
        training_list: file of names, "all", or None.
        eval_list: likewise.

    Raises:
        UseError: names without an image, or no images left for the subset.
    """
    own_list, other_list = (training_list, eval_list) if subset == "training" else (eval_list, training_list)
    if own_list:
        return _named(pairs, own_list)
    if other_list:
        excluded = set(_named(pairs, other_list))
        remaining = [pair for pair in pairs if pair not in excluded]
        if not remaining:
            raise UseError(f"'{other_list}' leaves no {subset} pictures: name them by --{subset}_list")
        return remaining
    chosen = set(pairs[9::10] or pairs[-1:])
    return [pair for pair in pairs if (pair in chosen) == (subset == "eval")]


def _named(pairs: list[Pair], name: str) -> list[Pair]:
    if name == ALL:
        return pairs
    by_stem = {image.stem: (image, mask) for image, mask in pairs}
    names = [Path(without_suffix(entry)).name for entry in read_names(name)]
    absent = [entry for entry in names if entry not in by_stem]
    if absent:
        raise UseError(f"{name}: {len(absent)} of {len(names)} pictures absent, first {absent[0]}")
    return [by_stem[entry] for entry in names]
