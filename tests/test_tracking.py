"""Trackers: what they are told, what they may break, and each known one against a stand-in of its package."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from small_classes import write_npz
from small_pictures import make_folder
from sparsemask import UseError, plugins
from sparsemask.engine.records import read_rows
from sparsemask.retrain import train as train_command
from sparsemask.runs import Run
from sparsemask.search import run as search_command
from sparsemask.spaces import backbones
from sparsemask.sparse import backend
from sparsemask.tracking import Histogram, TrackedRun, Tracker
from sparsemask.tracking.names import KNOWN, check
from sparsemask.tracking.trackers import Trackers, histogram
from tiny import MASKS, ROOT, SMALL, borrow_kernels, data_flags, fails, make_data
from without_images import without_images

FEW = [*SMALL, "--backbone_name", "small_pyramid", "--max_iter", "6", "--eval_interval", "3"]


class Notebook(Tracker):
    """Keeps what it is told, of all runs."""

    told: list[tuple[str, Any, Any]] = []

    def start(self, run: TrackedRun) -> str:
        self.told.append(("start", run, None))
        return run.known_as or f"note-{run.name}"

    def scalars(self, step, values):
        self.told.append(("scalars", step, dict(values)))

    def images(self, step, images):
        self.told.append(("images", step, dict(images)))

    def histograms(self, step, histograms):
        self.told.append(("histograms", step, dict(histograms)))

    def finish(self, complete):
        self.told.append(("finish", complete, None))


class Breaks(Notebook):
    """Fails at the step it is told to."""

    at = 0

    def scalars(self, step, values):
        if step >= self.at:
            raise ConnectionError("the server\nis gone")
        super().scalars(step, values)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    monkeypatch.setattr(Notebook, "told", [])
    with plugins.trusting([]):
        for kind in (Notebook, Breaks):
            plugins.trust(f"test_tracking:{kind.__name__}", kind)
        yield tmp_path


def told(what: str) -> list[tuple[Any, Any]]:
    return [(first, second) for kind, first, second in Notebook.told if kind == what]


def retrain(*more: str) -> int:
    with without_images():
        return train_command.main(["--mask_path", "dense", *data_flags(Path("data")), *FEW, *more])


def test_a_search_tells_metrics_weights_masks_and_pictures(place):
    argv = ["--search", *data_flags(Path("data")), *FEW, *MASKS, "--name", "s"]
    assert search_command.main([*argv, "--track", "tensorboard,test_tracking:Notebook", "--track_samples", "1"]) == 0
    run = Run("runs/s")
    ((tracked, _),) = told("start")
    assert (tracked.name, tracked.verb, tracked.step, tracked.known_as) == ("s", "search", 0, None)
    assert tracked.flags["max_iter"] == 6 and tracked.flags["track"].startswith("tensorboard,")
    rows = read_rows(run.metrics)
    assert [step for step, _ in told("scalars")] == [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, (_, values) in zip(rows, told("scalars"), strict=True):
        numbers = {name: value for name, value in row.items() if name != "step" and value is not None}
        assert values == {name: pytest.approx(float(value)) for name, value in numbers.items()}
    spreads = dict(told("histograms"))
    assert sorted(spreads) == [3, 6]
    state = torch.load(run.last, weights_only=True)["model"]
    for name, spread in spreads[6].items():
        if name.startswith("weights/"):
            values = state[name.removeprefix("weights/")].double().numpy()
            assert spread.counts.sum() == values.size and spread.total == pytest.approx(values.sum(), abs=1e-4)
    last = [row for row in map(json.loads, run.history.read_text().splitlines()) if row["step"] == 6][-1]
    assert spreads[6]["masks/weights"].counts.sum() == len(last["weights"])
    # Samples at the first validation, at the end every image that the run has.
    (first, samples), (end, images) = told("images")
    assert (first, list(samples)) == (3, ["samples"]) and end == 6
    assert set(images) == {path.stem for path in run.pictures.glob("*.png")} >= {"samples", "weights", "architecture"}
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images.values())
    assert told("finish") == [(True, None)]
    assert run.info()["trackers"] == {"test_tracking:Notebook": "note-s"}

    found = events(run.tensorboard)
    assert {"loss", "samples", "architecture", "masks/weights"} <= set(found) and "configuration/text_summary" in found


OTHERS = {
    "hinge": "--arch resnet8 --data_root classes --batch_size 10 --schedule constant --warmup 0 --sparse 0.5 "
    "--stop_limit 0 --target 0.3",
    "smsr": "--hr_path pictures --n_feats 8 --n_modules 2 --patch_size 8 --batch_size 2 --test_every 4 --keep 0.5",
}


@pytest.mark.parametrize("space", OTHERS)
def test_other_spaces_tell_the_same_things(place, monkeypatch, space):
    write_npz(place / "classes")
    make_folder(place / "pictures", 4, (32, 40))
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(place / "home")))
    few = "--n_worker 0 --log_interval 1 --lr 0.01 --max_iter 4 --eval_interval 2 --name s --track_samples 1"
    with without_images(), backend("reference"):
        argv = ["--search", "--space", space, *OTHERS[space].split(), *few.split(), "--track", "test_tracking:Notebook"]
        assert search_command.main(argv) == 0
    rows = read_rows(Run("runs/s").metrics)
    assert [step for step, _ in told("scalars")] == [row["step"] for row in rows]
    spreads = told("histograms")
    assert spreads and all(name.startswith(("weights/", "masks/")) for _, found in spreads for name in found)
    assert ("masks/kept" in spreads[-1][1]) is (space == "hinge") and told("finish") == [(True, None)]


def events(folder: Path) -> dict[str, list[int]]:
    """Steps by tag in the event files, read by their format: length, checksum, record, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[int]] = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_weights_are_the_same_whoever_is_told(place):
    assert retrain("--name", "quiet", "--track", "none") == 0
    assert retrain("--name", "told", "--track", "tensorboard,test_tracking:Notebook", "--track_samples", "1") == 0
    quiet, loud = (torch.load(Run(f"runs/{name}").last, weights_only=True)["model"] for name in ("quiet", "told"))
    assert all(torch.equal(quiet[name], loud[name]) for name in quiet)
    assert not Run("runs/quiet").tensorboard.exists() and "trackers" not in Run("runs/quiet").info()


