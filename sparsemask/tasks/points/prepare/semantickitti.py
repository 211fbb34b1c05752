"""SemanticKITTI scans: thinned out, with mapped labels and projections."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import CloudFile, read_scan
from sparsemask.tasks.points.clouds.graph import make_tree, nearest
from sparsemask.tasks.points.clouds.grid import grid_subsample
from sparsemask.tasks.points.clouds.scans import usual_columns
from sparsemask.tasks.points.layouts.semantickitti import GRID, SEQUENCES, read_labels, read_prepared, sequences_folder
from sparsemask.tasks.points.prepare.items import Item, whole
from sparsemask.VOC12.bulk import write_bulk


def find_items(
    raw: str | os.PathLike,
    out: str | os.PathLike | None = None,
    grid: float = GRID,
    only: Sequence[str] | None = None,
    project: bool = False,
    columns: int | None = None,
) -> list[Item]:
    """What is to be made: one item for every scan sequences/NN/velodyne/*.bin.

    Args:
        raw: the folder of sequences/, or one above it (dataset/sequences).
        out: where to; sequences_0.06 beside sequences/ by default.
        grid: side of the voxels, in metres.
        only: these sequences ("08").
        project: projections of the training sequences, too, to score on them; as published only for 08 and 11 to 21.
        columns: float32 values a point of the scans (default: 4).

    Raises:
        UseError: no scans there; a sequence that has labels for some scans only.
    """
    folder = sequences_folder(raw, "sequences")
    out = Path(out) if out else folder.absolute().parent / f"sequences_{grid:.2f}"
    items: list[Item] = []
    for sequence in only or sorted(path.name for path in folder.glob("[0-9][0-9]")):
        scans = sorted((folder / sequence / "velodyne").glob("[!.]*.bin"))
        if only and not scans:
            raise UseError(f"{folder}: no scans of sequence {sequence}")
        labelled = {path.stem for path in (folder / sequence / "labels").glob("[!.]*.label")}
        without = [scan.stem for scan in scans if labelled and scan.stem not in labelled]
        if without:
            raise UseError(
                f"{folder / sequence}/labels: {len(without)} scans have no labels ({without[0]} is the first)"
            )
        projected = project or sequence not in SEQUENCES["train"]
        items += [
            item(f"{sequence}/{scan.stem}", scan, out, grid, bool(labelled), projected, columns) for scan in scans
        ]
    if not items:
        raise UseError(f"{folder}: no scans (no NN/velodyne/*.bin)")
    return items


def is_raw(folder: str | os.PathLike) -> bool:
    """Whether a folder holds scans as published."""
    return any(any(Path(folder).glob(f"{above}[0-9][0-9]/velodyne/*.bin")) for above in ("", "*/", "*/*/"))


def item(
    name: str, source: Path | None, out: Path, grid: float, labelled: bool, projected: bool, columns: int | None = None
) -> Item:
    """A scan's files: the thinned-out cloud is written last, and so vouches for the others."""
    sequence, scan = name.split("/")
    parts = [out / sequence / "proj" / f"{scan}_proj.npz"] * projected
    parts += [out / sequence / "labels" / f"{scan}.npy"] * labelled
    return Item(name, source, (*parts, out / sequence / "velodyne" / f"{scan}.npy"), grid, columns)


def find_prepared(root: Path, grid: float = GRID) -> list[Item]:
    """The items of a prepared folder, by the files that are there, ours or the public code's."""
    found = sorted(root.glob("[0-9][0-9]/velodyne/[!.]*.npy"))
    has = lambda path, part, end: (path.parents[1] / part / f"{path.stem}{end}").is_file()
    return [
        item(
            f"{path.parents[1].name}/{path.stem}",
            None,
            root,
            grid,
            has(path, "labels", ".npy"),
            has(path, "proj", "_proj.npz"),
        )
        for path in found
    ]


def make(one: Item) -> None:
    """Make one scan's files; UseError where the scan or its labels are torn or do not fit together."""
    xyz = read_scan(one.source, one.columns)
    parts = {path.parent.name: path for path in one.files}
    labels = None
    if "labels" in parts:
        labels = read_labels(one.source.parents[1] / "labels" / f"{one.source.stem}.label", len(xyz))
    sub, _, classes = grid_subsample(xyz, one.grid, None, labels)
    if "proj" in parts:
        arrays = {"projection": nearest(sub, xyz, tree=make_tree(sub))} | ({} if labels is None else {"labels": labels})
        write_bulk(parts["proj"], _bytes(np.savez, **arrays))
    if labels is not None:
        write_bulk(parts["labels"], _bytes(np.save, classes))
    write_bulk(parts["velodyne"], _bytes(np.save, sub))


def check(one: Item) -> list[str]:
    """What is wrong with a prepared scan, a line each."""
    faults = [f"{path}: missing or torn" for path in one.files if not whole(path)]
    if faults:
        return faults
    try:
        cloud = read_prepared(CloudFile(one.name, one.files[-1], read_prepared))
    except UseError as error:
        return [str(error)]
    if cloud.projection is not None:
        if len(cloud.projection) and not 0 <= cloud.projection.min() <= cloud.projection.max() < len(cloud):
            faults.append(f"{one.files[0]}: points beyond the {len(cloud)} of the thinned-out cloud")
        size = (
            one.source.stat().st_size // (4 * (one.columns or usual_columns(one.source)))
            if one.source
            else len(cloud.projection)
        )
        if size != len(cloud.projection):
            faults.append(f"{one.files[0]}: {len(cloud.projection)} entries for the scan's {size} points")
    return faults


def _bytes(save, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()
