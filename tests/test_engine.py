"""The parts of the training loop: order, randomness, schedules, batch norms, records, checkpoints."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from sparsemask import UseError
from sparsemask.engine import checkpoint, randomness
from sparsemask.engine.data import SeededSamples, StepSampler, same_size_batches, training_loader
from sparsemask.engine.method import learning_rate_factor, reestimate, set_training
from sparsemask.engine.records import JsonLines, read_rows


class Numbers:
    """A source whose samples are their index and a random number."""

    def __len__(self):
        return 7

    def sample(self, index, rng):
        return torch.tensor([index, rng.integers(1 << 30)])


def flat(sampler):
    return [key for batch in sampler for key in batch]


def test_every_pass_shows_every_sample_once_and_batches_are_full():
    batches = list(StepSampler(7, 3, 0, 14, seed=0))
    assert {len(b) for b in batches} == {3}  # even where a pass ends inside a batch
    order = [i for b in batches for i, _ in b]
    for first in range(0, 42, 7):
        assert sorted(order[first : first + 7]) == list(range(7))
    assert order[:7] != order[7:14]


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_parts_share_the_same_batches(world, parts):
    whole = list(StepSampler(7, 4, 0, 5, seed=3))
    shares = [list(StepSampler(7, 4, 0, 5, 3, rank, world, parts)) for rank in range(world)]
    for step in range(5):
        seen = [key for share in shares for part in share[step * parts : (step + 1) * parts] for key in part]
        assert sorted(seen) == sorted(whole[step])


def test_stream_starts_anywhere_and_does_not_depend_on_workers():
    whole = flat(StepSampler(7, 3, 0, 9, seed=1))
    assert flat(StepSampler(7, 3, 4, 9, seed=1)) == whole[12:]
    batches = [
        torch.cat(list(training_loader(Numbers(), StepSampler(7, 3, 0, 4, 1), 1, workers))) for workers in (0, 1, 2)
    ]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
    # Another seed, and another pass over the same picture, draw other numbers.
    assert SeededSamples(Numbers(), 1)[0, 0][1] != SeededSamples(Numbers(), 2)[0, 0][1]
    assert SeededSamples(Numbers(), 1)[0, 0][1] != SeededSamples(Numbers(), 1)[0, 7][1]


def test_random_states_survive_a_file(tmp_path):
    randomness.seed_all(5)
    random.gauss(0, 1), np.random.randn(), torch.randn(1)  # leave cached halves behind
    torch.save(randomness.states(), tmp_path / "r.pt")
    expected = random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist()
    randomness.seed_all(6)
    randomness.restore(torch.load(tmp_path / "r.pt", weights_only=True))
    assert expected == (random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist())


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("poly", 0, 1.0),
        ("poly", 50, 0.5**0.9),
        ("poly", 99, 0.01**0.9),
        ("step", 49, 1.0),
        ("step", 50, 0.9),
        ("step", 99, 0.81),
        ("constant", 99, 1.0),
        ("exponential", 9, 1.0),
        ("exponential", 10, 0.9),
        ("exponential", 99, 0.9**9),
    ],
)
def test_schedules(name, step, expected):
    assert learning_rate_factor(name, step, 100, epoch=10) == pytest.approx(expected)


def test_warmup_rises_linearly_to_the_schedule():
    values = [learning_rate_factor("constant", step, 100, warmup=4) for step in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_reestimated_statistics_are_the_batches_average():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3, momentum=0.0003)
    batches = [torch.randn(4, 3, 5, 5) * 3 + 2 for _ in range(6)]
    reestimate(norm, batches)
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert torch.allclose(norm.running_var, var, atol=1e-5)
    assert norm.momentum == 0.0003
    assert norm.training


def test_frozen_batch_norms_stay_in_evaluation():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    set_training(net, freeze_bn=True)
    assert net.training
    assert not net[1].training


def test_metrics_forget_what_lies_after_the_checkpoint(tmp_path):
    file = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        file.add({"step": step, "loss": float("nan") if step == 2 else step})
    file.close()
    with open(tmp_path / "m.jsonl", "a") as torn:
        torn.write('{"step": 4, "lo')
    JsonLines(tmp_path / "m.jsonl", step=2).close()
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1, "loss": 1}, {"step": 2, "loss": None}]


def test_broken_metrics_in_the_middle_are_reported(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UseError, match="line 2"):
        read_rows(tmp_path / "m.jsonl")


def test_pictures_of_various_sizes_are_grouped_in_order():
    sizes = [(5, 5), (5, 5), (5, 7), (5, 5)]
    groups = same_size_batches([(torch.zeros(3, *s), torch.zeros(s)) for s in sizes])
    assert [tuple(images.shape) for images, _ in groups] == [(2, 3, 5, 5), (1, 3, 5, 7), (1, 3, 5, 5)]


def test_checkpoint_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    base = dict.fromkeys(("model", "optimizer", "scaler", "best", "config"), {})
    base |= {"step": 3, "space": "connectivity", "verb": "search", "optimizer": []}
    checkpoint.save(path, base)
    assert checkpoint.load(path, "connectivity")["step"] == 3
    with pytest.raises(UseError, match="a checkpoint of space 'connectivity', not of 'smsr'"):
        checkpoint.load(path, "smsr")
    torch.save({"model": {}}, tmp_path / "w.pt")
    with pytest.raises(UseError, match="not a checkpoint of a run"):
        checkpoint.load(tmp_path / "w.pt")
    assert checkpoint.load(path)["format"] == 1
    torch.save({k: v for k, v in torch.load(path, weights_only=True).items() if k != "format"}, tmp_path / "old.pt")
    assert checkpoint.load(tmp_path / "old.pt")["step"] == 3  # of before there was a format
    checkpoint.save(path, {**base, "format": 2})
    with pytest.raises(UseError, match=r"newer version \(format 2, known: 1\)"):
        checkpoint.load(path)


def test_not_finite_networks_are_noticed():
    net = torch.nn.Linear(2, 2)
    assert checkpoint.finite(net)
    net.weight.data[0, 0] = float("nan")
    assert not checkpoint.finite(net)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_statistics_are_noticed(value):
    # Batch norms keep theirs in buffers, one of which counts in whole numbers.
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    assert checkpoint.finite(net)
    net[1].running_var[1] = value
    assert not checkpoint.finite(net)


def test_lines_are_json(tmp_path):
    file = JsonLines(tmp_path / "m.jsonl")
    file.add({"step": 1, "x": np.float32(1.5).item()})
    file.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "x": 1.5}
