"""Classified pictures: every public layout read rightly, broken ones refused, batches that are what they say."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from small_classes import (
    binary,
    cifar_files,
    options,
    pictures,
    write_archive,
    write_classes,
    write_folder,
    write_npz,
)
from sparsemask import UseError
from sparsemask.engine import data
from sparsemask.engine.randomness import draw_words
from sparsemask.synthetic.classification import OUTLINES, draw_picture
from sparsemask.tasks.classification.data import Cut, FilePictures, HeldPictures, Part, augment
from sparsemask.tasks.classification.layouts import find_pictures, split_tenths
from sparsemask.tasks.classification.options import STATISTICS
from sparsemask.tasks.classification.task import ClassificationTask

KINDS = ("10-binary", "100-binary", "10-python", "100-python")
FOLDERS = {"10-binary": "cifar-10-batches-bin", "10-python": "cifar-10-batches-py"}
PLAIN = Cut((0.0,) * 3, (1.0,) * 3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For so few pixels more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["archive", "root of archive", "folder", "root of folder"])
def test_cifar_in_every_public_form(tmp_path, kind, how):
    content, training, test = cifar_files(kind)
    if "archive" in how:
        root = write_archive(tmp_path / f"cifar-{kind}.tar.gz", content)
    else:
        root = write_folder(tmp_path / FOLDERS.get(kind, f"cifar-{kind}"), content)
    found = find_pictures(tmp_path if how.startswith("root") else root)
    assert found.title == f"CIFAR-{kind.split('-')[0]}" and found.classes[:2] == ["class0", "class1"]
    for part, (x, y) in ((found.training, training), (found.validation, test)):
        np.testing.assert_array_equal(part.pictures, x)
        np.testing.assert_array_equal(part.labels, y)


def test_class_names_of_cifar10_are_known_without_their_file(tmp_path):
    content, *_ = cifar_files("10-binary")
    del content["batches.meta.txt"]
    assert find_pictures(write_folder(tmp_path, content)).classes[6] == "frog"


def test_of_two_forms_the_one_without_pickles_is_read(tmp_path):
    write_archive(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": b"nobody reads this"})
    write_archive(tmp_path / "cifar-10-binary.tar.gz", cifar_files("10-binary")[0])
    assert len(find_pictures(tmp_path).training) == 20


def test_nothing_is_unpacked_from_an_archive_and_links_are_no_files(tmp_path):
    content, training, _ = cifar_files("10-binary")
    path, place = tmp_path / "in" / "cifar-10-binary.tar.gz", tmp_path / "in"
    place.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data_ in {"../../evil": b"x", **{f"../{k}": v for k, v in content.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data_)
            archive.addfile(member, io.BytesIO(data_))
    found = find_pictures(path)
    np.testing.assert_array_equal(found.training.pictures, training[0])  # the link was passed over
    assert sorted(os.listdir(tmp_path)) == ["in"] and os.listdir(place) == [path.name]


class Hostile:
    """Runs a program when a pickle of it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(tmp_path):
    content, *_ = cifar_files("10-python")
    for spoilt in ("data_batch_3", "batches.meta"):
        mark = tmp_path / "was_here"
        evil = {**content, spoilt: pickle.dumps({b"data": Hostile(mark), b"labels": [1]}, protocol=2)}
        with pytest.raises(UseError, match=f"{spoilt}.*not let in"):
            find_pictures(write_folder(tmp_path / spoilt, evil))
        assert not mark.exists()


