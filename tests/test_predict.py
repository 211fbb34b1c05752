"""sparsemask predict and sparsemask.predict: any picture, any network that was trained or exported here."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sparsemask
from pyramid import Pyramid
from sparsemask import UseError, exporting
from sparsemask.cli import predict as command
from sparsemask.pictures.palette import class_palette, contrasting, file_palette, least_distance
from sparsemask.prediction import Description, Predictor, as_rgb
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain import export, train
from sparsemask.spaces import backbones
from sparsemask.synthetic.dense_tasks import make_saliency
from sparsemask.VOC12.palette import VOC_CLASSES, VOC_COLOURS
from sparsemask.weights import metadata
from tiny import ROOT, SMALL, data_flags, fails, make_data
from without_images import without_images

DOCS = ROOT / "docs" / "predict.md"
ENTRIES = ("task", "output", "classes", "palette", "mean", "std", "input_size")
NAMES = ["background", "brick", "leaf", "sky"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with pictures of different sizes, a retrain run on them, and its network in every format."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch, without_images():
        patch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
        patch.chdir(folder)
        make_data(Path("data"))
        Path("names.txt").write_text("\n".join(NAMES) + "\n")
        flags = [*data_flags(Path("data")), *SMALL, "--backbone_name", "small_pyramid", "--class_names", "names.txt"]
        assert train.main(["--mask_path", "dense", *flags, "--max_iter", "6", "--name", "r"]) == 0
        assert export.main(["--run", "runs/r", "--out", "net.safetensors", "net.pt2", "--repeats", "0"]) == 0
    return folder


@pytest.fixture
def place(workshop, monkeypatch) -> Path:
    """That folder as working directory, its encoder known."""
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(workshop)
    shutil.rmtree("predictions", ignore_errors=True)
    return workshop


@pytest.fixture(scope="module")
def program(workshop) -> exporting.ReadFile:
    """The network as torch's program, which takes seconds to read."""
    return exporting.read_exported(workshop / "net.pt2")


