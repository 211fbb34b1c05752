"""The task classification: loss and scores against plain formulas, its flags, files it writes, a training on it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from small_classes import options, pictures, write_classes, write_npz
from sparsemask import UseError, datasets, flags, tasks
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, distributed, fit
from sparsemask.engine.records import read_rows
from sparsemask.options import Parser
from sparsemask.pictures.classification import draw_accuracy, draw_predictions
from sparsemask.runs import Run
from sparsemask.synthetic.classification import VERSION
from sparsemask.tasks.classification.options import STATISTICS
from sparsemask.tasks.classification.scores import ClassificationMeter, ClassificationScores
from sparsemask.tasks.classification.task import ClassificationTask
from sparsemask.tasks.protocol import EvaluationContext

CPU = Arithmetic(torch.device("cpu"))
HERE = EvaluationContext(arithmetic=CPU, batch_size=3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For so few pixels more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "noise")


def brightest(classes: int):
    """A "network": logits are the first values of the picture."""
    return lambda images: images.flatten(1)[:, :classes]


def test_the_task_is_known_by_name(root):
    o = options(data_root=root)
    task = tasks.get("classification", o)
    assert isinstance(task, ClassificationTask) and not task.reads_voc and task.input_shape == (1, 3, 8, 8)
    assert task.config.data.n_class == 10, "networks are built with the data's number of classes"
    # Its flags are its own: command lines of label tasks neither offer it nor it them.
    assert tasks.siblings("classification") == ["classification"]
    assert "classification" not in tasks.siblings("segmentation")
    assert tasks.get("classification", options(data_root=root, n_class=1000)).classes[999] == "999"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "--data_root"),
        ({"n_class": 9}, "--n_class 9: noise has 10 classes"),
        ({"image_size": 32}, "--image_size 32: noise has pictures of 8x8"),
    ],
)
def test_what_cannot_be_is_refused(root, given, match):
    with pytest.raises(UseError, match=match):
        ClassificationTask(options(**({"data_root": root, **given} if given else {})))


def test_parts_of_two_sizes_are_refused(root, tmp_path):
    write_npz(tmp_path)
    (tmp_path / "test.npz").unlink()
    x, y = pictures(4, side=9)
    np.savez(tmp_path / "test.npz", x=x, y=y)
    with pytest.raises(UseError, match="not of one size"):
        ClassificationTask(options(data_root=tmp_path))


def test_without_data_the_drawn_set_is_used_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path))
    monkeypatch.setattr("sparsemask.synthetic.classification.make_sample.__defaults__", (40, 20, 0))
    settings, preset, line = datasets.choose_data({"task": "classification"})
    assert settings == {"sample": True} and preset == "sample"
    assert line.count("\n") == 0 and "drawn shapes" in line and "--data_root" in line
    task = tasks.get("classification", options(sample=True))
    assert (len(task.train_data), len(task.eval_data)) == (40, 20) and task.classes[3] == "star"
    assert task.measured_on() == "drawn shapes"
    drawn = (tmp_path / f"classification-{VERSION}" / "train.npz").stat().st_mtime_ns
    tasks.get("classification", options(sample=True))
    assert (tmp_path / f"classification-{VERSION}" / "train.npz").stat().st_mtime_ns == drawn
    assert capsys.readouterr().err.count("drawing") == 1
    assert datasets.choose_data({"task": "classification", "data_root": "x"})[1:] == ("short", None)


def test_the_commands_flags_are_the_tasks():
    class Space:
        task = "classification"

    parser = Parser("search")
    flags.add_data(parser, Space())
    given = parser.parse_args(["--data_root", "cifar10", "--normalise", "imagenet", "--pad", "2", "--no_flip"])
    assert (given.task, given.normalise, given.pad, given.no_flip) == ("classification", "imagenet", 2, True)
    with pytest.raises(UseError, match="voc_root"):
        parser.parse_args(["--voc_root", "x"])


def test_normalisation_is_the_datas_unless_said(root, tmp_path):
    large = write_classes(tmp_path, {"a": 11, "b": 11}, (70, 80))
    for given, expected in (
        ({"data_root": root}, "cifar"),
        ({"data_root": root, "normalise": "imagenet"}, "imagenet"),
        ({"data_root": large}, "imagenet"),
        ({"data_root": large, "normalise": "none"}, "none"),
    ):
        task = ClassificationTask(options(**given))
        assert (task.cut.mean, task.cut.std) == STATISTICS[expected]
    assert task.input_shape == (1, 3, 224, 224) and task.cut.resize == 256
    small = ClassificationTask(options(data_root=large, image_size=28))
    assert small.train_data[0][0].shape == (3, 28, 28) and small.cut.resize == 32


def test_loss_is_a_sum_over_pictures(root):
    task = ClassificationTask(options(data_root=root))
    logits, target = torch.randn(6, 10, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 9])
    expected = -logits.log_softmax(1)[range(6), target].sum()
    assert torch.allclose(task.loss(logits, target), expected) and task.count(target) == 6
    # Half precision is summed in single.
    assert task.loss(logits.bfloat16(), target).dtype == torch.float32
    for wrong in (torch.zeros(6, 12), torch.zeros(6, 10, 1, 1)):
        with pytest.raises(UseError, match="the network gives .* has 10 classes"):
            task.loss(wrong, target)


@pytest.mark.parametrize("classes", [3, 10])
def test_scores_against_sorting(classes):
    rng = np.random.default_rng(classes)
    logits, target = rng.normal(size=(50, classes)), rng.integers(classes, size=50)
    meter = ClassificationMeter(classes)
    for part in np.array_split(np.arange(50), 4):
        meter.add(torch.from_numpy(logits[part]).float(), torch.from_numpy(target[part]))
    scores = meter.scores()
    order = np.argsort(-logits, 1)
    expected = {"top1": (order[:, 0] == target).mean(), "loss": 0.0}
    if classes > 5:  # of five classes or fewer the first five are all
        expected["top5"] = (order[:, :5] == target[:, None]).any(1).mean()
    expected["loss"] = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(target)))
    assert scores.metrics == pytest.approx(expected, rel=1e-6)
    recall = [(order[target == k, 0] == k).mean() for k in range(classes)]
    precision = [(target[order[:, 0] == k] == k).mean() for k in range(classes)]
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.precision, precision)


def test_a_class_without_pictures_has_no_accuracy():
    scores = ClassificationScores(np.array([[3, 1], [0, 0]]), 4, hits5=4, entropy=2.0)
    assert np.isnan(scores.recall[1]) and scores.metrics == {"top1": 0.75, "loss": 0.5}
    text = scores.text(["cat", "dog"])
    assert "dog (1)" in text and text.splitlines()[-1].split()[:2] == ["dog", "-"]


def test_evaluation_counts_every_picture_once_in_any_batch(root):
    task, seen = ClassificationTask(options(data_root=root)), {}
    for batch in (1, 3, 250):
        found, here = {}, EvaluationContext.from_config(CPU, options(eval_batch=batch))
        assert here.batch_size == batch
        scores = task.evaluate(brightest(10), here, on_prediction=lambda i, logits, f=found: f.update({i: logits}))
        seen[batch] = scores.metrics
        assert sorted(found) == list(range(10)) and scores.count == 10
    assert seen[1] == pytest.approx(seen[3]) and seen[1] == pytest.approx(seen[250])
    assert task.evaluate(brightest(10), HERE, limit=4).count == 4
    # The same by hand, from the pictures themselves.
    x, y = task.pictures.validation.pictures, task.pictures.validation.labels
    logits = task.cut.tensor(x.transpose(0, 3, 1, 2)).flatten(1)[:, :10]
    assert seen[250]["top1"] == (logits.argmax(1).numpy() == y).mean()


def test_processes_share_the_pictures(root, monkeypatch):
    task = ClassificationTask(options(data_root=root))
    whole = task.evaluate(brightest(10), HERE)
    totals = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda value: totals.append(value.clone()) or value)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        task.evaluate(brightest(10), HERE)
    meter = ClassificationMeter(10)
    meter.total = sum(totals)
    assert (meter.scores().matrix == whole.matrix).all() and meter.scores().metrics == pytest.approx(whole.metrics)


def test_flips_average_probabilities(root):
    task = ClassificationTask(options(data_root=root))
    images = torch.randn(4, 3, 8, 8)
    both = [brightest(10)(view).softmax(1) for view in (images, images.flip(-1))]
    expected = (both[0] + both[1]) / 2
    assert torch.allclose(task.predict(brightest(10), images, CPU, flips=True).softmax(1), expected, atol=1e-6)


def test_report_record_and_files(root, tmp_path):
    task = ClassificationTask(options(data_root=root))
    found = {}
    scores = task.evaluate(brightest(10), HERE, on_prediction=lambda i, logits: found.update({i: logits}))
    text = task.report(scores)
    assert "noise, 10 pictures" in text and f"top-1 {scores.top1:.2%}" in text and "mostly taken for" in text
    record = json.loads(json.dumps(task.record(scores), allow_nan=False))
    assert record["pictures"] == 10 and len(record["accuracy"]) == 10 and record["top1"] == scores.top1
    task.save(tmp_path / "p.csv", found)
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0][:4] == ["picture", "truth", "class1", "share1"] and len(rows) == 11 and len(rows[0]) == 12
    assert [row[2] for row in rows[1:]] == [str(int(found[k].argmax())) for k in range(10)]
    assert sum(row[1] == row[2] for row in rows[1:]) == round(10 * scores.top1)
    with pytest.raises(UseError, match=r"\.csv"):
        task.save(tmp_path / "p.png", found)


def test_pictures(root, tmp_path):
    task = ClassificationTask(options(data_root=root))
    samples = task.samples(brightest(10), CPU, n=7)
    assert len(samples) == 7 and samples[0][1] == "0" and len(samples[0][2]) == 3
    np.testing.assert_array_equal(samples[0][0], task.pictures.validation.pictures[0])  # normalised and back
    shares = [share for _, share in samples[0][2]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    task.draw(samples, tmp_path / "samples.png")
    task.draw_scores(task.evaluate(brightest(10), HERE), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"samples.png", "confusion.png", "accuracy.png"}
    assert all(np.asarray(Image.open(p)).std() > 1 for p in tmp_path.iterdir())
    for draw in (lambda p: draw_predictions([], p), lambda p: draw_accuracy(["a"], [np.nan], 0.5, p)):
        with pytest.raises(UseError):
            draw(tmp_path / "none.png")


class Small(nn.Module):
    """A network that can tell disc from ring."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def test_training_on_it_learns_and_resumes_exactly(tmp_path):
    # Classes by brightness, which anything learns.
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 30)):
        y = np.arange(count) % 3
        x = np.clip(rng.normal(40 + 80 * y[:, None, None, None], 20, (count, 12, 12, 3)), 0, 255).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)

    def train(folder: str, steps: int, state=None):
        o = options(data_root=tmp_path, pad=1, batch_size=12, accumulate=1, max_iter=steps, lr=0.02,
                    last_layer_lr_mult=1.0, optimizer="adamw", momentum=0.9, decay=0.0, schedule="constant",
                    gamma=0.9, milestones=None,
                    warmup=0, clip=0.0, freeze_bn=False, bn_reestimate=0, eval_interval=20, eval_limit=0, seed=3,
                    checkpoint_interval=100, log_interval=10)  # fmt: skip
        torch.manual_seed(1)
        task = tasks.get("classification", o)
        model, run = Small(task.n_output), Run(tmp_path / folder)
        (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        run.config.write_text("seed: 3\n")
        return fit(model, Method(), task, o, run, CPU, {}, state), model, run

    result, model, run = train("whole", 60)
    assert result["top1"] > 0.8 and set(result) == {"top1", "loss"}
    rows = [row for row in read_rows(run.metrics) if "val_top1" in row]
    assert len(rows) == 3 and rows[-1]["val_loss"] < rows[0]["val_loss"]
    _, _, half = train("half", 40)
    _, again, _ = train("half", 60, torch.load(half.last, weights_only=True))
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_cifar_subset(shared_data):
    task = tasks.get("classification", options(data_root=shared_data / "cifar10"))
    task.check()
    assert (len(task.train_data), len(task.eval_data), task.n_output) == (15_000, 5_000, 10)
    assert task.classes[6] == "frog" and task.input_shape == (1, 3, 32, 32)
    # CIFAR's own statistics leave colours centred and of unit spread.
    images = torch.stack([task.eval_data[i][0] for i in range(0, 5000, 10)])
    assert images.mean().abs() < 0.05 and (images.std() - 1).abs() < 0.1
