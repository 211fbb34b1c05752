"""Outputs that are not finite are an error in every task and command, never data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import small_pictures
from small_tasks import BUILD, classification
from sparsemask import UseError, spaces, tasks
from sparsemask.cli import disparity, enlarging, segment_points, upscale
from sparsemask.devices import Arithmetic
from sparsemask.exporting import validation
from sparsemask.finite import NotFiniteError, check_output
from sparsemask.retrain import train as retrain_train
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.sparse import backend
from sparsemask.tasks.protocol import EvaluationContext
from sparsemask.tasks.stereo.scores import count_errors
from test_smsr import network as smsr
from tiny import SMALL, data_flags, fails, make_data

CPU = Arithmetic(torch.device("cpu"))
VALUES = [math.nan, math.inf, -math.inf]


# Of each task the shape of what its networks give.
label_map = lambda task, x: (len(x), task.n_output, *x.shape[-2:])
per_point = lambda task, x: (len(x), task.n_output, x.shape[2])
SHAPES = {
    "segmentation": label_map,
    "saliency": label_map,
    "edges": label_map,
    "ade20k": label_map,
    "super_resolution": lambda task, x: (len(x), 3, *(2 * side for side in x.shape[-2:])),
    "stereo": lambda task, x: (len(x), *x.shape[-2:]),
    "classification": lambda task, x: (len(x), task.n_output),
    "s3dis": per_point,
    "semantickitti": per_point,
}


def test_every_task_is_here():
    assert set(SHAPES) | {"sample"} == set(tasks.available())  # sample is s3dis on generated rooms


@pytest.mark.parametrize("name", SHAPES)
def test_no_task_scores_or_hands_out_what_is_not_finite(name, tmp_path):
    task, shape = BUILD[name](tmp_path), SHAPES[name]
    seen, here = [], EvaluationContext(arithmetic=CPU)

    def network(value):
        def run(x):
            out = torch.zeros(shape(task, x))
            out.view(-1)[-1] = value  # one value of all
            return out

        return Network(run)

    for value in VALUES:
        for quick in (False, True):
            with pytest.raises(UseError, match=r"output is not finite: 1 of \d+ values"):
                task.evaluate(network(value), here, on_prediction=lambda *_: seen.append(1), quick=quick)
        with pytest.raises(UseError, match="not finite"):
            task.samples(network(value), CPU, 1)
    assert not seen
    if name in ("segmentation", "saliency"):
        with pytest.raises(UseError, match="not finite"):
            task.evaluate(network(math.nan), here, flips=True, scales=(1.0, 0.5))
    assert task.metrics(task.evaluate(network(0.0), here, quick=True))  # and zeros are numbers


class Network(nn.Module):
    """A function as a module."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


def test_the_line_names_the_weights_that_are_to_blame():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.bias[1] = math.nan
    with pytest.raises(NotFiniteError, match="1 of 2 values are NaN or infinite; its weights are not finite: bias"):
        CPU.run(net, torch.zeros(1, 2))
    with pytest.raises(NotFiniteError, match="its weights are finite"):
        CPU.run(nn.Linear(2, 2), torch.full((1, 2), math.inf))
    for nested in ([torch.zeros(2), torch.tensor([math.nan])], {"a": (torch.tensor(math.inf),)}):
        with pytest.raises(NotFiniteError):
            check_output(nested)
    whole = {"a": torch.tensor([1e38, 1e38]), "b": torch.arange(3), "c": "word"}
    assert check_output(whole) is whole


def test_disparities_that_are_no_numbers_are_no_errors_of_some_size():
    truth = torch.stack([torch.full((1, 3), 10.0), *torch.full((2, 1, 3), -1.0)])
    with pytest.raises(UseError, match="2 of 3 values"):
        count_errors(torch.tensor([[math.nan, math.inf, 10.0]]), truth, 192)


