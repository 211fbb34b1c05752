"""Labels that teach nothing, --ignore_index, lists of pairs, validation folders, and what check says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask import UseError, training_setup
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.tasks import get
from sparsemask.tasks.segmentation.scores import SegmentationScores
from sparsemask.VOC12 import check
from sparsemask.VOC12.lists import pairs_from_lists
from sparsemask.VOC12.palette import save_label
from sparsemask.VOC12.survey import survey
from tiny import SMALL, data_flags, fails, make_data


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Twelve pictures of four classes, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_data(Path("data"))


def relabel(folder: Path, change) -> None:
    for path in sorted((folder / "gt").iterdir()):
        Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)


def made(folder: Path, n_class: int = 4, **given):
    flags = retrain_train.parser().given(data_flags(folder, n_class))
    return get("segmentation", retrain_train.parser().resolve({"crop_size": 33, **flags, **given}))


def beginning(data: Path, n_class: int = 4, *more: str) -> list[str]:
    return ["--search", *data_flags(data, n_class), *SMALL, "--max_iter", "2", "--name", "n", *more]


def opened(argv: list[str]):
    """The task that a search with this command line opens, its data checked."""
    parser = search_run.parser()
    options, *_ = training_setup.resolve_config(parser, parser.given(argv))
    return training_setup.open_task(options)


# ---- labels that teach nothing


def test_all_classes_there_is_no_word(data, capfd):
    made(data).check()
    assert capfd.readouterr().err == ""


def test_absent_classes_are_named_before_training(data, capfd):
    relabel(data, lambda label: np.where(label == 2, 0, label))
    made(data, 21).check()
    training, validation = capfd.readouterr().err.splitlines()
    assert training.startswith("note: 18 of 21 classes never occur in the 9 training labels: 2 bicycle, 4 boat, ")
    assert training.endswith(" and 8 more") and "the 3 validation labels" in validation
    made(data, 4, class_names=None).check()
    assert "1 of 4 classes never occurs in the 9 training labels: class 2" in capfd.readouterr().err


NOTHING = {
    "all ignored": (lambda label: np.full_like(label, 255), 4, ["no pixel has a class", "9 training labels", "255"]),
    "0/255 masks": (lambda label: 255 * (label > 0), 2, ["one class alone", "0/255 masks", "--task saliency"]),
    "background": (lambda label: 0 * label, 4, ["one class alone", "9 training labels (class 0)"]),
    "one class": (lambda label: 0 * label, 1, ["one class alone", "nothing to tell apart"]),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_labels_that_teach_nothing_are_refused(data, capfd, kind):
    change, n_class, words = NOTHING[kind]
    relabel(data, change)
    fails(capfd, search_run.main, beginning(data, n_class), words)
    assert not Path("runs/n").exists()


def test_validation_without_labels_is_refused(data):
    for name in (data / "val.txt").read_text().split():
        save_label(data / "gt" / f"{name}.png", np.full((40, 43), 255, np.uint8))
    with pytest.raises(UseError, match="no pixel has a class in the 3 validation labels"):
        made(data).check()


@pytest.mark.parametrize(("task", "values"), [("saliency", 0), ("saliency", 255), ("edges", 0), ("edges", 255)])
def test_masks_of_one_value_are_refused_by_every_labelling_task(data, task, values):
    relabel(data, lambda label: np.full_like(label, values))
    flags = retrain_train.parser().given(data_flags(data, 21))
    with pytest.raises(UseError, match="one class alone occurs in the 9 training labels"):
        get(task, retrain_train.parser().resolve({"crop_size": 33, **flags, "task": task})).check()


def test_masks_of_0_and_255_are_salient_as_they_are(data, capfd):
    relabel(data, lambda label: 255 * (label > 0))
    flags = retrain_train.parser().given(data_flags(data, 21))
    get("saliency", retrain_train.parser().resolve({"crop_size": 33, **flags, "task": "saliency"})).check()
    assert capfd.readouterr().err == ""


def test_a_survey_looks_until_all_is_seen_and_not_for_ever():
    held = {"a": 0, "b": 1, "c": 1, "d": 2}
    looked = []

    def read(path):
        looked.append(path)
        return np.full((2, 2), held[path], np.uint8)

    found = survey(["a", "b", "c", "d", "a"], read, 2)
    assert looked == ["a", "b"] and found.absent(["x", "y"]) is None and found.total == 4
    looked.clear()
    found = survey([*"abcd"], read, 4, limit=2)
    assert looked == ["a", "d"] and "1 1, 3 3" in found.absent([*"0123"]) and "2 looked at of 4" in found.labels()
    looked.clear()
    assert survey([*"bcbc"], read, 9, limit=1).classes == [1] and looked == ["b", "c"], (
        "on until a second class is seen"
    )


# ---- --ignore_index


def test_another_number_is_ignored(data, capfd):
    relabel(data, lambda label: np.where(label == 3, 200, label))
    with pytest.raises(UseError, match=r"label 200 beyond the 3 classes \(255 is ignored\).*--ignore_index 200"):
        made(data, 3).check()
    task = made(data, 3, ignore_index=200)
    task.check()
    stored = np.array(Image.open(data / "gt/009.png"))
    wanted = np.where(stored == 200, 255, stored)
    np.testing.assert_array_equal(task.eval_data.load(0)[1], wanted)
    assert task.count(task.train_data[0][1][None]) > 0
    # 0 may be ignored too: it stays a class, which never occurs.
    made(data, 201, ignore_index=0)
    assert (made(data, 201, ignore_index=0).eval_data.load(0)[1][stored == 0] == 255).all()
    assert capfd.readouterr().err == ""


def test_ignored_numbers_reach_the_verbs(data, capfd):
    relabel(data, lambda label: np.where(label == 3, 254, label))
    task = opened(beginning(data, 3, "--ignore_index", "254"))
    assert task.train_data.ignore_index == task.eval_data.ignore_index == 254
    for value in ("256", "-1", "x"):
        fails(capfd, search_run.main, beginning(data, 3, "--ignore_index", value), ["--ignore_index"])
    more = ["--task", "saliency", "--ignore_index", "254"]
    fails(capfd, search_run.main, beginning(data, 3, *more), ["--ignore_index 254", "--task segmentation"])
    relabel(data, lambda label: np.where(label == 254, 255, label))
    fails(capfd, search_run.main, beginning(data, 3, "--ignore_index", "254", "--name", "o"), ["label 255 beyond"])


# ---- check


def run_check(data: Path, *more: str) -> int:
    lists = map(str, (data / "train.txt", data / "val.txt"))
    return check.main(["--im_path", str(data / "img"), "--gt_path", str(data / "gt"), "--list", *lists, *more])


def test_check_names_ignore_index_and_caps_its_list(data, capsys):
    relabel(data, lambda label: np.where(label == 3, 200, label))
    (data / "img/000.png").unlink()
    assert run_check(data, "--n_class", "3") == 2
    *lines, summary = capsys.readouterr().out.splitlines()
    assert f"{data}/img/000.png: no such file; check the folders, or prepare the data again" in lines
    beyond = [line for line in lines if "label 200 beyond the 3 classes (255 is ignored): --n_class 201" in line]
    assert len(beyond) == check.SHOWN and "--ignore_index 200 where it marks" in beyond[0]
    assert "... and 7 more: label beyond the classes (--all lists them)" in lines and len(lines) == 7
    assert summary == "12 pairs checked: 1 file missing; 12 label beyond the classes"
    assert run_check(data, "--n_class", "3", "--all") == 2
    assert len(capsys.readouterr().out.splitlines()) == 14
    save_label(data / "gt/000.png", np.full((40, 43), 255, np.uint8))
    assert run_check(data, "--n_class", "3", "--ignore_index", "200") == 2
    assert "gt/000.png: label 255 beyond the 3 classes (200 is ignored)" in capsys.readouterr().out


def test_check_says_what_search_says(data, capfd):
    relabel(data, lambda label: label + 7)
    made_error = pytest.raises(UseError, made(data).check)
    assert run_check(data, "--n_class", "4") == 2
    first = capfd.readouterr().out.splitlines()[0]
    assert first == str(made_error.value)


def test_check_without_data_says_how_to_get_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [
        "VOC12/data",
        "not prepared here (",
        "prepare",
        "--voc VOCtrainval_11-May-2012.tar --sbd",
        "--im_path, --gt_path and --list",
    ]
    fails(capfd, check.main, [], words)


def test_check_names_what_teaches_nothing(data, capsys):
    relabel(data, lambda label: 255 * (label > 0))
    assert run_check(data, "--n_class", "2") == 0
    out, err = capsys.readouterr()
    assert out == "12 pairs checked: no faults\n"
    assert "note: one class alone" in err and "0/255 masks" in err and "1 of 2 classes never occurs" in err
    relabel(data, lambda label: np.full_like(label, 255))
    assert run_check(data, "--n_class", "2") == 2
    assert "no pixel has a class in the 12 labels: all are 255, ignored" in capsys.readouterr().out


def test_check_counts_what_reading_changes(data, capsys):
    for name in ("000", "001"):
        Image.fromarray(np.zeros((40, 43), np.float32)).save(data / f"img/{name}.tif")
        (data / f"img/{name}.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (43, 40)).save(data / "img/002.png", exif=exif)
    assert run_check(data, "--n_class", "4") == 0
    err = capsys.readouterr().err
    assert "note: 2 pictures floats of 0 to 1 were multiplied by 255" in err
    assert "note: 1 picture turned upright by EXIF orientation 3" in err


# ---- lists of pairs and separate validation folders


@pytest.fixture
def parted(data) -> Path:
    """train/images, train/masks, val/images, val/masks, and lists of pairs; no folder holds all pictures."""
    for part in ("train", "val"):
        lines = []
        for name in (data / f"{part}.txt").read_text().split():
            for kind, to in (("img", "images"), ("gt", "masks")):
                (data / part / to).mkdir(parents=True, exist_ok=True)
                (data / kind / f"{name}.png").rename(data / part / to / f"{name}.png")
            lines.append(f"{part}/images/{name}.png {part}/masks/{name}.png")
        (data / f"{part}.txt").write_text("# picture label\n" + "\n".join(lines) + "\n")
    return data


def test_lists_of_pairs_need_no_folders(parted, capfd, tmp_path):
    lists = ["--training_list", str(parted / "train.txt"), "--eval_list", str(parted / "val.txt")]
    argv = ["--search", *lists, "--n_class", "4", *SMALL, "--max_iter", "2", "--name", "n"]
    assert len(opened(argv).train_data) == 9
    assert check.main(["--list", *lists[1::2], "--n_class", "4"]) == 0
    assert "12 pairs checked: no faults" in capfd.readouterr().out
    pairs = pairs_from_lists(None, None, parted / "val.txt")
    assert [picture.parent for picture, _ in pairs] == [parted / "val/images"] * 3
    (parted / "val.txt").write_text("009\n")
    with pytest.raises(UseError, match="val.txt.*009.*is no pair.*--im_path and --gt_path"):
        pairs_from_lists(None, None, parted / "val.txt")
    fails(capfd, search_run.main, [*argv, "--name", "m"], ["--im_path", "--gt_path"])


def test_validation_in_folders_of_its_own_by_names(data):
    """img/train, img/val and gt/train, gt/val: names in lists carry the folder."""
    for part in ("train", "val"):
        names = (data / f"{part}.txt").read_text().split()
        for kind in ("img", "gt"):
            (data / kind / part).mkdir()
            for name in names:
                (data / kind / f"{name}.png").rename(data / kind / part / f"{name}.png")
        (data / f"{part}.txt").write_text("\n".join(f"{part}/{name}" for name in names))
    task = made(data)
    task.check()
    assert [Path(picture).parent.name for picture, _ in task.eval_data.pairs] == ["val"] * 3
    assert len(task.train_data) == 9 and run_check(data, "--n_class", "4") == 0


def test_scores_of_nothing_labelled_are_said(data):
    scores = SegmentationScores(np.zeros((4, 4), np.int64))
    assert "no pixel of these pictures has a label: there is nothing to score" in made(data).report(scores)
    assert "nothing to score" not in made(data).report(SegmentationScores(np.eye(4, dtype=np.int64)))
