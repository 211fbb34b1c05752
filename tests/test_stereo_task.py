"""The task stereo: its data, its loss on every head, scores, pictures, predictions as files, a training on it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from small_config import configured
from small_pairs import options, write_scenes
from sparsemask import UseError, datasets, tasks
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, data, distributed, fit
from sparsemask.engine.records import read_rows
from sparsemask.pictures.stereo import colours, draw_disparities, draw_errors, draw_voxels
from sparsemask.runs import Run
from sparsemask.tasks.protocol import EvaluationContext
from sparsemask.tasks.stereo.batch import make_pair
from sparsemask.tasks.stereo.files import read_disparity, write_disparity
from sparsemask.tasks.stereo.options import StereoData
from sparsemask.tasks.stereo.task import StereoTask

CPU = Arithmetic(torch.device("cpu"))
HERE = EvaluationContext(arithmetic=CPU)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For so few pixels more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three scenes as files, 40 by 72: no multiples of 16."""
    made = tmp_path_factory.mktemp("pairs")
    write_scenes(made, 3, 40, 72, 20)
    return made


def constant(value: float):
    """A network that says the same everywhere."""
    return lambda pair: torch.full((len(pair), *pair.shape[-2:]), value)


def test_the_task_is_known_by_name():
    task = tasks.get("stereo", options(sample=True))
    assert isinstance(task, StereoTask) and not task.reads_voc and tasks.siblings("stereo") == ["stereo"]
    with pytest.raises(UseError, match="--space smstereo"):
        StereoTask(configured(StereoData, task="stereo"))


# Sizes that no hourglass can halve, and pictures too small for a scene.
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"maxdisp": 40}, "--maxdisp 40: must be a multiple of 16"),
        ({"crop_height": 40}, "--crop_height 40: must be a multiple of 16"),
        ({"crop_width": 16}, "--crop_width 16: .*32 at least"),
    ],
)
def test_sizes_that_are_none(given, words):
    with pytest.raises(UseError, match=words):
        StereoTask(options(sample=True, **given))


# Which data a command line means, before there is a task.
@pytest.mark.parametrize(
    ("given", "preset", "words"),
    [
        ({}, "sample", "going on with generated scenes"),
        ({"sample": True}, "sample", None),
        ({"data_root": "x"}, "short", None),
        ({"training_list": "x", "eval_list": "y"}, "short", None),
    ],
)
def test_chosen_data(given, preset, words):
    _, found, line = datasets.choose_data({"task": "stereo", **given})
    assert found == preset and (line is None if words is None else words in line)


def test_scenes_to_train_on_are_new_and_those_to_validate_are_not():
    task = StereoTask(options(sample=True))
    task.check()
    source = task.train_data
    pair, truth = source.sample(0, np.random.default_rng(0))
    assert pair.shape == (1, 3, 32, 64) and truth.shape == (1, 32, 64) and 1 <= truth.min() and truth.max() < 32
    assert not torch.equal(truth, source.sample(0, np.random.default_rng(1))[1])
    assert torch.equal(truth, source.sample(5, np.random.default_rng(0))[1])  # the draw counts, not the number
    again = StereoTask(options(sample=True)).eval_data
    assert all(torch.equal(a, b) for a, b in zip(task.eval_data[3][1], again[3][1], strict=True))
    assert task.measured_on() == "generated scenes" and len(task.eval_data) == 12
    assert set(task.eval_data[0][1][0, 1].unique().tolist()) == {0.0, 1.0}  # what is occluded is known


def test_pairs_from_files(folder, capsys):
    task = StereoTask(options(data_root=folder))
    task.check()
    assert (len(task.train_data), len(task.eval_data), task.measured_on()) == (2, 1, folder.name)
    assert capsys.readouterr().err == ""
    pair, truth = task.eval_data[0]
    # Padded for the network; the truth is as it was, and nobody says what is occluded.
    assert pair.shape == (1, 3, 48, 80) and truth.shape == (1, 3, 40, 72) and (truth[0, 1:] == -1).all()
    batch, targets = data.collate(
        task.train_data, [task.train_data.sample(0, np.random.default_rng(k)) for k in (0, 1)]
    )
    assert batch.shape == (2, 3, 32, 64) and targets.shape == (2, 32, 64)


def test_lists_win_over_layouts_and_scenes(folder, capsys):
    lists = {"training_list": folder / "pairs.txt", "eval_list": folder / "pairs.txt"}
    task = StereoTask(options(**lists))
    task.check()
    assert len(task.train_data) == len(task.eval_data) == 3 and task.measured_on() == "pairs"
    assert "same pairs are for training and for validation" in capsys.readouterr().err
    mixed = StereoTask(options(sample=True, eval_list=folder / "pairs.txt"))
    assert mixed.measured_on() == "pairs" and len(mixed.train_data) == 200
    with pytest.raises(UseError, match="no eval pairs: give --eval_list"):
        StereoTask(options(training_list=folder / "pairs.txt")).check()


