"""Search, prune, retrain and evaluate from Python, on pictures that a program holds; callbacks; early stopping."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sparsemask
from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from sparsemask import UseError, api
from sparsemask.engine.records import read_rows
from sparsemask.report.origin import reproduce
from sparsemask.report.run_data import read_run
from sparsemask.retrain import eval as eval_command
from sparsemask.retrain import export as export_command
from sparsemask.retrain import train as train_command
from sparsemask.runs import Run
from sparsemask.spaces import backbones
from sparsemask.tasks.segmentation.given import as_label, given_task
from sparsemask.testing.tasks import TaskContract, labelled_options
from tiny import ROOT, data_flags, make_data
from without_images import without_images

CLASSES = ["ground", "brick", "leaf", "sky"]
SMALL = {
    "depth": 8, "crop_size": 33, "batch_size": 4, "bn_reestimate": 2, "checkpoint_interval": 3, "eval_interval": 5,
    "log_interval": 1, "lr": 0.01, "last_layer_lr_mult": 1.0, "backbone_name": "small_pyramid",
}  # fmt: skip


# What a mask says of its search.
WITHOUT_NETWORK = {name: value for name, value in SMALL.items() if name not in ("depth", "backbone_name")}


class Pictures:
    """A data set as torch's are: a length, and pairs by index."""

    def __init__(self, folder: Path, listed: str):
        self.folder, self.names = folder, (folder / listed).read_text().split()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        image = Image.open(self.folder / "img" / f"{self.names[index]}.png")
        label = np.array(Image.open(self.folder / "gt" / f"{self.names[index]}.png"))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, torch.from_numpy(label)


