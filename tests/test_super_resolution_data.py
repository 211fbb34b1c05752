"""Pairs of pictures as tensors: patches that fit each other, their randomness, and the ways to keep pictures."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from small_pictures import make_folder, make_pairs, scene, write
from sparsemask import UseError
from sparsemask.engine.data import StepSampler, training_loader
from sparsemask.resize import imresize
from sparsemask.tasks.super_resolution import store as super_resolution_store
from sparsemask.tasks.super_resolution.data import SuperResolutionDataset, augment, repeats
from sparsemask.tasks.super_resolution.folders import Pair, read_folder
from sparsemask.tasks.super_resolution.store import PictureStore


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))


def numbered(folder, size=(10, 14), scale=2):
    """A low-resolution picture whose pixels are all different, and the other with each of them repeated."""
    rows, columns = np.indices(size)
    low = np.stack([rows, columns, 17 * rows + columns], 2).astype(np.uint8)
    hr = write(folder / "HR/a.png", low.repeat(scale, 0).repeat(scale, 1))
    return [Pair(hr, write(folder / f"LR_bicubic/X{scale}/a.png", low))]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.integers(1, 10), st.integers(0, 2**32))
def test_patches_show_the_same_place(tmp_path_factory, scale, patch, seed):
    data = SuperResolutionDataset(numbered(tmp_path_factory.mktemp("p"), scale=scale), scale, patch)
    low, high = data.sample(0, np.random.default_rng(seed))
    assert low.dtype == high.dtype == torch.float32
    assert low.shape == (3, patch, patch) and high.shape == (3, scale * patch, scale * patch)
    assert torch.equal(high, low.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


# The last offset is drawn too, and a patch as large as the picture is no error (the public code has both faults).
@pytest.mark.parametrize("patch", [3, 9, 10])
def test_offsets_reach_both_ends(tmp_path, patch):
    data = SuperResolutionDataset(numbered(tmp_path), 2, patch)
    rng = np.random.default_rng(0)
    corners = {tuple(data.sample(0, rng)[0][:2].amin((1, 2)).int().tolist()) for _ in range(800)}
    assert corners == set(itertools.product(range(10 - patch + 1), range(14 - patch + 1)))


def test_the_eight_symmetries():
    picture = np.arange(27).reshape(3, 3, 3)
    made = [augment(picture, *turns) for turns in itertools.product((False, True), repeat=3)]
    quarter_turns = [np.rot90(base, k) for base in (picture, picture[:, ::-1]) for k in range(4)]
    assert {one.tobytes() for one in made} == {one.tobytes() for one in quarter_turns} and len(made) == 8


# Each of the eight is drawn about as often as the others.
def test_symmetries_are_drawn_evenly(tmp_path):
    data = SuperResolutionDataset(numbered(tmp_path, (9, 9)), 2, 9)
    rng, seen = np.random.default_rng(0), {}
    for _ in range(1600):
        key = data.sample(0, rng)[0].numpy().tobytes()
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 8 and min(seen.values()) > 140


# The engine's rule: a sample is a function of the seed and its number, whoever draws it.
def test_workers_and_passes(tmp_path):
    make_folder(tmp_path / "hr", 3)
    data = SuperResolutionDataset(read_folder(tmp_path / "hr", 2), 2, 8, repeat=2)
    batches = [
        [torch.cat([low.flatten(), high.flatten()]) for low, high in training_loader(data, sampler, 5, workers)]
        for workers in (0, 1, 2)
        for sampler in [StepSampler(len(data), 2, 0, 6, 5)]
    ]
    for other in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))
    first, second = batches[0][:3], batches[0][3:]  # two passes of three batches
    assert not any(torch.equal(a, b) for a in first for b in second)


@pytest.mark.parametrize(
    ("pictures", "batch", "test_every", "expected"),
    [(800, 16, 1000, 20), (91, 16, 1000, 175), (3, 16, 1000, 5333), (1000, 4, 10, 1), (5, 2, 1, 1)],
)
def test_repeats(pictures, batch, test_every, expected):
    assert repeats(pictures, batch, test_every) == expected


def test_a_published_epoch_has_a_thousand_full_batches(tmp_path):
    make_folder(tmp_path, 1)
    pair = read_folder(tmp_path, 2)[0]
    data = SuperResolutionDataset([pair] * 8, 2, 8, repeat=100 * repeats(800, 16))
    assert len(data) == 16000
    sizes = [len(batch) for batch in StepSampler(len(data), 16, 0, 1000, 0)]
    assert sizes == [16] * 1000


# Grey, palette and transparent pictures become RGB; grey ones three times the same.
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_modes(tmp_path, mode):
    Image.fromarray(scene(0)).convert(mode).save(tmp_path / "a.png")
    data = SuperResolutionDataset(read_folder(tmp_path, 2), 2)
    low, high = data[0]
    assert low.shape == (3, 24, 32) and high.shape == (3, 48, 64)
    expected = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(high.permute(1, 2, 0).numpy(), expected)
    if mode in ("L", "1"):
        assert torch.equal(low[0], low[1]) and torch.equal(low[0], low[2])


# Of odd sizes the rest is cut off before reducing, so that pixels stay aligned.
@pytest.mark.parametrize(("scale", "size"), [(2, (47, 63)), (3, (50, 64)), (4, (48, 67))])
def test_low_resolution_is_made_as_matlab_makes_it(tmp_path, scale, size):
    write(tmp_path / "a.png", scene(0, size))
    low, high = SuperResolutionDataset(read_folder(tmp_path, scale), scale).load(0)
    h, w = size[0] // scale, size[1] // scale
    assert low.dtype == high.dtype == np.uint8
    assert np.array_equal(high, scene(0, size)[: h * scale, : w * scale])
    assert np.array_equal(low, imresize(high, 1 / scale)) and low.shape == (h, w, 3)


# Published low-resolution pictures of odd ones are rounded down by some and up by others; both must align.
@pytest.mark.parametrize("size", [(23, 31), (24, 32), (23, 32)])
def test_given_low_resolution_of_odd_pictures(tmp_path, size):
    hr, low = scene(0, (47, 63)), scene(1, size)
    pair = Pair(write(tmp_path / "HR/a.png", hr), write(tmp_path / "X2/a.png", low))
    lr, cut = SuperResolutionDataset([pair], 2).load(0)
    assert np.array_equal(lr, low[:23, :31]) and np.array_equal(cut, hr[:46, :62])


# The published protocol: low resolution 113 x 97 is scored on 112 x 96.
@pytest.mark.parametrize(("crop", "expected"), [(False, (97, 113)), (True, (96, 112))])
def test_even_sides(tmp_path, crop, expected):
    write(tmp_path / "a.png", scene(0, (195, 227)))
    low, high = SuperResolutionDataset(read_folder(tmp_path, 2), 2, crop_even=crop)[0]
    assert low.shape[1:] == expected and high.shape[1:] == tuple(2 * side for side in expected)


def test_pictures_smaller_than_a_patch_are_left_out(tmp_path):
    make_folder(tmp_path, 2)
    write(tmp_path / "small.png", scene(9, (20, 60)))
    data = SuperResolutionDataset(read_folder(tmp_path, 2), 2, 12)
    assert (data.left_out, [data.name(i) for i in range(len(data))]) == (1, ["0001", "0002"])
    assert SuperResolutionDataset(read_folder(tmp_path, 2), 2, 10).left_out == 0
    assert len(SuperResolutionDataset(read_folder(tmp_path, 2), 2)) == 3  # whole pictures may have any size
    with pytest.raises(UseError, match="no pictures"):
        SuperResolutionDataset([], 2)


def stores(folder, pairs):
    return {kind: PictureStore(pairs, 2, kind) for kind in ("auto", "img", "sep")}


@pytest.mark.parametrize("made", [True, False])
def test_every_way_to_keep_pictures_gives_the_same(tmp_path, made):
    make_pairs(tmp_path / "s/HR", tmp_path / "s/LR_bicubic/X2", 2, size=(47, 64))
    pairs = [Pair(pair.hr, None if made else pair.lr) for pair in read_folder(tmp_path / "s", 2)]
    found = stores(tmp_path, pairs)
    assert found["auto"].kind == "memory"
    for index in (0, 1, 0):
        expected = found["img"][index]
        assert expected[0].shape == (23, 32, 3) and expected[1].shape == (46, 64, 3)
        for kind in ("auto", "sep"):
            assert all(np.array_equal(a, b) for a, b in zip(found[kind][index], expected, strict=True)), kind


@pytest.mark.parametrize(("kind", "decoded"), [("auto", 3), ("img", 6), ("sep", 3)])
def test_pictures_are_decoded_once_or_each_time(tmp_path, monkeypatch, kind, decoded):
    calls = []
    real = super_resolution_store.read_picture
    monkeypatch.setattr(super_resolution_store, "read_picture", lambda path: calls.append(path) or real(path))
    store = PictureStore(read_folder(make_folder(tmp_path / "hr", 3), 2), 2, kind)
    store.fill()
    for index in (0, 1, 2, 0, 1, 2):
        store[index]
    assert len(calls) == decoded


def test_what_does_not_fit_into_memory(tmp_path):
    make_pairs(tmp_path / "s/HR", tmp_path / "s/LR_bicubic/X2", 2)
    pairs = read_folder(tmp_path / "s", 2)
    size = 2 * 3 * (48 * 64 + 24 * 32)
    assert PictureStore(pairs, 2, memory=size).kind == "memory"
    assert PictureStore(pairs, 2, memory=size - 1).kind == "img"
    # Making low-resolution pictures costs more than decoding: such go onto the disk.
    assert PictureStore([Pair(pair.hr, None) for pair in pairs], 2, memory=size - 1).kind == "sep"


def rewritten(path, cached):
    write(path, scene(77))
    os.utime(path, ns=(1, 1))  # clocks of file systems may be too coarse to tell


def torn(path, cached):
    for file in cached:
        file.write_bytes(file.read_bytes()[:-100])


def emptied(path, cached):
    for file in cached:
        file.write_bytes(b"")


def foreign(path, cached):
    for file in cached:
        file.write_bytes(b"something else entirely")


@pytest.mark.parametrize("spoil", [rewritten, torn, emptied, foreign])
def test_copies_on_the_disk_heal(tmp_path, spoil):
    path = make_folder(tmp_path / "hr", 1) / "0001.png"
    pairs = read_folder(path.parent, 2)
    PictureStore(pairs, 2, "sep")[0]
    cached = sorted((tmp_path / "home/pictures").iterdir())
    assert len(cached) == 2
    spoil(path, cached)
    store = PictureStore(pairs, 2, "sep")
    for _ in range(2):
        low, high = store[0]
        assert np.array_equal(high, np.array(Image.open(path))) and np.array_equal(low, imresize(high, 0.5))


def test_an_unknown_way():
    with pytest.raises(UseError, match="--ext.*'bin'.*auto, img, sep"):
        PictureStore([], 2, "bin")
