"""Training habits of dense segmentation: label maps, class weights, one's own augmentation, pictures of any size."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sparsemask
from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from sparsemask import UseError, api, plugins
from sparsemask.cli import predict as predict_command
from sparsemask.engine import data
from sparsemask.engine.records import read_rows
from sparsemask.prune import prune as prune_command
from sparsemask.retrain import eval as eval_command
from sparsemask.retrain import specialize as specialize_command
from sparsemask.retrain import train as train_command
from sparsemask.runs import Run
from sparsemask.search import run as search_command
from sparsemask.spaces import backbones
from sparsemask.tasks import get
from sparsemask.tasks.dense.augmentation import Augmentation
from sparsemask.VOC12 import check
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.label_map import LabelMap
from sparsemask.weights import metadata
from tiny import ROOT, SMALL, data_flags, fails, make_data
from without_images import without_images

FILES = {0: 7, 1: 33, 2: 8, 3: 2}  # the number in files of each class
MAP = "# number class name\n7 0 ground\n33 1 brick wall\n8 2 leaf\n2 3\n\n0 ignore\n"
SMALL_NETWORK = [*SMALL, "--backbone_name", "small_pyramid"]
RETRAIN = ["--mask_path", "dense", *SMALL_NETWORK, "--max_iter", "4"]
AUGMENT = '''
import random
import numpy as np
import torch

seen = []

def shift(image, label):
    """Brightness by each of the global generators, and a shift of both."""
    seen.append((image.dtype, image.shape, label.dtype, label.shape))
    factor = 0.5 + (random.random() + np.random.rand() + torch.rand(()).item()) / 6
    step = int(np.random.randint(0, 5))
    return (image * factor).astype(np.uint8), np.roll(label, step, 1)

def with_rng(image, label, rng):
    return image[:, ::-1] if rng.random() < 0.5 else image, label

def larger(image, label):
    return np.repeat(image, 2, 0), np.repeat(label, 2, 0)

def fails(image, label):
    raise ValueError("no\\nsuch thing")

def one(image, label):
    return image

def sizes(image, label):
    return image[1:], label

def beyond(image, label):
    return image, label + np.uint8(90)

def floats(image, label):
    return image.astype(float), label

number = 3
'''


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with pictures of four classes, a small encoder known, a module of augmentations."""
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    Path("myaug.py").write_text(AUGMENT)
    importlib.invalidate_caches()
    sys.modules.pop("myaug", None)
    monkeypatch.setattr(plugins, "_trusted", {})
    yield tmp_path
    sys.modules.pop("myaug", None)


def renumbered(folder: Path, numbers: dict[int, int]) -> Path:
    """A copy of a data set whose label files have these numbers."""
    copy = shutil.copytree(folder, folder.with_name("numbered"))
    for path in sorted((copy / "gt").iterdir()):
        label = np.array(Image.open(path))
        Image.fromarray(np.vectorize(numbers.get)(label).astype(np.uint8)).save(path)
    return copy


def without_count(folder: Path) -> list[str]:
    """The flags of the data without --n_class."""
    return data_flags(folder)[:-2]


def opened(folder: Path, *more: str):
    parser = train_command.parser()
    return get("segmentation", parser.resolve({"crop_size": 33}, parser.given([*data_flags(folder), *more])))


def losses(name: str) -> list[float]:
    return [row["loss"] for row in read_rows(Run(f"runs/{name}").metrics) if "loss" in row]


# ---- label maps


