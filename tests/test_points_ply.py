"""PLY files: round trips, the formats others write, and files that are torn."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.points import read_ply, write_ply
from sparsemask.tasks.points.clouds.ply import ply_size

COLUMNS = {
    "x": np.array([0.5, -1.25, 3e8], np.float32),
    "time": np.array([1 / 3, 2, 3], np.float64),
    "red": np.array([0, 128, 255], np.uint8),
    "class": np.array([-1, 0, 12], np.int32),
    "short": np.array([-3, 2, 1], np.int16),
    "many": np.array([0, 1, 2**32 - 1], np.uint32),
}
HEADER = "ply\nformat {}\ncomment made elsewhere\nelement vertex 2\nproperty float x\nproperty uint8 red\n"
FACES = "element face 1\nproperty list uchar int vertex_indices\n"


def same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and found[name].dtype.isnative
        np.testing.assert_array_equal(found[name], values)


def test_round_trip_keeps_order_and_types(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(path, COLUMNS, "two\nlines")
    same(read_ply(path), COLUMNS)
    assert ply_size(path) == (3, path.stat().st_size)


def test_no_points_at_all(tmp_path):
    write_ply(tmp_path / "a.ply", {"x": np.empty(0, np.float32)})
    same(read_ply(tmp_path / "a.ply"), {"x": np.empty(0, np.float32)})


@pytest.mark.parametrize("form", ["ascii 1.0", "binary_little_endian 1.0", "binary_big_endian 1.0"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_format_with_faces_after_the_vertices(form, newline, tmp_path):
    expected = {"x": np.array([1.5, -2], np.float32), "red": np.array([7, 200], np.uint8)}
    header = (HEADER.format(form) + FACES + "end_header\n").replace("\n", newline).encode()
    if form.startswith("ascii"):
        body = b"1.5 7\n-2 200\n3 0 1 1\n"
    else:
        order = "<" if "little" in form else ">"
        table = np.zeros(2, [("x", order + "f4"), ("red", "u1")])
        table["x"], table["red"] = expected["x"], expected["red"]
        body = table.tobytes() + b"\x03" + bytes(12)
    (tmp_path / "a.ply").write_bytes(header + body)
    same(read_ply(tmp_path / "a.ply"), expected)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no PLY file"),
        (b"obj\n", "no PLY file"),
        (HEADER.format("ascii 1.0").encode(), "no end"),
        (b"ply\n" + b"comment x\n" * 9000, "no end"),
        (b"ply\nformat middle_endian 1.0\nend_header\n", "format middle_endian"),
        (b"ply\nformat ascii 1.0\nend_header\n", "begin with vertices"),
        ((FACES.join(["ply\nformat ascii 1.0\n", ""]) + "end_header\n").encode(), "begin with vertices"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n", "property list"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nproperty int x\nend_header\n", "begin with vertices"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nproperty int x\nend_header\n", "twice"),
        ((HEADER.format("binary_little_endian 1.0") + "end_header\n").encode() + bytes(9), "1 of 2 points"),
        ((HEADER.format("ascii 1.0") + "end_header\n1 2\n").encode(), "1 of 2 points"),
        ((HEADER.format("ascii 1.0") + "end_header\n1 2\nb c\n").encode(), "not readable"),
    ],
)
def test_what_is_no_whole_file(content, said, tmp_path):
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UseError, match=said):
        read_ply(tmp_path / "a.ply")


def test_absent(tmp_path):
    with pytest.raises(UseError, match="no such file"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize(
    "columns, said",
    [
        ({}, "no points"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "2, 3 points"),
        ({"x": np.zeros(2, np.int64)}, "int64"),
        ({"a b": np.zeros(2)}, "'a b'"),
    ],
)
def test_what_cannot_be_written_leaves_the_former_file(columns, said, tmp_path):
    (tmp_path / "a.ply").write_bytes(b"former")
    with pytest.raises(UseError, match=said):
        write_ply(tmp_path / "a.ply", columns)
    assert (tmp_path / "a.ply").read_bytes() == b"former" and len(list(tmp_path.iterdir())) == 1
