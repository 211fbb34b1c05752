"""Prepare PASCAL VOC 2012 with the SBD labels, in one checked command that can be stopped and run again.

    python VOC12/prepare.py --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz

Either may also be its unpacked folder. Writes OUT/img/*.jpg, OUT/gt/*.png (class indices, 255 = ignore) and
the lists OUT/{train,val,trainval,train_aug}.txt; train_aug = (SBD train + SBD val + VOC train) - VOC val.
Where both sets label a picture, the VOC label wins. What is already there is not written again.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsemask.errors import command
from sparsemask.files import read_json, write_json, write_text
from sparsemask.options import Parser
from sparsemask.VOC12.archives import SBD, VOC, Source, open_source
from sparsemask.VOC12.bulk import remove_leftovers
from sparsemask.VOC12.lists import STAMP
from sparsemask.VOC12.merge import Job, merge_lists, plan
from sparsemask.VOC12.workers import run_jobs

EXPECT = (1464, 1449, 10582)  # train, val, train_aug


def prepare(
    voc: str | os.PathLike,
    sbd: str | os.PathLike,
    out: str | os.PathLike = "VOC12/data",
    expect: tuple[int, int, int] = EXPECT,
    workers: int | None = None,
) -> dict[str, int]:
    """Prepare `out` from VOC and SBD, each an archive or an unpacked folder.

    Args:
        voc: VOCtrainval_11-May-2012.tar or the folder VOCdevkit/VOC2012 (or one above).
        sbd: benchmark.tgz or the folder benchmark_RELEASE/dataset (or one above).
        out: where img/, gt/ and the lists go.
        expect: sizes of train, val and train_aug that the archives must give.
        workers: processes, all cores by default.

    Returns:
        the sizes of the lists train, val, trainval and train_aug.

    Raises:
        UseError: an archive is missing, truncated or lacks something; a label or image cannot be read; the
            sizes are not those expected.
    """
    out = Path(out)
    sizes = _complete(out, expect)
    if sizes:
        print(f"{out}: complete ({_words(sizes)}); nothing to do")
        return sizes
    sources: list[Source] = []
    try:
        for path, layout in ((voc, VOC), (sbd, SBD)):
            print(f"reading the index of {path}", file=sys.stderr)
            sources.append(open_source(path, layout))
        lists = merge_lists(*sources, expect)
        jobs, kept = plan(*sources, lists, out)
        remove_leftovers(out / "img", out / "gt", out)
        for _ in run_jobs(_run, _contents(sources, jobs), len(jobs), "preparing", workers):
            pass
    finally:
        for source in sources:
            source.close()
    for name, names in lists.items():
        write_text(out / f"{name}.txt", "\n".join(names) + "\n")
    sizes = {name: len(names) for name, names in lists.items()}
    os.sync()  # the images and labels were not forced to the disk one by one
    write_json(out / STAMP, sizes)  # last: whoever finds it finds everything
    print(f"{out}: {_words(sizes)}; {len(jobs)} files written, {kept} were there already")
    return sizes


def _complete(out: Path, expect: tuple[int, int, int]) -> dict[str, int] | None:
    """Sizes of the lists if a former run ended and nothing has gone since."""
    if not (out / STAMP).is_file():
        return None
    sizes = read_json(out / STAMP)
    if tuple(sizes.get(name) for name in ("train", "val", "train_aug")) != tuple(expect):
        return None
    try:
        images, labels = set(os.listdir(out / "img")), set(os.listdir(out / "gt"))
        lists = {name: (out / f"{name}.txt").read_text(encoding="utf-8").split() for name in sizes}
    except OSError:
        return None
    complete = all(len(names) == sizes[key] for key, names in lists.items()) and all(
        f"{name}.jpg" in images and f"{name}.png" in labels for names in lists.values() for name in names
    )
    return sizes if complete else None


def _contents(sources: list[Source], jobs: list[Job]) -> Iterator[tuple]:
    for job in jobs:
        yield job.function, job.source.read(job.name), job.target, job.name


def _run(function: Callable, data: bytes, target: Path, name: str) -> None:
    function(data, target, name)


def _words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _three(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not TRAIN,VAL,TRAIN_AUG, as in 1464,1449,10582")
    return tuple(int(part) for part in parts)


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = Parser("prepare", prog="VOC12/prepare.py", description=__doc__)
    parser.add_argument("--voc", required=True, metavar="PATH", help="VOCtrainval_11-May-2012.tar, or its folder")
    parser.add_argument("--sbd", required=True, metavar="PATH", help="benchmark.tgz, or its folder")
    parser.add_argument("--out", default="VOC12/data", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument(
        "--expect", type=_three, default=EXPECT, metavar="N,N,N", help="sizes of train, val, train_aug to insist on"
    )
    options = parser.parse_args(argv)
    prepare(options.voc, options.sbd, options.out, options.expect, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
