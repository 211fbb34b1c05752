"""Teachers: what each task's distance to one is, and retraining and specialising with one; resumed exactly."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fake_costs import use_fake_costs
from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from small_pairs import options as stereo_options
from small_pictures import make_folder
from small_tasks import BUILD
from sparsemask import families, plugins
from sparsemask.engine import data
from sparsemask.engine.distillation import Teacher
from sparsemask.engine.records import read_rows
from sparsemask.retrain import train as train_command
from sparsemask.retrain.trained import family_of
from sparsemask.runs import Run
from sparsemask.search import run as search_command
from sparsemask.search.connectivity.one_shot import OneShotSearch
from sparsemask.spaces import backbones
from sparsemask.sparse import backend
from sparsemask.tasks import get
from sparsemask.testing.tasks import TaskContract
from tiny import SMALL, data_flags, fails, killed_at, make_data
from without_images import without_images

RETRAIN = [*SMALL, "--backbone_name", "small_pyramid", "--max_iter", "4"]
OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(3)
        self.last = torch.nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, images):
        return self.last(images)

def right():
    return Net(4)

def wrong():
    return Net(5)

def number():
    return 3

class Twice(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.interpolate(images, scale_factor=2.0)

def twice():
    return Twice()
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with pictures, a small encoder known, a module of networks, a retrained run."""
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    Path("mynet.py").write_text(OWN)
    importlib.invalidate_caches()
    sys.modules.pop("mynet", None)
    monkeypatch.setattr(plugins, "_trusted", {})
    with without_images():
        argv = [*RETRAIN, *data_flags(tmp_path / "data"), "--mask_path", "dense", "--name", "big"]
        assert train_command.main(argv) == 0
    yield tmp_path
    sys.modules.pop("mynet", None)


def losses(name: str) -> list[float]:
    return [row["loss"] for row in read_rows(Run(f"runs/{name}").metrics) if "loss" in row]


# ---- distances


@pytest.mark.parametrize("name", sorted(BUILD))
def test_every_task_has_a_distance_that_is_least_at_the_teacher(name, tmp_path):
    task = BUILD[name](tmp_path)
    contract = TaskContract()
    model = contract.make_model(task).eval()
    source = task.train_data
    sampler = data.step_sampler(source, 2, 0, 1, 0)
    inputs, target = next(iter(data.training_loader(source, sampler, 0, 0)))
    with torch.no_grad():
        answer = model(inputs)
    moved = (answer + 0.3 * torch.randn_like(answer)).requires_grad_()
    at_teacher, beside = (task.teacher_loss(output, answer, target, 4.0) for output in (answer, moved))
    assert at_teacher.ndim == 0 and float(at_teacher) == pytest.approx(0, abs=1e-3 * float(beside.detach()))
    assert float(beside.detach()) > 0
    beside.backward()
    nearer = moved.detach() - 1e-3 * moved.grad / moved.grad.norm()
    assert float(task.teacher_loss(nearer, answer, target, 4.0)) < float(beside.detach())


def test_segmentation_is_the_mean_divergence_of_labelled_pixels(tmp_path):
    task = BUILD["segmentation"](tmp_path)
    n = task.n_output
    torch.manual_seed(0)
    output, answer = torch.randn(2, n, 5, 5), torch.randn(2, n, 5, 5)
    target = torch.randint(0, n, (2, 5, 5))
    target[0, 0] = 255
    p, q = (answer / 3).softmax(1), (output / 3).softmax(1)
    pixels = 9 * (p * (p / q).log()).sum(1)[target != 255]
    found = task.teacher_loss(output, answer, target, 3.0) / task.count(target)
    torch.testing.assert_close(found, pixels.mean(), rtol=1e-4, atol=1e-5)
    # A coarser output is brought to the pictures' size, as in the loss.
    assert task.teacher_loss(output[..., :3, :3], answer, target, 3.0) > 0


def test_maps_are_the_divergence_of_yes_and_no(tmp_path):
    task = BUILD["saliency"](tmp_path)
    output, answer = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    target = torch.ones(1, 4, 4, dtype=torch.int64)
    p, q = (answer / 2).sigmoid(), (output / 2).sigmoid()
    wanted = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(task.teacher_loss(output, answer, target, 2.0) / 16, wanted, rtol=1e-4, atol=1e-5)


