"""Prepare point clouds, in one checked command that can be stopped and run again.

    sparsemask prepare-points s3dis Stanford3dDataset_v1.2_Aligned_Version
    sparsemask prepare-points semantickitti dataset
    sparsemask prepare-points rooms FOLDER

S3DIS: rooms from their annotations to S3DIS_ply beside the areas' folder (original/, sub_0.040/ and projections).
SemanticKITTI: scans to sequences_0.06 beside sequences/. Rooms: generated ones, prepared like S3DIS, for want of data.
What is there and whole is not written again. `--check` makes nothing: it opens every prepared file (of ours or of the
public code) and says what is wrong or missing; exit status 2 if anything is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from sparsemask.errors import UseError, command
from sparsemask.synthetic import rooms
from sparsemask.tasks.points.layouts import s3dis, semantickitti
from sparsemask.tasks.points.prepare import items as prepare_items
from sparsemask.tasks.points.prepare import s3dis as prepare_s3dis
from sparsemask.tasks.points.prepare import semantickitti as prepare_semantickitti
from sparsemask.tasks.points.prepare.items import Item

_SHOWN = 20  # faults printed one by one


def prepare_s3dis_rooms(
    raw: str | os.PathLike, out: str | os.PathLike | None = None, grid: float = s3dis.GRID, jobs: int | None = None
) -> tuple[int, int]:
    """Prepare S3DIS; returns the numbers of rooms made and found. See `prepare_s3dis.find_items`."""
    items = prepare_s3dis.find_items(raw, out, grid)
    return _run(items, prepare_s3dis.make, _folder(items, 2), jobs, "preparing S3DIS")


def prepare_semantickitti_scans(
    raw: str | os.PathLike,
    out: str | os.PathLike | None = None,
    grid: float = semantickitti.GRID,
    only: list[str] | None = None,
    project: bool = False,
    jobs: int | None = None,
    columns: int | None = None,
) -> tuple[int, int]:
    """Prepare SemanticKITTI; returns the numbers of scans made and found. See `prepare_semantickitti.find_items`."""
    items = prepare_semantickitti.find_items(raw, out, grid, only, project, columns)
    return _run(items, prepare_semantickitti.make, _folder(items, 3), jobs, "preparing SemanticKITTI")


def check_s3dis(folder: str | os.PathLike, out=None, grid: float = s3dis.GRID, jobs: int | None = None) -> list[str]:
    """Faults of prepared S3DIS: of the raw folder's rooms where `folder` is one, else of all rooms prepared in it."""
    if prepare_s3dis.raw_rooms(folder):
        items = prepare_s3dis.find_items(folder, out, grid)
    else:
        items = prepare_s3dis.find_prepared(s3dis.sub_folder(out or folder, grid).parent, grid)
    faults = prepare_items.check(items, prepare_s3dis.check, jobs, "checking")
    counts = Counter(s3dis.area_of(item.name) for item in items)
    areas = ", ".join(
        f"Area_{area} {number} of {s3dis.ROOMS.get(area, '?')}" for area, number in sorted(counts.items())
    )
    print(f"{len(items)} rooms ({areas} published)")
    return faults


def check_semantickitti(
    folder: str | os.PathLike,
    out=None,
    grid: float = semantickitti.GRID,
    only=None,
    project=False,
    jobs=None,
    columns: int | None = None,
) -> list[str]:
    """Faults of prepared SemanticKITTI: of the raw folder's scans where `folder` is one, else of all in it."""
    if prepare_semantickitti.is_raw(folder):
        items = prepare_semantickitti.find_items(folder, out, grid, only, project, columns)
    else:
        root = semantickitti.sequences_folder(out or folder, f"sequences_{grid:.2f}")
        items = prepare_semantickitti.find_prepared(root, grid)
    faults = prepare_items.check(items, prepare_semantickitti.check, jobs, "checking")
    print(f"{len(items)} scans of sequences {', '.join(sorted({item.name[:2] for item in items}))}")
    return faults


def _run(items: list[Item], make, folder: Path, jobs: int | None, text: str) -> tuple[int, int]:
    n_made, n_present = prepare_items.prepare(items, make, folder, jobs, text)
    print(f"{folder}: {n_made} prepared, {n_present} were there already")
    return n_made, n_present


def _folder(items: list[Item], depth: int) -> Path:
    return items[0].files[-1].parents[depth - 1]


def _report(faults: list[str]) -> int:
    for line in faults[:_SHOWN]:
        print(line)
    if len(faults) > _SHOWN:
        print(f"... and {len(faults) - _SHOWN} more")
    print(f"{len(faults)} faults" if faults else "all is well")
    return 2 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sparsemask prepare-points", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="set", required=True, metavar="s3dis|semantickitti|rooms")
    for name, module, raw in (
        ("s3dis", s3dis, "the folder of Area_1 .. Area_6 (version 1.2, aligned)"),
        ("semantickitti", semantickitti, "the folder of sequences/"),
        ("rooms", s3dis, "where to"),
    ):
        set_parser = sets.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        set_parser.add_argument("folder", metavar="FOLDER", help=raw)
        set_parser.add_argument(
            "--grid", type=float, default=module.GRID, metavar="M", help="voxels, metres (%(default)s)"
        )
        set_parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: all cores)")
        set_parser.add_argument(
            "--check", action="store_true", help="make nothing: open what is there, say what is wrong"
        )
        if name == "rooms":
            set_parser.set_defaults(out=None)
        else:
            set_parser.add_argument("--out", metavar="FOLDER", help="where to (default: beside FOLDER)")
    kitti = sets.choices["semantickitti"]
    kitti.add_argument("--sequences", nargs="+", metavar="NN", help="only these")
    kitti.add_argument("--project", action="store_true", help="projections of training sequences, too")
    kitti.add_argument(
        "--bin_columns", type=int, metavar="N", help="float32 values a point of the scans, x, y, z first (4)"
    )
    generated = sets.choices["rooms"]
    for flag, value, text in (
        ("--seed", 0, "the same seed gives the same rooms"),
        ("--areas", 6, "number of areas"),
        ("--rooms", 3, "rooms in each"),
        ("--points", 40_000, "points of a room before grid subsampling"),
    ):
        generated.add_argument(flag, type=int, default=value, metavar="N", help=f"{text} (%(default)s)")
    generated.add_argument("--raw", action="store_true", help="write the raw layout, too (FOLDER/raw)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    options = _parser().parse_args(argv)
    if options.grid <= 0:
        raise UseError(f"--grid {options.grid:g}: a voxel's side must be positive")
    if options.set == "semantickitti":
        given = (options.folder, options.out, options.grid, options.sequences, options.project, options.jobs)
        if options.check:
            return _report(check_semantickitti(*given, options.bin_columns))
        prepare_semantickitti_scans(*given, options.bin_columns)
    elif options.check:
        return _report(check_s3dis(options.folder, options.out, options.grid, options.jobs))
    elif options.set == "s3dis":
        prepare_s3dis_rooms(options.folder, options.out, options.grid, options.jobs)
    else:
        settings = (options.seed, options.areas, options.rooms, options.points, options.grid)
        folder = rooms.make_rooms(options.folder, *settings, options.raw, options.jobs)
        print(f"{folder}: {options.areas * options.rooms} rooms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