def test_truth_that_says_nothing(folder, tmp_path):
    for name in ("left", "right"):
        Image.open(folder / f"0000_{name}.png").save(tmp_path / f"a_{name}.png")
    write_disparity(tmp_path / "a_disp.png", np.zeros((40, 72)))
    task = StereoTask(options(data_root=tmp_path))
    with pytest.raises(UseError, match="a_disp.png: no disparity above 0 and below --maxdisp 32"):
        task.check()
    # To be scored on it is possible, and scores nothing.
    scores = task.evaluate(constant(3.0), HERE)
    assert math.isnan(task.metrics(scores)["epe"])
    assert json.loads(json.dumps(task.record(scores), allow_nan=False))["epe"] is None
    assert "1 without such pixels" in task.report(scores)
    task.draw(task.samples(constant(3.0), CPU), tmp_path / "s.png")
    # Truth of which nothing is below --maxdisp is as little use.
    write_disparity(tmp_path / "a_disp.png", np.full((40, 72), 40.0))
    with pytest.raises(UseError, match="below --maxdisp 32"):
        StereoTask(options(data_root=tmp_path)).check()


# Crops wider than the pictures: padded, without truth there.
def test_pictures_smaller_than_crops(folder):
    task = StereoTask(options(data_root=folder, crop_height=64, crop_width=96))
    pair, truth = task.train_data.sample(0, np.random.default_rng(0))
    assert pair.shape == (1, 3, 64, 96) and (truth[0, :24] == 0).all() and (truth[0, :, 72:] == 0).all()
    assert task.count(truth) == int((truth > 0).sum()) <= 40 * 72


def test_loss_by_hand():
    task = StereoTask(options(sample=True))
    target = torch.tensor([[[0.0, 5.0, 31.9, 32.0]]])
    heads = [target + offset for offset in (0.5, 3.0, -0.5, 2.0)]
    each = [0.125, 2.5, 0.125, 1.5]  # of a pixel; two pixels count
    expected = 2 * sum(weight * one for weight, one in zip((0.5, 0.5, 0.7, 1.0), each, strict=True))
    assert task.count(target) == 2 and task.loss(heads, target).item() == pytest.approx(expected)
    # One map alone has the last head's weight; without truth there is nothing to learn, and no NaN.
    assert task.loss(heads[3], target).item() == pytest.approx(3.0)
    nothing = [torch.ones(1, 2, 2, requires_grad=True)]
    loss = task.loss(nothing, torch.zeros(1, 2, 2))
    loss.backward()
    assert loss.item() == 0 and task.count(torch.zeros(1, 2, 2)) == 0 and nothing[0].grad.abs().sum() == 0
    assert task.loss([one.bfloat16() for one in heads], target).dtype == torch.float32


def test_scores_are_of_the_cropped_map(folder, tmp_path):
    task = StereoTask(options(data_root=folder, eval_list=folder / "pairs.txt"))
    maps = {}

    def right_below(pair):  # wrong only where the pair was padded: at the top and on the right
        assert pair.shape[-2:] == (48, 80)
        out = torch.full((1, 48, 80), 500.0)
        out[:, 8:, :72] = task.eval_data[len(maps)][1][0, 0]
        return out

    scores = task.evaluate(right_below, HERE, on_prediction=lambda i, d: maps.update({i: d}))
    assert task.metrics(scores) == {"epe": 0, "bad1": 0, "bad2": 0, "bad3": 0, "d1": 0, "d1_ok": 1}
    assert scores.names == ["0000_left", "0001_left", "0002_left"] and scores.sizes == [(40, 72)] * 3
    task.write(tmp_path, 1, maps[1])
    assert abs(read_disparity(tmp_path / "0001_left.png") - read_disparity(folder / "0001_disp.pfm")).max() <= 1 / 512
    few = task.evaluate(constant(9.0), HERE, limit=2)
    record = json.loads(json.dumps(task.record(few), allow_nan=False))
    assert [one["picture"] for one in record["each"]] == few.names and record["epe"] == few.metrics["epe"]
    assert few.summary() in task.report(few)
    assert task.evaluate(constant(9.0), HERE, limit=2, quick=True).metrics == task.metrics(few)