def test_stereo_learns_where_there_is_no_truth():
    task = get("stereo", stereo_options(sample=True))
    answer = torch.full((1, 4, 4), 7.0)
    target = task.train_data.sample(0, np.random.default_rng(0))[1][:, :4, :4].clone()
    output = answer.clone()
    output[0, 0, 0] += 3
    count = task.count(target)
    assert float(task.teacher_loss(output, answer, target, 4.0)) == pytest.approx(2.5 / 16 * count)
    heads = [output, answer, output]
    assert float(task.teacher_loss(heads, answer, target, 4.0)) == pytest.approx((0.5 + 1) * 2.5 / 16 * count)


# ---- verbs


def test_retraining_learns_from_a_run_and_resumes_exactly(place, capsys):
    flags = [*RETRAIN, *data_flags(place / "data"), "--mask_path", "sparsemask-voc", "--max_iter", "5"]
    flags = [word if word != "sparsemask-voc" else "random-6" for word in flags]
    taught = [*flags, "--teacher", "runs/big", "--distill", "0.7", "--temperature", "2"]
    with without_images():
        assert train_command.main([*taught, "--name", "whole"]) == 0
        said = capsys.readouterr().out
        assert f"teacher: {place}/runs/big/network.safetensors, weight 0.7" in said
        for name, more in (("alone", []), ("none", ["--teacher", "runs/big", "--distill", "0"])):
            assert train_command.main([*flags, *more, "--name", name]) == 0
        assert losses("alone") == losses("none") != losses("whole")
        argv = [*taught, "--name", "part"]

        def stop(told) -> None:
            if told.step == 4:
                raise RuntimeError("pulled the plug")

        with pytest.raises(RuntimeError, match="plug"), plugins.trusting(argv):
            parser, _ = train_command.read(argv)
            families.train(family_of("connectivity"), parser, argv, [stop])
        shutil.move("runs/big", "runs/elsewhere")
        fails_with = train_command.main(["--resume", "runs/part"])
        assert fails_with == 2 and "teacher is gone" in capsys.readouterr().err
        shutil.move("runs/elsewhere", "runs/big")
        assert train_command.main(["--resume", "runs/part"]) == 0
    ends = [torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True) for name in ("whole", "part")]
    assert all(torch.equal(ends[0]["model"][key], ends[1]["model"][key]) for key in ends[0]["model"])
    assert ends[0]["teacher"]["kind"] == "network" and not any("last." in key for key in ends[0]["model"])
    alone = torch.load("runs/alone/checkpoints/last.pt", weights_only=True)
    assert "teacher" not in alone and alone["model"].keys() == ends[0]["model"].keys()


SEARCHES = {
    "published": [],
    "latency": ["--budget_ms", "14"],
    "one-shot": ["--method", "one-shot", "--depth", "16", "--candidates", "4", "--tune_steps", "1", "--finalists", "0",
                 "--front_workers", "1"],
}  # fmt: skip


def search_resumed_exactly(flags: list[str], taught: list[str]) -> dict[str, dict]:
    """Search with a teacher, without one, with one of no weight, and killed and resumed; returns the checkpoints."""
    for name, more in (("whole", taught), ("alone", []), ("none", [*taught, "--distill", "0"])):
        assert search_command.main([*flags, *more, "--name", name]) == 0
    assert losses("alone") == losses("none") != losses("whole")
    with killed_at(4):
        search_command.main([*flags, *taught, "--name", "part"])
    trust = ["--trust", taught[1]] if ":" in taught[1] else []
    assert search_command.main(["--resume", "runs/part", *trust]) == 0
    ends = {
        name: torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True) for name in ("whole", "part", "alone")
    }
    assert all(torch.equal(value, ends["part"]["model"][key]) for key, value in ends["whole"]["model"].items())
    assert losses("part") == losses("whole")
    assert "teacher" not in ends["alone"] and ends["alone"]["model"].keys() == ends["whole"]["model"].keys()
    return ends


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_learns_from_a_run_and_resumes_exactly(place, monkeypatch, capsys, method):
    use_fake_costs(monkeypatch, 4)
    argv = ["--search", *RETRAIN, *data_flags(place / "data"), "--max_iter", "5", *SEARCHES[method]]
    with without_images():
        ends = search_resumed_exactly(argv, ["--teacher", "runs/big", "--distill", "0.7"])
        assert f"teacher: {place}/runs/big/network.safetensors, weight 0.7" in capsys.readouterr().out
    assert ends["whole"]["teacher"]["what"] == str((place / "runs/big/network.safetensors").resolve())


