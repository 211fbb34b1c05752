"""Clouds of strangers, pickles of plain arrays, and the label maps and weights of the data sets."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.points import Cloud, read_cloud, write_ply
from sparsemask.safe_pickle import read_arrays
from sparsemask.tasks.points.layouts import s3dis, semantickitti
from sparsemask.tasks.points.layouts.labels import class_counts, class_weights

XYZ = np.array([[0, 1, 2], [3, 4, 5], [3, 4, 5], [-1, 0, 0.5]], np.float32)
RGB = np.array([[0, 0, 0], [255, 0, 0], [0, 51, 0], [0, 0, 255]], np.uint8)


def save_ply(path, colours):
    columns = dict(zip(("x", "y", "z", "red", "green", "blue"), (*XYZ.T, *colours.T), strict=True))
    write_ply(path, columns | {"class": np.array([1, 2, 3, 0], np.uint8)})


@pytest.mark.parametrize(
    "name, has, save",
    [
        ("a.bin", "", lambda path: np.column_stack([XYZ, np.ones(4, np.float32)]).astype("<f4").tofile(path)),
        ("a.npy", "", lambda path: np.save(path, XYZ.astype(np.float64))),
        ("a.npy", "rgb", lambda path: np.save(path, np.column_stack([XYZ, RGB]))),
        ("a.npz", "", lambda path: np.savez(path, points=XYZ)),
        (
            "a.npz",
            "rgb labels",
            lambda path: np.savez(path, xyz=XYZ, colors=RGB, labels=np.array([[1], [2], [3], [0]])),
        ),
        ("a.PLY", "rgb labels", lambda path: save_ply(path, RGB)),
        ("a.ply", "rgb labels", lambda path: save_ply(path, (RGB / 255).astype(np.float32))),
        ("a.ply", "rgb labels", lambda path: save_ply(path, RGB.astype(np.uint16) * 257)),
    ],
)
def test_every_kind_of_file(name, has, save, tmp_path):
    save(tmp_path / name)
    cloud = read_cloud(tmp_path / name)
    assert cloud.name == "a" and len(cloud) == 4 and cloud.xyz.dtype == np.float32
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    assert (cloud.colours is None, cloud.labels is None) == ("rgb" not in has, "labels" not in has)
    if "rgb" in has:
        assert cloud.colours.dtype == np.float32
        np.testing.assert_allclose(cloud.colours, RGB / 255, atol=1e-6)
    if "labels" in has:
        np.testing.assert_array_equal(cloud.labels, [1, 2, 3, 0])


@pytest.mark.parametrize(
    "name, save, said",
    [
        ("a.bin", lambda path: path.write_bytes(bytes(16 * 3 - 4)), "44 bytes are no whole number of points"),
        ("a.bin", lambda path: path.write_bytes(b""), "no points"),
        ("a.bin", lambda path: np.full((5, 4), np.nan, "f4").tofile(path), "5 of 5 points have coordinates"),
        ("a.npy", lambda path: np.save(path, XYZ[:, :2]), "expected"),
        ("a.npy", lambda path: np.save(path, np.array([None, 1], object)), "not readable as an array"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v"), "not readable as an array"),
        ("a.npy", lambda path: np.save(path, np.column_stack([XYZ, -XYZ])), "colours that are negative"),
        ("a.npy", lambda path: np.save(path, np.column_stack([XYZ, XYZ * np.nan])), "not finite"),
        ("a.npz", lambda path: path.write_bytes(b"PK\x03\x04"), "not readable as an archive"),
        ("a.npz", lambda path: np.savez(path, what=XYZ), "no array 'xyz' in it, but what"),
        ("a.npz", lambda path: np.savez(path, xyz=XYZ, labels=np.zeros(3, int)), "3 labels for 4 points"),
        ("a.npz", lambda path: np.savez(path, xyz=XYZ, colours=RGB[:2]), "2 colours for 4 points"),
        ("a.ply", lambda path: write_ply(path, {"x": XYZ[:, 0], "y": XYZ[:, 1]}), "some of x y z"),
        ("a.ply", lambda path: write_ply(path, {"u": XYZ[:, 0]}), "no x, y, z"),
        ("a.xyz", lambda path: path.write_bytes(b"0 0 0"), "unknown kind of cloud '.xyz'"),
        ("a.ply", lambda path: None, "no such file"),
    ],
)
def test_what_is_no_cloud_ends_in_one_line(name, save, said, tmp_path):
    save(tmp_path / name)
    with pytest.raises(UseError, match=said):
        read_cloud(tmp_path / name)


def test_the_tree_is_built_once_and_not_sent_to_other_processes():
    cloud = Cloud("a", XYZ)
    assert cloud.tree is cloud.tree and cloud.tree.n == 4
    sent = pickle.loads(pickle.dumps(cloud))
    assert "tree" not in vars(sent)
    np.testing.assert_array_equal(sent.tree.query(XYZ[3])[1], 3)


ARRAYS = [np.arange(5, dtype=np.int32), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((4, 1), ">u2")]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_of_every_protocol(protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(ARRAYS, protocol))
    for found, expected in zip(read_arrays(tmp_path / "a.pkl"), ARRAYS, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.isnative


class _Calls:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


@pytest.mark.parametrize(
    "what",
    [
        _Calls(),
        [ARRAYS[0], _Calls()],
        [np.array([_Calls()], object)],
        [np.zeros(2, [("a", "i4")])],
        [np.array(["text"])],
        [1, 2],
        {"a": ARRAYS[0]},
    ],
)
def test_a_pickle_with_anything_else_in_it_runs_nothing(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(what))
    with pytest.raises(UseError, match="a.pkl"):
        read_arrays("a.pkl")
    assert not (tmp_path / "hostile").exists()


def test_a_torn_pickle(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(ARRAYS)[:-20])
    with pytest.raises(UseError, match="not readable"):
        read_arrays(tmp_path / "a.pkl")


def test_class_weights_are_the_published_ones():
    # From the counts of points of the public code's training sets, to three decimals.
    rooms = [4.972, 5.764, 3.517, 26.957, 24.885, 21.889, 13.817, 18.198, 15.993, 40.375, 11.236, 30.916, 7.036]
    streets = [17.183, 49.453, 49.084, 45.92, 44.931, 49.066, 49.685, 49.865, 5.376, 31.332, 7.27, 41.002, 5.594]
    streets += [11.151, 2.871, 37.348, 9.149, 43.28, 48.066]
    np.testing.assert_allclose(s3dis.WEIGHTS, rooms, atol=6e-4)
    np.testing.assert_allclose(semantickitti.WEIGHTS, streets, atol=6e-4)
    assert len(s3dis.NAMES) == 13 and len(semantickitti.NAMES) == 19
    counted = class_counts(
        [Cloud("a", XYZ, labels=np.array([0, -1, 0, 1])), Cloud("b", XYZ[:1], labels=np.zeros(1, int))], 3
    )
    np.testing.assert_array_equal(counted, [3, 1, 0])
    np.testing.assert_allclose(class_weights(counted), [1 / 0.77, 1 / 0.27, 50], rtol=1e-6)


def test_label_maps_there_and_back(tmp_path):
    np.testing.assert_array_equal(semantickitti.map_labels(np.array(semantickitti.INVERSE_MAP)), np.arange(20))
    classes = np.arange(-1, 19)
    (tmp_path / "a.label").write_bytes((semantickitti.raw_labels(classes) + (7 << 16)).astype("<u4").tobytes())
    # The upper 16 bits number instances and do not matter.
    read = semantickitti.read_labels(tmp_path / "a.label", 20)
    np.testing.assert_array_equal(semantickitti.classes_of(read), classes)
    with pytest.raises(UseError, match="20 labels for 21 points"):
        semantickitti.read_labels(tmp_path / "a.label", 21)
    with pytest.raises(UseError, match="does not know: 3, 77"):
        semantickitti.map_labels(np.array([0, 77, 3]))


@pytest.mark.parametrize("stem, expected", [("chair_12", 8), ("ceiling_1", 0), ("stairs_1", 12), ("clutter_3", 12)])
def test_annotations_class(stem, expected):
    assert s3dis.class_of(stem) == expected


def test_real_scan(shared_data):
    folder = shared_data / "semantickitti_sample/sequences/00"
    cloud = read_cloud(folder / "velodyne/000000.bin")
    labels = semantickitti.classes_of(semantickitti.read_labels(folder / "labels/000000.label", len(cloud)))
    assert len(cloud) == 124668 and -1 <= labels.min() and labels.max() <= 18
    # Road lies lower than building.
    names = semantickitti.NAMES
    assert cloud.xyz[labels == names.index("road"), 2].mean() < cloud.xyz[labels == names.index("building"), 2].mean()
