"""Finding pairs: by list files, or by the layouts of the public sets.

    list         a line for each pair: LEFT RIGHT DISPARITY, relative to a folder; without DISPARITY: no truth
                 (as all lists are read: comments, quotes, names with spaces, see :mod:`sparsemask.VOC12.lists`)
    KITTI 2012   [training/]colored_0, colored_1 or image_0, image_1; disp_occ and disp_noc, or one of them
    KITTI 2015   [training/]image_2, image_3, disp_occ_0, disp_noc_0, obj_map
    SceneFlow    any folders ...frames_cleanpass or ...frames_finalpass, with ...disparity beside; left/, right/ below
    Middlebury   folders, up to two levels down, with im0.png, im1.png and disp0GT.pfm or disp0.pfm [mask0nocc.png]
    flat         NAME_left.png, NAME_right.png and NAME_disp.npz, .pfm or .png (scikit-image's motorcycle)

Images may have any suffix. SceneFlow is validated on what lies below TEST/, if anything does. Of all others the first
four fifths train (of KITTI 2015's 200 pairs 160, of which 40 remain); a single pair does both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.tasks.stereo.files import SUFFIXES as MAPS
from sparsemask.tasks.stereo.files import PairFiles
from sparsemask.VOC12.images import SUFFIXES, find_picture, is_picture
from sparsemask.VOC12.lists import columns_of, read_numbered

_NAMED = (*SUFFIXES, *MAPS)  # what may stand in a list
_FRAMES = ("frames_cleanpass", "frames_finalpass")
_KITTI = (
    ("image_2", "image_3", ("disp_occ_0", "disp_noc_0")),
    ("colored_0", "colored_1", ("disp_occ", "disp_noc")),
    ("image_0", "image_1", ("disp_occ", "disp_noc")),
)
_NOC = {"disp_occ_0": "disp_noc_0", "disp_occ": "disp_noc"}


def read_list(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[PairFiles]:
    """The pairs of a list file, names relative to `root` (default: the list's folder); files are not looked for.

    Raises:
        UseError: it is missing, empty, no text, or a line has not two or three names.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    pairs = []
    for number, entry in read_numbered(path):
        names = columns_of(entry, _NAMED)
        if len(names) not in (2, 3):
            raise UseError(f"{path}, line {number}: {len(names)} names, expected LEFT RIGHT DISPARITY")
        pairs.append(_with_companions(_name(names[0]), *(root / name for name in names)))
    return pairs


def find_pairs(root: str | os.PathLike) -> tuple[str, list[PairFiles]]:
    """(the layout's name, the pairs) of a data root; UseError where no layout is known."""
    root = Path(root)
    if not root.is_dir():
        raise UseError(f"--data_root {root}: no such folder")
    for name, layout in _LAYOUTS.items():
        pairs = list(layout(root))
        if pairs:
            absent = next((p for pair in pairs for p in (pair.right, pair.disparity) if p and not p.exists()), None)
            if absent is not None:
                raise UseError(f"{root}: {name} pairs, but {absent} is missing")
            return name, pairs
    raise UseError(
        f"{root}: no pairs in a layout that is known ({', '.join(_LAYOUTS)}): give --training_list and --eval_list"
    )


def split(pairs: list[PairFiles], subset: str) -> list[PairFiles]:
    """The "training" or the "eval" part of a set's pairs, see the module's docstring."""
    tests = [pair for pair in pairs if "TEST" in pair.left.parts]
    if 0 < len(tests) < len(pairs):
        return tests if subset == "eval" else [pair for pair in pairs if "TEST" not in pair.left.parts]
    if len(pairs) == 1:
        return pairs
    border = min(len(pairs) * 4 // 5, len(pairs) - 1)
    return pairs[border:] if subset == "eval" else pairs[:border]


def _with_companions(name: str, left: Path, right: Path, disparity: Path | None = None) -> PairFiles:
    """A pair with the maps that lie beside its disparity: of what is not occluded, of the foreground."""
    noc = objects = None
    if disparity is not None:
        folder = disparity.parent
        noc = folder.with_name(_NOC[folder.name]) / disparity.name if folder.name in _NOC else None
        if disparity.stem.startswith("disp0"):
            noc = folder / "mask0nocc.png"
        objects = folder.with_name("obj_map") / disparity.name
    return PairFiles(
        name,
        left,
        right,
        disparity,
        *(companion if companion and companion.is_file() else None for companion in (noc, objects)),
    )


def _kitti(root: Path) -> Iterator[PairFiles]:
    for base in (root / "training", root):
        for left, right, truths in _KITTI:
            truth_folders = [base / truth for truth in truths if (base / truth).is_dir()]
            if truth_folders and (base / left).is_dir() and (base / right).is_dir():
                for file in sorted(truth_folders[0].glob("*.png")):
                    images = (_picture(base / side, file.stem) for side in (left, right))
                    yield _with_companions(file.stem, *images, file)
                return


def _sceneflow(root: Path) -> Iterator[PairFiles]:
    folders = [p for depth in ("*", "*/*") for p in sorted(root.glob(depth)) if p.is_dir()]
    for kind in _FRAMES:
        passes = [folder for folder in folders if folder.name.endswith(kind)]
        for frames in passes:
            maps = frames.with_name(frames.name.removesuffix(kind) + "disparity")
            for left in sorted(filter(is_picture, frames.rglob("left/*"))):
                right = _picture(left.parent.with_name("right"), left.stem)
                truth = (maps / left.relative_to(frames)).with_suffix(".pfm")
                yield _with_companions(_name(left.relative_to(root)), left, right, truth)
        if passes:
            return


def _middlebury(root: Path) -> Iterator[PairFiles]:
    for left in sorted(p for depth in ("", "*/", "*/*/") for p in root.glob(f"{depth}im0.*") if is_picture(p)):
        truth = next((p for name in ("disp0GT", "disp0") if (p := left.with_name(f"{name}.pfm")).is_file()), None)
        if truth is not None:
            yield _with_companions(left.parent.name, left, _picture(left.parent, "im1"), truth)


def _flat(root: Path) -> Iterator[PairFiles]:
    for left in sorted(filter(is_picture, root.glob("*_left.*"))):
        name = left.stem.removesuffix("_left")
        maps = [root / f"{name}_disp{suffix}" for suffix in (".npz", ".pfm", ".png")]
        truth = next((file for file in maps if file.is_file()), None)
        if truth is not None:
            yield _with_companions(name, left, _picture(root, f"{name}_right"), truth)


_LAYOUTS: dict[str, Callable[[Path], Iterator[PairFiles]]] = {
    "KITTI": _kitti,
    "SceneFlow": _sceneflow,
    "Middlebury": _middlebury,
    "flat": _flat,
}


def _picture(folder: Path, stem: str) -> Path:
    """The image of this name in a folder, whatever its suffix; where none is there, a PNG that is absent."""
    return find_picture(folder, stem) or folder / f"{stem}.png"


def _name(left: str | Path) -> str:
    """A name fit for a file, of a left image's path in a list or a set."""
    parts = [part for part in Path(left).with_suffix("").parts if part not in ("left", "..", "/")]
    return "_".join(parts[-4:])