def test_a_tracker_that_fails_is_left_behind(place, monkeypatch, capfd):
    monkeypatch.setattr(Breaks, "at", 3)
    assert retrain("--name", "r", "--track", "test_tracking:Breaks,test_tracking:Notebook") == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "tracked" in line]
    assert warnings == [
        "note: no longer tracked by test_tracking:Breaks (ConnectionError: the server is gone); the run goes on, its "
        "folder holds all"
    ]
    assert [step for step, _ in told("scalars")] == [1, 1, 2, 2, 3, 4, 5, 6]  # the other is told all
    assert told("finish") == [(False, None), (True, None)]
    assert Run("runs/r").info()["state"] == "finished"


def test_a_resumed_run_goes_on_as_the_same(place, monkeypatch):
    from sparsemask.engine import loop

    class Killed(BaseException):
        pass

    step = loop.Fit.train_step

    def killed(self, parts):
        if self.step == 4:
            raise Killed
        return step(self, parts)

    monkeypatch.setattr(loop.Fit, "train_step", killed)
    with pytest.raises(Killed):
        retrain("--name", "r", "--track", "tensorboard,test_tracking:Notebook")
    assert told("finish") == [(False, None)]
    monkeypatch.setattr(loop.Fit, "train_step", step)
    Notebook.told.clear()
    with without_images():
        assert train_command.main(["--resume", "runs/r", "--trust", "test_tracking:Notebook"]) == 0
    ((tracked, _),) = told("start")
    assert (tracked.step, tracked.known_as) == (3, "note-r")  # of the checkpoint
    assert [number for number, _ in told("scalars")] == [4, 5, 6]
    # TensorBoard shows of a tag what the newest file has after its purge; the first file had step 4.
    assert events(Run("runs/r").tensorboard)["loss"] == [1, 2, 3, 4, 4, 5, 6]


def test_a_run_is_resumed_without_its_tracker(place, monkeypatch, capfd):
    assert retrain("--name", "r", "--track", "test_tracking:Notebook") == 0

    def refuse(self, run):
        raise ConnectionError("no network")

    monkeypatch.setattr(Notebook, "start", refuse)
    with without_images():
        assert train_command.main(["--resume", "runs/r", "--trust", "test_tracking:Notebook"]) == 0
        assert "no longer tracked by test_tracking:Notebook (ConnectionError: no network)" in capfd.readouterr().err
        assert train_command.main(["--resume", "runs/r", "--track", "none"]) == 0
    assert "tracked" not in capfd.readouterr().err
    # One that begins says so before anything is left.
    fails(capfd, retrain_main, ["--name", "new"], ["--track test_tracking:Notebook: ConnectionError: no network"])
    assert not Path("runs/new").exists()


