"""Where super-resolution finds its pictures: every published layout, plain folders, names, and what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import sparsemask.search.run
from small_config import configured
from small_pictures import make_folder, make_pairs, options, scene, write
from sparsemask import UseError
from sparsemask.tasks import LabelledData
from sparsemask.tasks.super_resolution.folders import (
    find_source,
    parse_range,
    read_folder,
    sample_folder,
    sample_pairs,
)
from sparsemask.tasks.super_resolution.task import SuperResolutionTask


@pytest.fixture(autouse=True)
def no_data_by_chance(tmp_path, monkeypatch):
    monkeypatch.delenv("SPARSEMASK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def names(pairs):
    return [(pair.hr.name, pair.lr and pair.lr.name) for pair in pairs]


# One convention names low-resolution pictures like the others, the official one adds the scale.
@pytest.mark.parametrize("suffix", ["", "x2"])
def test_div2k_in_either_naming(tmp_path, suffix):
    root = tmp_path / "data/DIV2K"
    make_pairs(root / "HR", root / "LR_bicubic/X2", 6, suffix=suffix)
    o = options(dir_data=tmp_path / "data", data_range="2-4/5-6")
    training, validation = find_source(o.data, "training"), find_source(o.data, "eval")
    # Both ends of a range belong to it.
    assert names(training.pairs) == [(f"{k:04d}.png", f"{k:04d}{suffix}.png") for k in (2, 3, 4)]
    assert names(validation.pairs) == [(f"{k:04d}.png", f"{k:04d}{suffix}.png") for k in (5, 6)]
    # Validation pictures of DIV2K are the ones scored on RGB.
    assert (training.benchmark, validation.benchmark) == (True, False)
    named = find_source(options(dir_data=tmp_path / "data", data_range="1-4/6-6", data_test="DIV2K").data, "eval")
    assert names(named.pairs) == [("0006.png", f"0006{suffix}.png")] and not named.benchmark


def test_div2k_as_it_is_unpacked(tmp_path):
    for part, n, first in (("train", 4, 1), ("valid", 2, 5)):
        root = tmp_path / "DIV2K"
        make_pairs(root / f"DIV2K_{part}_HR", root / f"DIV2K_{part}_LR_bicubic/X2", n, suffix="x2", first=first)
    o = options(dir_data=tmp_path, data_range="1-4/5-6")
    assert names(find_source(o.data, "training").pairs) == [(f"{k:04d}.png", f"{k:04d}x2.png") for k in (1, 2, 3, 4)]
    assert [pair.lr.parents[1].name for pair in find_source(o.data, "eval").pairs] == ["DIV2K_valid_LR_bicubic"] * 2


@pytest.mark.parametrize("place", ["benchmark/Set5", "Set5", "set5"])
@pytest.mark.parametrize("by", ["dir_data", "environment", "path"])
def test_test_sets_are_found_by_name(tmp_path, monkeypatch, place, by):
    root = tmp_path / "somewhere"
    make_pairs(root / place / "HR", root / place / "LR_bicubic/X2", 2)
    given = {"data_test": "Set5"}
    if by == "dir_data":
        given["dir_data"] = root
    elif by == "environment":
        monkeypatch.setenv("SPARSEMASK_DATA", str(root))
    else:
        given["data_test"] = root / place
    found = find_source(options(**given).data, "eval")
    assert names(found.pairs) == [("0001.png", "0001.png"), ("0002.png", "0002.png")] and found.benchmark


def test_a_run_keeps_the_folder_that_a_name_stood_for(tmp_path, monkeypatch):
    make_folder(tmp_path / "here/t91", 3)
    make_folder(tmp_path / "here/set5", 1)
    monkeypatch.setenv("SPARSEMASK_DATA", str(tmp_path / "here"))
    o = options(hr_path="t91", data_test="Set5")
    data = SuperResolutionTask(o).config.data
    assert (data.hr_path, data.data_test) == (str(tmp_path / "here/t91"), str(tmp_path / "here/set5"))


# Every tenth picture of a folder is kept for validation, unless there are others for it.
def test_folder_of_pictures_alone(tmp_path):
    make_folder(tmp_path / "a", 21)
    make_folder(tmp_path / "b", 2)
    (tmp_path / "a/notes.txt").write_text("not a picture")
    stems = lambda o, which: [int(pair.hr.stem) for pair in find_source(o.data, which).pairs]
    o = options(hr_path=tmp_path / "a")
    assert stems(o, "eval") == [10, 20]
    assert stems(o, "training") == [k for k in range(1, 22) if k not in (10, 20)]
    assert all(pair.lr is None for pair in find_source(o.data, "training").pairs)
    o = options(hr_path=tmp_path / "a", data_test=tmp_path / "b")
    assert (stems(o, "training"), stems(o, "eval")) == (list(range(1, 22)), [1, 2])


# Other scales than those that lie there are made, as by MATLAB.
def test_a_scale_without_pictures_is_made(tmp_path, capfd):
    make_pairs(tmp_path / "set/HR", tmp_path / "set/LR_bicubic/X2", 2)
    assert [pair.lr is None for s in (2, 3) for pair in read_folder(tmp_path / "set", s)] == [False, False, True, True]
    SuperResolutionTask(options(hr_path=tmp_path / "set", data_test=tmp_path / "set", scale=3)).check()
    said = capfd.readouterr().err
    assert "training pictures: no LR_bicubic/X3" in said and "made by bicubic" in said


@pytest.mark.parametrize(
    ("text", "expected"), [("1-800/801-810", ((1, 800), (801, 810))), (" 1-1/1-1 ", ((1, 1), (1, 1)))]
)
def test_ranges(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "1-800", "0-5/6-7", "5-4/6-7", "1-4/7-6", "a-b/c-d", "1-4/5-6/7-8", "1:4/5:6"])
def test_ranges_that_are_none(text):
    with pytest.raises(UseError, match="1-800/801-810"):
        parse_range(text)


# The pictures must really come with the installed scikit-image: it would download others.
def test_sample_is_there_and_apart():
    training, validation = sample_pairs("training"), sample_pairs("eval")
    assert len(training) == 9 and len(validation) == 3
    assert not {pair.hr for pair in training} & {pair.hr for pair in validation}
    assert all(pair.hr.parent == sample_folder() and pair.hr.stat().st_size > 20000 for pair in training + validation)


def no_folder(folder):
    return {"hr_path": "absent"}, "--hr_path absent: no such folder"


def no_set(folder):
    return {"hr_path": folder, "data_test": "Set6", "dir_data": folder}, "--data_test Set6: no such folder .*place"


def nothing_named(folder):
    return {}, "no training pictures: give --hr_path or --dir_data"


def no_validation(folder):
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    return {"hr_path": folder}, "one picture is needed for validation"


def empty(folder):
    (folder / "empty").mkdir()
    return {"hr_path": folder / "empty"}, "empty: no pictures"


def no_div2k(folder):
    return {"dir_data": folder}, "--dir_data DIV2K: no such folder"


def other_div2k(folder):
    (folder / "DIV2K/images").mkdir(parents=True)
    return {"dir_data": folder}, "DIV2K: no pictures of DIV2K: expected HR or DIV2K_train_HR"


def div2k_without_dir(folder):
    return {"hr_path": folder, "data_test": "DIV2K"}, "DIV2K needs --dir_data"


def short_div2k(folder):
    make_pairs(folder / "DIV2K/HR", folder / "DIV2K/LR_bicubic/X2", 2)
    return {"dir_data": folder}, "--data_range 1-800/801-810: picture 800, but .* has 2"


def one_less(folder):
    make_pairs(folder / "s/HR", folder / "s/LR_bicubic/X2", 3)
    (folder / "s/LR_bicubic/X2/0002.png").unlink()
    return {"hr_path": folder / "s"}, "X2: 1 of 3 low-resolution pictures absent, first of 0002.png"


def other_size(folder):
    make_pairs(folder / "s/HR", folder / "s/LR_bicubic/X2", 3)
    write(folder / "s/LR_bicubic/X2/0002.png", scene(0, (24, 30)))
    return {"hr_path": folder / "s"}, "X2/0002.png: 30x24 pixels times 2 do not fit .*HR/0002.png of 64x48"


def torn(folder):
    path = folder / "0002.png"
    path.write_bytes(path.read_bytes()[:900])
    return {"hr_path": folder}, "0002.png: not readable as a picture"


def no_picture(folder):
    (folder / "0002.png").write_text("words")
    return {"hr_path": folder}, "0002.png: not readable as a picture"


def deep(folder):
    write(folder / "0002.png", np.full((48, 64), 900, np.uint16))
    return {"hr_path": folder}, "0002.png: not readable .* 8 bits"


def too_small(folder):
    return {"hr_path": folder, "patch_size": 96}, "--patch_size 96 .low-resolution pixels.* room for 24"


def tiny_picture(folder):
    write(folder / "0002.png", scene(0, (1, 9)))
    return {"hr_path": folder}, "0002.png: 9x1 pixels are too few for --scale 2"


def another_range(folder):
    return {"hr_path": folder, "rgb_range": 1}, "--rgb_range 1"


def unknown_loss(folder):
    return {"hr_path": folder, "loss": "1*VGG54"}, r"--loss 1\*VGG54: .*L1, MSE"


CASES = [
    no_folder, no_set, nothing_named, no_validation, empty, no_div2k, other_div2k, div2k_without_dir, short_div2k,
    one_less, other_size, torn, no_picture, deep, too_small, tiny_picture, another_range,
    unknown_loss,
]  # fmt: skip


@pytest.mark.parametrize("spoil", CASES, ids=lambda case: case.__name__)
def test_check_says_what_is_wrong(tmp_path, spoil):
    given, words = spoil(make_folder(tmp_path / "place", 3))
    with pytest.raises(UseError, match=words) as caught:
        SuperResolutionTask(options(**given)).check()
    assert "\n" not in str(caught.value)


def test_a_network_that_enlarges_nothing(tmp_path):
    o = configured(LabelledData, task="super_resolution")
    with pytest.raises(UseError, match="--space smsr"):
        SuperResolutionTask(o)


def test_another_task_s_data_flag_is_refused(tmp_path):
    with pytest.raises(UseError, match="unrecognized arguments: --data_root"):
        sparsemask.search.run.read(["--space", "smsr", "--data_root", str(tmp_path)])
