"""Training recipes of the engine: averaged weights, cosine, stages of loss and patch, repeated augmentation."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from literal_sparse import one_thread  # noqa: F401
from small_pictures import make_folder, options
from sparsemask import UseError, tasks
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, fit
from sparsemask.engine.averaging import WeightAverage
from sparsemask.engine.data import SeededSamples, StepSampler, step_sampler
from sparsemask.engine.method import learning_rate_factor
from sparsemask.engine.records import read_rows
from sparsemask.options import positive, stage_at, staged, stages
from sparsemask.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Arithmetic(torch.device("cpu"))
RECIPE = {"max_iter": 12, "optimizer": "adamw", "lr": 1e-2, "last_layer_lr_mult": 1.0, "eval_interval": 4}


class Normed(nn.Module):
    """Repeated pixels and a layer behind a batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, images):
        return F.interpolate(images, scale_factor=2.0) + F.pixel_shuffle(self.layer(self.norm(images)), 2)


class Watching(Method):
    """Writes the weights down after every step; stops as if killed behind one; may jump."""

    def __init__(self, stop: int = 0, jump: int = 0):
        self.stop, self.jump, self.seen, self.done = stop, jump, [], 0

    def before_step(self, model, step):
        self.done = step
        if self.stop and step == self.stop:
            raise KeyboardInterrupt

    def after_step(self, model):
        self.jumped = self.done + 1 == self.jump
        if self.jumped:
            with torch.no_grad():
                model.layer.bias.add_(1)
        self.seen.append({name: value.double().numpy().copy() for name, value in model.state_dict().items()})


def trained(folder, pictures, method=None, state=None, **given) -> tuple[nn.Module, Run, dict]:
    """A training of :class:`Normed`."""
    o = options(hr_path=pictures, log_interval=1, batch_size=4, checkpoint_interval=1, **{**RECIPE, **given})
    task, run, model = tasks.get(o.data.task, o), Run(folder).hold(), Normed()
    run.config.write_text("")
    extra = {"verb": "search", "space": "smsr", "config": {}}
    fit(model, method or Method(), task, o, run, CPU, extra, state)
    return model, run, torch.load(run.last, weights_only=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("hr"), 11)


@pytest.mark.parametrize("jump", [0, 5])
def test_the_average_is_the_literal_one(tmp_path, pictures, jump):
    watching = Watching(jump=jump)
    before = {name: value.double().numpy().copy() for name, value in Normed().state_dict().items()}
    model, run, state = trained(tmp_path / "a", pictures, watching, ema=0.9)
    average, count = before, 0
    for step, seen in enumerate(watching.seen, 1):
        count += 1
        d = min(0.9, count / (count + 9))
        if step == jump:
            average, count = seen, 0
        else:
            average = {k: d * average[k] + (1 - d) * v for k, v in seen.items()}
    average["norm.num_batches_tracked"] = watching.seen[-1]["norm.num_batches_tracked"]
    assert len(watching.seen) == 12 and state["average"]["updates"] == count
    for name, value in average.items():
        np.testing.assert_allclose(state["model"][name].double().numpy(), value, rtol=1e-5, atol=1e-6)
        # Who finishes the run finds the average; the optimizer goes on from the weights as trained.
        assert torch.equal(model.state_dict()[name], state["model"][name])
        assert np.array_equal(state["average"]["trained"][name].double().numpy(), watching.seen[-1][name])
    assert not torch.equal(state["model"]["layer.weight"], state["average"]["trained"]["layer.weight"])


def test_what_is_scored_is_what_is_saved(tmp_path, pictures):
    model, run, state = trained(tmp_path / "a", pictures, ema=0.9)
    o = options(hr_path=pictures)
    task = tasks.get(o.data.task, o)
    from sparsemask.tasks.protocol import EvaluationContext

    scored = task.evaluate(model, EvaluationContext(arithmetic=CPU)).metrics["psnr"]
    rows = [row["val_psnr"] for row in read_rows(run.metrics) if "val_psnr" in row]
    assert scored == rows[-1] == state["best"]["latest"]["psnr"]
    best = torch.load(run.best, weights_only=True)
    model.load_state_dict(best["model"])
    assert task.evaluate(model, EvaluationContext(arithmetic=CPU)).metrics["psnr"] == max(rows)


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_resumed_average_is_the_uninterrupted_one(tmp_path, pictures, stop):
    given = {"ema": 0.9, "schedule": "cosine", "warmup": 3, "loss": "L1:0.5,MSE+0.1*FFT:0.5", "repeat_augment": 2,
             "patch_size": "8:0.5,12:0.5"}  # fmt: skip
    _, whole, expected = trained(tmp_path / "whole", pictures, **given)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", pictures, Watching(stop), **given)
    state = torch.load(Run(tmp_path / "cut").last, weights_only=True)
    assert state["step"] == stop
    _, cut, actual = trained(tmp_path / "cut", pictures, None, state, **given)
    for part in ("model", "average"):
        a, b = (s[part] if part == "model" else s[part]["trained"] for s in (expected, actual))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert actual["average"]["updates"] == expected["average"]["updates"] == 12
    assert whole.metrics.read_text() == cut.metrics.read_text()


