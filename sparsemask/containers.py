"""Safe readers of untrusted files: arrays (.npy, .npz), archives (zip, tar), YAML, JSON.

All readers of such files share this module. Sizes in a header are compared with the size of the file before memory is
allocated, nothing is unpickled, and every failure of decoding is a one-line UseError. Files that the system refuses to
open raise OSError (:func:`sparsemask.errors.command` prints it in one line).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import yaml

from sparsemask.errors import UseError, describe, one_line

_PIECE = 1 << 20  # bytes read at a time where a size is only claimed
_HEADER = 1 << 16  # bytes that the header of an array may have
_TAR_HEADER = 1 << 24  # bytes that a long name or a PAX header may have
_PAGE = 1 << 10  # bytes by which a web page or a pointer is known
_DEFLATE = 1032  # the most that deflate makes of one byte
_TEXT = 1 << 25  # bytes of a YAML or JSON file
_DEEP = 64  # levels of nesting in YAML
_WIDE = 1_000_000  # values in YAML, where aliases count as often as they are used
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@contextlib.contextmanager
def reading(path: object, what: str = "truncated or damaged") -> Iterator[None]:
    """Context manager that turns every failure inside into a UseError "PATH: WHAT (reason)"; OSErrors pass unchanged.

    Only for calls of decoders, which may raise anything on damaged data.
    """
    try:
        yield
    except UseError:
        raise
    except FileNotFoundError:
        raise UseError(f"{path}: no such file") from None
    except MemoryError:
        raise UseError(f"{path}: {what} (it asks for more memory than there is)") from None
    except RecursionError:
        raise UseError(f"{path}: {what} (nested too deeply)") from None
    except Exception as error:
        if isinstance(error, OSError) and describe(error) is not None:
            if error.filename is None:
                error.filename = str(path)
            raise
        if explanation := stand_in(path):
            raise UseError(f"{path}: {explanation}") from None
        why = one_line(error)[:160] or type(error).__name__
        raise UseError(f"{path}: {what} ({why})") from error


def stand_in(path: object) -> str:
    """Describe what was stored in place of a file: a Git LFS pointer or a web page; empty where it is neither."""
    head = b""
    if isinstance(path, str | os.PathLike) and os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            head = file.read(_PAGE)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs"):
        size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
        of = f" for a file of {int(size[1])} bytes" if size else ""
        return f"is a Git LFS pointer{of}, not the file itself: fetch it with 'git lfs pull'"
    if re.match(rb"(?i)<(!doctype|html|head|\?xml)", text):
        return "is a web page (HTML), not the file itself: download the file, not the page that shows it"
    return ""


def memory() -> int:
    """Bytes of memory that this machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 1 << 62


# Arrays


