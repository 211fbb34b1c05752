"""Files of fine-grained masks: what goes in comes out, and what is no such file is refused in one line."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.fine_masks import FineMasks, is_fine, load_masks, save_masks
from spoilt import Code, truncate


def example(**more) -> FineMasks:
    rng = np.random.default_rng(0)
    channels = {"body.0.body": rng.random((4, 8)) < 0.3, "body.1.body": rng.random((4, 8)) < 0.3}
    kept = {"body.0.body": 0.25, "body.1.body": 0.75}
    known = {"scale": 2, "n_feats": 8}
    return FineMasks("smsr", "super_resolution", channels, "ab" * 32, 0.5, kept, "set5, 5 pictures", known, **more)


def test_what_is_saved_is_loaded(tmp_path):
    masks = example(checkpoint="runs/s/last.pt", connectivity=np.ones((1, 1, 2), bool))
    save_masks(tmp_path / "m.npz", masks)
    found = load_masks(tmp_path / "m.npz")
    assert found.mean_kept == 0.5
    for name in ("space", "task", "sha256", "threshold", "kept", "measured_on", "config", "checkpoint"):
        assert getattr(found, name) == getattr(masks, name), name
    assert all(np.array_equal(found.channels[k], v) for k, v in masks.channels.items())
    assert np.array_equal(found.connectivity, masks.connectivity)
    assert is_fine(tmp_path / "m.npz") and not is_fine("m.npy") and not is_fine(None)


@given(
    mask=arrays(bool, array_shapes(min_dims=1, max_dims=2, max_side=9)),
    threshold=st.floats(0, 1, exclude_max=True),
    words=st.text(max_size=20).filter(lambda t: "\0" not in t),
)
def test_any_masks_thresholds_and_words(tmp_path_factory, mask, threshold, words):
    path = tmp_path_factory.mktemp("m") / "m.npz"
    masks = replace(example(), channels={"a": mask}, threshold=threshold, measured_on=words, kept={})
    save_masks(path, masks)
    found = load_masks(path)
    assert np.array_equal(found.channels["a"], mask)
    assert (found.threshold, found.measured_on, found.mean_kept) == (threshold, words, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": {}}, "no channel masks"),
        ({"channels": {"a": np.ones(3)}}, "booleans"),
        ({"channels": {"a": np.ones((1, 2, 3), bool)}}, "layers, channels"),
        ({"threshold": 1.0}, "[0, 1)"),
        ({"kept": {"a": 1.5}}, "kept fraction of a"),
        ({"connectivity": np.ones((2, 3, 2), bool)}, "connectivity"),
    ],
)
def test_masks_that_make_no_sense_are_not_written(tmp_path, changes, words):
    with pytest.raises(UseError) as error:
        save_masks(tmp_path / "m.npz", replace(example(), **changes))
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def rewritten(path, **changes):
    """The archive with some arrays replaced, or left out where None."""
    with np.load(path) as file:
        found = {**file, **changes}
    data = io.BytesIO()
    np.savez(data, **{k: v for k, v in found.items() if v is not None})
    path.write_bytes(data.getvalue())


def torn(path):
    truncate(path, 0.6)


def not_an_archive(path):
    path.write_bytes(b"mask")


def no_threshold(path):
    rewritten(path, threshold=None)


def newer(path):
    rewritten(path, format=np.array(99))


def words_for_a_number(path):
    rewritten(path, threshold=np.array("half"))


def broken_config(path):
    rewritten(path, config=np.array("{"))


def pickled(path):
    data = io.BytesIO()
    np.savez(data, format=np.array([Code()], dtype=object))
    path.write_bytes(data.getvalue())


def boastful(path):
    """A header that claims a terabyte."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|b1", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("channels/huge.npy", data.getvalue() + b"\0" * 8)


def gone(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (torn, "truncated"),
        (not_an_archive, "not a mask file"),
        (no_threshold, "no threshold"),
        (newer, "newer version"),
        (words_for_a_number, "half"),
        (broken_config, "not a file of fine-grained masks"),
        (pickled, "pickle"),
        (boastful, "claims more"),
        (gone, "mask not found"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_bad_files_are_refused(tmp_path, spoil, words):
    path = tmp_path / "m.npz"
    save_masks(path, example())
    spoil(path)
    with pytest.raises(UseError) as error:
        load_masks(path)
    assert words in str(error.value) and "m.npz" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_other_names_and_folders_are_refused(tmp_path):
    with pytest.raises(UseError, match=".npz"):
        load_masks(tmp_path / "mask.npy")
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(UseError, match="folder"):
        load_masks(tmp_path / "d.npz")


def test_another_checkpoint_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "b.pt").write_bytes(b"weightz")
    masks = replace(example(), sha256=sha256(tmp_path / "a.pt"))
    masks.check_weights(tmp_path / "a.pt")
    with pytest.raises(UseError, match="another checkpoint than .*b.pt"):
        masks.check_weights(tmp_path / "b.pt")
    with pytest.raises(UseError, match="not found"):
        masks.check_weights(tmp_path / "c.pt")