def test_the_average_changes_no_step(tmp_path, pictures):
    plain, averaged = Watching(), Watching()
    _, _, without = trained(tmp_path / "a", pictures, plain)
    trained(tmp_path / "b", pictures, averaged, ema=0.99)
    assert "average" not in without
    for one, other in zip(plain.seen, averaged.seen, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_tied_weights_are_averaged_once():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    average = WeightAverage(net, 0.5)
    with torch.no_grad():
        net[0].weight.add_(1)
    raw = net[0].weight.detach().clone()
    average.update()
    with average.applied():
        assert torch.allclose(net[1].weight, raw - 0.1)  # 1 / (1 + 9) of the way stays behind
    assert torch.equal(net[0].weight, raw)


def test_cosine_falls_behind_the_warm_up():
    values = [learning_rate_factor("cosine", step, 104, warmup=4) for step in range(104)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[4 + 50] == pytest.approx(0.5) and values[-1] == pytest.approx((1 + math.cos(0.99 * math.pi)) / 2)
    assert all(later < earlier for earlier, later in zip(values[4:], values[5:], strict=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48", [(1.0, 48)]),
        ("48:1", [(1.0, 48)]),
        ("48:0.7,96:0.3", [(0.7, 48), (1.0, 96)]),
        ("8:.5, 12:.25, 16", [(0.5, 8), (0.75, 12), (1.0, 16)]),
    ],
)
def test_stages(text, expected):
    found = stages(text, positive)
    assert [end for end, _ in found] == pytest.approx([end for end, _ in expected])
    assert [value for _, value in found] == [value for _, value in expected]
    assert staged(positive)("48") == 48 and staged(positive)("48:0.7, 96:0.3") == "48:0.7,96:0.3"


@pytest.mark.parametrize("text", ["48:0.5", "48,96", "48:0.5,96:0.6", "48:1,96", "0:1", "48:-1,96:2", "a:1", ""])
def test_stages_that_are_none(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        stages(text, positive)


def test_a_stage_begins_where_the_one_before_ends():
    parts = stages("8:0.5,12:0.25,16:0.25", positive)
    assert [stage_at(parts, share) for share in (0, 0.49, 0.5, 0.74, 0.75, 0.99, 1.0)] == [8, 8, 12, 12, 16, 16, 16]


def test_losses_and_patches_change_when_they_shall(tmp_path, pictures):
    sides, costs = [], []

    class Seeing(Method):
        def loss(self, model, task, images, output, target):
            sides.append(images.shape[-1])
            value = super().loss(model, task, images, output, target)
            costs.append((float(value.detach()), output.detach() - target))
            return value

    trained(tmp_path / "a", pictures, Seeing(), patch_size="8:0.5,12:0.5", loss="L1:0.75,MSE:0.25")
    assert sides == [8] * 6 + [12] * 6
    for step, (value, difference) in enumerate(costs):
        expected = difference.abs() if step < 9 else difference.square()
        assert value == pytest.approx(expected.sum().item(), rel=1e-5)


def test_pictures_must_have_room_for_the_largest_patch(tmp_path):
    folder = make_folder(tmp_path, 2, (40, 40))
    task = tasks.get("super_resolution", options(hr_path=folder, data_test=folder, patch_size="8:0.5,24:0.5"))
    with pytest.raises(UseError, match="patch_size 24"):
        _ = task.train_data


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_copies_stand_beside_each_other(repeat):
    keys = [key for batch in StepSampler(5, 6, 0, 5 * repeat, 1, repeat=repeat) for key in batch]
    indices = [index for index, _ in keys]
    assert [draw for _, draw in keys] == list(range(30 * repeat))  # each copy with random numbers of its own
    assert all(len(set(indices[k : k + repeat])) == 1 for k in range(0, len(indices), repeat))
    assert sorted(indices[::repeat]) == sorted(list(range(5)) * 6)
    later = [key for batch in StepSampler(5, 6, 2, 5 * repeat, 1, repeat=repeat) for key in batch]
    assert later == keys[12:]


def test_a_source_that_plans_has_no_copies():
    class Planned:
        def planner(self, *_):
            return None

    assert step_sampler(Planned(), 1, 0, 1, 0) is None
    with pytest.raises(UseError, match="--repeat_augment 2"):
        step_sampler(Planned(), 1, 0, 1, 0, repeat=2)


def test_stages_do_not_depend_on_workers():
    class Staged:
        def __len__(self):
            return 4

        def at(self, share):
            self.share = share
            return self

        def sample(self, index, rng):
            return self.share

    assert SeededSamples(Staged(), 0, total=8)[0, 6] == 0.75
    assert SeededSamples(Staged(), 0)[0, 6] == 1.0  # statistics of batch norms: as in the last stage
