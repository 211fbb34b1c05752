"""Salient objects: scores against brute force, the folder layouts, and the verbs on drawn pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from small_config import configured
from sparsemask import UseError
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.synthetic.dense_tasks import make_saliency
from sparsemask.tasks import LabelledData
from sparsemask.tasks.saliency.data import SaliencyDataset, all_pairs, split
from sparsemask.tasks.saliency.scores import SaliencyMeter, adaptive, curves
from sparsemask.tasks.saliency.task import SaliencyTask
from tiny import SMALL, fails


def f_of(precision, recall):
    return 1.3 * precision * recall / (0.3 * precision + recall) if precision + recall else 0.0


def test_scores_against_loops():
    rng = np.random.default_rng(0)
    meter, pictures = SaliencyMeter(), []
    for k in range(5):
        truth = rng.random((9, 8)) < 0.3
        prediction = np.clip(truth * 0.5 + rng.random((9, 8)) * 0.6, 0, 1)
        target = truth.astype(np.int64)
        target[0] = 255  # padding and unlabelled pixels count nowhere
        pictures.append((prediction[1:], truth[1:]))
        meter.add(k, torch.from_numpy(prediction), torch.from_numpy(target))
    scores = meter.scores()
    best = 0.0
    for t in range(256):
        p, r = [], []
        for prediction, truth in pictures:
            chosen = np.floor(prediction * 255 + 0.5) >= t
            hit = (chosen & truth).sum()
            p.append(hit / chosen.sum() if chosen.sum() else 0.0)
            r.append(hit / truth.sum())
        assert scores.precision[t] == pytest.approx(np.mean(p), abs=1e-12)
        assert scores.recall[t] == pytest.approx(np.mean(r), abs=1e-12)
        best = max(best, f_of(np.mean(p), np.mean(r)))
    assert scores.max_f == pytest.approx(best)
    assert scores.f[round(scores.threshold * 255)] == scores.max_f
    assert scores.mae == pytest.approx(np.mean([np.abs(p - t).mean() for p, t in pictures]))
    adapted = []
    for prediction, truth in pictures:
        chosen = prediction >= min(1.0, 2 * prediction.mean())
        hit = (chosen & truth).sum()
        adapted.append(f_of(hit / max(chosen.sum(), 1), hit / truth.sum()))
    assert scores.adaptive == pytest.approx(np.mean(adapted))
    assert (scores.count, scores.empty) == (5, 0)


def test_perfect_and_worst_predictions():
    truth = np.zeros((6, 6), bool)
    truth[2:4, 1:5] = True
    assert adaptive(truth.astype(float), truth) == 1.0
    precision, recall = curves(truth.astype(float), truth)
    assert precision[1:] == pytest.approx(1.0) and recall == pytest.approx(1.0)
    precision, recall = curves(1.0 - truth, truth)
    assert not precision[1:].any() and not recall[1:].any()
    # At the threshold 0 everything is predicted.
    assert precision[0] == truth.mean() and recall[0] == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_masks_count_for_the_error_alone(value):
    meter = SaliencyMeter()
    meter.add(0, torch.full((4, 4), value), torch.zeros(4, 4, dtype=torch.int64))
    alone = meter.scores()
    assert (alone.mae, alone.max_f, alone.adaptive, alone.empty) == (value, 0.0, 0.0, 1)
    truth = torch.eye(4, dtype=torch.int64)
    meter.add(1, truth.float(), truth)
    both = meter.scores()
    # The second picture is perfect; the first one changes the mean error only.
    assert (both.mae, both.max_f, both.adaptive, both.empty) == (value / 2, 1.0, 1.0, 1)


def test_nothing_labelled_gives_numbers():
    meter = SaliencyMeter()
    meter.add(0, torch.rand(3, 3), torch.full((3, 3), 255))
    scores = meter.scores()
    assert np.isfinite([scores.mae, scores.max_f, scores.adaptive]).all()


def test_loss_is_the_cross_entropy_of_labelled_pixels():
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.choice([0, 1, 255], (2, 5, 4)))
    output = torch.from_numpy(rng.normal(size=(2, 1, 5, 4)))
    p = 1 / (1 + np.exp(-output[:, 0].numpy()))
    truth = target.numpy()
    expected = -np.log(p[truth == 1]).sum() - np.log(1 - p[truth == 0]).sum()
    task = SaliencyTask(configured(LabelledData))
    assert float(task.loss(output, target)) == pytest.approx(expected, rel=1e-12)
    assert task.count(target) == (truth != 255).sum()


@pytest.fixture(scope="module")
def ecssd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saliency") / "ECSSD"
    make_saliency(folder, 12, size=40)
    return folder


def as_msra(ecssd: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part in ("images", "ground_truth_mask"):
        for path in (ecssd / part).iterdir():
            shutil.copy(path, folder)
    return folder


def test_layouts_read_alike(ecssd, tmp_path):
    for root in (as_msra(ecssd, tmp_path / "MSRA-B"), as_msra(ecssd, tmp_path / "MSRA10K/Imgs").parent):
        ours, theirs = (SaliencyDataset(all_pairs(r), ("no", "yes"), training=False) for r in (root, ecssd))
        assert len(ours) == len(theirs) == 12
        for k in range(12):
            for a, b in zip(ours.load(k), theirs.load(k), strict=True):
                assert np.array_equal(a, b)
    label = theirs.load(0)[1]
    assert set(np.unique(label)) == {0, 1}


@pytest.mark.parametrize(
    ("levels", "expected"), [([0, 127, 128, 255], [0, 0, 1, 1]), ([0, 0, 0, 0], [0, 0, 0, 0])], ids=["grey", "empty"]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_masks_of_any_mode(tmp_path, mode, levels, expected):
    image = Image.fromarray(np.array([levels], np.uint8)).convert(mode)
    image.save(tmp_path / "m.png")
    data = SaliencyDataset([(tmp_path / "p.jpg", tmp_path / "m.png")], ("no", "yes"))
    assert data.read(tmp_path / "m.png").tolist() == [expected]


def test_split_by_lists(ecssd, tmp_path):
    pairs = all_pairs(ecssd)
    (tmp_path / "some.txt").write_text("0003\n0001.jpg\n")
    some = str(tmp_path / "some.txt")
    names = lambda *args: [int(picture.stem) for picture, _ in split(pairs, *args)]
    rest = [k for k in range(12) if k not in (1, 3)]
    assert names("training", None, None) == [k for k in range(12) if k != 9]
    assert names("eval", None, None) == [9]
    assert names("eval", None, some) == [3, 1]
    assert names("training", None, some) == rest
    assert names("eval", some, None) == rest
    assert names("eval", None, "all") == list(range(12))
    with pytest.raises(UseError, match="'all' leaves no training pictures"):
        names("training", None, "all")
    (tmp_path / "some.txt").write_text("0003\nother\n")
    with pytest.raises(UseError, match="1 of 2 pictures absent, first other"):
        names("eval", None, some)


def missing(folder):
    shutil.rmtree(folder)


def no_masks(folder):
    shutil.rmtree(folder / "ground_truth_mask")


def one_mask_less(folder):
    (folder / "ground_truth_mask/0004.png").unlink()


def no_pictures(folder):
    for path in (folder / "images").iterdir():
        path.unlink()


def other_size(folder):
    for path in (folder / "ground_truth_mask").iterdir():
        Image.new("L", (40, 41)).save(path)


def zeros_and_ones(folder):
    for path in (folder / "ground_truth_mask").iterdir():
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(path)


def torn(folder):
    for path in (folder / "ground_truth_mask").iterdir():
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, ["data folder not found", "bad"]),
        (no_masks, ["label folder not found", "ground_truth_mask"]),
        (one_mask_less, ["1 of 12 labels absent", "0004.png"]),
        (no_pictures, ["no pictures", "images"]),
        (other_size, ["ground_truth_mask", "40x41", "40x40"]),
        (zeros_and_ones, ["ground_truth_mask", "0 and 1", "0 to 255"]),
        (torn, ["ground_truth_mask", "not readable"]),
    ],
)
def test_bad_data(ecssd, tmp_path, monkeypatch, capfd, spoil, words):
    shutil.copytree(ecssd, tmp_path / "bad")
    spoil(tmp_path / "bad")
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "saliency", "--data_root", "bad", *SMALL, "--max_iter", "2", "--name", "x"]
    fails(capfd, search_run.main, argv, words)
    assert not (tmp_path / "runs" / "x").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "saliency", "--voc_root", "V"], ["--voc_root", "--task saliency", "--data_root"]),
        (["--task", "segmentation", "--data_root", "V"], ["--data_root", "--voc_root"]),
        (["--task", "saliency", "--im_path", "V"], ["needs --gt_path, --training_list, --eval_list"]),
    ],
)
def test_data_flags_of_another_task(tmp_path, monkeypatch, capfd, flags, words):
    monkeypatch.chdir(tmp_path)
    fails(capfd, search_run.main, [*flags, *SMALL], words)


@pytest.mark.slow
def test_verbs(ecssd, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = ["--task", "saliency", "--data_root", str(ecssd), "--n_class", "5"]
    common = [*SMALL, "--max_iter", "4"]
    assert search_run.main(["--search", *data, *common, "--name", "s"]) == 0
    # The task says how many channels there are, whatever --n_class says.
    assert yaml.safe_load(Path("runs/s/config.yaml").read_text())["n_class"] == 1
    assert prune_prune.main(["--run", "runs/s"]) == 0
    assert retrain_train.main([*data, *common, "--mask_path", "mask.npy", "--name", "r"]) == 0
    assert torch.load("runs/r/checkpoints/last.pt", weights_only=True)["config"]["n_class"] == 1
    # Trained on one set, evaluated on another: the run's own lists must not come along.
    other = as_msra(ecssd, tmp_path / "MSRA")
    argv = ["--run", "runs/r", "--data_root", str(other), "--eval_list", "all", "--out", "out"]
    assert retrain_eval.main(argv) == 0
    said = capfd.readouterr().out
    assert "F-beta " in said and "MAE " in said and "(12 pictures)" in said
    greys = [Image.open(path) for path in sorted(Path("out").iterdir())]
    assert len(greys) == 12 and {(one.mode, one.size) for one in greys} == {("L", (40, 40))}
    assert Path("runs/r/pictures/precision_recall.png").exists()
    network = ["--pretrained_model", "runs/r/network.safetensors", "--mask_path", "mask.npy", "--depth", "8"]
    weights = [*data, *network, "--crop_size", "33"]
    assert retrain_eval.main(weights) == 0
    assert "(1 pictures)" in capfd.readouterr().out
    fails(capfd, retrain_eval.main, ["--run", "runs/r", "--task", "segmentation"], ["--task segmentation", "saliency"])


def test_sample_is_drawn_once(tmp_path, monkeypatch):
    from sparsemask.synthetic import dense_tasks as shapes

    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path))
    drawn = []

    def few(folder):
        drawn.append(folder)
        make_saliency(folder, 3, size=40)

    monkeypatch.setattr(shapes, "make_saliency", few)
    assert shapes.saliency_sample() == shapes.saliency_sample()
    assert len(drawn) == 1
    # Nothing but the whole set is left in the cache, and the task finds its pictures there.
    assert [path.name for path in tmp_path.iterdir()] == [shapes.saliency_sample().name]
    options = configured(LabelledData, sample=True)
    assert len(SaliencyTask(options).pairs("training")) == 2
