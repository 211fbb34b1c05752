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
from sparsemask.masks.npz import file_space, is_fine, read_arrays
from sparsemask.masks.spatial import FineMasks, load_masks, save_masks
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
    assert int(read_arrays(tmp_path / "m.npz")["format"]) == 1
    assert is_fine(tmp_path / "m.npz") and not is_fine("m.npy") and not is_fine(None)


def test_the_share_of_the_whole_network_is_kept_apart(tmp_path):
    # Modules count alike unless the network's own share, by their cost, is known; 0 is a share too.
    for whole, expected in ((None, 0.5), (0.3, 0.3), (0.0, 0.0), (1.0, 1.0)):
        save_masks(tmp_path / "m.npz", example(kept_whole=whole))
        found = load_masks(tmp_path / "m.npz")
        assert (found.kept_whole, found.mean_kept) == (whole, expected)
    assert found.checkpoint is None and found.connectivity is None
    assert replace(example(), kept={}).mean_kept is None


@pytest.mark.parametrize(
    "changes", [{"threshold": 0.0}, {"kept": {"a": 0.0, "b": 1.0}}, {"channels": {"a": np.ones(1, bool)}}]
)
def test_the_ends_are_allowed(tmp_path, changes):
    save_masks(tmp_path / "m.npz", replace(example(), **changes))
    found = load_masks(tmp_path / "m.npz")
    assert all(getattr(found, name) == value for name, value in changes.items() if name != "channels")


def test_the_space_of_a_file(tmp_path):
    save_masks(tmp_path / "m.npz", example())
    assert file_space(tmp_path / "m.npz") == "smsr"
    rewritten(tmp_path / "m.npz", space=None)
    assert file_space(tmp_path / "m.npz") is None
    (tmp_path / "torn.npz").write_bytes(b"PK")
    (tmp_path / "d.npz").mkdir()
    (tmp_path / "m.npy").write_bytes((tmp_path / "m.npz").read_bytes())
    for name in ("torn.npz", "d.npz", "absent.npz", "m.npy"):
        assert file_space(tmp_path / name) is None
    assert file_space(None) is None


def test_arrays_of_newer_headers_are_read(tmp_path):
    save_masks(tmp_path / "m.npz", example())
    data = io.BytesIO()
    np.lib.format.write_array(data, np.array("set14"), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("note.npy", data.getvalue())
    assert str(read_arrays(tmp_path / "m.npz")["note"]) == "set14"
    assert load_masks(tmp_path / "m.npz").space == "smsr"


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
        ({"channels": {"a": np.ones((0, 2), bool)}}, "found bool (0, 2)"),
        ({"channels": {"a": [True]}}, "found list"),
        ({"threshold": 1.0}, "[0, 1)"),
        ({"threshold": -0.1}, "[0, 1), found -0.1"),
        ({"kept": {"a": 1.5}}, "kept fraction of a"),
        ({"kept": {"a": 0.5, "b": -0.5}}, "kept fraction of b must be in [0, 1], found -0.5"),
        ({"kept_whole": 1.01}, "kept fraction of the network must be in [0, 1], found 1.01"),
        ({"config": [1]}, "configuration is no mapping"),
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
    rewritten(path, format=np.array(2))


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


def enormous(path):
    """An entry that unpacks to more than a mask file ever holds."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("channels/zeros.npy", bytes((1 << 26) + 1))


def damaged(path):
    """A flipped bit within packed data."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("channels/body.0.body.npy")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + 40] ^= 0x55
    path.write_bytes(bytes(data))


def a_list_for_a_mapping(path):
    rewritten(path, config=np.array("[1]"))


def boastful_in_numbers(path):
    """A header that claims a thousand numbers of eight bytes where there is one."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": (1000,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("kept/huge.npy", data.getvalue() + b"\0" * 8)


def gone(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (torn, "truncated"),
        (not_an_archive, "not a mask file"),
        (no_threshold, "no threshold"),
        (newer, "newer version (format 2, known: 1)"),
        (words_for_a_number, "half"),
        (broken_config, "not a file of fine-grained masks"),
        (pickled, "pickle"),
        (boastful, "claims more"),
        (boastful_in_numbers, "claims more"),
        (enormous, "channels/zeros.npy is too large"),
        (damaged, "truncated or not a mask file"),
        (a_list_for_a_mapping, "configuration is no mapping"),
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