@pytest.fixture
def onnx(place) -> Path:
    """The network as ONNX."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    if not Path("net.onnx").exists():
        assert export.main(["--run", "runs/r", "--out", "net.onnx", "--repeats", "0"]) == 0
    return Path("net.onnx")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


# ---- the command


def test_predictions_are_those_of_the_evaluation(place):
    assert evaluation.main(["--run", "runs/r", "--out", "evaluated"]) == 0
    assert command.main(["data/img", "--run", "runs/r"]) == 0
    files = sorted(Path("evaluated").glob("*.png"))
    assert len(files) == 3
    for file in files:
        assert np.array_equal(labels_of(file), labels_of(Path("predictions") / file.name))


def test_what_is_written_and_said(place, capsys):
    assert command.main(["data/img/00*.png", "data/img/011.png", "--write", *command.WHAT, "--out-dir", "o/p"]) == 0
    out = capsys.readouterr().out
    assert "11 pictures" in out and "data/img/003.png 43x40 -> o/p/003.png: " in out and " %" in out
    assert sorted({path.name for path in Path("o/p").glob("*011*")}) == [
        "011.npz", "011.png", "011_colours.png", "011_overlay.jpg",
    ]  # fmt: skip
    with np.load("o/p/011.npz") as data:
        probabilities, names = data["probabilities"], data["classes"]
    assert probabilities.shape == (4, 40, 43) and probabilities.dtype == np.float16 and names.tolist() == NAMES
    assert np.allclose(probabilities.astype(float).sum(0), 1, atol=2e-3)
    labels = labels_of(Path("o/p/011.png"))
    assert np.mean(probabilities.argmax(0) == labels) > 0.99  # float16 makes ties
    words = json.loads(Path("o/p/classes.json").read_text())
    assert [words[str(k)]["name"] for k in range(4)] == NAMES
    colours = np.array(Image.open("o/p/011_colours.png"))
    assert np.array_equal(colours, np.array([words[str(k)]["colour"] for k in range(4)], np.uint8)[labels])
    assert Image.open("o/p/palette.png").size[0] > 50


@pytest.mark.parametrize("form", ["net.safetensors", "runs/r/checkpoints/last.pt"])
def test_every_file_predicts_the_same(place, form):
    same_as_the_run(form)


def test_programs_predict_the_same(place):
    same_as_the_run("net.pt2")


@pytest.mark.slow  # writing ONNX takes a while
def test_onnx_predicts_the_same_and_explains_itself(onnx):
    same_as_the_run("net.onnx")
    entries = exporting.read_exported("net.onnx").entries
    assert {key: entries[key] for key in ENTRIES} == {key: metadata("net.safetensors")[key] for key in ENTRIES}
    run_block(1)


def same_as_the_run(form: str) -> None:
    expected = sparsemask.predict("runs/r", "data/img/009.png")
    got = sparsemask.predict(form, "data/img/009.png")
    assert got.classes == tuple(NAMES)
    assert np.allclose(got.probabilities, expected.probabilities, atol=1e-4)
    near = np.sort(expected.probabilities, axis=0)
    clear = near[-1] - near[-2] > 1e-3
    assert np.array_equal(got.labels[clear], expected.labels[clear]) and clear.mean() > 0.9


def test_weights_of_any_origin_take_their_mask(place, monkeypatch):
    state = torch.load("runs/r/checkpoints/last.pt", weights_only=True)["model"]
    torch.save(state, "bare.pth")
    origin = ["--weights", "bare.pth", "--mask_path", "dense", "--backbone_name", "small_pyramid"]
    assert command.main(["data/img/009.png", *origin, "--class_names", "names.txt"]) == 0
    assert json.loads(Path("predictions/classes.json").read_text())["1"]["name"] == "brick"


def test_a_bad_picture_among_good_ones_is_named_and_the_rest_done(place, capfd):
    folder = place / "mixed"
    shutil.copytree(place / "data" / "img", folder)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:100])
    assert command.main([str(folder), "--run", "runs/r", "--out-dir", "m"]) == 1
    said = capfd.readouterr()
    assert f"error: {folder}/003.png" in said.err and "11 of 12 pictures predicted in" in said.out
    assert "1 failed (named above)" in said.out
    assert len(list(Path("m").glob("*_overlay.jpg"))) == 11
    fails(capfd, command.main, [str(folder / "003.png"), "--run", "runs/r", "--out-dir", "n"], ["003.png"])
    assert not Path("n").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.png"], ["absent.png", "no such picture"]),
        (["no*thing"], ["no pictures match"]),
        (["runs"], ["no pictures in this folder", "--recursive"]),
        (["data/img", "--out-dir", "data/img"], ["would overwrite"]),
        (["data/img", "--out-dir", "names.txt"], ["names.txt", "is a file"]),
        (["data/img", "--weights", "absent.onnx"], ["absent.onnx", "no such file"]),
        (["data/img", "--weights", "names.txt"], ["names.txt"]),
        (["data/img", "--weights", "a", "--run", "b"], ["the one or the other"]),
        (["data/img", "--write", "label"], ["did you mean 'labels'"]),
        (["data/img", "--exp_path", "data"], ["no finished or running retrain"]),
    ],
)
def test_bad_input_is_one_line(place, capfd, arguments, words):
    fails(capfd, command.main, arguments, words)
    assert not Path("predictions").exists()


def test_folders_of_folders_keep_names_apart(place):
    for name in ("a", "b"):
        (place / "deep" / name).mkdir(parents=True)
        shutil.copy(place / "data" / "img" / "000.png", place / "deep" / name)
    for _ in range(2):  # what was written is no picture of the next call
        assert command.main(["deep", "--recursive", "--run", "runs/r", "--out-dir", "deep/out"]) == 0
        assert len(list(Path("deep/out").rglob("*_overlay.jpg"))) == 2
    assert Path("deep/out/a/000.png").is_file() and Path("deep/out/b/000.png").is_file()


def test_a_search_is_no_network_to_predict_by(place, capfd, monkeypatch):
    info = json.loads(Path("runs/r/run.json").read_text())
    shutil.copytree("runs/r", "runs/s")
    Path("runs/s/run.json").write_text(json.dumps({**info, "verb": "search"}))
    fails(capfd, command.main, ["data/img", "--run", "runs/s"], ["runs/s", "a run of search"])
    shutil.rmtree("runs/s")


# ---- from Python


class Slope(nn.Module):
    """Scores that depend on the brightness of a pixel alone, at half size."""

    def forward(self, x):
        mean = x.mean(1, keepdim=True)[:, :, ::2, ::2]
        return torch.cat([-mean, mean, 0.1 * mean], 1)


def test_pictures_of_any_size(place, program):
    predictors = [sparsemask.open_predictor("runs/r")]
    predictors.append(Predictor(program.run, Description.from_entries(program.entries, "net.pt2")))
    for size, predictor in itertools.product([(1, 1), (1, 9), (33, 20), (64, 301)], predictors):
        prediction = sparsemask.predict(predictor, picture(*size))
        assert prediction.labels.shape == size and prediction.labels.dtype == np.uint8
        assert prediction.overlay.shape == prediction.colours.shape == (*size, 3)
        assert prediction.probabilities.shape == (4, *size)
        assert abs(sum(prediction.shares.values()) - 1) < 1e-6


def test_kinds_of_pictures_are_the_same_picture(tmp_path):
    image = picture(20, 31)
    Image.fromarray(image).save(tmp_path / "a.png")
    same = [
        tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), image, image / 255.0,
        torch.from_numpy(image).permute(2, 0, 1), np.dstack([image, np.full((20, 31), 7, np.uint8)]),
    ]  # fmt: skip
    first = sparsemask.predict(Slope(), same[0]).labels
    assert set(np.unique(first)) <= {0, 1, 2} and len(np.unique(first)) > 1
    for other in same[1:]:
        assert np.array_equal(sparsemask.predict(Slope(), other).labels, first)
    grey = image[..., 0]
    assert np.array_equal(as_rgb(grey), as_rgb(Image.fromarray(grey)))
    turned = Image.fromarray(image)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    assert sparsemask.predict(Slope(), tmp_path / "turned.png").labels.shape == (31, 20)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.int32) - 1, np.full((4, 4), 3.0),
              np.zeros((0, 4, 3)), torch.zeros(4, 5, 6), np.array([["a"]])]
)  # fmt: skip
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(UseError, match="no picture"):
        sparsemask.predict(Slope(), wrong)


def test_large_pictures_can_be_reduced():
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 45:] = 255
    seen = []

    def network(x):
        seen.append(tuple(x.shape))
        return Slope()(x)

    predictor = Predictor(network, Description(("dark", "bright", "other")))
    prediction = predictor(image, longest=30)
    assert seen == [(1, 3, 20, 30)] and prediction.labels.shape == (60, 90)
    assert (prediction.labels[:, :40] == 0).all() and (prediction.labels[:, 50:] == 1).all()


def test_networks_of_one_size_take_pictures_of_every_size():
    seen = []

    def network(x):
        seen.append(tuple(x.shape))
        return Slope()(x)

    predictor = Predictor(network, Description(("dark", "bright", "other"), input_shape=(1, 3, 40, 44)))
    for size in ((40, 44), (90, 50), (50, 90), (3, 3), (30, 60)):
        image = np.zeros((*size, 3), np.uint8)
        image[:, size[1] // 2 :] = 255
        labels = predictor(image).labels
        assert labels.shape == size and labels[0, 0] == 0 and labels[-1, -1] == 1
    assert set(seen) == {(1, 3, 40, 44)}


@pytest.mark.slow
def test_files_of_one_size_take_pictures_of_every_size(place):
    assert export.main(["--run", "runs/r", "--out", "fixed.pt2", "--fixed", "--repeats", "0"]) == 0
    shape = exporting.read_exported("fixed.pt2").shape
    assert shape == (1, 3, 40, 43)
    exact = sparsemask.predict("fixed.pt2", "data/img/009.png")
    assert np.allclose(exact.probabilities, sparsemask.predict("runs/r", "data/img/009.png").probabilities, atol=1e-4)
    for size in ((90, 50), (50, 90), (3, 3)):
        assert sparsemask.predict("fixed.pt2", picture(*size)).labels.shape == size


def test_averages_over_views(place):
    image = picture(30, 40)
    plain = sparsemask.predict("runs/r", image)
    mirrored = sparsemask.predict("runs/r", image[:, ::-1])
    both = sparsemask.predict("runs/r", image, flips=True)
    expected = (plain.probabilities + mirrored.probabilities[:, :, ::-1]) / 2
    assert np.allclose(both.probabilities, expected, atol=2e-3)


def test_networks_that_do_not_fit_their_description(place):
    with pytest.raises(UseError, match="3 channels, and its description has 2"):
        Predictor(Slope(), Description(("a", "b")))(picture(8, 8))
    with pytest.raises(UseError, match="no output for every pixel"):
        sparsemask.predict(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)), picture(8, 8))
    with pytest.raises(UseError, match="2 class names for 4 classes"):
        sparsemask.open_predictor("net.safetensors", classes=["a", "b"])


def test_maps_are_grey_and_their_overlay_follows_the_probability(tmp_path, monkeypatch):
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "maps"
    make_saliency(root, 8, size=40)
    with without_images():
        flags = ["--task", "saliency", "--data_root", str(root), *SMALL, "--backbone_name", "small_pyramid"]
        assert train.main(["--mask_path", "dense", *flags, "--max_iter", "2", "--name", "r"]) == 0
    entries = metadata("runs/r/network.safetensors")
    assert entries["output"] == "probability" and entries["classes"] == ["background", "salient"]
    assert evaluation.main(["--run", "runs/r", "--out", "evaluated"]) == 0
    pictures = sorted(root.rglob("*.jpg"))
    assert command.main([*map(str, pictures), "--run", "runs/r"]) == 0
    for file in Path("evaluated").glob("*.png"):
        assert np.array_equal(np.array(Image.open(file)), np.array(Image.open(Path("predictions") / file.name)))
    prediction = sparsemask.predict("runs/r", pictures[0])
    assert prediction.probabilities.shape == (1, *prediction.labels.shape)
    assert np.array_equal(prediction.labels, prediction.probabilities[0] >= 0.5)


# ---- what files say of themselves


def test_files_explain_themselves(place, program):
    said = [metadata("net.safetensors"), metadata("runs/r/network.safetensors")]
    said.append(program.entries)
    for entries in said:
        assert entries["task"] == "segmentation" and entries["output"] == "classes" and entries["classes"] == NAMES
        assert entries["mean"] == pytest.approx([0.485, 0.456, 0.406]) and len(entries["std"]) == 3
        assert entries["input_size"] == 33 and len(entries["palette"]) == 4
    assert said[2]["input_shape"] == [None, 3, None, None]


def test_descriptions_survive_their_entries():
    description = Description(("a", "b"), palette=np.array([[1, 2, 3], [4, 5, 6]], np.uint8), input_size=7, task="t")
    again = Description.from_entries(json.loads(json.dumps(description.entries())), "x")
    assert again == description and np.array_equal(again.palette, description.palette)
    assert Description.from_entries({"space": "connectivity"}, "x") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output", "code"), ("classes", []), ("classes", ["a"] * 256), ("classes", "ab"), ("classes", ["a\nb", "c"]),
        ("palette", [[0, 0, 0]]), ("palette", [[0, 0, 0], [0, 0, 256]]), ("palette", "x"), ("mean", [0.1]),
        ("std", [0, 1, 1]), ("std", [float("nan")] * 3), ("input_size", -1), ("input_size", 1 << 40),
        ("input_size", True), ("input_shape", [1, 2]), ("input_shape", [1, 3, 1 << 30, 5]),
    ],
)  # fmt: skip
def test_entries_of_strangers_are_checked(name, value):
    entries = {**Description(("a", "b")).entries(), name: value}
    with pytest.raises(UseError, match=f"file.x: its description says {name}"):
        Description.from_entries(entries, "file.x")


def run_block(number: int) -> dict:
    """Run one of the page's two blocks of Python; returns its names."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    space: dict = {}
    exec(compile(blocks[number], str(DOCS), "exec"), space)
    return space