def test_a_map_trains_as_class_numbers_do_and_files_predict_and_evaluate_with_it(place, capfd):
    numbered = renumbered(place / "data", FILES)
    Path("map.txt").write_text(MAP)
    with without_images():
        assert train_command.main([*RETRAIN, *data_flags(place / "data"), "--name", "plain"]) == 0
        mapped = [*RETRAIN, *without_count(numbered), "--label_map", "map.txt", "--name", "mapped"]
        assert train_command.main(mapped) == 0
    assert losses("plain") == losses("mapped") and len(losses("plain")) == 4
    Path("map.txt").unlink()  # the run has it
    capfd.readouterr()
    with without_images():
        assert eval_command.main(["--run", "runs/mapped", "--out", "maps"]) == 0
    assert "brick wall" in capfd.readouterr().out
    results = [Run(f"runs/{name}").info()["result"]["miou"] for name in ("plain", "mapped")]
    assert results[0] == results[1] == pytest.approx(Run("runs/mapped").info()["eval"]["miou"], abs=1e-6)
    # What the file says of itself.
    file = Path("runs/mapped/network.safetensors")
    names = ["ground", "brick wall", "leaf", "class 3"]
    entries = metadata(file)
    assert entries["classes"] == names and LabelMap.of_text(entries["label_map"]).numbers == (7, 33, 8, 2)
    items = [(place / f"numbered/img/{k}.png", place / f"numbered/gt/{k}.png") for k in ("009", "010", "011")]
    items = [(str(image), str(label)) for image, label in items]
    assert sparsemask.evaluate(file, val=items)["miou"] == pytest.approx(results[1], abs=1e-6)
    # Predictions in either numbers, of the file and of the run's checkpoint.
    moved = shutil.copy(file, "moved.safetensors")
    for source in (moved, "runs/mapped/checkpoints/last.pt"):
        for numbers in ("classes", "files"):
            argv = ["data/img/009.png", "--weights", source, "--out-dir", f"p-{numbers}", "--numbers", numbers]
            assert predict_command.main(argv) == 0
        classes, own = (np.array(Image.open(f"p-{kind}/009.png")) for kind in ("classes", "files"))
        np.testing.assert_array_equal(np.vectorize(FILES.get)(classes), own)
        colours = [np.array(Image.open(f"p-{kind}/009.png").convert("RGB")) for kind in ("classes", "files")]
        np.testing.assert_array_equal(*colours)
        said = json.loads(Path("p-files/classes.json").read_text())
        assert said["1"]["number_in_files"] == 33 and said["1"]["name"] == "brick wall"


def test_colours_are_those_of_the_numbers_in_files(place):
    numbered = renumbered(place / "data", FILES)
    colours = np.zeros((256, 3), np.uint8)
    colours[[7, 33, 8, 2]] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 200, 0)]
    for path in (numbered / "gt").iterdir():
        image = Image.open(path).convert("P")
        image.putpalette(colours.tobytes())
        image.save(path)
    task = opened(numbered, "--n_class", "4", "--label_map", _file("map.txt", MAP))
    np.testing.assert_array_equal(task.palette, colours[[7, 33, 8, 2]])


def test_every_verb_goes_on_with_the_map(place, capfd):
    numbered = renumbered(place / "data", FILES)
    Path("map.json").write_text(json.dumps({"7": [0, "ground"], "33": 1, "8": 2, "2": 3}))
    flags = [*without_count(numbered), "--label_map", "map.json", "--class_weights", "1,2,2,1"]
    with without_images():
        assert search_command.main(["--search", *SMALL_NETWORK, "--max_iter", "2", *flags, "--name", "s"]) == 0
        Path("map.json").unlink()
        assert prune_command.main(["--run", "runs/s", "--thres", "0.0001", "--out", "mask.npy"]) == 0
        more = ["--max_iter", "2", "--batch_size", "4", "--n_worker", "0", "--crop_size", "33"]
        assert train_command.main(["--mask_path", "mask.npy", *more, "--name", "r"]) == 0
    for name in ("s", "r"):
        config = Run(f"runs/{name}").config.read_text()
        assert "label_map: 7 0 ground; 33 1 class 1; 8 2 class 2; 2 3 class 3" in config
        assert "class_weights: 1.0,2.0,2.0,1.0" in config and "n_class: 4" in config


@pytest.mark.slow
def test_specialised_networks_have_the_map_of_their_run(place):
    numbered = renumbered(place / "data", FILES)
    flags = [*without_count(numbered), "--label_map", _file("map.txt", MAP), "--class_weights", "auto"]
    with without_images():
        assert train_command.main([*RETRAIN, *flags, "--name", "r"]) == 0
        more = ["--max_iter", "2", "--batch_size", "4", "--n_worker", "0", "--crop_size", "33"]
        assert specialize_command.main(["--run", "runs/r", *more, "--name", "z"]) == 0
    dense, specialised = (metadata(Path(f"runs/{name}/network.safetensors")) for name in "rz")
    assert specialised["label_map"] == dense["label_map"] and specialised["classes"][1] == "brick wall"
    weights = [line for line in Run("runs/r").config.read_text().splitlines() if "class_weights" in line]
    assert weights[0] in Run("runs/z").config.read_text()