def test_processes_share_the_pairs(monkeypatch):
    task = StereoTask(options(sample=True))
    whole, totals = task.evaluate(constant(5.0), HERE, limit=5), []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda value: totals.append(value.clone()) or value)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        task.evaluate(constant(5.0), HERE, limit=5)
    assert [(total[:, 0] > 0).tolist() for total in totals] == [[True, False] * 2 + [True], [False, True] * 2 + [False]]
    assert np.array_equal(sum(totals)[:, 3:].numpy().reshape(5, 6, 6), whole.sums)


def test_pictures(tmp_path):
    task = StereoTask(options(sample=True))
    samples = task.samples(constant(5.0), CPU, 3)
    assert [sample[0] for sample in samples] == ["scene_00", "scene_05", "scene_11"]
    assert samples[0][1].shape == (32, 64, 3) and samples[0][2].shape == samples[0][3].shape == (32, 64)
    task.draw(samples, tmp_path / "samples.png")
    scores = task.evaluate(constant(5.0), HERE, limit=3)
    task.draw_scores(scores, tmp_path)
    draw_errors(["a" * 60] * 90, np.r_[np.nan, np.arange(89)], np.zeros(90), tmp_path / "many.png")
    pair = make_pair(samples[0][1], samples[0][1])
    masks = [np.zeros((4, 4, 8), bool), np.zeros((8, 8, 16), bool), np.ones((8, 8, 16), bool)]
    draw_voxels(pair.left[0], masks, tmp_path / "voxels.png", "title")
    draw_voxels(samples[0][1], masks, tmp_path / "beside.png", None, samples[0][2])
    for name in ("samples", "epe", "many", "voxels", "beside"):
        drawn = np.array(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert min(drawn.shape) > 100 and drawn.std() > 5
    with pytest.raises(UseError, match="no samples"):
        draw_disparities([], tmp_path / "x.png")
    with pytest.raises(UseError, match="no masks"):
        draw_voxels(pair.left[0], [], tmp_path / "x.png")
    with pytest.raises(UseError, match="a: maps of"):
        draw_disparities([("a", samples[0][1], samples[0][2][1:], samples[0][3])], tmp_path / "x.png")


def test_colours():
    found = colours(np.array([[0, np.nan, 1, 10.0]]), 1, 10)
    assert found.dtype == np.uint8 and found[0, 0].tolist() == found[0, 1].tolist() == [184] * 3
    assert found[0, 2, 2] > found[0, 2, 0] and found[0, 3, 0] > found[0, 3, 2]  # from blue to red
    assert colours(np.zeros((2, 2))).shape == (2, 2, 3)


class Matcher(nn.Module):
    """Expected shift by correlation of what one layer sees: small, and it learns."""

    def __init__(self, most: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.most = nn.Conv2d(3, 8, 5, padding=2), most

    def forward(self, pair):
        left, right = self.layer(pair.left), self.layer(pair.right)
        shifted = [F.pad(right, (d, 0))[..., : right.shape[-1]] for d in range(self.most)]
        costs = torch.stack([F.avg_pool2d(-(left - one).abs().mean(1), 5, 1, 2) for one in shifted], 1)
        found = (10 * costs).softmax(1).mul(torch.arange(self.most).view(1, -1, 1, 1)).sum(1)
        return [found] * 2 if self.training else found


# The engine takes the task as it is: it learns, and repeats itself whatever the number of workers.
def test_training(tmp_path):
    given = {"max_iter": 30, "optimizer": "adamw", "lr": 0.01, "last_layer_lr_mult": 1.0, "eval_interval": 15}
    losses, results = [], []
    for workers in (0, 1):
        o = options(sample=True, log_interval=1, batch_size=2, n_worker=workers, eval_limit=4, **given)
        task = tasks.get("stereo", o)
        run = Run(tmp_path / str(workers)).hold()
        run.config.write_text("")
        model = Matcher()
        before = task.evaluate(model, EvaluationContext.from_config(CPU, o), limit=4).metrics
        results.append(fit(model, Method(), task, o, run, CPU, {"verb": "search", "space": "smstereo", "config": {}}))
        losses.append([row["loss"] for row in read_rows(run.metrics)])
    assert losses[0] == losses[1] and len(losses[0]) == 30
    rows = [row for row in read_rows(run.metrics) if "val_epe" in row]
    assert [row["step"] for row in rows] == [15, 30] and results[0]["d1_ok"] == rows[-1]["val_d1_ok"]
    assert results[0]["epe"] < 0.8 * before["epe"]


@pytest.mark.real
def test_real_pairs_can_be_scored(shared_data):
    task = StereoTask(options(data_root=shared_data / "kitti2012_sample", maxdisp=192, crop_height=256, crop_width=512))
    task.check()
    scores = task.evaluate(constant(20.0), HERE, limit=1)
    assert scores.sizes == [(370, 1226)] or scores.sizes[0][0] in range(370, 377)
    assert 0 < scores.metrics["d1"] < 1
