"""The verbs on the space smpointseg: search, prune, retrain, evaluate; killed and resumed exactly, tables included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from small_clouds import CROPS, NETWORK, rooms
from sparsemask import flags, spaces
from sparsemask.datasets import cache
from sparsemask.engine.method import learning_rate_factor as factor
from sparsemask.masks.spatial import load_masks
from sparsemask.options import presets
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.spaces.sparse_conv.schedules import published_epoch, temperature
from sparsemask.sparse import backend
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.training_setup import resolve_config
from sparsemask.weights import load_weights
from spoilt import listing
from tiny import ROOT, environment, fails

TRAINING = [
    "--batch_size", "2", "--n_worker", "0", "--checkpoint_interval", "2", "--eval_interval", "3", "--log_interval", "1",
    "--lr", "0.01",
]  # fmt: skip
DATA = ["--task", "s3dis", "--data_root", "data", *CROPS]
SEARCH = ["--search", "--space", "smpointseg", *DATA, *NETWORK, *TRAINING]
TRAIN = [*DATA, *TRAINING]


@pytest.fixture(autouse=True, scope="module")
def plain_arithmetic():
    """One backend and one thread: for so few points more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("reference"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with rooms and a finished search (runs/s); not to be touched."""
    folder = tmp_path_factory.mktemp("searched")
    rooms(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert search_run.main([*SEARCH, "--max_iter", "6", "--keep", "0.5", "--name", "s"]) == 0
    return folder


@pytest.fixture
def place(searched, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory, with a mask."""
    folder = tmp_path / "place"
    shutil.copytree(searched, folder)
    monkeypatch.chdir(folder)
    # The copy is another folder: its mask and its data are there.
    assert prune_prune.main(["--run", "runs/s", *DATA]) == 0
    return folder


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_search_leaves_what_a_run_leaves(place):
    run = place / "runs/s"
    info = json.loads((run / "run.json").read_text())
    assert info["state"] == "finished" and 0 < info["kept_fraction"] < 1
    assert 0 < info["multiply_adds"] and 0 < info["multiply_adds_dense"]
    assert set(info["masks"]) == {"encoder.0", "encoder.1"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["space"], config["task"], config["d_in"], config["n_class"]) == ("smpointseg", "s3dis", 6, 13)
    assert {"kept", "tau", "lambda", "val_miou", "val_oa", "val_macc", "val_kept"} <= rows(run)[-1].keys()
    for name in ("curves", "samples", "masks"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 5000
    assert "SMPointSeg" in (run / "report.html").read_text()


def test_the_whole_way(place, capfd):
    masks = load_masks(place / "mask.npz")
    assert (masks.space, masks.task) == ("smpointseg", "s3dis") and masks.config["radius"] == 0.3
    assert masks.channels["encoder.1"].shape == (2, 8) and 0 < masks.mean_kept < 1
    capfd.readouterr()
    argv = ["--mask_path", "mask.npz", "--masks", "all", *TRAIN, "--max_iter", "4", "--name", "r"]
    assert retrain_train.main(argv) == 0
    assert "retrained: miou" in capfd.readouterr().out
    before, after = load_weights("runs/s/checkpoints/last.pt"), load_weights("runs/r/network.safetensors")
    masked = [name for name in before if "pt_mask" in name or "ch_mask" in name]
    still = [name for name in masked if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert still and all(torch.equal(before[name], after[name]) for name in still)
    assert not torch.equal(before["init.body.0.conv_1x1.weight"], after["init.body.0.conv_1x1.weight"])
    # Without a word about the network: the run's own configuration says all.
    assert retrain_eval.main(["--run", "runs/r", "--rounds", "1", "--out", "preds", "--eval_batch_size", "3"]) == 0
    said = capfd.readouterr().out
    for word in ("clutter", "mIoU", "mAcc", "dense ms", "multiply-adds", "dense channels by layer", "50000 points"):
        assert word in said
    [file] = Path("preds").glob("*.ply")
    columns = read_ply(file)
    info = json.loads(Path("runs/r/run.json").read_text())
    assert info["eval"]["points"] == len(columns["pred"])
    assert info["eval"]["oa"] == pytest.approx(np.mean(columns["pred"] == columns["label"]))
    report = Path("runs/r/report.html").read_text()
    for word in ("Quality by class", "mean IoU", "overall accuracy", "Masks"):
        assert word in report
    assert retrain_eval.main(["--space", "smpointseg", "--six_fold", "preds"]) == 0
    pooled = capfd.readouterr().out
    assert f"mIoU {info['eval']['miou']:.4f}" in pooled


def test_a_higher_threshold_keeps_less(place):
    kept = []
    for thres in ("0.01", "0.99"):
        assert prune_prune.main(["--run", "runs/s", *DATA, "--thres", thres, "--out", f"m{thres}.npz"]) == 0
        kept.append(load_masks(place / f"m{thres}.npz").mean_kept)
    assert kept[0] > kept[1]


def test_published_schedules():
    own = spaces.get("smpointseg").published
    taus = [temperature(epoch, own["tau_epochs"], own["tau_end"]) for epoch in (1, 16, 28, 100)]
    assert taus == pytest.approx([1, 0.5, 0.1, 0.1])
    # A run of any length passes through the published one's hundred epochs.
    assert [published_epoch(step, 1000, own["epochs"]) for step in (0, 9, 10, 999)] == [1, 1, 2, 100]
    for name, sparse, batch in (("s3dis", 0.04, 6), ("semantickitti", 0.06, 10)):
        made = search_run.parser("smpointseg")
        found = made.from_file(name)
        assert (found["sparse"], found["batch_size"], found["max_epoch"], found["tau_epochs"]) == (
            sparse,
            batch,
            100,
            30,
        )
        rates = [factor(found["schedule"], e * 500, 50000, found["gamma"], epoch=500) for e in (0, 1, 99)]
        assert [found["lr"] * rate for rate in rates] == pytest.approx([0.01 * 0.95**e for e in (0, 1, 99)])
        options, *_ = resolve_config(made, made.given(["--config", name, "--data_root", "x"]))
        # No other preset may shine through.
        assert (options["task"], options["keep"], options["channels"], options["warmup"], options["clip"]) == (
            name,
            None,
            None,
            0,
            0,
        )


def test_nothing_named_goes_on_with_the_rooms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = search_run.parser("smpointseg")
    options, line, _ = resolve_config(made, made.given(["--search"]))
    assert options["task"] == "sample" and options["sample"] and options["max_iter"] < 1000
    assert "going on with the generated rooms and a short budget" in line
    assert {"smpointseg_sample", "smpointseg_short"} <= set(presets())


@pytest.mark.parametrize("argv", [["--mask_path", "mask.npz"], ["--run", "runs/s"], ["--config", "runs/s/config.yaml"]])
def test_the_space_is_found(place, argv):
    assert flags.space_of(argv) == "smpointseg"


def same_end(a: dict, b: dict, steps: int) -> bool:
    """Whether two checkpoints agree in weights and possibility tables, bit by bit."""
    assert a["step"] == b["step"] == a["data"]["step"] == b["data"]["step"] == steps
    parts = [(a["model"], b["model"]), (a["data"]["tables"], b["data"]["tables"])]
    return all(x.keys() == y.keys() and all(torch.equal(v, y[k]) for k, v in x.items()) for x, y in parts)


def last(folder: Path) -> dict:
    return torch.load(folder / "runs/a/checkpoints/last.pt", weights_only=True)


@pytest.mark.slow
def test_a_killed_search_resumes_bit_for_bit_tables_included(searched, tmp_path, monkeypatch):
    # Workers plan ahead of the run: what was planned and not used must not be in the tables.
    steps, more = 25, ["--data_root", str(searched / "data"), "--n_worker", "2", "--max_iter", "25", "--eval_interval"]
    flags = [*SEARCH, *more, "25", "--name", "a", "--resume"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "search/run.py"), *flags],  # with the user's cache: kernels are not built anew
        cwd=killed, env=environment(cache()), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics, deadline = killed / "runs/a/metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 7:
            break
        time.sleep(0.01)
    assert child.poll() is None, child.stderr.read()
    child.kill()
    child.communicate()
    assert 0 < last(killed)["step"] < steps
    for folder in (killed, alone):
        monkeypatch.chdir(folder)
        with backend("auto"):  # as in a process of its own
            assert search_run.main(flags) == 0
    assert same_end(last(alone), last(killed), steps)
    assert (alone / "runs/a/metrics.jsonl").read_text() == (killed / "runs/a/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("main", "argv", "words"),
    [
        (search_run.main, [*SEARCH, "--task", "edges"], ["--task edges", "s3dis"]),
        (search_run.main, [*SEARCH, "--n_points", "2"], ["--n_points 2"]),
        (search_run.main, [*SEARCH, "--test_area", "7"], ["area 7"]),
        (search_run.main, [*SEARCH, "--config", "published"], ["published", "semantickitti", "short"]),
        (search_run.main, [*SEARCH, "--task", "semantickitti"], ["sequences_0.25"]),
        (search_run.main, [*SEARCH[:3], "--task", "semantickitti"], ["--data_root"]),
        (search_run.main, ["--search", "--task", "s3dis", "--data_root", "data"], ["--space smpointseg"]),
        (retrain_train.main, ["--mask_path", "mask.npz", *TRAIN, "--n_neighbors", "5"], ["--n_neighbors 5", "has 4"]),
        (retrain_train.main, ["--mask_path", "mask.npz", *TRAIN, "--task", "sample"], ["--task"]),
        (retrain_eval.main, ["--run", "runs/s", "--flips"], ["--flips", "smpointseg"]),
        (retrain_eval.main, ["--space", "smpointseg", "--six_fold", "data"], ["no predictions"]),
        (retrain_eval.main, ["--space", "smpointseg", "--task", "semantickitti", "--six_fold", "."], ["s3dis"]),
    ],
    ids=lambda v: " ".join(v[-2:]) if isinstance(v, list) else "",
)
def test_bad_input(place, capfd, main, argv, words):
    before = listing(place)
    fails(capfd, main, [*argv, "--name", "new"] if main is not retrain_eval.main else argv, words)
    assert listing(place) == before