def test_maps_ignore_and_join_numbers(place):
    label = np.array([[7, 33, 8], [2, 0, 255]], np.uint8)
    made = LabelMap.read(_file("map.txt", MAP))
    np.testing.assert_array_equal(made.apply(label, 255, "a"), [[0, 1, 2], [3, 255, 255]])
    joined = LabelMap.read(_file("joined.txt", "7\t0\n33\t1\n8\t1\n* ignore\n"))
    np.testing.assert_array_equal(joined.apply(label, 255, "a"), [[0, 1, 1], [255, 255, 255]])
    assert joined.names == ("class 0", "class 1") and joined.numbers == (7, 33)
    with pytest.raises(UseError, match="a.png: label 0, 255 not in --label_map .2 is ignored.*'0 CLASS'"):
        LabelMap.of_text("7 0; 33 1; 8 1").apply(label, 2, "a.png")
    for one in (made, joined):
        again = LabelMap.of_text(one.text())
        assert (again.text(), again.names) == (one.text(), one.names)
        np.testing.assert_array_equal(again.apply(label, 255, "a"), one.apply(label, 255, "a"))


def _file(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


BAD_MAPS = {
    "no class": ("7\n", ["map.txt, line 1", "expected: NUMBER CLASS [NAME]"]),
    "no number": ("road 0\n", ["'road' is no number in label files"]),
    "too large": ("256 0\n", ["'256' is no number"]),
    "no such class": ("1 road\n", ["'road' is no class, 0 to 254 or 'ignore'"]),
    "negative": ("1 -1\n", ["'-1' is no class"]),
    "twice": ("1 0\n2 1\n1 1\n", ["line 3", "1 has two classes, 0 and 1"]),
    "two names": ("1 0 a\n2 0 b\n", ["class 0 has two names, 'a' and 'b'"]),
    "gap": ("1 0\n2 2\n", ["go up to 2, but no number has class 1"]),
    "nothing": ("1 ignore\n", ["no number has a class"]),
    "others": ("1 0\n* 1\n", ["* can be 'ignore' alone"]),
    "binary": ("\0\0", ["not a text file"]),
    "empty": ("", ["the list is empty"]),
    "semicolon": ("1 0 a;b\n", ["no ';'"]),
    "ignored": ("1 0\n2 1\n255 ignore\n", ["--label_map", "--ignore_index 1", "class 0"]),
}


@pytest.mark.parametrize("kind", BAD_MAPS)
def test_wrong_maps_are_one_line(place, capfd, kind):
    text, words = BAD_MAPS[kind]
    argv = [*RETRAIN, *without_count(place / "data"), "--label_map", _file("map.txt", text), "--name", "r"]
    fails(capfd, train_command.main, [*argv, *(["--ignore_index", "1"] if kind == "ignored" else [])], words)
    assert not Path("runs/r").exists()


@pytest.mark.parametrize("content", ["[1]", "{", '{"1": {"a": 0}}', '{"1": true}', '{"1": [0, "a", 2]}', '{"1": 1.5}'])
def test_wrong_json_maps_are_one_line(place, capfd, content):
    argv = [*RETRAIN, *without_count(place / "data"), "--label_map", _file("map.json", content)]
    fails(capfd, train_command.main, argv, ["map.json"])


def test_flags_that_contradict_a_map(place, capfd):
    Path("map.txt").write_text(MAP)
    argv = [*RETRAIN, *without_count(place / "data"), "--label_map"]
    fails(capfd, train_command.main, [*argv, "none.txt"], ["--label_map none.txt: no such file"])
    fails(capfd, train_command.main, [*argv, "map.txt", "--n_class", "5"], ["--n_class 5", "has 4 classes"])
    fails(capfd, train_command.main, [*argv, "map.txt"], ["label 1, 3 not in --label_map", "'1 CLASS'"])
    Path("names.txt").write_text("a\nb\n")
    fails(capfd, train_command.main, [*argv, "map.txt", "--class_names", "names.txt"], ["2 class names for 4"])
    fails(capfd, train_command.main, [*argv, "map.txt", "--task", "saliency"], ["--label_map", "--task segmentation"])


def test_check_reads_with_the_map(place, capsys):
    numbered = renumbered(place / "data", FILES)
    where = ["--im_path", str(numbered / "img"), "--gt_path", str(numbered / "gt")]
    argv = [*where, "--list", str(numbered / "val.txt"), "--label_map"]
    assert check.main([*argv, _file("map.txt", MAP)]) == 0
    assert check.main([*argv, _file("short.txt", "7 0\n33 1\n")]) == 2
    out = capsys.readouterr().out
    assert "3 pairs checked: no faults" in out and "label 2, 8 not in --label_map" in out


@pytest.mark.parametrize("value", ["x", "7 0", "7 0; 8 9", 3, "/etc/passwd"])
def test_maps_of_strangers_files_are_checked(value):
    from sparsemask.prediction.description import Description

    entries = {"output": "classes", "classes": ["a", "b"], "label_map": value}
    with pytest.raises(UseError, match="its description says label_map"):
        Description.from_entries(entries, "f")


# ---- an ignore index of one's own


def test_an_index_between_the_classes_is_ignored_everywhere(place):
    with without_images():
        argv = [*RETRAIN, *data_flags(place / "data"), "--ignore_index", "2", "--name", "r"]
        assert train_command.main(argv) == 0
        assert eval_command.main(["--run", "runs/r"]) == 0
    info = Run("runs/r").info()
    assert info["eval"]["iou"]["class 2"] in (None, 0.0)
    assert metadata(Path("runs/r/network.safetensors"))["ignore_index"] == 2
    items = [(f"data/img/{k}.png", f"data/gt/{k}.png") for k in ("009", "010", "011")]
    again = sparsemask.evaluate(Path("runs/r/network.safetensors"), val=items)
    assert again["miou"] == pytest.approx(info["eval"]["miou"], abs=1e-6)


# ---- class weights


def literal_median_frequency(labels: list[np.ndarray], n_class: int) -> list[float]:
    """Eigen and Fergus, section 6.3, class by class."""
    frequencies = []
    for k in range(n_class):
        own = [label for label in labels if (label == k).any()]
        frequencies.append(sum((one == k).sum() for one in own) / max(1, sum((one != 255).sum() for one in own)))
    median = np.median([frequency for frequency in frequencies if frequency])
    return [median / frequency if frequency else 1.0 for frequency in frequencies]


def test_counted_weights_are_median_frequency_and_are_kept(place, capfd, monkeypatch):
    path = place / "data/gt/000.png"
    label = np.array(Image.open(path))
    label[:3], label[label == 3] = 255, 0
    Image.fromarray(label).save(path)
    task = opened(place / "data", "--class_weights", "auto", "--n_class", "5")
    task.check()
    names = (place / "data/train.txt").read_text().split()
    labels = [np.array(Image.open(place / f"data/gt/{name}.png")) for name in names]
    wanted = literal_median_frequency(labels, 5)
    given = task.config.data.class_weights
    np.testing.assert_allclose([float(word) for word in given.split(",")], wanted, rtol=1e-5)
    assert wanted[4] == 1 and wanted[0] < 1 < max(wanted)
    said = capfd.readouterr().out
    assert "class weights by the frequency in 9 training labels: class 0 0." in said
    # Kept for the next time, and counted anew where a label changes.
    from sparsemask.tasks.segmentation.class_weights import median_frequency

    source = task.train_data
    monkeypatch.setattr(SegmentationDataset, "read", None)
    assert list(median_frequency(source).weights) == [float(word) for word in given.split(",")]
    monkeypatch.undo()
    Image.fromarray(np.where(label == 255, 4, label)).save(path)
    assert median_frequency(source).weights[4] != 1
    kept = list((place / "home/class_weights").iterdir()) if (place / "home").exists() else []
    for file in kept:
        file.write_text("{}")
    assert median_frequency(source).weights[4] != 1


def test_the_loss_is_torchs_weighted_mean(place):
    weights = torch.tensor([0.5, 2.0, 0.0, 3.25])
    task = opened(place / "data", "--class_weights", "0.5,2,0,3.25")
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 9, 9), torch.randint(0, 4, (2, 9, 9))
    target[0, :2] = 255
    wanted = F.cross_entropy(logits, target, weights, ignore_index=255)
    torch.testing.assert_close(task.loss(logits, target) / task.count(target), wanted)
    plain = opened(place / "data")
    assert plain.count(target) == (target != 255).sum()
    assert task.config.data.class_weights == "0.5,2.0,0.0,3.25"


