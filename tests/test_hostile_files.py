"""Files from strangers: headers that lie, damaged archives, endless nesting. A UseError of one line, little memory.

Tables of what was seen to fail, then fuzzing: valid files of every kind with bytes changed, cut out and put in.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sparsemask import containers, flags, masks
from sparsemask.cli.compress import recipe
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError
from sparsemask.files import read_json
from sparsemask.masks import groups as mask_file
from sparsemask.masks import npz, spatial
from sparsemask.options import Parser
from sparsemask.pictures.files import read_picture
from sparsemask.search.studies import plan
from sparsemask.tasks.classification import cifar as classification_cifar
from sparsemask.tasks.classification import layouts as classification_layouts
from sparsemask.tasks.points.clouds import cloud
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.points.prepare.items import whole
from sparsemask.tasks.stereo.files import read_disparity
from sparsemask.VOC12 import archives, images
from sparsemask.VOC12.images import read_picture as read_rgb
from sparsemask.weights import load_weights, metadata

MUCH = 64 << 20  # bytes that no hostile file of a few kilobytes may cost
TERA = 1 << 40


@contextmanager
def little_memory():
    """Inside, no more than MUCH bytes are taken by Python and NumPy."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MUCH, f"{peak >> 20} MiB"


def refused(read, path: Path, measured: bool = True) -> None:
    """Reading is refused in one line that names the file, and takes little memory, which is slow to measure."""
    with little_memory() if measured else nullcontext(), pytest.raises(UseError) as error:
        read(path)
    said = str(error.value)
    assert path.name in said and len(said) < 1000, said


