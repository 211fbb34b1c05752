"""Mask files: written whole, read with suspicion."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import sparsemask
from sparsemask import UseError
from sparsemask.masks import check_mask, count_connections, load_mask, mask_note, save_mask
from sparsemask.spaces.connectivity import named_mask


def good(length: int = 3) -> np.ndarray:
    return named_mask("unet", length)


def test_round_trip_with_a_note(tmp_path):
    path = tmp_path / "mask_thres_0.001.npy"
    save_mask(path, good(), {"run": "runs/a"})
    assert (sparsemask.load_mask(path) == good()).all()
    assert mask_note(path) == {"run": "runs/a"} and (tmp_path / "mask_thres_0.001.json").exists()
    assert count_connections(load_mask(path)) == 5


def test_a_new_mask_drops_the_note_of_the_old_one(tmp_path):
    save_mask(tmp_path / "m.npy", good(), {"run": "old"})
    save_mask(tmp_path / "m.npy", good())
    assert mask_note(tmp_path / "m.npy") == {}


@pytest.mark.parametrize("text", ['{"name": "no note of a mask"}', "{", "[1]"])
def test_a_json_file_that_is_no_note_stays(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    save_mask(tmp_path / "m.npy", good())
    assert (tmp_path / "m.json").read_text() == text


def test_the_file_is_the_public_format(tmp_path):
    save_mask(tmp_path / "m.npy", good())
    plain = np.load(tmp_path / "m.npy", allow_pickle=False)
    assert plain.dtype == bool and plain.shape == (3, 3, 2)


def test_nothing_is_written_for_a_bad_mask(tmp_path):
    with pytest.raises(UseError):
        save_mask(tmp_path / "m.npy", np.zeros((3, 3, 2), bool), {"run": "a"})
    assert not list(tmp_path.iterdir())


def upper():
    mask = good()
    mask[0, 2, 0] = True
    return mask


def used_but_empty():
    mask = good()
    mask[0] = False
    mask[2, 1, 1] = True  # another use, further on: the first is named
    return mask


def empty_though_its_feature_is_used():
    mask = np.zeros((3, 3, 2), bool)
    mask[2, 1, 0] = mask[2, 2, 1] = True  # E_1 and D_1 feed the output, nothing feeds D_1
    return mask


BAD_ARRAYS = {
    "of no features": (np.zeros((0, 0, 2), bool), r"shape \(L, L, 2\), found \(0, 0, 2\)"),
    "an empty stage in use beside its feature": (empty_though_its_feature_is_used(), "stage 1 has no inputs but feeds"),
    "float": (good().astype(np.float32), "holds booleans, found float32"),
    "bytes": (good().astype(np.uint8), "holds booleans, found uint8"),
    "flat": (good()[0], r"shape \(L, L, 2\)"),
    "oblong": (good()[:2], r"shape \(L, L, 2\), found \(2, 3, 2\)"),
    "three columns": (np.ones((3, 3, 3), bool), r"shape \(L, L, 2\)"),
    "a later feature": (upper(), "a later one"),
    "no output": (np.zeros((3, 3, 2), bool), "output stage 2 has no inputs"),
    "an empty stage in use": (used_but_empty(), "stage 0 has no inputs but feeds stage 1"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused(name, tmp_path):
    array, words = BAD_ARRAYS[name]
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(UseError, match=words) as error:
        load_mask(tmp_path / "m.npy")
    assert "m.npy" in str(error.value)


def whole(tmp_path) -> bytes:
    np.save(tmp_path / "whole.npy", good(9))
    return (tmp_path / "whole.npy").read_bytes()


def huge(tmp_path) -> bytes:
    # A header that claims far more than memory must not be believed.
    return whole(tmp_path).replace(b"(9, 9, 2), }" + b" " * 12, b"(9999999, 9999999, 2), }")


BAD_FILES = {
    "empty": (lambda t: b"", "truncated or not a mask"),
    "cut": (lambda t: whole(t)[:-20], "truncated or not a mask"),
    "text": (lambda t: b"hello, this is not an array", "truncated or not a mask"),
    "pickle": (lambda t: pickle.dumps({"a": 1}), "truncated or not a mask"),
    "huge": (huge, "truncated or not a mask"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(name, tmp_path):
    make, words = BAD_FILES[name]
    content = make(tmp_path)
    assert name != "huge" or b"9999999" in content
    (tmp_path / "m.npy").write_bytes(content)
    with pytest.raises(UseError, match=words):
        load_mask(tmp_path / "m.npy")


def test_objects_other_names_and_absent_files(tmp_path):
    np.save(tmp_path / "o.npy", np.array([print], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", mask=good())
    (tmp_path / "several.npy").write_bytes((tmp_path / "z.npz").read_bytes())
    (tmp_path / "d.npy").mkdir()
    for name, words in (
        ("o.npy", "truncated or not a mask"),
        ("z.npz", "is a .npy file"),
        ("several.npy", "holds several arrays"),
        ("d.npy", "is a folder"),
        ("absent.npy", "mask not found"),
    ):
        with pytest.raises(UseError, match=words):
            load_mask(tmp_path / name)


def test_a_mask_of_another_backbone():
    with pytest.raises(UseError, match="the mask is for 3 features, this backbone has 9"):
        check_mask(good(), n_features=9)
    assert check_mask(good(), n_features=3) is not None