BAD_WEIGHTS = {
    "1,2,3": ["3 weights for 4 classes"],
    "1,2,x,4": ["'x' is no number", "class 2"],
    "1,2,-3,4": ["-3 is no weight"],
    "1,2,nan,4": ["nan is no weight"],
    "1,2,inf,4": ["inf is no weight"],
    "0,0,0,0": ["all weights are 0"],
    "none.txt": ["--class_weights none.txt: no such file", "'auto'"],
    "weights.txt": ["3 weights for 4 classes"],
}


@pytest.mark.parametrize("given", BAD_WEIGHTS)
def test_wrong_weights_are_one_line(place, capfd, given):
    Path("weights.txt").write_text("1\n2\n3\n")
    argv = [*RETRAIN, *data_flags(place / "data"), "--class_weights", given, "--name", "r"]
    fails(capfd, train_command.main, argv, BAD_WEIGHTS[given])
    assert not Path("runs/r").exists()
    for task in ("saliency", "edges"):
        fails(capfd, train_command.main, [*argv, "--task", task], ["--class_weights", "tasks of classes"])


def test_weights_of_a_file_change_the_training(place):
    Path("weights.txt").write_text("# of each class\n0.2\n1\n1\n4.0\n")
    with without_images():
        for name, more in (("w", ["--class_weights", "weights.txt"]), ("p", [])):
            assert train_command.main([*RETRAIN, *data_flags(place / "data"), *more, "--name", name]) == 0
    assert "class_weights: 0.2,1.0,1.0,4.0" in Run("runs/w").config.read_text()
    assert losses("w")[0] != losses("p")[0]


