"""The verbs on the space smstereo: search, prune, retrain, evaluate on generated scenes and on files; presets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from small_pairs import write_scenes
from sparsemask import flags
from sparsemask.cli import disparity
from sparsemask.engine.method import learning_rate_factor as factor
from sparsemask.masks.spatial import load_masks
from sparsemask.options import presets
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.sparse import backend
from sparsemask.tasks.stereo import task as stereo
from sparsemask.tasks.stereo.files import read_disparity
from sparsemask.training_setup import resolve_config
from sparsemask.weights import load_weights
from tiny import fails

SMALL = [
    "--sample", "--crop_height", "32", "--crop_width", "48", "--batch_size", "2", "--n_worker", "0",
    "--eval_limit", "1", "--checkpoint_interval", "2", "--eval_interval", "2", "--log_interval", "1", "--lr", "0.001",
    "--bn_reestimate", "1",
]  # fmt: skip
SEARCH = ["--search", "--space", "smstereo", "--maxdisp", "16", *SMALL]


@pytest.fixture(autouse=True, scope="module")
def plain_arithmetic():
    """One backend and one thread: for so few pixels more only wait for each other; and few pairs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, backend("reference"):
        patch.setattr(stereo, "_VALIDATION", 2)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with a finished search (runs/s) and its mask; not to be touched."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert search_run.main([*SEARCH, "--max_iter", "2", "--keep", "0.5", "--name", "s"]) == 0
        assert prune_prune.main(["--run", "runs/s"]) == 0
    return folder