def test_averaging_views_keeps_small_probabilities_above_zero(tmp_path):
    task = classification(tmp_path)
    logits = torch.zeros(1, task.n_output)
    logits[0, 0] = 300.0  # the others' probabilities are 0 in float32
    found = task.predict(Network(lambda x: logits.expand(len(x), -1)), torch.zeros(2, 3, 8, 8), CPU, flips=True)
    assert torch.allclose(found, logits.log_softmax(1).expand(2, -1))


def test_training_ends_in_one_line_where_validation_is_not_finite(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    from sparsemask.retrain import connectivity

    build = connectivity.FAMILY.build

    def built(context):
        made = build(context)
        hook = lambda module, _, out: out if module.training else out * math.nan
        made.model.register_forward_hook(hook)
        return made

    monkeypatch.setattr(connectivity.FAMILY, "build", built)
    flags = [*data_flags(make_data(tmp_path / "d", 6, 36)), *SMALL, "--max_iter", "1", "--mask_path", "unet"]
    words = ["validation after step 1", "output is not finite", "last good checkpoint", "last.pt"]
    fails(capfd, retrain_train.main, [*flags, "--name", "r"], words)
    assert not (tmp_path / "runs/r/best.pt").exists()


def huge(network):
    """A network of finite weights whose output is not."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3e38)
    return network


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a pair of pictures and a scan."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    for name in ("left.png", "right.png"):
        small_pictures.write(tmp_path / name, small_pictures.scene(1, (32, 48)))
    np.abs(np.random.default_rng(0).normal(0, 5, (300, 4))).astype("<f4").tofile("scan.bin")
    with backend("reference"):
        yield tmp_path


def test_upscale_writes_no_picture(place, monkeypatch, capfd):
    network = huge(smsr(scale=2))
    monkeypatch.setattr(enlarging, "find_enlarger", lambda *_: enlarging.SMSREnlarger(network, "w.pt"))
    fails(capfd, upscale.main, ["left.png", "out.png"], ["output is not finite"])
    assert not (place / "out.png").exists()


def test_disparity_writes_no_map(place, monkeypatch, capfd):
    network = huge(SMStereo(maxdisp=16).eval())
    monkeypatch.setattr(disparity, "find_network", lambda *_: (network, "w.pt"))
    argv = ["left.png", "right.png", "out.png", "--pfm", "out.pfm", "--png16", "d.png"]
    fails(capfd, disparity.main, argv, ["output is not finite"])
    assert not {"out.png", "out.pfm", "d.png"} & {path.name for path in place.iterdir()}


@pytest.mark.parametrize("way", ["--whole", "--votes"])
def test_segment_points_writes_no_labels(place, capfd, way):
    given = {"d_in": 3, "n_class": 19, "channels": [4, 8], "n_neighbors": 4, "radius": 0.3}
    space = spaces.get("smpointseg")
    space.save("w.safetensors", huge(space.supernet(given).eval()))
    argv = ["scan.bin", "out.label", "--weights", "w.safetensors", way, "--n_points", "64"]
    fails(capfd, segment_points.main, argv, ["output is not finite"])
    assert not (place / "out.label").exists()


@pytest.mark.parametrize("value", VALUES)
def test_commands_refuse_weights_that_are_not_finite(place, capfd, value):
    network = smsr(scale=2)
    with torch.no_grad():
        network.head[0].weight[0] = value
    torch.save(network.state_dict(), "smsr_x2.pt")
    fails(capfd, upscale.main, ["left.png", "out.png", "--weights", "smsr_x2.pt"], ["smsr_x2.pt", "head.0.weight"])
    assert not (place / "out.png").exists()


def test_an_export_that_gives_nan_is_not_good(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"0")
    sound = SimpleNamespace(network=lambda x: x)
    found = validation.validate(tmp_path / "a.onnx", lambda x: x * math.nan, sound, [torch.ones(3)], rounds=0)
    assert found.difference == math.inf and not found.good
    with pytest.raises(UseError, match="not finite"):
        validation.validate(tmp_path / "a.onnx", lambda x: x, sound, [torch.full((3,), math.nan)], rounds=0)