class Endless(torch.utils.data.IterableDataset):
    """Pictures one after another."""

    def __iter__(self):
        return iter([])


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with pictures, a small encoder known, no drawings."""
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def given(place) -> dict:
    """The pictures as they are given to functions."""
    return {
        "train": Pictures(place / "data", "train.txt"),
        "val": Pictures(place / "data", "val.txt"),
        "classes": CLASSES,
    }


def test_from_pictures_to_predictions(place, given, capsys):
    steps = []
    with without_images():
        found = api.search(**given, **SMALL, max_iter=5, name="s", callbacks=[lambda told: steps.append(told)])
        mask = api.prune(found, out="mask.npy", thres=0.001)
        small = api.retrain(
            mask, **{k: v for k, v in SMALL.items() if k not in ("depth", "backbone_name")}, max_iter=5, name="r"
        )
    assert [told.step for told in steps] == [1, 2, 3, 4, 5] and {told.steps for told in steps} == {5}
    assert [told.validation is not None for told in steps] == [False] * 4 + [True]
    assert steps[-1].validation["miou"] == pytest.approx(found.metrics["miou"]) and "loss" in steps[0].metrics
    assert small.folder == Path("runs/r") and small.report == Path("runs/r/report.html")
    scores = sparsemask.evaluate(small)
    assert scores["miou"] == pytest.approx(small.metrics["miou"], abs=1e-6) and list(scores["iou"]) == CLASSES
    again = api.evaluate(small.folder / "network.safetensors", val=given["val"])
    assert again["miou"] == pytest.approx(scores["miou"], abs=1e-6)
    prediction = sparsemask.predict(small.folder, given["val"][0][0])
    assert prediction.classes == tuple(CLASSES) and prediction.labels.shape == (40, 43)
    assert small.network().training is False


def test_given_pictures_train_as_files_do(place, given):
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    with without_images():
        assert (
            train_command.main(
                ["--mask_path", "dense", *data_flags(Path("data")), *flags, "--max_iter", "4", "--name", "f"]
            )
            == 0
        )
        api.retrain("dense", **given, **SMALL, max_iter=4, name="g")
    files, pictures = (read_rows(Run(f"runs/{name}").metrics) for name in "fg")
    assert [row["loss"] for row in files] == [row["loss"] for row in pictures]
    assert files[-1]["val_miou"] == pictures[-1]["val_miou"]


def test_files_serve_as_well(place):
    flags = {
        "im_path": Path("data/img"),
        "gt_path": "data/gt",
        "training_list": "data/train.txt",
        "eval_list": "data/val.txt",
    }
    with without_images():
        made = api.retrain("dense", **flags, n_class=4, n_worker=0, **SMALL, max_iter=2, name="r")
    assert eval_command.main(["--run", str(made.folder)]) == 0
    assert api.evaluate(made)["miou"] == pytest.approx(made.metrics["miou"], abs=1e-6)


def test_a_callback_ends_the_training(place, given, capfd):
    with without_images():
        made = api.retrain("dense", **given, **SMALL, max_iter=50, name="r", callbacks=[lambda told: told.step == 3])
    assert "training ended after step 3 of 50: as a callback wished" in capfd.readouterr().err
    run = Run(made.folder)
    assert run.info()["state"] == "finished" and "miou" in made.metrics
    assert torch.load(run.last, weights_only=True)["step"] == 3


def test_patience_ends_where_nothing_gets_better(place, given, capfd):
    still = {**SMALL, "lr": 0.0, "eval_interval": 2, "bn_reestimate": 0}
    with without_images():
        made = api.retrain("dense", **given, **still, max_iter=50, name="r", patience=3, freeze_bn=True)
        error = capfd.readouterr().err
        assert "training ended after step 8 of 50: 3 validations of miou without a better one" in error
        # Resumed, it is at its end: nothing is trained.
        assert train_command.main(["--resume", str(made.folder), "--trust", task_of(made)]) == 0
    assert torch.load(Run(made.folder).last, weights_only=True)["step"] == 8


def task_of(made: api.RunResult) -> str:
    return re.search(r"^task: (\S+)$", Run(made.folder).config.read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda given: api.search(train=given["train"]), "train, val and classes go together"),
        (lambda given: api.search(classes=CLASSES), "classes: are of given pictures"),
        (lambda given: api.search(**{**given, "val": []}), "0 validation pictures"),
        (lambda given: api.search(**{**given, "classes": "ab"}), "names of 1 to 255 classes"),
        (lambda given: api.search(**{**given, "classes": CLASSES[:2]}), "beyond the 2 classes"),
        (lambda given: api.search(**given, max_itr=3), "did you mean '--max_iter'"),
        (lambda given: api.search(**{**given, "train": iter([])}), "train: list_iterator has no length and indices"),
        (lambda given: api.search(**{**given, "val": Endless()}), "val: Endless has no length and indices"),
        (lambda given: api.search(**{**given, "train": [given["train"][0][0]]}), "expected a pair .*found Tensor"),
        (lambda given: api.search(**{**given, "train": [{"image": 1}]}), "item 0: expected a pair .*found dict"),
        (lambda given: api.retrain("absent.npy", **given), "absent.npy"),
        (lambda given: api.prune("absent", out="m.npy"), "absent: no run here"),
        (lambda given: api.evaluate(torch.nn.Conv2d(3, 2, 1)), "val is missing"),
        (lambda given: api.evaluate("data/train.txt"), "val is missing: .*evaluate data/train.txt on"),
    ],
)
def test_wrong_calls_are_one_line(place, given, call, words):
    with pytest.raises(UseError, match=words):
        call(given)
    assert not Path("runs").exists()


class TestGivenPictures(TaskContract):
    def make_task(self, folder):
        make_data(folder / "d")
        code = given_task(Pictures(folder / "d", "train.txt"), Pictures(folder / "d", "val.txt"), CLASSES)
        return code(labelled_options(data_root="x", n_class=4))


def test_labels_of_any_kind(tmp_path):
    label = np.arange(12).reshape(3, 4)
    Image.fromarray(label.astype(np.uint8)).save(tmp_path / "a.png")
    for kind in (label, torch.from_numpy(label), Image.fromarray(label.astype(np.uint8)), tmp_path / "a.png"):
        assert np.array_equal(as_label(kind), label)
    for wrong in (label / 2, label[None], -label, label * 100, Image.new("RGB", (4, 3))):
        with pytest.raises(UseError):
            as_label(wrong)


def test_the_same_pictures_have_one_name(place, given):
    name = given_task(**given).__name__
    assert given_task(**given).__name__ == name
    assert given_task(given["val"], given["val"], CLASSES).__name__ != name


def test_exported_files_are_evaluated(place, given):
    with without_images():
        small = api.retrain("dense", **given, **SMALL, max_iter=2, name="r", callbacks=lambda told: told.step == 1)
    assert torch.load(Run(small.folder).last, weights_only=True)["step"] == 1  # a callback alone is one
    assert (
        export_command.main(["--run", "runs/r", "--out", "net.pt2", "--repeats", "1", "--trust", task_of(small)]) == 0
    )
    wanted = sparsemask.evaluate(small)["miou"]
    assert sparsemask.evaluate("net.pt2", val=given["val"])["miou"] == pytest.approx(wanted, abs=1e-5)


def test_of_a_loader_the_data_set_is_taken(place, given):
    few = {**SMALL, "max_iter": 2}
    loaders = {name: torch.utils.data.DataLoader(given[name], batch_size=1) for name in ("train", "val")}
    with without_images():
        one, other = api.search(**given, **few, name="a"), api.search(**{**given, **loaders}, **few, name="b")
    weights = [torch.load(Run(found.folder).last, weights_only=True)["model"] for found in (one, other)]
    assert weights[0] and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert sparsemask.evaluate(torch.nn.Conv2d(3, 4, 1), val=loaders["val"], classes=CLASSES)["miou"] >= 0


def test_what_comes_next_is_said_as_calls(place, given, capsys):
    few = {**SMALL, "max_iter": 2, "exp_path": "my runs"}
    with without_images():
        found = api.search(**given, **few, name="s")
        to_prune = following(capsys)
        assert to_prune == "sparsemask.api.prune('my runs/s', thres=0.001, out='mask.npy')"
        eval(to_prune)
        to_retrain = following(capsys)
        assert to_retrain == "sparsemask.api.retrain('mask.npy', exp_path='my runs')"
        assert {to_prune, to_retrain} <= shown(found)
        made = eval(to_retrain.replace(")", ", max_iter=2, crop_size=33, batch_size=4, n_worker=0, name='r')"))
        said = capsys.readouterr().out
        assert "as in my runs/s: the program's pictures --n_class 4" in said and "api.given" not in said
        (to_evaluate,) = re.findall(r"^next: (.*)$", said, re.MULTILINE)
        scores = eval(to_evaluate)
        assert scores["miou"] == pytest.approx(made.metrics["miou"], abs=1e-6) and to_evaluate in shown(made)
        (again,) = (line for line in shown(made) if "config=" in line)
        assert eval(again, globals(), given).folder == Path("my runs/again")


def following(capsys) -> str:
    return re.findall(r"^next: (.*)$", capsys.readouterr().out, re.MULTILINE)[-1]


def shown(made: api.RunResult) -> set[str]:
    """The calls of a report."""
    page = reproduce(read_run(Run(made.folder)))
    return {html.unescape(text) for text in re.findall(r"(sparsemask\.api\.[^<]*)<", page)}


def test_the_page_runs(place, given, monkeypatch, capsys):
    """docs/python.md as it stands, in its order, with fewer steps and a small network."""
    page = (ROOT / "docs" / "python.md").read_text()
    space = {"train": given["train"], "val": given["val"]}
    few = {**SMALL, "max_iter": 5}
    for name in ("search", "retrain"):
        call = getattr(api, name)
        extra = few if name == "search" else {k: few[k] for k in (*WITHOUT_NETWORK, "max_iter")}
        monkeypatch.setattr(api, name, lambda *a, call=call, extra=extra, **k: call(*a, **{**k, **extra}))
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    with without_images():
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), space)
    assert len(space["history"]) == 5 and space["prediction"].labels.shape == (40, 43)
    assert space["elsewhere"]["miou"] == pytest.approx(sparsemask.evaluate(space["small"])["miou"], abs=1e-6)
    assert space["scores"].shape == (1, 4, 64, 96) and len(space["features"]) > 1
    assert "5/5 after" in capsys.readouterr().out


def test_a_run_on_given_pictures_goes_on(place, given):
    with without_images():
        whole = api.retrain("dense", **given, **SMALL, max_iter=5, name="whole")
        api.retrain("dense", **given, **SMALL, max_iter=5, name="part", callbacks=[lambda told: told.step == 3])
        again = api.retrain("dense", **given, resume="runs/part")
    assert again.metrics == whole.metrics
    states = [torch.load(Run(f"runs/{name}").last, weights_only=True)["model"] for name in ("whole", "part")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