@pytest.fixture
def place(searched, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory."""
    folder = tmp_path / "place"
    shutil.copytree(searched, folder)
    monkeypatch.chdir(folder)
    return folder


def test_search_leaves_what_a_run_leaves(searched):
    run = searched / "runs/s"
    info = json.loads((run / "run.json").read_text())
    assert info["state"] == "finished" and 0 < info["kept_fraction"] <= 1
    assert 0 < info["multiply_adds"] and 0 < info["multiply_adds_dense"] and "generated scenes" in info["measured_on"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["space"], config["task"], config["maxdisp"]) == ("smstereo", "stereo", 16)
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"kept", "tau", "lambda", "val_epe", "val_d1", "val_d1_ok", "val_kept"} <= row.keys()
    assert row["val_d1_ok"] == pytest.approx(1 - row["val_d1"])
    for name in ("curves", "samples", "masks"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 5000
    page = (run / "report.html").read_text()
    assert "SMStereo" in page and "EPE (px)" in page


def test_the_whole_way(place, capfd):
    masks = load_masks("mask.npz")
    assert (masks.space, masks.task, masks.config["maxdisp"]) == ("smstereo", "stereo", 16)
    assert 0 < masks.mean_kept <= 1 and len(masks.channels) == 18
    capfd.readouterr()
    argv = ["--mask_path", "mask.npz", "--masks", "all", *SMALL, "--max_iter", "2", "--name", "r"]
    assert retrain_train.main(argv) == 0
    assert "retrained: d1_ok" in capfd.readouterr().out
    before, after = load_weights("runs/s/checkpoints/last.pt"), load_weights("runs/r/network.safetensors")
    still = [name for name in before if "ch_mask" in name or ".locate." in name]
    assert still and all(torch.equal(before[name], after[name]) for name in still)
    # Without a word about the network: the run's own configuration says all.
    assert retrain_eval.main(["--run", "runs/r", "--rounds", "1", "--out", "preds", "--eval_limit", "2"]) == 0
    said = capfd.readouterr().out
    for word in ("scene_00", "EPE", "D1", "dense ms", "multiply-adds", "non-occluded", "0 < truth < 16"):
        assert word in said
    assert len(list(Path("preds").glob("*.png"))) == 2 and read_disparity("preds/scene_01.png").shape == (32, 48)
    info = json.loads(Path("runs/r/run.json").read_text())["eval"]
    assert f"EPE {info['epe']:.3f} px" in said and len(info["each"]) == 2 and "non-occluded" in info["regions"]
    page = Path("runs/r/report.html").read_text()
    for word in ("scene_01", "EPE px", "End-point error of every pair", "Masks"):
        assert word in page
    # The network that was shared matches any pair.
    write_scenes("pair", 1, 32, 48, 10)
    argv = ["pair/0000_left.png", "pair/0000_right.png", "d.pfm", "--weights", "runs/r/network.safetensors"]
    assert disparity.main(argv) == 0 and read_disparity("d.pfm").max() < 16


def test_other_pairs_by_a_list(place, capfd):
    write_scenes("pairs", 2, 36, 50, 10)
    argv = ["--run", "runs/s", "--eval_list", "pairs/pairs.txt", "--rounds", "0", "--eval_limit", "1"]
    assert retrain_eval.main(argv) == 0
    said = capfd.readouterr().out
    assert "50x36" in said and "(pairs, 1 pairs" in said


# Bad input in the verbs: one line, exit 2, no run left behind.
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--maxdisp", "40"], ["--maxdisp 40", "multiple of 16"]),
        (["--data_root", "none"], ["--data_root none", "no such folder"]),
        (["--training_list", "none.txt", "--eval_list", "none.txt"], ["none.txt", "not found"]),
        (["--crop_width", "50", "--sample"], ["--crop_width 50", "multiple of 16"]),
        (["--task", "segmentation"], ["segmentation", "smstereo"]),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capfd, argv, words):
    monkeypatch.chdir(tmp_path)
    fails(capfd, search_run.main, ["--search", "--space", "smstereo", *argv], words)
    assert not list(tmp_path.glob("runs/*"))


def test_published_preset_is_the_published_protocol():
    made = search_run.parser("smstereo")
    options, *_ = resolve_config(made, made.given(["--config", "published", "--data_root", "x"]))
    # No other preset may shine through.
    assert (options["maxdisp"], options["crop_height"], options["crop_width"], options["keep"]) == (192, 256, 512, None)
    assert (options["max_epoch"], options["max_iter"], options["warmup"], options["clip"]) == (16, None, 0, 0)
    rates = [
        options["lr"] * factor(options["schedule"], epoch * 100, 1600, options["gamma"], options["milestones"])
        for epoch in (0, 9, 10, 12, 14, 15)
    ]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 1.25e-4])


def test_nothing_named_goes_on_with_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = search_run.parser("smstereo")
    options, line, _ = resolve_config(made, made.given(["--search"]))
    assert options["task"] == "stereo" and options["sample"] and options["max_iter"] < 1000 and options["maxdisp"] < 192
    assert "going on with generated scenes and a short budget" in line
    assert {"smstereo_sample", "smstereo_short", "smstereo_published"} <= set(presets())
    assert np.prod([options["crop_height"] % 16 == 0, options["crop_width"] % 16 == 0])
    assert flags.space_of(["--space", "smstereo"]) == "smstereo"


def test_a_search_teaches_the_retrained_network(place, capfd):
    argv = ["--mask_path", "mask.npz", "--masks", "all", *SMALL, "--max_iter", "2"]
    assert retrain_train.main([*argv, "--name", "plain"]) == 0
    capfd.readouterr()
    assert retrain_train.main([*argv, "--teacher", "runs/s", "--distill", "0.5", "--name", "taught"]) == 0
    assert "runs/s/checkpoints/last.pt, weight 0.5" in capfd.readouterr().out
    plain, taught = ([json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
                     for name in ("plain", "taught"))  # fmt: skip
    assert taught[0]["loss"] != plain[0]["loss"] and np.isfinite(taught[-1]["loss"])
    state = torch.load("runs/taught/checkpoints/last.pt", weights_only=True)
    assert state["teacher"]["kind"] == "network" and Path(state["teacher"]["what"]).is_file()