# Arrays


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def header(said: str, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    text = said.encode().ljust(117) + b"\n"
    length = len(text) if length is None else length
    packed = struct.pack("<H", length) if version == (1, 0) else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes(version) + packed + text


def claiming(shape: str, descr: str = "'|b1'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}") + bytes(64)


ARRAYS = {
    "terabytes": claiming(f"({TERA},)"),
    "a number beyond all": claiming(f"({10**30}, {10**30})"),
    "a shape that overflows": claiming(f"({1 << 33}, {1 << 33}, {1 << 33})"),
    "a shape below nothing": claiming("(-5, 2)"),
    "a shape of words": claiming("('a',)"),
    "many of no size": claiming(f"({TERA},)", "'|S0'"),
    "one byte too many": claiming("(65,)"),
    "a header of 4 GiB": header("{", (2, 0), 0xFFFFFFFF),
    "a header nested": header("(" * 5000),
    "a header that is code": header("__import__('os').system('touch executed')"),
    "objects": npy(np.array([{"a": 1}, None], dtype=object)),
    "a field of objects": claiming("(2,)", "[('a', '|O')]"),
    "of a version to come": header("{}", (9, 0)),
    "of version 3": header("{}", (3, 0)),
    "nothing": b"",
    "the first bytes": b"\x93NUMPY",
    "a page": b"<html>not found</html>",
}
ARRAY_READERS = {
    "mask": masks.load_mask,
    "cloud": cloud.read_cloud,
    "disparity": read_disparity,
    "mapped": containers.map_npy,
    "plain": containers.read_npy,
    "length": containers.npy_length,
}


@pytest.mark.parametrize("reader", ARRAY_READERS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_lie(tmp_path, monkeypatch, name, reader):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(ARRAYS[name])
    refused(ARRAY_READERS[reader], path)
    assert not whole(path) and not Path("executed").exists()


@pytest.mark.parametrize("order", "CF")
def test_arrays_are_read_as_they_were_written(tmp_path, order):
    for array in (np.arange(24.0).reshape(2, 3, 4), np.zeros((0, 3)), np.array(5), np.array(""), np.array("word"),
                  np.ones(3, ">i2"), np.zeros((3, 2), bool), np.array(3 + 4j)):  # fmt: skip
        array = np.asarray(array, order=order)
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", a=array, b=array)
        np.savez(tmp_path / "b.npz", array)
        found = [
            containers.read_npy(tmp_path / "a.npy"),
            containers.map_npy(tmp_path / "a.npy"),
            *containers.read_npz(tmp_path / "a.npz").values(),
            *containers.read_npz(tmp_path / "b.npz").values(),
        ]
        assert len(found) == 5
        for one in found:
            assert one.dtype == array.dtype and one.shape == array.shape and np.array_equal(one, array)
        assert found[0].flags.writeable and found[2].flags.writeable
        assert containers.npy_length(tmp_path / "a.npy") == (tmp_path / "a.npy").stat().st_size


# Archives of arrays


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


GOOD = {"x.npy": npy(np.zeros((4, 2, 2, 3), np.uint8)), "y.npy": npy(np.arange(4))}


def patched(data: bytes, at: int, what: bytes, central_only: bool = False) -> bytes:
    """Bytes changed in every entry, at an offset within the central directory's, and in the local headers' too."""
    data = bytearray(data)
    for mark, shift in ((b"PK\x01\x02", 0), *(() if central_only else ((b"PK\x03\x04", -2),))):
        start = 0
        while (start := data.find(mark, start)) >= 0:
            data[start + at + shift : start + at + shift + len(what)] = what
            start += 4
    return bytes(data)


def damaged(method: int) -> bytes:
    """The first member's data overwritten, its headers left alone."""
    rng = np.random.default_rng(0)
    data = bytearray(archive({"x.npy": npy(rng.integers(0, 9, (40, 8, 8, 3)).astype(np.uint8)), **GOOD}, method))
    start = data.find(b"x.npy") + 5
    data[start + 12 : start + 60] = bytes(rng.integers(0, 256, 48, dtype=np.uint8))
    return bytes(data)


def overlapping() -> bytes:
    """Many entries of the index that lead to the same bytes."""
    data = archive({"x.npy": npy(np.zeros(1 << 16, np.uint8))})
    at, end = data.find(b"PK\x01\x02"), data.find(b"PK\x05\x06")
    index = b"".join(data[at:end].replace(b"x.npy", b"%05d" % k) for k in range(200))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 200, 200, len(index), at, 0)
    return data[:at] + index + tail


ARCHIVES = {
    "an array of terabytes": archive({n: claiming(f"({TERA},)") for n in GOOD}),
    "objects": archive({n: npy(np.array([None], dtype=object)) for n in GOOD}),
    "encrypted": patched(archive(GOOD), 8, b"\x01\x00"),
    "an unknown method": patched(archive(GOOD), 10, struct.pack("<H", 99)),
    "deflate64": patched(archive(GOOD), 10, struct.pack("<H", 9)),
    "sizes of gigabytes": patched(archive(GOOD), 24, struct.pack("<L", 0xFFFFFFF0), central_only=True),
    "stored sizes of gigabytes": patched(archive(GOOD, 0), 20, struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0), True),
    "damaged deflate": damaged(zipfile.ZIP_DEFLATED),
    "damaged bzip2": damaged(zipfile.ZIP_BZIP2),
    "damaged lzma": damaged(zipfile.ZIP_LZMA),
    "damaged stored": damaged(zipfile.ZIP_STORED),
    "torn": archive(GOOD)[:-40],
    "entries that overlap": overlapping(),
    "a page": b"<html>",
    "nothing": b"",
    "members that are no arrays": archive({n: b"words" for n in GOOD}),
}
ARCHIVE_READERS = {
    "masks": spatial.load_masks,
    "groups": mask_file.load_mask,
    "classes": classification_layouts.read_npz,
    "cloud": cloud.read_cloud,
    "plain": containers.read_npz,
    "disparity": read_disparity,
}


@pytest.mark.parametrize("reader", ARCHIVE_READERS)
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_arrays_that_lie(tmp_path, name, reader):
    path = tmp_path / "a.npz"
    path.write_bytes(ARCHIVES[name])
    refused(ARCHIVE_READERS[reader], path)
    assert npz.file_space(path) is None