def test_the_page_runs(place, capsys):
    shutil.copy("data/img/009.png", "picture.jpg")  # the content says the format
    space = run_block(0)
    assert space["overlay"].shape == (40, 43, 3) and space["confidence"].shape == space["labels"].shape
    assert "background" in capsys.readouterr().out


# ---- programs are looked through before they are read


def changed(source: str, target: str, change) -> str:
    """A copy of an archive with `change(name, content)` in place of every file's content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info, change(info.filename, old.read(info.filename)))
    return target


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_programs_that_would_run_code_are_refused(place):
    bomb = pickle.dumps(_Bomb())

    def with_pickled_weights(name, content):
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            for payload in config["config"].values():
                payload["use_pickle"] = True
            return json.dumps(config)
        return bomb if "/data/weights/weight_" in name else content

    def with_pickled_inputs(name, content):
        return bomb if "/data/sample_inputs/" in name else content

    def with_code_for_a_size(name, content):
        if "/models/" not in name or not name.endswith(".json"):
            return content
        text = content.decode()
        assert '"expr_str"' in text
        evil = "__import__('pathlib').Path('ran').touch()"
        head, _, tail = text.partition('"expr_str": "')
        return head + f'"expr_str": "{evil}"' + tail[tail.index('"') + 1 :]

    cases = {
        "weights.pt2": with_pickled_weights, "inputs.pt2": with_pickled_inputs, "sizes.pt2": with_code_for_a_size
    }  # fmt: skip
    for target, change in cases.items():
        with pytest.raises(UseError, match=f"{target}: refused"):
            exporting.read_exported(changed("net.pt2", target, change))
        assert not Path("ran").exists()
    exporting.reading.check_program(changed("net.pt2", "same.pt2", lambda name, content: content))


@pytest.mark.parametrize(
    ("formula", "plain"),
    [
        ("s77", True), ("Integer(3)", True), ("True", True), ("((s0 - 1)//2) + 1", True), ("-(s0 % 4) < 3.5", True),
        ("FloorDiv(Add(Symbol('s54', positive=True, integer=True), Integer(-1)), Integer(2))", True),
        ("__import__('os')", False), ("s0.__class__", False), ("exec(s0)", False), ("Add('exec(1)')", False),
        ("Symbol('a b')", False), ("Symbol(s0, 'x')", False), ("[s0]", False), ("lambda: s0", False),
        ("s0 if s1 else s2", False),
        ("(", False), ("", False), ("S0", False), ("f'{s0}'", False), ("Integer('1')", False), ("s0[0]", False),
    ],
)  # fmt: skip
def test_formulas_of_sizes_are_arithmetic(formula, plain):
    assert exporting.reading.is_arithmetic(formula) == plain


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors", ".pth"])
def test_damaged_files_are_one_line(place, capfd, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    Path(f"bad{suffix}").write_bytes(b"nothing of the kind" * 50)
    fails(capfd, command.main, ["data/img", "--weights", f"bad{suffix}"], [f"bad{suffix}"])


# ---- colours of classes


def test_colours_are_told_apart():
    for count in (2, 8, 12, 21):
        for dark in (True, False):
            assert least_distance(contrasting(count, dark)) > 25
    assert len(np.unique(contrasting(255), axis=0)) == 255
    assert np.array_equal(contrasting(21)[:8], contrasting(8))  # more classes leave colours as they are


def test_whose_colours_are_taken(tmp_path):
    assert np.array_equal(class_palette(VOC_CLASSES), VOC_COLOURS[:21])
    own = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    assert np.array_equal(class_palette(["a", "b", "c"], own), own)
    assert not np.array_equal(class_palette(["a", "b", "c"], own[:2]), own)
    ramp = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    assert least_distance(class_palette([f"c{k}" for k in range(12)], ramp)) > 25
    # VOC's greens of classes 2 and 10 are too near each other for data of one's own.
    assert least_distance(class_palette([f"c{k}" for k in range(12)], VOC_COLOURS)) > 25
    assert class_palette(["background", "b"])[0].tolist() == [0, 0, 0]
    assert class_palette(["road", "b"])[0].tolist() != [0, 0, 0]
    label = Image.fromarray(np.zeros((3, 3), np.uint8))
    label.save(tmp_path / "grey.png")
    label.putpalette(own.tobytes())
    label.save(tmp_path / "own.png")
    assert file_palette(tmp_path / "grey.png") is None
    assert np.array_equal(file_palette(tmp_path / "own.png")[:3], own)