# ---- augmentation


def test_augmented_runs_depend_on_the_seed_alone_and_resume_exactly(place):
    flags = [*RETRAIN, "--max_iter", "5", *data_flags(place / "data"), "--augment", "myaug:shift"]
    plain = [word for word in flags if word not in ("--augment", "myaug:shift")]
    with without_images():
        assert train_command.main([*flags, "--name", "whole"]) == 0
        assert train_command.main([*flags, "--n_worker", "2", "--name", "workers"]) == 0
        assert train_command.main([*plain, "--name", "none"]) == 0
        assert losses("whole") == losses("workers") != losses("none")
        given = {"augment": "myaug:shift", "n_worker": 0, "name": "part", "max_iter": 5}
        _stopped(flags, given)
        rest = ["--resume", "runs/part"]
        assert train_command.main([*rest]) == 2  # a file's word imports nothing
        assert train_command.main([*rest, "--trust", "myaug:shift"]) == 0
    ends = [torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True)["model"] for name in ("whole", "part")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    import myaug

    assert {(one[0], one[1][2], one[2]) for one in myaug.seen} == {(np.dtype("uint8"), 3, np.dtype("uint8"))}
    assert eval_command.main(["--run", "runs/whole"]) == 0  # evaluation needs none of it


def _stopped(flags: list[str], given: dict) -> None:
    """A run that breaks off after its first checkpoint."""

    def stop(told) -> None:
        if told.step == 4:
            raise RuntimeError("pulled the plug")

    from sparsemask.families import train as drive

    argv = [*flags, "--name", given["name"]]
    with pytest.raises(RuntimeError, match="plug"), plugins.trusting(argv):
        parser, _ = train_command.read(argv)
        drive(api.training.family_of(parser.get_default("space")), parser, argv, [stop])


