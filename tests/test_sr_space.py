"""The space "sr": a public network is given masks by the commands, teaches itself, and enlarges pictures with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import literal_sr as literal
from small_pictures import make_folder, scene
from sparsemask import models, spaces
from sparsemask.cli import upscale
from sparsemask.retrain import specialize
from sparsemask.spaces import sr_networks
from sparsemask.sparse import backend
from tiny import borrow_kernels, fails, killed_at
from without_images import without_images

FEW = [
    "--space", "sr", "--weights", "edsr.pth", "--hr_path", "photos", "--keep", "0.8", "--max_iter", "4", "--batch_size",
    "2", "--patch_size", "12", "--eval_interval", "4", "--rounds", "0", "--settle", "0.5", "--log_interval", "1",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A public file of a small EDSR and a folder of pictures as working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    torch.save({"state_dict": literal.edsr_state(literal.fill(literal.edsr_layout(2, 16, 2), dtype=torch.float32))},
               "edsr.pth")  # fmt: skip
    make_folder(tmp_path / "photos", 4)
    with backend("reference"):
        yield tmp_path


def test_from_dense_weights_to_an_enlarged_picture(place, capfd):
    with without_images():
        assert specialize.main([*FEW, "--name", "s"]) == 0
    said = capfd.readouterr().out
    assert "starting from" in said and "of the multiply-adds (budget 0.8" in said
    assert "the dense network that taught has psnr" in said
    rows = {row["form"]: row for row in json.loads((place / "runs/s/forms.json").read_text())}
    assert rows["sparse"]["multiply_adds"] > 0 and abs(rows["sparse"]["psnr"] - rows["dense"]["psnr"]) < 20
    Image.fromarray(scene(7, (20, 31))).save("in.png")
    assert upscale.main(["in.png", "out.png", "--weights", "runs/s/network.safetensors", "--show-masks", "m"]) == 0
    assert "computed " in capfd.readouterr().out
    assert Image.open("out.png").size == (62, 40)
    assert sorted(path.name for path in (place / "m").iterdir())[0] == "in_masks.png"
    network = spaces.get("sr").load("runs/s/network.safetensors").network
    with torch.no_grad():
        image = torch.from_numpy(np.array(Image.open("in.png"))).permute(2, 0, 1)[None].float()
        wanted = network(image)[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open("out.png")), wanted)


@pytest.mark.slow
def test_a_shipped_network_is_specialised_by_its_name(place, monkeypatch):
    monkeypatch.setattr(type(spaces.get("sr")), "start_masks", lambda *_: None)  # takes long
    argv = [word if word != "edsr.pth" else "compact-x2" for word in FEW]
    with without_images():
        assert specialize.main([*argv, "--max_iter", "2", "--eval_limit", "1", "--name", "s"]) == 0
    dense = models.find("compact-x2").path
    config = yaml.safe_load((place / "runs/s/config.yaml").read_text())
    assert config["ft_model"] == str(dense.resolve())
    network = spaces.get("sr").load("runs/s/network.safetensors").network
    assert network.network.config == sr_networks.load(dense).config


def test_it_learns_from_the_dense_network_alone(place, capfd, monkeypatch):
    """The loss is the distance to the dense network's output: pictures of another truth give the same run."""
    from sparsemask.tasks.super_resolution.task import SuperResolutionTask

    whole, targets = SuperResolutionTask.loss, []

    def loss(self, output, target):
        targets.append(target.detach().clone())
        return whole(self, output, target)

    monkeypatch.setattr(SuperResolutionTask, "loss", loss)
    with without_images():
        assert specialize.main([*FEW, "--name", "s"]) == 0
        weights = [torch.load(place / "runs/s/checkpoints/last.pt", weights_only=True)["model"]]
        assert specialize.main([*FEW, "--name", "t", "--truth", "1"]) == 0
        weights.append(torch.load(place / "runs/t/checkpoints/last.pt", weights_only=True)["model"])
    taught, true = targets[1], targets[0]
    assert not torch.equal(taught, true)
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_an_anchored_run_ends_like_an_uninterrupted_one(place):
    """--settle 1, which holds masks where they were started: they are in the checkpoint."""
    few = [*FEW, "--settle", "1", "--checkpoint_interval", "2"]
    with without_images():
        assert specialize.main([*few, "--name", "s"]) == 0
        with killed_at(3):
            specialize.main([*few, "--name", "parts"])
        assert specialize.main(["--resume", "runs/parts"]) == 0
    one, other = (torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True) for name in ("s", "parts"))
    for part in ("model", "method"):
        first, second = one[part], other[part]
        first, second = (first["anchor"], second["anchor"]) if part == "method" else (first, second)
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("start", [-2.0, 2.0])
def test_fixed_masks_follow_the_budget(start):
    """Masks that keep too little or too much come back to the budget, although nothing else moves them."""
    from types import SimpleNamespace as Some

    from sparsemask.retrain.specializing.family import Distillation
    from sparsemask.spaces.sparse_conv.masking import mean_kept
    from sparsemask.spaces.sparsified import SparsifiedNetwork
    from sparsemask.spaces.sr_networks import EDSR

    torch.manual_seed(0)
    x = 255 * torch.rand(2, 3, 24, 24)
    network = SparsifiedNetwork(EDSR(2, 16, 2), x).eval()
    with torch.no_grad():
        for masks in network.region_masks:
            masks.spa_mask.first().weight.div_(255)
            masks.spa_mask[-1].bias.copy_(torch.tensor([0.0, start]))
    family = Some(truth=0.0, keep=0.85, settle=1.0, constant_tau=True, sparse=1.0, sparse_epochs=0, sparse_start=0)
    config = Some(run=Some(seed=0), network=Some(space="sr"), family=family)
    method = Distillation(config, network.network)
    method.steps, shares = 400, []
    for step in range(400):
        method.before_step(network, step)
        network.eval()(x)
        method.penalty(network, step)
        method.after_step(network)
        shares.append(float(mean_kept(network)))
    assert abs(shares[0] - 0.85) > 0.1 and abs(np.mean(shares[-100:]) - 0.85) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--weights": "gone.pth"}, ["gone.pth"]),
        ({"--weights": "photos/0001.png"}, ["0001.png"]),
        ({"--weights": None}, ["--ft_model is missing"]),
        ({"--weights": "other.pth"}, ["other.pth", "RRDBNet", "known are"]),
    ],
    ids=["absent", "no weights", "none named", "unknown"],
)
def test_bad_input(place, capfd, change, words):
    torch.save({"conv_first.weight": torch.zeros(64, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.zeros(1)}, "other.pth")
    (flag, value), argv = next(iter(change.items())), list(FEW)
    at = argv.index(flag)
    argv[at : at + 2] = [] if value is None else [flag, value]
    fails(capfd, specialize.main, argv, words)
    assert not (place / "runs").exists()
