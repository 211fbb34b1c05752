"""The networks that ship: used without weights, better than bicubic, small, with a card, and made of what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sparsemask import models
from sparsemask.cli import models as command
from sparsemask.cli import upscale
from sparsemask.costs import count_parameters
from sparsemask.resize import imresize
from sparsemask.retrain import super_resolution
from sparsemask.spaces import sr_networks
from sparsemask.synthetic import photographs
from sparsemask.tasks.super_resolution.folders import sample_folder
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise
from tiny import ROOT, fails
from without_images import without_images


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, and no weights to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return tmp_path


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()


def score(network, image: np.ndarray, scale: int) -> tuple[float, float]:
    """PSNR of a network and of bicubic on an image's reduction."""
    image = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
    low = imresize(image, 1 / scale)
    with torch.no_grad():
        larger = quantise(network(as_tensor(low)[None]))[0]
    return psnr(larger, as_tensor(image), scale), psnr(as_tensor(imresize(low, scale)), as_tensor(image), scale)


@pytest.mark.parametrize("name", models.available())
def test_it_is_small_and_better_than_bicubic_on_what_it_has_not_seen(name):
    model = models.find(name)
    network = sr_networks.load(model.path)
    assert model.path.stat().st_size <= 300_000
    rng = np.random.default_rng(5)
    rows, columns = np.indices((96, 128))
    image = np.zeros((96, 128, 3))
    for _ in range(12):  # discs and stripes, whose edges bicubic blurs
        y, x, r = rng.uniform(0, 96), rng.uniform(0, 128), rng.uniform(6, 30)
        image[(rows - y) ** 2 + (columns - x) ** 2 < r * r] = rng.uniform(0, 255, 3)
    mine, bicubic = score(network, image.astype(np.uint8), network.scale)
    assert mine > bicubic + 2


@pytest.mark.real
@pytest.mark.parametrize("name", models.available())
def test_its_scores_are_those_of_its_card(name, shared_data):
    model = models.find(name)
    network = sr_networks.load(model.path)
    pairs = [
        score(network, np.array(Image.open(path).convert("RGB")), network.scale)
        for path in sorted((shared_data / "set5/HR").iterdir())
    ]
    mine, bicubic = np.mean(pairs, 0)
    assert mine == pytest.approx(model.metadata()["set5_psnr"], abs=0.02)
    assert bicubic == pytest.approx(model.metadata()["set5_bicubic"], abs=0.02)
    assert f"{model.metadata()['set5_psnr']:.2f} dB" in model.card
    assert mine > bicubic + (2 if network.scale < 4 else 1.9)


@pytest.mark.parametrize("name", models.available())
def test_its_card_says_what_it_is(name):
    model = models.find(name)
    network = sr_networks.load(model.path)
    for word in (network.architecture, f"{count_parameters(network) / 1000:.0f} k", "make models", "licence"):
        assert word in model.card
    for photograph in photographs.PHOTOGRAPHS:
        assert photograph.partition(".")[0] in model.card


def test_a_picture_is_enlarged_without_any_weights(place, capfd):
    with Image.open(sample_folder() / "chelsea.png") as image:
        image.resize((60, 40)).save("in.png")
    for argv in ([], ["--scale", "2"], ["--weights", "compact-x2"]):
        assert upscale.main(["in.png", "out.png", *argv]) == 0
        assert "compact-x2" in capfd.readouterr().out
        assert Image.open("out.png").size == (120, 80)


def test_they_are_listed(capfd):
    assert command.main([]) == 0
    said = capfd.readouterr().out
    for name in models.available():
        assert name in said
        assert command.main([name]) == 0
        assert capfd.readouterr().out.strip() == models.find(name).card.strip()
    fails(capfd, command.main, ["compakt-x2"], ["unknown model", "did you mean 'compact-x2'"])


def test_the_training_pictures(place):
    paths = photographs.write(place / "pictures")
    assert len(paths) == sum(len(sizes) for _, sizes in photographs.PHOTOGRAPHS.values()) + photographs.SCENES
    assert all("CC0" in terms or "public domain" in terms for terms, _ in photographs.PHOTOGRAPHS.values())
    assert min(min(Image.open(path).size) for path in paths) >= 128


@pytest.mark.parametrize("architecture", ["SRVGGNetCompact", "SPAN"])
def test_a_dense_network_is_trained_and_enlarges(place, architecture):
    photographs.write(place / "pictures")
    few = ["--n_feats", "8", "--n_blocks", "2", "--max_iter", "3", "--batch_size", "2", "--patch_size", "12"]
    few += ["--eval_interval", "3", "--eval_limit", "1", "--log_interval", "1", "--n_worker", "0", "--lr", "0.001"]
    data = ["--hr_path", "pictures", "--data_test", "pictures"]
    with without_images():
        assert super_resolution.main(["--architecture", architecture, *data, *few, "--name", "a"]) == 0
        again = ["--pretrained_model", "runs/a/network.safetensors", *data, *few, "--name", "b"]
        assert super_resolution.main(again) == 0
    first, second = (sr_networks.load(f"runs/{name}/network.safetensors") for name in "ab")
    assert first.architecture == second.architecture == architecture and first.config == second.config
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("in.png")
    assert upscale.main(["in.png", "out.png", "--weights", "runs/b/network.safetensors"]) == 0


def test_bad_input_of_the_training(place, capfd):
    photographs.write(place / "pictures")
    data = ["--hr_path", "pictures", "--max_iter", "1"]
    fails(capfd, super_resolution.main, ["--architecture", "SPAM", *data], ["SPAM", "did you mean 'SPAN'"])
    path = str(models.find("compact-x2").path)
    fails(capfd, super_resolution.main, ["--pretrained_model", path, "--scale", "3", *data], ["--scale 3"])


@pytest.mark.parametrize("name", models.available())
def test_the_file_of_flags_is_the_network_that_ships(name):
    flags = yaml.safe_load((ROOT / f"sparsemask/models/{name.removeprefix('compact-')}.yaml").read_text())
    config = sr_networks.load(models.find(name).path).config
    assert {key: flags[key] for key in config} == config
    makefile = (ROOT / "Makefile").read_text()
    assert "for scale in 2 3 4" in makefile and "--config sparsemask/models/x$$scale.yaml" in makefile


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_ships_for_each_scale(place, capfd, scale):
    Image.fromarray(np.full((12, 17, 3), 90, np.uint8)).save("in.png")
    assert upscale.main(["in.png", "out.png", "--scale", str(scale)]) == 0
    assert f"compact-x{scale}" in capfd.readouterr().out
    assert Image.open("out.png").size == (17 * scale, 12 * scale)