def test_the_global_generators_stay_as_they_were(place):
    plugins.trust("myaug:shift")
    source = opened(place / "data", "--augment", "myaug:shift").train_data
    state = torch.get_rng_state()
    first = source.sample(0, np.random.default_rng(3))
    torch.rand(3), np.random.rand(2)
    again = source.sample(0, np.random.default_rng(3))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], source.sample(0, np.random.default_rng(4))[0])
    image, label = source.load(0)
    drawn = [Augmentation("myaug:shift")(image, label, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4, 5)]
    assert np.array_equal(drawn[0][0], drawn[1][0]) and len({one.tobytes() for one, _ in drawn}) == 5
    torch.set_rng_state(state)
    source.sample(0, np.random.default_rng(3))
    assert torch.equal(torch.get_rng_state(), state)


BAD_CODE = {
    "fails": ["failed on a picture of 43x40 pixels (ValueError: no such thing)"],
    "one": ["gave ndarray, expected (image, label)"],
    "sizes": ["both must change alike"],
    "beyond": ["label 90, 91, 92, 93 beyond the 4 classes"],
    "floats": ["outside of 0 to 1 is no picture"],
    "number": ["is no callable"],
    "absent": ["cannot be imported"],
}


@pytest.mark.parametrize("name", BAD_CODE)
def test_wrong_augmentations_are_one_line_before_the_run(place, capfd, name):
    argv = [*RETRAIN, *data_flags(place / "data"), "--augment", f"myaug:{name}", "--name", "r"]
    fails(capfd, train_command.main, argv, ["--augment" if name == "beyond" else f"myaug:{name}", *BAD_CODE[name]])
    assert not Path("runs/r").exists()


def test_what_is_no_name_is_refused(place, capfd):
    argv = [*RETRAIN, *data_flags(place / "data"), "--augment", "myaug.py"]
    fails(capfd, train_command.main, argv, ["--augment myaug.py", "package.module:name"])


def test_other_sizes_and_a_generator_are_taken(place):
    for name in ("larger", "with_rng"):
        plugins.trust(f"myaug:{name}")
        source = opened(place / "data", "--augment", f"myaug:{name}").train_data
        image, label = source.sample(1, np.random.default_rng(0))
        assert image.shape == (3, 33, 33) and label.shape == (33, 33)
        assert torch.equal(image, source.sample(1, np.random.default_rng(0))[0])


class Compose:
    """As albumentations' is called: by names alone, with generators of its own."""

    def __init__(self):
        self.random = np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *args, force_apply: bool = False, **data):
        assert not args and set(data) == {"image", "mask"}
        flipped = self.random.random() < 0.5
        return {name: np.flip(value, 1) if flipped else value for name, value in data.items()}


class Generators(Compose):
    """A later one of albumentations."""

    def set_random_seed(self, seed: int) -> None:
        raise AssertionError("depends on the loader's process")

    def set_random_state(self, random_generator, py_random) -> None:
        self.random = random_generator


@pytest.mark.parametrize("kind", [Compose, Generators])
def test_albumentations_are_called_by_names_and_seeded(kind):
    plugins.trust("mine:compose", kind())
    image, label = np.arange(36, dtype=np.uint8).reshape(3, 4, 3), np.arange(12, dtype=np.uint8).reshape(3, 4)
    augmentation, seen = Augmentation("mine:compose"), set()
    for seed in range(8):
        (first, mask), (again, _) = (augmentation(image, label, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        flipped = not np.array_equal(first, image)
        np.testing.assert_array_equal(mask, label[:, ::-1] if flipped else label)
        seen.add(flipped)
    assert seen == {True, False}


def test_torchvisions_transforms_get_its_tensors(monkeypatch):
    image_kind, mask_kind = (type(name, (), {"__init__": lambda self, value: setattr(self, "value", value)})
                             for name in ("Image", "Mask"))  # fmt: skip
    package, kinds = ModuleType("torchvision"), ModuleType("torchvision.tv_tensors")
    kinds.Image, kinds.Mask = image_kind, mask_kind
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.tv_tensors", kinds)

    def forward(self, *inputs):
        image, mask = inputs
        assert type(image) is image_kind and type(mask) is mask_kind and image.value.shape == (3, 4, 5)
        return image.value.flip(-1).float() / 255, mask.value.flip(-1)

    members = {"forward": forward, "__module__": "torchvision.transforms.v2._container"}
    plugins.trust("mine:v2", type("Compose", (torch.nn.Module,), members)())
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 255, (4, 5, 3), np.uint8), rng.integers(0, 3, (4, 5), np.uint8)
    flipped, mask = Augmentation("mine:v2")(image, label, rng)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(mask, label[:, ::-1])


def test_albumentations_itself():
    albumentations = pytest.importorskip("albumentations")
    parts = [albumentations.HorizontalFlip(p=0.5), albumentations.RandomBrightnessContrast(p=1)]
    plugins.trust("mine:real", albumentations.Compose(parts))
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 255, (40, 50, 3), np.uint8), rng.integers(0, 3, (40, 50), np.uint8)
    augmentation = Augmentation("mine:real")
    made = [augmentation(image, label, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4, 5)]
    np.testing.assert_array_equal(made[0][0], made[1][0])
    assert len({one.tobytes() for one, _ in made}) == 5 and len({one.tobytes() for _, one in made}) == 2