def retrain_main(argv: list[str]) -> int:
    return retrain(*argv, "--track", "tensorboard,test_tracking:Notebook")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("wand", ["--track wand", "did you mean 'wandb'?", "package.module:Tracker"]),
        ("tensorboard,none", ["--track"]),
        ("test_tracking:Absent", ["test_tracking:Absent", "cannot be imported"]),
        ("builtins:dict", ["builtins:dict", "gives dict, not a sparsemask.tracking.Tracker"]),
    ],
)
def test_what_is_no_tracker_is_refused(place, capfd, names, words):
    main = lambda argv: retrain(*argv)
    fails(capfd, main, ["--name", "r", "--track", names], words)
    assert not Path("runs/r").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_a_missing_package_is_said_before_anything_is_made(place, capfd, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *a: None if module == name else find(module, *a))
    main = lambda argv: retrain(*argv)
    fails(capfd, main, ["--name", "r", "--track", name], [f"--track {name}", f"pip install 'sparsemask[{name}]'"])
    assert not Path("runs").exists()


def test_each_extra_stands_in_the_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for known in KNOWN.values():
        if known.extra:
            assert known.module in extras[known.extra]
    assert all(known.extra in extras["all"] for known in KNOWN.values() if known.extra)


def test_the_page_s_own_tracker_works(place):
    page = (ROOT / "docs" / "tracking.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    Path("my_tracker.py").write_text(code)
    line = page.rstrip().splitlines()[-2]
    assert line.startswith("python retrain/train.py --mask_path dense ")
    words = line.split()[4:]
    names = ["--track", words[words.index("--track") + 1], "--name", "r"]
    try:
        with plugins.trusting(names):
            assert retrain(*names) == 0
    finally:
        sys.modules.pop("my_tracker", None)
    begun, *rest = Path("diary.txt").read_text().splitlines()
    assert begun == "begun retrain r at step 0, lr 0.01" and [row.partition(":")[0] for row in rest] == ["3", "6", "6"]
    # A file that names it imports nothing.
    with pytest.raises(UseError, match="add --trust my_tracker:Diary"):
        check("tensorboard,my_tracker:Diary")


# ---- the known ones, against stand-ins of their packages that keep the calls


class Calls:
    """Stands for any object of a package: every call is kept, and gives such an object again."""

    def __init__(self, log: list, name: str, **answers: Any):
        self._log, self._name, self._answers = log, name, answers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self._name}.{name}"
        if full in self._answers:
            return self._answers[full]
        return Calls(self._log, full, **self._answers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._log.append((self._name, args, kwargs))
        return self._answers.get(f"{self._name}()", Calls(self._log, f"{self._name}()", **self._answers))


def tell_all(name: str, run: TrackedRun) -> dict[str, str]:
    """Everything that a tracker can be told, through the class that tells it."""
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save("masks.png")
    network = torch.nn.Linear(3, 2)
    with Trackers(name) as trackers:
        found = trackers.start(run, {name: run.known_as} if run.known_as else {})
        trackers.scalars({"step": 7, "loss": 0.5, "gone": float("nan"), "word": "x", "val kept (%)": 2})
        trackers.weights(network, {"kept": {"a": 0.25, "b": 0.75}})
        trackers.pictures([Path("masks.png"), Path("absent.png")])
    return found


RUN = dict(name="t/r", verb="retrain", flags={"lr": 0.1, "mask_path": None, "long": "x" * 900})


def test_mlflow_is_called_as_its_client_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log: list = []
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="id1"))
    answers = {"client.get_experiment_by_name()": None, "client.create_experiment()": "9", "client.create_run()": info}
    entities = types.SimpleNamespace(Param=lambda *a: ("param", *a), Metric=lambda *a: ("metric", *a))
    tracking = types.SimpleNamespace(MlflowClient=lambda: Calls(log, "client", **answers))
    for module, value in (
        ("mlflow", types.ModuleType("mlflow")),
        ("mlflow.entities", entities),
        ("mlflow.tracking", tracking),
    ):
        monkeypatch.setitem(sys.modules, module, value)
    sys.modules["mlflow"].__spec__ = importlib.util.spec_from_loader("mlflow", None)
    assert tell_all("mlflow", TrackedRun(folder=tmp_path, **RUN)) == {"mlflow": "id1"}
    calls = {name.removeprefix("client."): (args, kwargs) for name, args, kwargs in log}
    assert calls["create_experiment"] == (("sparsemask",), {}) and calls["create_run"][1]["run_name"] == "t/r"
    batches = [kwargs for name, _, kwargs in log if name == "client.log_batch"]
    assert batches[0]["params"] == [("param", "lr", "0.1"), ("param", "long", "x" * 500)]
    assert [(m[1], m[2], m[4]) for m in batches[1]["metrics"]] == [("loss", 0.5, 7), ("val kept ___", 2.0, 7)]
    (_, image), words = calls["log_image"]
    assert words == {"artifact_file": "pictures/000007/masks.png"} and image.getpixel((0, 0)) == (255, 255, 255)
    assert calls["set_terminated"][0] == ("id1", "FINISHED")
    log.clear()
    assert tell_all("mlflow", TrackedRun(folder=tmp_path, step=5, known_as="id0", **RUN)) == {"mlflow": "id0"}
    assert log[0] == ("client.update_run", ("id0",), {"status": "RUNNING"})
    assert "client.create_run" not in [name for name, *_ in log]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_are_called_as_they_want(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    log: list = []
    answers = {f"{name}.init().id": "id1", f"{name}.init().name": "t/r"}
    package = types.ModuleType(name)
    package.init = Calls(log, f"{name}.init", **answers)
    package.Image = lambda image: ("image", image.shape, int(image[0, 0, 0]))
    package.Histogram = lambda np_histogram: ("histogram", int(np_histogram[0].sum()))
    package.__spec__ = importlib.util.spec_from_loader(name, None)
    monkeypatch.setitem(sys.modules, name, package)
    found = tell_all(name, TrackedRun(folder=tmp_path, **RUN))
    assert found == {name: "id1" if name == "wandb" else "t/r"}
    (_, _, start), *rest = log
    assert start["project"] == "sparsemask" and start["name"] == "t/r" and start["config"]["lr"] == 0.1
    assert start["resume"] == (None if name == "wandb" else "never")
    logged = [args[0] for call, args, kwargs in rest if call.endswith(".log") and kwargs == {"step": 7}]
    assert logged == [
        {"loss": 0.5, "val kept (%)": 2.0},
        {"weights/weight": ("histogram", 6), "masks/kept": ("histogram", 2)},
        {"pictures/masks": ("image", (4, 6, 3), 255)},
    ]
    assert rest[-1][0] == f"{name}.init().finish"
    log.clear()
    tell_all(name, TrackedRun(folder=tmp_path, step=5, known_as="id0", **RUN))
    start = log[0][2]
    assert start["resume"] == "allow" and (start["id"] if name == "wandb" else start["name"]) == "id0"


def test_a_histogram_counts_what_is_finite():
    spread = histogram(np.array([0.0, 1.0, 1.0, np.inf, np.nan]))
    assert isinstance(spread, Histogram) and spread.counts.sum() == 3
    assert (spread.edges[0], spread.edges[-1], spread.total, spread.squares) == (0.0, 1.0, 2.0, 2.0)
    assert histogram(np.array([np.nan])) is None and histogram(np.zeros(4)).counts.sum() == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_the_package_itself_takes_it(place, name, monkeypatch):
    """Where it is installed: a whole run and its resume, without a network."""
    pytest.importorskip(name)
    for variable, value in (
        ("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db"), ("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"),
        ("TRACKIO_DIR", str(place / "trackio")), ("HF_HUB_OFFLINE", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(variable, value)
    assert retrain("--name", "r", "--track", name) == 0
    known = Run("runs/r").info()["trackers"][name]
    with without_images():
        assert train_command.main(["--resume", "runs/r"]) == 0
    assert Run("runs/r").info()["trackers"] == {name: known}
    if name == "mlflow":
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        found = client.get_run(known)
        assert found.info.status == "FINISHED" and found.data.params["max_iter"] == "6"
        assert [metric.step for metric in client.get_metric_history(known, "loss")] == [1, 2, 3, 4, 5, 6]
