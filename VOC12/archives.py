"""Reading a data set's files from a tar archive or from its unpacked folder.

Nothing is extracted by the path in an archive: callers read files by name and choose where to write them. Members that
are no regular files (links, devices), or whose path is absolute or contains "..", are ignored.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from sparsemask.containers import Tar
from sparsemask.errors import UseError
from sparsemask.files import must_exist

_TORN = "the archive is truncated or damaged, download it again"
_LARGEST = 1 << 28  # bytes of an image, a label or a list


@dataclass(frozen=True)
class Layout:
    """Layout of a data set's folder."""

    title: str
    roots: tuple[str, ...]  # where its root may lie below an unpacked folder
    lists: tuple[str, ...]  # files that must be there
    needed: tuple[str, ...]  # folders that must hold files
    optional: tuple[str, ...] = ()


VOC = Layout(
    "PASCAL VOC 2012 (VOCtrainval_11-May-2012.tar, VOCdevkit/VOC2012)",
    ("", "VOC2012", "VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012"),
    ("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
    ("JPEGImages", "SegmentationClass"),
)
SBD = Layout(
    "SBD (benchmark.tgz, benchmark_RELEASE/dataset)",
    ("", "dataset", "benchmark_RELEASE/dataset"),
    ("train.txt", "val.txt"),
    ("cls",),
    ("img",),
)


class Source(Protocol):
    """Files of one data set by their path below its root; `names` is in the order that reads fastest."""

    names: list[str]

    def read(self, name: str) -> bytes:
        """Content of a file."""

    def size(self, name: str) -> int:
        """Its size in bytes."""

    def close(self) -> None:
        """Close the archive."""


class FolderSource:
    """An unpacked data set."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self.root = root
        folders = [root / name for name in (*layout.needed, *layout.optional)]
        inside = sorted(
            f"{folder.name}/{entry.name}"
            for folder in folders
            if folder.is_dir()
            for entry in os.scandir(folder)
            if entry.is_file()
        )
        self.names = [name for name in layout.lists if (root / name).is_file()] + inside

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.root / name).stat().st_size

    def close(self) -> None:
        """Nothing is held open."""


class TarSource:
    """A tar archive, compressed or not; `root` is the prefix of its files."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._tar = Tar(path, _TORN)
        regular: dict[str, tarfile.TarInfo] = {}
        texts: dict[str, bytes] = {}
        try:
            for member in self._tar:
                if name := _safe_name(member):
                    regular[name] = member
                    # At once, for going back in a compressed archive means reading it afresh.
                    if name.endswith(layout.lists):
                        texts[name] = self._tar.read(member, _LARGEST)
        except BaseException:
            self.close()
            raise
        root = _root(regular, layout)
        self._members = {name[len(root) :]: member for name, member in regular.items() if name.startswith(root)}
        self._texts = {name[len(root) :]: text for name, text in texts.items() if name.startswith(root)}
        self.names = list(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        return self._texts[name] if name in self._texts else self._tar.read(self._members[name], _LARGEST)

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._members[name].size

    def close(self) -> None:
        """Close the archive."""
        self._tar.close()


def open_source(path: str | os.PathLike, layout: Layout) -> Source:
    """Open a data set given as an archive or as an unpacked folder.

    Raises:
        UseError: nothing there, no archive, a truncated one, or one that lacks the expected folders.
    """
    path = must_exist(path, "archive or folder", f"expected {layout.title}")
    if path.is_dir():
        roots = [path / root for root in layout.roots]
        root_folder = next((root for root in roots if all((root / name).exists() for name in layout.lists)), path)
        source: Source = FolderSource(root_folder, layout)
    else:
        source = TarSource(path, layout)
    lacking = [name for name in layout.lists if name not in source.names]
    folders = {name.partition("/")[0] for name in source.names}
    lacking += [f"{name}/" for name in layout.needed if name not in folders]
    if lacking:
        source.close()
        raise UseError(f"{path}: {', '.join(lacking)} not found in it; expected {layout.title}")
    return source


def _safe_name(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if not member.isreg() or path.is_absolute() or ".." in path.parts or "\\" in member.name:
        return None
    return str(path)  # also drops a leading "./"


def _root(names: Iterable[str], layout: Layout) -> str:
    names = set(names)
    first_list = layout.lists[0]
    roots = {name[: -len(first_list)] for name in names if name == first_list or name.endswith("/" + first_list)}
    complete = [root for root in roots if all(root + name in names for name in layout.lists)]
    # Several complete ones (a copy nested deeper): the outermost is the data set.
    return min(complete, key=lambda root: (root.count("/"), root), default="")