def npy_header(head: bytes, size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, offset of the data) of an array in .npy form.

    Args:
        head: its first bytes, the header among them.
        size: bytes that there are in all.

    Raises:
        ValueError: it is none, holds objects, or claims more bytes than there are.
    """
    if head.startswith(b"PK"):
        raise ValueError("a zip archive, which holds several arrays (.npz)")
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of version {version[0]}.{version[1]}")
    with warnings.catch_warnings():  # of headers by Python 2
        warnings.simplefilter("ignore")
        shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds objects, which would need pickle")
    if any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    count = math.prod(shape)
    claimed, available = count * dtype.itemsize, size - stream.tell()
    if claimed > available or (not dtype.itemsize and count > _PIECE):
        raise ValueError(f"its header claims more than there is: {claimed} bytes of {available}")
    return shape, fortran, dtype, stream.tell()


def _shaped(data: np.ndarray, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    return data.reshape(shape[::-1]).T if fortran else data.reshape(shape)


def read_npy(path: str | os.PathLike[str], what: str = "not readable as an array") -> np.ndarray:
    """Read the array of an `.npy` file.

    Args:
        path: the file.
        what: the second part of error messages, "PATH: WHAT (reason)".

    Raises:
        UseError: the file is truncated, claims a wrong size, or holds objects.
    """
    with reading(path, what), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, fortran, dtype, start = npy_header(file.read(_HEADER), size)
        if not dtype.itemsize:
            return np.zeros(shape, dtype)
        if math.prod(shape) * dtype.itemsize > memory():
            raise MemoryError
        file.seek(start)
        return _shaped(np.fromfile(file, dtype, math.prod(shape)), shape, fortran)


def map_npy(path: str | os.PathLike[str], what: str = "not readable as an array") -> np.ndarray:
    """As :func:`read_npy`, read-only, and read from the file where it is used."""
    with reading(path, what):
        with open(path, "rb") as file:
            shape, fortran, dtype, start = npy_header(file.read(_HEADER), os.fstat(file.fileno()).st_size)
        if not math.prod(shape) * dtype.itemsize:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def npy_length(path: str | os.PathLike[str]) -> int:
    """Bytes that a whole `.npy` file has by its header; UseError where there are fewer or it is none."""
    with reading(path, "not readable as an array"), open(path, "rb") as file:
        shape, _, dtype, start = npy_header(file.read(_HEADER), os.fstat(file.fileno()).st_size)
        return start + math.prod(shape) * dtype.itemsize


class Npz:
    """The arrays of an open `.npz` file by name; each is decoded when it is read."""

    def __init__(self, archive: zipfile.ZipFile, size: int, largest: int | None):
        check_zip(archive, size, largest)
        self._archive = archive
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        self.names = list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with self._archive.open(entry) as stream:
            data = bytearray(stream.read(_HEADER))
            shape, fortran, dtype, start = npy_header(bytes(data), entry.file_size)
            while chunk := stream.read(_PIECE):  # to the end, where the checksum is compared
                data += chunk
        if len(data) != entry.file_size:
            raise ValueError(f"{entry.filename} has {len(data)} bytes, not {entry.file_size}")
        count = math.prod(shape)
        if not count or not dtype.itemsize:
            return np.zeros(shape, dtype)
        return _shaped(np.frombuffer(data, dtype, count, start), shape, fortran)


@contextlib.contextmanager
def open_npz(
    path: str | os.PathLike[str], what: str = "not readable as an archive of arrays", largest: int | None = None
) -> Iterator[Npz]:
    """Context manager that opens an `.npz` file; arrays are decoded when they are read.

    Args:
        path: the file.
        what: the second part of error messages, "PATH: WHAT (reason)".
        largest: bytes that one array may have; None: as many as the machine has memory.

    Raises:
        UseError: the file, or an array that is read inside, cannot be decoded.
    """
    with reading(path, what), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield Npz(archive, os.fstat(file.fileno()).st_size, largest)


def read_npz(
    path: str | os.PathLike[str], what: str = "not readable as an archive of arrays", largest: int | None = None
) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` file by name; arguments and errors as for :func:`open_npz`."""
    with open_npz(path, what, largest) as arrays:
        return {name: arrays[name] for name in arrays.names}


# Archives


def check_zip(archive: zipfile.ZipFile, size: int, largest: int | None = None) -> None:
    """Raise ValueError where the index of an archive claims impossible sizes or names entries that cannot be read.

    Args:
        archive: open for reading.
        size: bytes of the file.
        largest: bytes that one entry may have; None: as many as the machine has memory.
    """
    packed = 0
    for entry in archive.infolist():
        name = entry.filename[:80]
        if entry.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if entry.compress_type not in _METHODS:
            raise ValueError(f"{name} is compressed by method {entry.compress_type}, which is not known here")
        packed += entry.compress_size
        most = {zipfile.ZIP_STORED: entry.compress_size, zipfile.ZIP_DEFLATED: _DEFLATE * entry.compress_size + 64}
        if entry.file_size > most.get(entry.compress_type, entry.file_size) or packed > size:
            raise ValueError(f"{name} claims {entry.file_size} bytes, more than there can be")
        if entry.file_size > (memory() if largest is None else largest):
            raise ValueError(f"{name} is too large: {entry.file_size} bytes")


def check_zip_file(path: str | os.PathLike[str], what: str = "truncated or damaged") -> None:
    """Check a file by :func:`check_zip` where it is a zip archive; UseError "PATH: WHAT (reason)"."""
    with reading(path, what), open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                check_zip(archive, os.fstat(file.fileno()).st_size)


