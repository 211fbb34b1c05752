"""Generated scenes: disparity exact to the pixel's fraction, occlusion right, the same seed the same scene."""

from __future__ import annotations

import numpy as np
import pytest

from small_pairs import write_scenes
from sparsemask import UseError
from sparsemask.synthetic.stereo_scenes import Plane, make_scene, render
from sparsemask.tasks.stereo.files import read_disparity, read_picture


def scene(seed: int = 0, **more):
    return make_scene(np.random.default_rng(seed), 64, 128, 32, **more)


def warped(frame) -> tuple[np.ndarray, np.ndarray]:
    """(the right picture drawn to where the left one has its points, pixels whose neighbours there are inside)."""
    height, width = frame.size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    at = x - frame.disparity
    left = np.floor(at).astype(int).clip(0, width - 2)
    share = (at - left)[..., None]
    found = frame.right[y, left] * (1 - share) + frame.right[y, left + 1] * share
    return found, (at >= 0) & (at <= width - 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_right_picture_shows_the_left_one_at_its_disparity(seed):
    frame = scene(seed)
    found, inside = warped(frame)
    error = abs(found - frame.left).mean(-1)
    seen = frame.noc & inside
    # Noise, brightness and interpolation remain; what is hidden is another thing altogether.
    assert np.median(error[seen]) < 8 and seen.mean() > 0.5
    # As a fraction of a pixel counts: half a pixel off, the pictures fit worse.
    for off in (-0.5, 0.5):
        other = type(frame)(**{**vars(frame), "disparity": frame.disparity + np.float32(off)})
        worse, _ = warped(other)
        assert abs(worse - frame.left).mean(-1)[seen].mean() > error[seen].mean()


def test_disparities_are_of_the_planes_and_in_range():
    frame = scene(1)
    assert frame.disparity.dtype == np.float32 and frame.left.dtype == np.uint8
    assert frame.left.shape == frame.right.shape == (64, 128, 3) and frame.disparity.shape == frame.noc.shape == (
        64,
        128,
    )
    assert frame.disparity.min() >= 1 and frame.disparity.max() <= 33
    assert len(np.unique(frame.disparity)) > 100  # planes are slanted
    assert (frame.disparity > 1.5 * np.median(frame.disparity)).any()  # something stands before the background


def planes() -> list[Plane]:
    """A flat background at 4 px, and a flat box at 12 px over columns 40 to 60."""
    rng = np.random.default_rng(0)
    textures = [rng.uniform(0, 255, (40, 140, 3)).astype(np.float32) for _ in range(2)]
    box = Plane((12.0, 0.0, 0.0), textures[1], 20, centre=(50.0, 20.0), radii=(10.0, 8.0), box=True)
    return [Plane((4.0, 0.0, 0.0), textures[0], 20), box]


def test_occlusion_is_where_the_nearer_plane_moves_over():
    frame = render(planes(), 40, 100, None, True, "two planes")
    row = frame.disparity[20]
    assert (row[40:61] == 12).all() and (row[:40] == 4).all() and (row[61:] == 4).all()
    # The box, 8 px nearer, hides the 8 columns left of it; the first 4 columns leave the right picture.
    hidden = np.flatnonzero(~frame.noc[20])
    assert hidden.tolist() == [0, 1, 2, 3, *range(32, 40)]
    assert np.array_equal(frame.right[20, 28:49], frame.left[20, 40:61])  # whole disparities: the very pixels
    assert np.array_equal(frame.right[20, 60:90], frame.left[20, 64:94])
    untold = render(planes(), 40, 100, None, False, "two planes")
    assert np.array_equal(untold.disparity > 0, frame.noc)


def test_a_slanted_plane_is_where_its_formula_says():
    ramp = np.repeat(np.linspace(0, 255, 200, dtype=np.float32)[None, :, None], 40, 0).repeat(3, 2)
    plane = Plane((3.0, 0.05, 0.1), ramp, 30)
    frame = render([plane], 40, 100, None, True, "ramp")
    x, y = np.meshgrid(np.arange(100), np.arange(40))
    assert np.allclose(frame.disparity, 3 + 0.05 * x + 0.1 * y, atol=1e-4)
    found, inside = warped(frame)
    assert abs(found - frame.left)[frame.noc & inside].max() <= 1.5  # of a ramp interpolation is exact, up to rounding


def test_a_seed_is_a_scene():
    one, again, other = scene(3), scene(3), scene(4)
    assert all(np.array_equal(getattr(one, k), getattr(again, k)) for k in ("left", "right", "disparity", "noc"))
    assert not np.array_equal(one.left, other.left)


def test_written_scenes_are_read_back(tmp_path):
    [path, _] = write_scenes(tmp_path, 2, 32, 64, 16, seed=5)
    frame = make_scene(np.random.default_rng([5, 0]), 32, 64, 16)
    assert np.array_equal(read_disparity(path), frame.disparity)
    assert np.array_equal(read_picture(tmp_path / "0000_right.png"), frame.right)
    assert (tmp_path / "pairs.txt").read_text().split()[:3] == ["0000_left.png", "0000_right.png", "0000_disp.pfm"]


def test_too_small():
    with pytest.raises(UseError, match="32x16 pixels, at least 32x32"):
        make_scene(np.random.default_rng(0), 16, 32, 8)