def test_every_known_method_is_read(tmp_path):
    for method in (0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        (tmp_path / "a.npz").write_bytes(archive(GOOD, method))
        assert len(classification_layouts.read_npz(tmp_path / "a.npz").labels) == 4


# Tar archives


def member(name: str = "data_batch_1.bin", size: int = 10, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header alone."""
    one = tarfile.TarInfo(name)
    one.size, one.type = size, kind
    return one.tobuf(tarfile.GNU_FORMAT)


def pax(entries: dict[str, str]) -> bytes:
    """A PAX header with its records."""
    body = b""
    for key, value in entries.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + 2
        body += str(length if len(str(length)) == 2 else length + 1).encode() + record
    return member("pax", len(body), tarfile.XHDTYPE) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, data in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(data)
            made.addfile(one, io.BytesIO(data))
    return file.getvalue()


def hurt(data: bytes, at: float = 0.5, count: int = 24) -> bytes:
    """Random bytes in the middle."""
    start, out = int(len(data) * at), bytearray(data)
    out[start : start + count] = np.random.default_rng(1).integers(0, 256, count, dtype=np.uint8).tobytes()
    return bytes(out)


NOISE = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
PICTURES = tar({"data_batch_1.bin": NOISE, "ImageSets/Segmentation/train.txt": NOISE})
TARS = {
    "a member of terabytes": member(size=TERA) + bytes(2048),
    "a list of terabytes": member("ImageSets/Segmentation/train.txt", TERA) + bytes(2048),
    "a size below nothing": member(size=10).replace(b"00000000012\0", b"\xff" * 12) + bytes(1024),
    "a sparse file": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(TERA)})
    + member(size=512) + b"1\n0\n0\n".ljust(512, b"\0") + bytes(1024),
    "a sparse map without end": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"})
    + member(size=512) + str(TERA).encode().ljust(512, b"\n"),
    "a PAX size": pax({"size": str(TERA)}) + member() + bytes(2048),
    "a PAX header of terabytes": member("x", TERA, tarfile.XHDTYPE) + bytes(2048),
    "a long name of terabytes": member("x", TERA, tarfile.GNUTYPE_LONGNAME) + bytes(2048),
    # Deeper than any limit of recursion here: torch raises it to 2000 when it compiles.
    "PAX headers in a row": pax({"comment": "x"}) * 3000 + member(size=0) + bytes(1024),
    "damaged xz": hurt(lzma.compress(PICTURES)),
    "damaged bzip2": hurt(bz2.compress(PICTURES)),
    "damaged gzip": hurt(gzip.compress(PICTURES)),
    "xz cut short": lzma.compress(PICTURES)[:-400],
    "bzip2 cut short": bz2.compress(PICTURES)[:-400],
    "gzip cut short": gzip.compress(PICTURES)[:-400],
    "xz damaged at once": hurt(lzma.compress(PICTURES), 0.001),
    "bzip2 damaged at once": hurt(bz2.compress(PICTURES), 0.001),
    "cut short": PICTURES[:10_000],
    "gzip of terabytes in a header": gzip.compress(member("x", TERA, tarfile.XHDTYPE) + bytes(2048)),
}  # fmt: skip


def members(path: Path) -> list[bytes]:
    with containers.Tar(path) as found:
        return [found.read(one) for one in found if one.isfile()]


@pytest.mark.parametrize("name", TARS)
def test_tar_archives_that_lie(tmp_path, name):
    path = tmp_path / "cifar-10-binary.tar"
    path.write_bytes(TARS[name])
    measured = "row" not in name
    refused(members, path, measured)
    refused(lambda path: archives.open_source(path, archives.VOC), path, measured)
    refused(lambda path: classification_cifar.find(path.parent), path, measured)
    with suppress(UseError):  # a file of its own may be no archive at all
        assert classification_cifar.find(path) is None


def test_every_known_compression_is_read(tmp_path):
    for pack in (bytes, gzip.compress, bz2.compress, lzma.compress):
        (tmp_path / "a").write_bytes(pack(PICTURES))
        assert members(tmp_path / "a") == [NOISE, NOISE] and containers.is_tar(tmp_path / "a")


# Clouds


PLY = "ply\nformat {}\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PLYS = {
    "ascii, 10^30 points": PLY.format("ascii 1.0", 10**30) + "0 0 0\n",
    "binary, 10^30 points": PLY.format("binary_little_endian 1.0", 10**30) + "0" * 24,
    "ascii, 10^12 points": PLY.format("ascii 1.0", 10**12) + "0 0 0\n" * 4,
    "ascii, one too many": PLY.format("ascii 1.0", 3) + "0 0 0\n0 0 0\n",
    "a count of 5000 digits": PLY.format("ascii 1.0", "9" * 5000),
    "a count below nothing": PLY.format("ascii 1.0", -1),
    "ascii, words": PLY.format("ascii 1.0", 1) + "zero zero zero\n",
    "ascii, two columns": PLY.format("ascii 1.0", 2) + "0 0\n0 0\n0 0\n",
    "ascii, other bytes": PLY.format("ascii 1.0", 1) + "\xff\xfe\xfd",
    "no end": "ply\n" + "comment x\n" * 10,
}


@pytest.mark.parametrize("name", PLYS)
def test_clouds_that_lie(tmp_path, name):
    path = tmp_path / "a.ply"
    path.write_bytes(PLYS[name].encode("latin1"))
    refused(read_ply, path)
    refused(cloud.read_cloud, path)


# Text


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
YAMLS = {
    "nested lists": "[" * 20_000,
    "nested lists, not so deep": "[" * 300,
    "nested lists that end": "a: " + "[" * 20_000 + "]" * 20_000,
    "nested mappings": "{a: " * 20_000,
    "nested by lines": "".join(" " * k + "a:\n" for k in range(2000)),
    "nested dashes": "- " * 20_000 + "x",
    "growing aliases": LAUGHS,
    "an alias of itself": "a: &a [*a]",
    "a date that is none": "seed: 2020-99-99",
    "a number of 5000 digits": "seed: " + "9" * 5000,
    "an object": "seed: !!python/object/apply:os.system [touch executed]",
    "a key of a list": "? [a, b]\n: x",
    "bytes": "\x00\x01\x02",
    "no text": "\xff\xfe\xff",
    "tabs": "\tseed:\t3",
    "a list": "- seed",
    "a word": "seed",
}
YAML_READERS = {
    "flags": lambda path: Parser("search").from_file(path),
    "recipe": lambda path: recipe.read(str(path)),
    "ranges": lambda path: plan.read_ranges(str(path), "connectivity", {}),
}


@pytest.mark.parametrize("reader", YAML_READERS)
@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_is_none_to_read(tmp_path, monkeypatch, name, reader):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_bytes(YAMLS[name].encode("latin1"))
    refused(YAML_READERS[reader], path, measured="aliases" in name)
    assert flags.space_of(["--config", str(path)]) == flags.DEFAULT_SPACE  # passed over where only looked at
    assert not Path("executed").exists()


JSONS = {
    "nested": "[" * 200_000,
    "nested mappings": '{"a":' * 100_000,
    "a number of 5000 digits": '{"a": ' + "9" * 5000 + "}",
    "no text": "\xff\xfe\xff",
    "cut short": '{"a": 3',
    "a list": "[3]",
    "nothing": "",
}


@pytest.mark.parametrize("name", JSONS)
def test_json_that_is_none_to_read(tmp_path, name):
    path = tmp_path / "m.json"
    path.write_bytes(JSONS[name].encode("latin1"))
    refused(read_json, path)
    refused(lambda path: masks.mask_note(path.with_suffix(".npy")), path)
    refused(lambda path: classification_layouts._class_names(path, 2), path)
    path.write_bytes(path.read_bytes() + b"\n{}\n")
    refused(read_rows, path)


# Weights


def lying_checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(4)}}, file)
    return patched(file.getvalue(), 24, struct.pack("<L", 0xFFFFFFF0), central_only=True)


def pickled(code: bytes) -> bytes:
    return archive({"archive/data.pkl": code, "archive/version": b"3\n"}, 0)


WEIGHTS = {
    "a.pt": lying_checkpoint(),
    "b.pt": pickled(b"\x80\x02" + b"(" * 5_000),
    "c.pt": pickled(b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b"."),
    "d.pt": patched(archive({"archive/data.pkl": b"\x80\x02}."}), 8, b"\x01\x00"),
    "e.pt": b"\x80\x02" + b"X\xff\xff\xff\x7fabc",
    "f.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
    "g.safetensors": struct.pack("<Q", 2) + b"[]",
    "h.safetensors": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'[:60] + bytes(4),
    "i.safetensors": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_lie(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name])
    refused(load_weights, path)
    if path.suffix == ".safetensors":
        refused(metadata, path)


# Pictures


def png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1 << 30, 1 << 30), (50_000, 50_000), (0, 0), (100, 100)])
def test_pictures_that_lie(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(png(*size))
    refused(read_picture, path)
    refused(images.read_picture, path)
    refused(read_disparity, path)


# Fuzzing


def mutations(data: bytes, rng: np.random.Generator, count: int):
    """Copies with bytes changed, cut out, repeated, or the end lost."""
    for _ in range(count):
        made = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at, length = int(rng.integers(0, len(made) or 1)), int(rng.integers(1, 9))
            kind = rng.integers(0, 6)
            if kind == 0:
                made[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            elif kind == 1:
                del made[at : at + length]
            elif kind == 2:
                made[at:at] = made[at : at + length] * 3
            elif kind == 3:
                del made[at:]
            elif kind == 4:
                made[at : at + length] = b"\xff" * length
            else:
                made[at : at + 1] = bytes([made[at] ^ (1 << int(rng.integers(0, 8)))]) if at < len(made) else b""
        yield bytes(made)


def fine(path: Path) -> None:
    channels = {"a": np.ones((2, 3), bool)}
    spatial.save_masks(path, spatial.FineMasks("smsr", "super_resolution", channels, "0" * 64, config={"a": 1}))


def groups(path: Path) -> None:
    config = {
        "arch": "resnet8", "n_class": 4, "arch_options": {}, "variant": "svd", "init": "svd2", "input_shape": [3, 8, 8],
    }  # fmt: skip
    mask_file.save_mask(path, mask_file.GroupMask(config, {"a": np.ones(3, bool)}))


def checkpoint(path: Path) -> None:
    torch.save({"model": {"a": torch.arange(4.0)}, "step": 3, "config": {"lr": 0.1}, "space": "smsr"}, path)


def unet(path: Path) -> None:
    from sparsemask.spaces.connectivity.named_masks import named_mask

    masks.save_mask(path, named_mask("unet", 4))


def picture(path: Path) -> None:
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(path)


XYZ = {name: np.arange(4, dtype=np.float32) for name in "xyz"}
# Name of the file -> what writes a valid one, what reads it.
FILES = {
    "mask.npy": (unet, masks.load_mask),
    "cloud.npy": (lambda p: np.save(p, np.ones((4, 6))), cloud.read_cloud),
    "map.npy": (lambda p: np.save(p, np.ones((4, 6), np.float32)), read_disparity),
    "fine.npz": (fine, spatial.load_masks),
    "groups.npz": (groups, mask_file.load_mask),
    "classes.npz": (lambda p: p.write_bytes(archive(GOOD)), classification_layouts.read_npz),
    "lzma.npz": (lambda p: p.write_bytes(archive(GOOD, zipfile.ZIP_LZMA)), classification_layouts.read_npz),
    "bzip2.npz": (lambda p: p.write_bytes(archive(GOOD, zipfile.ZIP_BZIP2)), classification_layouts.read_npz),
    "a.tar": (lambda p: p.write_bytes(tar({"a": b"x" * 700, "b": b"y"})), members),
    "pax.tar": (lambda p: p.write_bytes(pax({"comment": "x"}) + member(size=3) + bytes(1024)), members),
    "a.tar.gz": (lambda p: p.write_bytes(gzip.compress(tar({"a": b"x" * 700}))), members),
    "a.tar.bz2": (lambda p: p.write_bytes(bz2.compress(tar({"a": b"x" * 700}))), members),
    "a.tar.xz": (lambda p: p.write_bytes(lzma.compress(tar({"a": b"x" * 700}))), members),
    "binary.ply": (lambda p: write_ply(p, XYZ), cloud.read_cloud),
    "ascii.ply": (lambda p: p.write_text(PLY.format("ascii 1.0", 2) + "0 0 1\n1 1 1\n"), cloud.read_cloud),
    "scan.bin": (lambda p: p.write_bytes(np.ones((4, 4), "<f4").tobytes()), cloud.read_cloud),
    "a.yaml": (lambda p: p.write_text("space: smsr\nseed: 3\nlist: [1, {a: b}]\n"), containers.read_yaml),
    "a.json": (lambda p: p.write_text(json.dumps({"a": [1, {"b": None}]})), read_json),
    "a.pt": (checkpoint, load_weights),
    "a.safetensors": (lambda p: save_file({"a": torch.zeros(2)}, p, {"k": "3"}), load_weights),
    "b.safetensors": (lambda p: save_file({"a": torch.zeros(2)}, p, {"k": "3"}), metadata),
    "legacy.pt": (
        lambda p: torch.save({"a": torch.arange(4.0)}, p, _use_new_zipfile_serialization=False), load_weights
    ),
    "a.png": (picture, read_picture),
    "b.bmp": (picture, images.read_picture),
    "c.tiff": (picture, read_picture),
    "d.gif": (picture, images.read_picture),
    "e.jpg": (picture, read_picture),
    "f.webp": (picture, read_picture),
    "g.ppm": (picture, images.read_picture),
    "disparity.pfm": (lambda p: Image.fromarray(np.ones((4, 5), np.float32)).save(p, "PPM"), read_disparity),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_changed_files_are_read_or_refused(tmp_path, name):
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    data = path.read_bytes()
    read(path)
    refused_so_far = 0
    with little_memory():
        for k, changed in enumerate(mutations(data, np.random.default_rng(list(name.encode())), 60)):
            path.write_bytes(changed)
            try:
                read(path)
            except UseError as error:
                assert name in str(error), (k, error)
                refused_so_far += 1
    assert refused_so_far > 3  # of 60 some were hurt for certain: the file is looked at


ELSEWHERE = re.compile(
    r"np\.load\(|np\.lib\.format\.read|yaml\.(safe_)?load|tarfile\.open|zipfile\.ZipFile\(|json\.load\(|"
    r"json\.loads\([^)]*read_text|torch\.load\(|pickle\.loads?\("
)
KNOWN = {
    "sparsemask/containers.py",
    "sparsemask/weights.py",
    "sparsemask/safe_pickle.py",
    "sparsemask/exporting/reading.py",  # members of a program whose sizes `containers` has checked
    "sparsemask/testing/families.py",  # reads back what it has just written itself
}


def test_nothing_else_opens_such_files():
    root = Path(containers.__file__).parents[1]
    parts = ("sparsemask", "spaces", "search", "prune", "retrain", "VOC12")
    sources = [path for part in parts for path in (root / part).rglob("*.py")]
    assert len(sources) > 200
    found = {
        str(path.relative_to(root)): line.strip()
        for path in sources
        for line in path.read_text().splitlines()
        if ELSEWHERE.search(line) and not line.lstrip().startswith(("#", '"'))
    }
    assert set(found) <= KNOWN, {name: line for name, line in found.items() if name not in KNOWN}


STAND_INS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4711\n": "Git LFS pointer for a file of 4711",
    b"\n<!DOCTYPE html><html>Sign in</html>": "web page",
}


@pytest.mark.parametrize("content", STAND_INS)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("m.npy", masks.load_mask),
        ("m.npz", masks.load_mask),
        ("m.npz", npz.read_arrays),
        ("p.jpg", read_picture),
        ("q.jpg", read_rgb),
        ("c.npy", containers.read_npy),
    ],
)
def test_what_was_stored_in_place_of_a_file_is_said(tmp_path, name, read, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UseError, match=STAND_INS[content]):
        read(tmp_path / name)


def test_a_torn_archive_of_masks_says_so_where_its_space_is_not_known(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", a=np.arange(100))
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UseError, match="truncated or not a mask file"):
        masks.load_mask(tmp_path / "m.npz")
    (tmp_path / "m.npz").write_bytes(whole)
    with pytest.raises(UseError, match=r"a connectivity mask is a \.npy file"):
        masks.load_mask(tmp_path / "m.npz")