def test_saliency_is_augmented_too_and_functions_are_given_from_python(place):
    for path in (place / "data/gt").iterdir():
        Image.fromarray(np.where(np.array(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    calls = []

    def darker(image, label):
        calls.append(set(np.unique(label)))
        return image // 2, label

    flags = {
        "im_path": "data/img",
        "gt_path": "data/gt",
        "training_list": "data/train.txt",
        "eval_list": "data/val.txt",
    }
    small = dict(zip((word[2:] for word in SMALL[::2]), SMALL[1::2], strict=True))
    with without_images():
        api.retrain(
            "dense", **flags, **small, task="saliency", backbone_name="small_pyramid", max_iter=2, augment=darker
        )
    assert len(calls) >= 8 and set.union(*calls) <= {0, 1}


# ---- the page


def test_the_page_runs(place):
    """docs/tasks.md: its map reads the same in both forms, its augmentation trains."""
    page = (ROOT / "docs/tasks.md").read_text().partition("## Your own numbers")[2].partition("\n## ")[0]
    rows = [line[4:] for line in page.splitlines() if re.match(r"    (#|\d|\*)", line)]
    as_json = re.search(r"As JSON: `(.*?)`", page)[1]
    maps = [LabelMap.read(_file("map.txt", "\n".join(rows))), LabelMap.read(_file("map.json", as_json))]
    assert len(rows) == 8 and maps[0].names == maps[1].names == ("road", "sidewalk")
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(*(one.apply(every, 255, "a") for one in maps))
    Path("my_module.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    importlib.invalidate_caches()
    sys.modules.pop("my_module", None)
    with without_images():
        argv = [*RETRAIN, *data_flags(place / "data"), "--augment", "my_module:transform", "--scales", "1"]
        assert train_command.main([*argv, "--name", "r"]) == 0
    sys.modules.pop("my_module")


# ---- pictures of any size


def test_pictures_of_any_size_train_and_are_evaluated_whole(place):
    rng = np.random.default_rng(1)
    sizes = {}
    for number, path in enumerate(sorted((place / "data/img").iterdir())):
        height, width = sizes[path.stem] = [(9, 70), (40, 43), (61, 12), (33, 33), (1, 1), (80, 50)][number % 6]
        label = rng.integers(0, 4, (height, width)).astype(np.uint8)
        Image.fromarray(label * 60).convert("RGB").save(path)
        Image.fromarray(label).save(place / f"data/gt/{path.name}")
    with without_images():
        flags = [*RETRAIN, *data_flags(place / "data"), "--name", "r"]
        assert train_command.main(flags) == 0
        argv = ["--run", "runs/r", "--out", "maps", "--eval_batch_size"]
        scores = []
        for batch in "13":
            assert eval_command.main([*argv, batch]) == 0
            scores.append(Run("runs/r").info()["eval"]["miou"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    for name in (place / "data/val.txt").read_text().split():
        assert np.array(Image.open(f"maps/{name}.png")).shape == sizes[name]
    source = opened(place / "data").train_data
    sampler = data.step_sampler(source, 4, 0, 3, 0)
    for images, target in data.plainly(data.training_loader(source, sampler, 0, 0)):
        assert images.shape == (4, 3, 33, 33) and target.shape == (4, 33, 33)