class Bounded:
    """A seekable file whose reads ask for no more bytes than are left, whatever a header claims."""

    def __init__(self, file: io.BufferedReader):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.seek, self.tell, self.readline, self.readinto = file.seek, file.tell, file.readline, file.readinto

    def read(self, count: int = -1) -> bytes:
        """As of a file, never beyond the bounds."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if count is None or count < 0 else min(count, left))


_Unpacked = BinaryIO | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile


class _Steady:
    """A file whose reads allocate no more memory than there are bytes, and refuse oversized headers."""

    def __init__(self, file: _Unpacked):
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, count: int) -> bytes:
        if count > _TAR_HEADER:
            raise ValueError(f"a header claims {count} bytes")
        parts, left = [], count
        while left > 0 and (part := self._file.read(min(left, _PIECE))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _plain(file: BinaryIO) -> _Unpacked:
    """The content of a file that may be compressed by gzip, bzip2 or xz."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return lzma.LZMAFile(file)
    return file


class Tar:
    """A tar archive, compressed or not, read member by member; nothing is unpacked.

    Args:
        path: the file.
        what: begins the reason in errors, UseErrors "PATH: WHAT (why)", of what begins as an archive.
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "the archive is torn"):
        self.path, self.what = Path(path), what
        with contextlib.ExitStack() as stack:
            with reading(path, "not a readable tar archive"):
                file = stack.enter_context(open(path, "rb"))
                self._size = os.fstat(file.fileno()).st_size
                self._packed = (plain := _plain(file)) is not file
                steady = cast(BinaryIO, _Steady(plain))  # as much of a file as tarfile uses
                self._tar = stack.enter_context(tarfile.open(fileobj=steady, mode="r:"))
            self._files = stack.pop_all()

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """The members in the order of the file; UseError where the archive is damaged."""
        members = iter(self._tar)
        while True:
            with reading(self.path, self.what):
                member = next(members, None)
                if member is None:
                    return
                if member.isreg() and (member.size < 0 or (not self._packed and member.size > self._size)):
                    raise ValueError(f"{member.name[:80]} claims {member.size} bytes, more than there are")
            yield member

    def read(self, member: tarfile.TarInfo, largest: int | None = None) -> bytes:
        """Content of a regular member; UseError where it exceeds `largest` bytes, is truncated, or is a sparse file."""
        most = memory() if largest is None else largest
        with reading(self.path, self.what):
            if member.issparse():
                raise ValueError(f"{member.name[:80]} is a sparse file")
            if member.size > most:
                raise ValueError(f"{member.name[:80]} is too large: {member.size} bytes")
            data = bytearray()
            stream = self._tar.extractfile(member)
            if stream is None:
                raise ValueError(f"{member.name[:80]} is no regular file")
            with stream:
                while chunk := stream.read(_PIECE):
                    data += chunk
            if len(data) != member.size:
                raise EOFError("unexpected end of data")
            return bytes(data)

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a tar archive, compressed or not."""
    try:
        Tar(path).close()
    except UseError:
        return False
    return True


# Text


def _text(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        data = file.read(_TEXT + 1)
    if len(data) > _TEXT:
        raise ValueError(f"more than {_TEXT >> 20} MiB")
    return data.decode("utf-8-sig")


def read_yaml(path: str | os.PathLike[str]) -> object:
    """The value of a YAML file; UseError where it is invalid, nested too deeply, or expanded too far by aliases."""
    with reading(path, "not readable as YAML"):
        return parse_yaml(_text(path))


def parse_yaml(text: str) -> object:
    """The value of YAML text; ValueError or YAMLError where it is invalid, too deeply nested, or too large."""
    depth = 0
    for bracket in re.findall(r"[][{}]", text):  # what the scanner would take long for
        depth += 1 if bracket in "[{" else -1
        if depth > 1000:
            raise ValueError(f"nested more than {_DEEP} levels deep")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # before values are built, which takes a stack as deep
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEP:
            raise ValueError(f"nested more than {_DEEP} levels deep")
    value = yaml.safe_load(text)
    _count(value, {}, set())
    return value


def _count(value: object, counts: dict[int, int], ancestors: set[int]) -> int:
    """Number of values inside a value, aliases counted each time; ValueError where too many, or for a cycle."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) in ancestors:
        raise ValueError("an alias that holds itself")
    if id(value) not in counts:
        ancestors.add(id(value))
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(part, counts, ancestors) for part in inner)
        ancestors.remove(id(value))
        if counts[id(value)] > _WIDE:
            raise ValueError("its aliases make too many values")
    return counts[id(value)]


def read_json(path: str | os.PathLike[str]) -> object:
    """The value of a JSON file; UseError in one line where it is none."""
    with reading(path, "not readable as JSON"):
        return json.loads(_text(path))
