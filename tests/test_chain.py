"""The verbs one after another, on small data: search, prune, retrain, fine-tune, evaluate; and public files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from filling import fill
from sparsemask.masks import load_mask
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork, load_network, named_mask
from sparsemask.weights import load_weights
from tiny import MASKS, SMALL, borrow_kernels, data_flags, fails, make_data, verb

FLAGS = [*SMALL, "--eval_interval", "4", "--max_iter", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    make_data(folder / "data")
    return folder


@pytest.fixture
def here(place, monkeypatch, no_images) -> Path:
    """It as working directory of this process, whose runs draw nothing."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(place / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return place


def run(script: str, argv: list[str], place: Path) -> str:
    done = verb(script, argv, place)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_search_prune_retrain_finetune_evaluate(place):
    data = data_flags(Path("data"))  # relative paths must do: a run's files are found again from the same folder
    said = run("search/run.py", ["--search", *data, *FLAGS, *MASKS], place)
    assert "starts from random weights" in said
    assert "next: python prune/prune.py --thres 0.001" in said
    said = run("prune/prune.py", ["--thres", "0.001"], place)
    search = next((place / "runs").glob("search-*"))
    mask = load_mask(place / "mask.npy")
    assert np.array_equal(mask, load_mask(search / "mask_thres_0.001.npy"))
    note = json.loads((place / "mask.json").read_text())
    assert note["connections"] == mask.sum()
    assert Path(note["checkpoint"]) == search / "checkpoints" / "last.pt"

    run("retrain/train.py", ["--mask_path", "mask.npy", "--inherit", "encoder", *data, *FLAGS], place)
    first = next((place / "runs").glob("retrain-*"))
    network = load_weights(first / "network.safetensors")
    shared = load_network(first / "network.safetensors")  # the file alone says what to build
    assert shared(torch.zeros(1, 3, 33, 33)).shape == (1, 4, 17, 17)
    assert network.keys() == load_weights(first / "checkpoints" / "last.pt").keys()

    tune = ["--mask_path", "mask.npy", "--ft_model", str(first / "checkpoints" / "last.pt"), "--name", "tuned"]
    run("retrain/train.py", [*tune, *data, *FLAGS, "--lr", "0"], place)
    tuned = load_weights(place / "runs" / "tuned" / "checkpoints" / "last.pt")
    # At rate 0 fine-tuning keeps every weight it was given (statistics move).
    assert all(torch.equal(v, tuned[k]) for k, v in network.items() if k.endswith("conv.weight"))

    said = run("retrain/eval.py", ["--run", str(first), "--out", "predicted", "--eval_batch_size", "2"], place)
    info = json.loads((first / "run.json").read_text())
    # The same network on the same pictures scores the same, batched or one by one.
    assert f"mIoU {info['result']['miou']:.4f}" in said
    assert len(list((place / "predicted").glob("*.png"))) == 3
    for name in ("curves", "architecture", "samples", "confusion"):
        assert (first / "pictures" / f"{name}.png").stat().st_size > 5000

    # The run's own configuration starts the same run again, to the same weights.
    config = yaml.safe_load((first / "config.yaml").read_text())
    config["name"] = "again"
    (place / "again.yaml").write_text(yaml.safe_dump(config))
    run("retrain/train.py", ["--config", "again.yaml"], place)
    again = load_weights(place / "runs" / "again" / "checkpoints" / "last.pt")
    assert all(torch.equal(v, again[k]) for k, v in network.items())


def public_file(network: torch.nn.Module, path: Path) -> None:
    """A file in the public checkpoints' layout, filled by rule."""
    state = {f"module.{k}": v for k, v in fill(network).state_dict().items()}
    torch.save({"iter": 33100, "state_dict": state, "optimizer": {}}, path)


def test_public_search_checkpoint_is_pruned(here, capfd):
    public_file(FullyDenseNetwork(), here / "public.pth.tar")
    assert prune_prune.main(["--checkpoint", "public.pth.tar", "--out", "public.npy", "--thres", "0.5"]) == 0
    assert "of 90 connections above the threshold 0.5" in capfd.readouterr().out
    assert json.loads((here / "public.json").read_text())["step"] == 33100


def test_public_network_checkpoint_is_evaluated(here, capfd):
    public_file(PrunedNetwork(named_mask("sparsemask-voc", 9)), here / "network.pth.tar")
    data = data_flags(Path("data"), n_class=21)
    argv = ["--pretrained_model", "network.pth.tar", "--mask_path", "sparsemask-voc", *data, "--crop_size", "65"]
    assert retrain_eval.main([*argv, "--flips", "--eval_scales", "0.75", "1", "--n_worker", "0"]) == 0
    said = capfd.readouterr().out
    assert "mIoU 0." in said
    assert "(3 pictures)" in said
    assert "absent from these pictures" in said
    fails(capfd, retrain_eval.main, [*argv, "--n_class", "20"], ["classes: the file has 21, the network 20"])


def test_named_masks_and_the_baseline_train(here):
    data = data_flags(Path("data"))
    for name in ("fcn", "random-12"):
        assert retrain_train.main(["--mask_path", name, "--name", name, *data, *FLAGS]) == 0
        info = json.loads((here / "runs" / name / "run.json").read_text())
        assert info["connections"] == (None if name == "fcn" else 12)
    assert np.array_equal(load_mask(here / "runs/random-12/mask.npy"), named_mask("random-12", 9, 0))