def python2(planes: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes by which Python 2 wrote such a batch: text and bytes are one type there."""
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(planes)]) + b"M\x00\x0c\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + kind
    array += b"\x89T" + planes.nbytes.to_bytes(4, "little") + planes.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def test_batches_written_by_python_2(tmp_path):
    content, *_ = cifar_files("10-python")
    x, y = pictures(4, seed=9)
    content["test_batch"] = python2(np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(4, -1)), y.tolist())
    found = find_pictures(write_folder(tmp_path, content)).validation
    np.testing.assert_array_equal(found.pictures, x)
    np.testing.assert_array_equal(found.labels, y)


def change(name: str, data_: bytes):
    return lambda content: {**content, name: data_}


@pytest.mark.parametrize(
    ("kind", "spoil", "match"),
    [
        ("10-binary", lambda c: {k: v for k, v in c.items() if "_4" not in k}, "data_batch_4.bin is missing"),
        ("10-binary", change("data_batch_2.bin", b"x" * 3000), "data_batch_2.bin: 3000 bytes are no whole number"),
        ("10-binary", change("test_batch.bin", b""), "test_batch.bin: 0 bytes"),
        ("10-binary", change("test_batch.bin", binary(*pictures(11, classes=11))), "label 10 beyond the 10"),
        ("10-binary", change("batches.meta.txt", b"a b c"), "3 class names"),
        ("100-binary", change("fine_label_names.txt", b"\xff\xfe"), "no text"),
        ("10-python", change("data_batch_1", b"\x80\x02"), "data_batch_1: not readable"),
        ("10-python", change("data_batch_1", pickle.dumps([1, 2])), "expected a pickled dictionary"),
        ("10-python", change("data_batch_1", pickle.dumps({b"data": 3, b"labels": [3]})), "expected data, uint8"),
        ("10-python", change("batches.meta", pickle.dumps({"label_names": 3})), "expected a list of class names"),
        ("100-python", change("test", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": ["a", 1]})),
         "no whole numbers"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_broken_cifar_is_refused_by_name(tmp_path, kind, spoil, match, packed):
    content = spoil(cifar_files(kind)[0])
    root = write_archive(tmp_path / "a.tar.gz", content) if packed else write_folder(tmp_path / "c", content)
    with pytest.raises(UseError, match=match):
        find_pictures(root)


def test_torn_archives_and_strangers_are_refused(tmp_path):
    whole = write_archive(tmp_path / "whole.tar.gz", cifar_files("10-binary")[0]).read_bytes()
    torn = tmp_path / "cifar-10-binary.tar.gz"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UseError, match="torn"):
        find_pictures(torn)
    with pytest.raises(UseError, match="an archive without CIFAR's files"):
        find_pictures(write_archive(tmp_path / "other.tar.gz", {"data.txt": b"1"}))
    both = write_folder(tmp_path / "both", cifar_files("10-binary")[0])
    with pytest.raises(UseError, match="CIFAR-10 and CIFAR-100 are both here"):
        find_pictures(write_folder(both, cifar_files("100-binary")[0]))


def test_npz(tmp_path):
    found = find_pictures(write_npz(tmp_path / "noise"))
    assert (found.title, len(found.training), len(found.validation)) == ("noise", 30, 10)
    assert found.classes == [str(k) for k in range(10)]
    (tmp_path / "noise" / "classes.json").write_text('["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]')
    assert find_pictures(tmp_path / "noise").classes[9] == "j"


def test_one_npz_is_split_and_grey_becomes_colour(tmp_path):
    x, y = pictures(40, side=6, classes=2)
    np.savez(tmp_path / "grey.npz", x=x[..., 0], y=y)
    found = find_pictures(tmp_path / "grey.npz")
    assert (len(found.training), len(found.validation)) == (36, 4) and found.training.pictures.shape[1:] == (6, 6, 3)
    assert (np.ptp(found.validation.pictures, axis=-1) == 0).all()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "expected arrays x"),
        ({"x": np.zeros((2, 4, 4, 3)), "y": np.zeros(2, int)}, "uint8 .* found float64"),
        ({"x": np.zeros((2, 3, 4, 4), np.uint8), "y": np.zeros(2, int)}, "x must be uint8"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(3, int)}, "y must be 2 classes"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": np.array([0, -1])}, "y must be 2 classes from 0"),
        ({"x": np.zeros((0, 4, 4, 3), np.uint8), "y": np.zeros(0, int)}, "x must be uint8"),
        ({"x": np.array([object()]), "y": np.zeros(1, int)}, "not readable"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(UseError, match=match):
        find_pictures(tmp_path)


def test_torn_npz_and_names_that_do_not_fit_are_refused(tmp_path):
    write_npz(tmp_path / "a")
    (tmp_path / "a" / "classes.json").write_text('["only one"]')
    with pytest.raises(UseError, match="list of 10 class names"):
        find_pictures(tmp_path / "a")
    file = write_npz(tmp_path / "b") / "train.npz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UseError, match=r"train\.npz: not readable"):
        find_pictures(tmp_path / "b")
    np.savez(write_npz(tmp_path / "c") / "train_2.npz", x=1)
    with pytest.raises(UseError, match="several files for one part"):
        find_pictures(tmp_path / "c")


@pytest.mark.parametrize("validation", ["val", "test"])
def test_imagenet_folders(tmp_path, validation):
    write_classes(tmp_path / "train", {"n02": 3, "n01": 4}, (70, 90), ".jpg")
    write_classes(tmp_path / validation, {"n02": 2}, (90, 70), ".JPEG")
    found = find_pictures(tmp_path)
    assert found.classes == ["n01", "n02"] and not found.training.held
    assert found.training.labels.tolist() == [0, 0, 0, 0, 1, 1, 1] and found.validation.labels.tolist() == [1, 1]
    write_classes(tmp_path / validation, {"n09": 1})
    with pytest.raises(UseError, match="class 'n09' is not among the 2"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("held", ["val", "valid", "Validation", "VAL", "test", "Testing", "eval"])
def test_the_usual_names_of_parts_in_any_case(tmp_path, train, held):
    write_classes(tmp_path / train, {"cat": 3, "dog": 4}, (8, 8))
    write_classes(tmp_path / held, {"dog": 2}, (8, 8))
    found = find_pictures(tmp_path)
    assert found.classes == ["cat", "dog"] and (len(found.training), found.validation.labels.tolist()) == (7, [1, 1])
    assert found.summary() == f"7 for training ({train}/), 2 for validation ({held}/), 2 classes"


def test_what_is_not_read_is_said(tmp_path):
    for name, count in (("Training", 3), ("valid", 2), ("Testing", 2), ("raw", 1)):
        write_classes(tmp_path / name, {"cat": count, "dog": count}, (8, 8))
    assert find_pictures(tmp_path).summary() == (
        "6 for training (Training/), 4 for validation (valid/), 2 classes; not used: Testing/, raw/"
    )
    write_classes(tmp_path / "b" / "Training", {"cat": 12, "dog": 12}, (8, 8))
    write_classes(tmp_path / "b" / "more", {"cat": 1}, (8, 8))
    assert find_pictures(tmp_path / "b").summary() == (
        "22 for training (Training/), 2 for validation (every tenth of each class), 2 classes; not used: more/"
    )
    assert find_pictures(write_classes(tmp_path / "c", {"cat": 2, "dog": 2}, (8, 8))).summary() == (
        f"2 for training (2 class folders in {tmp_path / 'c'}), 2 for validation (every tenth of each class), 2 classes"
    )
    assert find_pictures(write_npz(tmp_path / "n")).summary() == (
        "30 for training (train.npz), 10 for validation (test.npz), 10 classes"
    )


def test_parts_that_cannot_be_told_are_refused_and_trains_are_a_class(tmp_path):
    for name in ("val", "Testing"):
        write_classes(tmp_path / "a" / name, {"cat": 2, "dog": 2}, (8, 8))
    with pytest.raises(UseError, match="Testing/ and val/ here, of which none has class folders to train on"):
        find_pictures(tmp_path / "a")
    with pytest.raises(UseError, match="Train/ and val/ here, of which none has class folders"):
        find_pictures(write_classes(tmp_path / "b", {"Train": 2, "val": 2}, (8, 8)))
    for name in ("train", "Training"):
        write_classes(tmp_path / "c" / name, {"cat": 2, "dog": 2}, (8, 8))
    with pytest.raises(UseError, match="Training/ and train/ are one part by their names"):
        find_pictures(tmp_path / "c")
    write_classes(tmp_path / "e" / "Test", {"cat": 2}, (8, 8))
    with pytest.raises(UseError, match="Test/ beside 2 class folders: put what trains into train/"):
        find_pictures(write_classes(tmp_path / "e", {"cat": 2, "dog": 2}, (8, 8)))
    found = find_pictures(write_classes(tmp_path / "d", {"bus": 2, "train": 2}, (8, 8)))
    assert found.classes == ["bus", "train"]


def test_check_says_what_was_read_and_refuses_one_class(tmp_path, capsys):
    write_classes(tmp_path / "Training", {"cat": 3, "dog": 4, "eel": 1}, (8, 8))
    write_classes(tmp_path / "valid", {"dog": 2}, (8, 8))
    ClassificationTask(options(data_root=tmp_path)).check()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "pictures: 8 for training (Training/), 2 for validation (valid/), 3 classes"
    assert second == "note: no validation pictures of 2 classes (cat, eel)"
    x, y = pictures(20, classes=1)
    for labels in (y, y + 3):
        np.savez(tmp_path / "one.npz", x=x, y=labels)
        with pytest.raises(UseError, match="one class alone has training pictures"):
            ClassificationTask(options(data_root=tmp_path / "one.npz")).check()


def test_class_folders_alone_are_split_and_small_ones_held(tmp_path):
    found = find_pictures(write_classes(tmp_path / "a", {"cat": 12, "dog": 3, "eel": 1}))
    assert found.training.held and found.training.pictures.shape == (14, 20, 30, 3)
    assert found.validation.labels.tolist() == [0, 1]
    # Pictures of several sizes, or large ones, stay in their files.
    Image.new("RGB", (31, 20)).save(tmp_path / "a" / "dog" / "odd.png")
    assert not find_pictures(tmp_path / "a").training.held


def test_class_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(UseError, match="no such file or folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(UseError, match="nothing here"):
        find_pictures(tmp_path)
    write_classes(tmp_path / "one", {"cat": 12})
    with pytest.raises(UseError, match="1 class folder"):
        find_pictures(tmp_path / "one")
    write_classes(tmp_path / "hollow", {"cat": 12, "dog": 0})
    with pytest.raises(UseError, match="no pictures of class 'dog'"):
        find_pictures(tmp_path / "hollow")
    write_classes(tmp_path / "torn", {"cat": 12, "dog": 3})
    (tmp_path / "torn" / "cat" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UseError, match=r"000\.png: not readable"):
        find_pictures(tmp_path / "torn")
    (tmp_path / "text.txt").write_text("1")
    with pytest.raises(UseError, match="neither a CIFAR archive nor"):
        find_pictures(tmp_path / "text.txt")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80))
def test_a_split_parts_all_pictures_and_trains_every_class(labels):
    labels = np.array(labels)
    train, held = split_tenths(labels)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels)
    counts = np.bincount(labels)
    assert all((labels[held] == k).sum() == max(n // 10, int(n > 1)) for k, n in enumerate(counts))


def literal(picture: np.ndarray, pad: int, flip: bool, words) -> np.ndarray:
    """What augmentation means, for one picture (C, H, W)."""
    _, height, width = picture.shape
    top, left = int(words[0]) % (2 * pad + 1), int(words[1]) % (2 * pad + 1)
    around = np.pad(picture, ((0, 0), (pad, pad), (pad, pad)))
    crop = around[:, top : top + height, left : left + width]
    return crop[..., ::-1] if flip and int(words[2]) % 2 else crop


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [True, False])
def test_batches_are_cropped_and_mirrored_as_one_by_one(pad, flip):
    x = pictures(40, side=9)[0][:, :, :7].transpose(0, 3, 1, 2)
    words = draw_words(1, 2, np.arange(40))
    expected = np.stack([literal(*one) for one in zip(x, [pad] * 40, [flip] * 40, words, strict=True)])
    np.testing.assert_array_equal(augment(x, pad, flip, words), expected)


def test_every_crop_and_side_is_as_likely():
    words = draw_words(3, 2, np.arange(40_000))
    places = np.stack([words[:, 0] % np.uint64(9), words[:, 1] % np.uint64(9), words[:, 2] & np.uint64(1)])
    for values, count in zip(places.astype(int), (9, 9, 2), strict=True):
        assert np.abs(np.bincount(values, minlength=count) * count / 40_000 - 1).max() < 0.06
    assert np.abs(np.corrcoef(places.astype(float)) - np.eye(3)).max() < 0.02


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.integers(0, 2**40), st.integers(0, 5))
def test_random_words_depend_on_the_draw_alone(draws, seed, stream):
    together = draw_words(seed, stream, np.array(draws))
    alone = [draw_words(seed, stream, np.array([draw]))[0] for draw in draws]
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together, draw_words(seed + 1, stream, np.array(draws)))
    assert not np.array_equal(together, draw_words(seed, stream + 1, np.array(draws)))


def held(count: int = 23) -> HeldPictures:
    return HeldPictures(Part(*pictures(count, side=8)), PLAIN)


def batches(source, start: int, stop: int, workers: int = 0, rank: int = 0, world: int = 1):
    sampler = data.step_sampler(source, 6, start, stop, 5, rank, world)
    return list(data.training_loader(source, sampler, 5, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_batches(workers):
    whole, rest = batches(held(), 0, 8), batches(held(), 3, 8, workers)
    for (x, y), (u, v) in zip(whole[3:], rest, strict=True):
        assert x.shape == (6, 3, 8, 8) and torch.equal(x, u) and torch.equal(y, v)
    assert not torch.equal(whole[0][0], batches(held(), 4, 5)[0][0]), "a picture's next draw is another one"


def test_processes_share_the_same_batches():
    whole = batches(held(), 0, 4)
    parts = [batches(held(), 0, 4, rank=rank, world=2) for rank in range(2)]
    for (x, _), (a, _), (b, _) in zip(whole, *parts, strict=True):
        assert torch.equal(x[0::2], a) and torch.equal(x[1::2], b)


def test_a_picture_keeps_its_class_and_one_by_one_is_a_batch_of_one():
    source = held()
    x, y = source.batch(np.array([3, 14]), np.zeros((2, 4), np.uint64))
    assert y.tolist() == [3, 4] and y.dtype == torch.int64
    corner = np.pad(source.part.pictures[3], ((4, 0), (4, 0), (0, 0)))[:8, :8]  # row 0, column 0 of the padded one
    np.testing.assert_allclose(x[0].permute(1, 2, 0).numpy() * 255, corner, atol=1e-4)
    one, label = source.sample(3, np.random.default_rng(0))
    assert one.shape == (3, 8, 8) and int(label) == 3


@pytest.mark.parametrize("name", list(STATISTICS))
def test_normalisation_and_back(name):
    mean, std = STATISTICS[name]
    cut = Cut(mean, std)
    x = pictures(1)[0][0]
    image = cut.tensor(x.transpose(2, 0, 1))
    expected = (x / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(cut.picture(image), x)


def test_files_are_resized_by_the_shorter_side_and_cropped(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2}, (40, 100))
    part = find_pictures(tmp_path)
    files = Part(sorted(tmp_path.rglob("*.png")), np.arange(4))
    source = FilePictures(files, Cut((0.0,) * 3, (1.0,) * 3, 16, 20))
    assert not part.training.held and source.load(0)[0].shape == (20, 50, 3)
    middle, label = source[1]
    np.testing.assert_allclose(middle.permute(1, 2, 0).numpy() * 255, source.load(1)[0][2:18, 17:33], atol=1e-4)
    assert int(label) == 1 and middle.dtype == torch.float32
    crops = [source.sample(1, np.random.default_rng(k))[0] for k in range(6)]
    assert {tuple(crop.shape) for crop in crops} == {(3, 16, 16)} and not torch.equal(crops[0], crops[1])
    again = source.sample(1, np.random.default_rng(0))[0]
    assert torch.equal(again, crops[0]), "a crop is a function of its generator"
    with pytest.raises(UseError, match="--resize 15"):
        FilePictures(files, Cut((0.0,) * 3, (1.0,) * 3, 16, 15))


def test_files_train_through_the_engine(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3}, (30, 30))
    source = FilePictures(Part(sorted(tmp_path.rglob("*.png")), np.arange(6)), Cut((0,) * 3, (1,) * 3, 8, 9))
    for (x, y), (u, v) in zip(batches(source, 0, 3), batches(source, 0, 3, workers=2), strict=True):
        assert x.shape == (6, 3, 8, 8) and torch.equal(x, u) and torch.equal(y, v)
    with pytest.raises(UseError, match="no such file"):
        next(tmp_path.rglob("*.png")).unlink()
        batches(source, 0, 3)


def test_drawn_pictures_repeat_and_classes_differ():
    first = [draw_picture(0, k) for k in range(20)]
    assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 and p.std() > 5 for p in first)
    np.testing.assert_array_equal(first[7], draw_picture(0, 7))
    assert not np.array_equal(first[7], draw_picture(0, 17)) and len(OUTLINES) == 10
    assert not np.array_equal(first[7], draw_picture(1, 7))
    # Things are lighter than their ground, of whatever hue: what makes outlines learnable in few steps.
    full = [draw_picture(0, k).astype(float).mean(2) for k in range(0, 100, 10)]  # discs, of two fifths of the side
    assert all(p[12:20, 12:20].mean() > np.percentile(p, 10) + 20 for p in full)


def test_a_batch_is_made_in_time():
    """A loader must not be what a small network waits for: 128 pictures of 32x32 in 3 ms, generous on busy machines."""
    source = HeldPictures(Part(*pictures(512)), PLAIN)
    indices, best = np.arange(128), 1.0
    for _ in range(30):
        began = time.perf_counter()
        source.batch(indices, draw_words(0, 2, indices))
        best = min(best, time.perf_counter() - began)
    assert best < 0.003