def test_a_search_of_fine_grained_masks_learns_from_a_teacher(place):
    make_folder(place / "photos", 4, (32, 40))
    flags = ["--search", "--space", "smsr", "--hr_path", "photos", "--n_feats", "8", "--n_modules", "2", "--max_iter"]
    flags += ["5", "--patch_size", "8", "--batch_size", "2", "--n_worker", "0", "--checkpoint_interval", "2"]
    with without_images(), backend("reference"):
        search_resumed_exactly([*flags, "--log_interval", "1"], ["--teacher", "mynet:twice"])


def test_decoders_of_a_step_share_the_teachers_answer():
    """The one-shot loss is the mean of the decoders' mixed losses, the teacher being asked once."""
    asked = []

    class Network(torch.nn.Module):
        def forward(self, x, mask=None):
            return x * (1 if mask is None else mask)

    class Answers(torch.nn.Module):
        def forward(self, x):
            asked.append(x)
            return 2 * x

    class Plain:
        loss = staticmethod(lambda output, target: (output - target).square().sum())
        teacher_loss = staticmethod(lambda output, answer, target, temperature: (output - answer).square().sum())

    family = SimpleNamespace(masks_a_step=3)
    method = OneShotSearch(SimpleNamespace(run=SimpleNamespace(seed=0), family=family), None)
    method.teacher, method._others = Teacher(Answers(), 0.25, 1.0), [3.0, 4.0]
    x, target = torch.tensor([1.0]), torch.tensor([5.0])
    found = method.loss(Network(), Plain, x, Network()(x), target)
    assert float(found) == pytest.approx(sum(0.75 * (5 - f) ** 2 + 0.25 * (2 - f) ** 2 for f in (1, 3, 4)) / 3)
    assert len(asked) == 1


def test_the_loss_of_a_step_is_the_formulas(place):
    flags = [*RETRAIN, *data_flags(place / "data"), "--mask_path", "random-6", "--max_iter", "1"]
    with without_images():
        for name, more in (("a", ["--distill", "0"]), ("b", ["--distill", "0.25"]), ("c", ["--distill", "0.75"])):
            assert train_command.main([*flags, "--teacher", "mynet:right", *more, "--name", name]) == 0
    own, quarter, most = (losses(name)[0] for name in "abc")
    pull = (quarter - 0.75 * own) / 0.25
    assert pull > 0 and most == pytest.approx(0.25 * own + 0.75 * pull, rel=1e-4)


BAD = {
    "gone.pt": ["--teacher gone.pt: no such file or run"],
    "data": ["data", "no run"],
    "data/img/000.png": ["data/img/000.png"],
    "mynet:wrong": ["--teacher mynet:wrong", "gives (1, 5, ", "expected 4 channels"],
    "mynet:number": ["gave int, expected a torch.nn.Module"],
    "mynet:absent": ["cannot be imported"],
}


@pytest.mark.parametrize("teacher", BAD)
def test_wrong_teachers_are_one_line(place, capfd, teacher):
    flags = [*RETRAIN, *data_flags(place / "data"), "--mask_path", "random-6", "--name", "r"]
    fails(capfd, train_command.main, [*flags, "--teacher", teacher], BAD[teacher])
    assert not Path("runs/r").exists()
    for flag, value in (("--distill", "1"), ("--distill", "-0.1"), ("--temperature", "0")):
        fails(capfd, train_command.main, [*flags, flag, value], [flag])


def test_a_teacher_keeps_its_statistics():
    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, inputs):
            return self.norm(inputs)

    network = Echo().train()
    teacher = Teacher(network, 0.25, 4.0)

    class Plain:
        teacher_loss = staticmethod(lambda output, answer, target, temperature: F.mse_loss(output, answer))

    inputs = torch.randn(6, 3)
    loss = teacher.loss(torch.tensor(8.0), Plain, inputs, inputs + 2, None)
    with torch.no_grad():
        answer = network.eval()(inputs)
    torch.testing.assert_close(loss, 0.75 * 8 + 0.25 * F.mse_loss(inputs + 2, answer))
    assert int(network.norm.num_batches_tracked) == 0
