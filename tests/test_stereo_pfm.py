"""PFM headers as programs write them: LF, CRLF or CR, either byte order; what is no such file says why."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sparsemask import UseError
from sparsemask.tasks.stereo.files import read_disparity, write_disparity

MAP = np.random.default_rng(0).uniform(1, 90, (5, 7)).astype(np.float32)


def pfm(values: np.ndarray, end: bytes = b"\n", scale: str = "-1.0", magic: bytes = b"Pf") -> bytes:
    height, width = values.shape
    order = "<f4" if scale.startswith("-") else ">f4"
    size = f"{width} {height}".encode()
    return magic + end + size + end + scale.encode() + end + values[::-1].astype(order).tobytes()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b" "], ids=["LF", "CRLF", "CR", "blanks"])
@pytest.mark.parametrize("scale", ["-1.0", "1.0", "-0.003922", "1", "-1e0", "+0.5"])
def test_every_line_end_and_byte_order(end, scale, tmp_path):
    (tmp_path / "d.pfm").write_bytes(pfm(MAP, end, scale))
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), MAP)


@pytest.mark.parametrize("first", [0x0A, 0x0D, 0x20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_values_that_begin_with_a_line_end(first, end, tmp_path):
    values = MAP.copy()
    values[-1].view(np.uint8)[0] = first  # of the file's first value, little endian
    (tmp_path / "d.pfm").write_bytes(pfm(values, end))
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), values)


def test_lines_that_end_differently(tmp_path):
    (tmp_path / "d.pfm").write_bytes(pfm(MAP).replace(b"-1.0\n", b"-1.0\r\n"))
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), MAP)


def test_it_is_what_pillow_writes_and_reads(tmp_path):
    write_disparity(tmp_path / "d.pfm", MAP)
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), MAP)
    (tmp_path / "e.pfm").write_bytes(pfm(MAP))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "e.pfm")), MAP)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((MAP * 256).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "three colours": (pfm(MAP, magic=b"PF"), "three colours"),
    "truncated": (pfm(MAP)[:-3], "truncated: 137 of the 140 bytes"),
    "truncated CRLF": (pfm(MAP, b"\r\n")[:-1], "truncated: 139 of the 140"),
    "text mode": (pfm(MAP) + b"\r" * 5, "145 bytes for 7x5 values"),
    "huge": (b"Pf\n999999999 999999999\n-1.0\n" + bytes(40), "truncated: 40 of the"),
    "nothing": (b"Pf\n0 5\n-1\n", "0x5 values"),
    "scale": (b"Pf\n1 1\n0\n" + bytes(4), "scale 0"),
    "no number": (b"Pf\n1 1\n-.e\n" + bytes(4), "."),
    "no header": (b"Pf\nwhat is this\n", "header is not"),
    "another format": (png(), "no PFM but a picture"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_pfm_says_why(what, tmp_path):
    content, words = BAD[what]
    (tmp_path / "d.pfm").write_bytes(content)
    with pytest.raises(UseError, match=words) as error:
        read_disparity(tmp_path / "d.pfm")
    assert "d.pfm" in str(error.value)


def test_a_line_end_behind_the_values_harms_nobody(tmp_path):
    (tmp_path / "d.pfm").write_bytes(pfm(MAP, b"\r\n") + b"\r\n")
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), MAP)
