"""MATLAB's bicubic: against published pictures, against torch's, and by the laws any resizing keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparsemask import UseError
from sparsemask.resize import imresize

SIZES = st.tuples(st.integers(1, 23), st.integers(1, 23))
SCALES = st.sampled_from([0.25, 1 / 3, 0.37, 0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0])


def noise(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.real
def test_low_resolution_of_set5_to_the_last_value(shared_data):
    compared = 0
    for path in sorted((shared_data / "set5/HR").iterdir()):
        expected = np.array(Image.open(shared_data / "set5/LR_bicubic/X2" / path.name))
        assert np.array_equal(imresize(np.array(Image.open(path)), 0.5), expected), path.name
        compared += expected.size
    assert compared == 425592


# torch has the same kernel (a = -1/2) and low-pass filter, and another rim: inside, both must agree.
@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2, 3, 4])
def test_inside_as_torch(scale):
    picture = noise(48, 60, 3)
    theirs = F.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None], scale_factor=scale, mode="bicubic", antialias=True
    )[0]
    ours = imresize(picture, scale)
    rim = 4 if scale < 1 else round(4 * scale)
    inside = (slice(rim, -rim), slice(rim, -rim))
    assert ours.shape[:2] == theirs.shape[1:] and ours[inside].size
    assert np.allclose(ours[inside], theirs.permute(1, 2, 0).numpy()[inside], atol=1e-9)


def test_weights_of_a_half():
    impulse = np.zeros((24, 1))
    impulse[12] = 128.0
    # Keys' kernel, stretched to twice its width, at the distances 1/4, 3/4, 5/4 and 7/4.
    expected = [-1.5, -4.5, 14.5, 55.5, 55.5, 14.5, -4.5, -1.5]
    assert imresize(impulse, size=(12, 1))[4:8, 0].tolist() == expected[::2]
    assert imresize(np.roll(impulse, 1), size=(12, 1))[5:9, 0].tolist() == expected[1::2]


# The rim is mirrored, edge pixel included: a picture extended so by hand gives the same.
@pytest.mark.parametrize("scale", [0.5, 2])
def test_rim_is_mirrored(scale):
    picture = noise(12, 16)
    wide = imresize(np.pad(picture, 8, mode="symmetric"), scale)
    cut = round(8 * scale)
    assert np.allclose(wide[cut:-cut, cut:-cut], imresize(picture, scale), atol=1e-10)


# uint8 is rounded after either pass, rows first: both orders without that rounding would be one.
def test_bytes_are_rounded_between_the_passes():
    picture = noise(20, 24, 3, dtype=np.uint8)
    rows_first = imresize(imresize(picture, size=(10, 24)), size=(10, 12))
    columns_first = imresize(imresize(picture, size=(20, 12)), size=(10, 12))
    assert np.array_equal(imresize(picture, 0.5), rows_first)
    assert not np.array_equal(rows_first, columns_first)
    # The side that shrinks most goes first, here the columns.
    assert np.array_equal(imresize(picture, size=(10, 8)), imresize(imresize(picture, size=(20, 8)), size=(10, 8)))
    assert np.abs(rows_first.astype(int) - np.clip(imresize(picture.astype(float), 0.5), 0, 255)).max() <= 2


def test_bytes_are_clipped_and_halves_go_up():
    stripes = np.zeros((16, 1), np.uint8)
    stripes[8:] = 255
    enlarged, free = imresize(stripes, size=(32, 1)), imresize(stripes.astype(float), size=(32, 1))
    assert free.min() < 0 and free.max() > 255 and (enlarged.min(), enlarged.max()) == (0, 255)
    # 55.5 of the test above, and 14.5, as bytes.
    impulse = np.zeros((24, 1), np.uint8)
    impulse[12] = 128
    assert imresize(impulse, size=(12, 1))[4:8, 0].tolist() == [0, 15, 56, 0]


@settings(max_examples=60, deadline=None)
@given(SIZES, SCALES, st.integers(0, 255))
def test_flat_stays_flat(size, scale, value):
    made = imresize(np.full((*size, 3), value, np.uint8), scale)
    assert made.shape == (*(int(np.ceil(scale * s)) for s in size), 3)
    assert (made == value).all()


@settings(max_examples=60, deadline=None)
@given(SIZES, SCALES, st.integers(0, 99))
def test_mirroring_and_transposing_commute(size, scale, seed):
    picture = noise(*size, seed=seed)
    target = tuple(int(np.ceil(scale * s)) for s in size)  # by size: by scale, a rest of a pixel lies at the end
    made = imresize(picture, size=target)
    assert np.allclose(imresize(picture[:, ::-1], size=target), made[:, ::-1], atol=1e-9)
    assert np.allclose(imresize(picture.T, size=target[::-1]), made.T, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_scale_one_is_the_picture(size, seed):
    picture = noise(*size, dtype=np.uint8, seed=seed)
    assert np.array_equal(imresize(picture, 1), picture)


# What is too fine for the smaller picture must vanish; without the filter it comes back as coarse stripes.
def test_antialiasing():
    fine = np.tile(127.5 + 100 * np.cos(0.8 * np.pi * np.arange(64)), (8, 1))
    inside = (slice(None), slice(4, -4))
    assert imresize(fine, 0.5)[inside].std() < 10
    assert imresize(fine, 0.5, antialias=False)[inside].std() > 20


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3)])
def test_type_and_shape_are_kept(dtype, shape):
    made = imresize(noise(*shape, dtype=dtype), 0.5)
    assert made.dtype == dtype and made.shape == (3, 4, *shape[2:]) and made.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("image", "arguments", "words"),
    [
        (np.zeros((4, 4), np.int32), {"scale": 2}, "int32"),
        (np.zeros((4, 4, 3, 1)), {"scale": 2}, r"\(4, 4, 3, 1\)"),
        (np.zeros((0, 4)), {"scale": 2}, r"\(0, 4\)"),
        (np.zeros((4, 4)), {}, "a scale or a size"),
        (np.zeros((4, 4)), {"scale": 2, "size": (8, 8)}, "a scale or a size"),
        (np.zeros((4, 4)), {"scale": 0}, "scale 0"),
        (np.zeros((4, 4)), {"scale": float("nan")}, "scale nan"),
        (np.zeros((4, 4)), {"size": (0, 3)}, "size"),
    ],
)
def test_what_cannot_be_resized(image, arguments, words):
    with pytest.raises(UseError, match=words):
        imresize(image, **arguments)
