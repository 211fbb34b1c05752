"""The networks that ship: used without weights or by name, small, with a card, as good and made of what it says."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sparsemask
from bench import models as scoring
from sparsemask import datasets, models, spaces
from sparsemask.cli import models as command
from sparsemask.cli import predict, segment_points, upscale
from sparsemask.cli.enlarging import Masked, find_enlarger
from sparsemask.cli.serving.networks import open_network
from sparsemask.costs import count_parameters
from sparsemask.errors import UseError
from sparsemask.resize import imresize
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain import export, super_resolution
from sparsemask.spaces import sr_networks
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.synthetic import photographs
from sparsemask.synthetic.rooms import make_rooms
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.tasks.points.whole import recipe as segment_points_recipe
from sparsemask.tasks.super_resolution.folders import sample_folder
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise
from tiny import ROOT, fails
from without_images import without_images

SR = models.available(["super_resolution"])
MASKED = [name for name in SR if name.endswith("-masked")]
DENSE = [name for name in SR if name not in MASKED]
ROOMS, SHAPES = "rooms", "shapes"
LARGEST = {**dict.fromkeys(SR, 300_000), ROOMS: 300_000, SHAPES: 400_000}  # bytes


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, and no weights to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return tmp_path


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def score(enlarger, image: np.ndarray) -> tuple[float, float]:
    """PSNR of a network and of bicubic on an image's reduction."""
    scale = enlarger.scale
    image = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
    low = imresize(image, 1 / scale)
    larger = quantise(enlarger.run(as_tensor(low)[None], 0, None, False))[0]
    return psnr(larger, as_tensor(image), scale), psnr(as_tensor(imresize(low, scale)), as_tensor(image), scale)


def test_what_ships():
    """Three networks without masks and the same with them, and an example of two other tasks."""
    assert [f"compact-x{scale}" for scale in (2, 3, 4)] == DENSE
    assert MASKED == [f"{name}-masked" for name in DENSE]
    assert models.available(["sample"]) == [ROOMS] and models.available(["segmentation"]) == [SHAPES]
    assert sorted([*SR, ROOMS, SHAPES]) == models.available()
    for name, most in LARGEST.items():
        assert models.find(name).path.stat().st_size <= most


@pytest.mark.parametrize("name", SR)
def test_it_is_better_than_bicubic_on_what_it_has_not_seen(name):
    rng = np.random.default_rng(5)
    rows, columns = np.indices((96, 128))
    image = np.zeros((96, 128, 3))
    for _ in range(12):  # discs and stripes, whose edges bicubic blurs
        y, x, r = rng.uniform(0, 96), rng.uniform(0, 128), rng.uniform(6, 30)
        image[(rows - y) ** 2 + (columns - x) ** 2 < r * r] = rng.uniform(0, 255, 3)
    mine, bicubic = score(find_enlarger(name, None), image.astype(np.uint8))
    assert mine > bicubic + (2 if name in DENSE else 1.5)


@pytest.mark.real
@pytest.mark.parametrize("name", SR)
def test_its_scores_are_those_of_its_card(name, shared_data):
    model, enlarger, pairs, kept = models.find(name), find_enlarger(name, None), [], []
    for path in sorted((shared_data / "set5/HR").iterdir()):
        pairs.append(score(enlarger, np.array(Image.open(path).convert("RGB"))))
        if isinstance(enlarger, Masked):
            kept.append(float(mean_kept(enlarger.network)))
    entries, (mine, bicubic) = model.metadata(), np.mean(pairs, 0)
    assert mine == pytest.approx(entries["set5_psnr"], abs=0.02)
    assert bicubic == pytest.approx(entries["set5_bicubic"], abs=0.02)
    assert mine > bicubic + (2 if enlarger.scale < 4 else 1.9 if name in DENSE else 1.5)
    if kept:
        assert np.mean(kept) == pytest.approx(entries["kept"], abs=0.01)


@pytest.mark.parametrize("name", MASKED)
def test_masks_pay(name):
    """What they cost and save, as measured when the network was put here; and that they skip."""
    model = models.find(name)
    entries, dense = model.metadata(), models.find(name.removesuffix("-masked")).metadata()
    assert entries["gain"] >= 1.1 and 0.3 < entries["kept"] < 0.7
    assert -0.05 < dense["set5_psnr"] - entries["set5_psnr"] < 0.45
    network = sparsemask.load(name)
    network(as_tensor(np.asarray(Image.open(sample_folder() / "chelsea.png")))[None, :, 100:180, 150:250])
    kept = float(mean_kept(network))
    assert 0.3 < kept < 0.95


def test_the_score_on_the_sample_set_is_that_of_the_card():
    entries = models.find(SHAPES).metadata()
    found = scoring.shapes(models.find(SHAPES).path, SHAPES)
    assert found == pytest.approx({name: entries[name] for name in ("miou", "pixel_accuracy")}, abs=0.002)


def test_the_score_of_a_room_is_that_of_the_card():
    model = models.find(ROOMS)
    assert scoring.generated(model.path, limit=1)["miou"] == pytest.approx(
        model.metadata()["first_room_miou"], abs=0.005
    )


FIGURES = {
    "super_resolution": {"set5_psnr": ".2f", "set5_ssim": ".4f", "set5_bicubic": ".2f", "kept": ".2f", "gain": ".2f"},
    "sample": {"miou": ".3f", "oa": ".3f", "macc": ".3f", "first_room_miou": ".3f"},
    "segmentation": {"miou": ".3f", "pixel_accuracy": ".3f"},
}


@pytest.mark.parametrize("name", models.available())
def test_its_card_has_its_figures_data_and_terms(name):
    model = models.find(name)
    entries = model.metadata()
    figures = {key: f"{entries[key]:{form}}" for key, form in FIGURES[model.task].items() if key in entries}
    assert figures
    size = f"{model.path.stat().st_size / 1000:.0f} kB"
    for word in (*figures.values(), size, "## Intended use", "## Data", "licence of the weights | MIT", "make models"):
        assert word in model.card, word
    assert f"# {name}\n" in model.card
    network = sparsemask.load(name)
    assert f"{count_parameters(network) / 1000:.0f} k parameters" in model.card


@pytest.mark.parametrize("name", SR)
def test_its_card_says_what_it_was_trained_on(name):
    model, network = models.find(name), sparsemask.load(name)
    dense = network.network if name in MASKED else network
    assert dense.architecture in model.card
    assert name in DENSE or name.removesuffix("-masked") in model.card.partition("\n")[2]
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
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    for name in models.available():
        model = models.find(name)
        for word in (f"{model.path.stat().st_size / 1000:.0f} kB", f"sparsemask {model.kind.command}"):
            assert word in lines[name]
        assert "Set5" in lines[name] or "mIoU" in lines[name]
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


@pytest.mark.parametrize("name", DENSE)
def test_the_file_of_flags_is_the_network_that_ships(name):
    flags = yaml.safe_load((ROOT / f"sparsemask/models/{name.removeprefix('compact-')}.yaml").read_text())
    config = sr_networks.load(models.find(name).path).config
    assert {key: flags[key] for key in config} == config


@pytest.mark.parametrize("name", MASKED)
def test_the_card_says_the_flags_of_the_masks(name):
    flags = yaml.safe_load((ROOT / f"sparsemask/models/{name.removeprefix('compact-')}.yaml").read_text())
    assert flags["ema"] == 0.999 and flags["schedule"] == "cosine" and flags["space"] == "sr"
    card = models.find(name).card
    assert f"`--keep {flags['keep']}`" in card and f"{flags['max_iter']} steps" in card


def test_all_are_made_by_make():
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nmodels: ")[2].partition("\n\n")[0]
    assert "for scale in 2 3 4" in recipe and "compact-x$$scale" in recipe
    shipped = re.findall(r"bench/models.py --ship \S+ --name (\S+)", recipe)
    assert shipped == ["$$name", "$$name-masked", ROOMS, SHAPES]
    widths = sparsemask.load(ROOMS).channels
    assert f"--channels {' '.join(map(str, widths))} " in recipe


# ---- by name, from every command


@pytest.mark.parametrize("name", MASKED)
def test_masked_networks_enlarge_by_name(place, capfd, name):
    with Image.open(sample_folder() / "chelsea.png") as image:
        image.resize((61, 40)).save("in.png")
    assert upscale.main(["in.png", "out.png", "--weights", name, "--show-masks", "masks", "--gpu", "-1"]) == 0
    said, scale = capfd.readouterr().out, int(name[len("compact-x")])
    assert "computed " in said and name in said
    assert Image.open("out.png").size == (61 * scale, 40 * scale) and list(Path("masks").glob("*.png"))
    fails(capfd, upscale.main, ["in.png", "b.png", "--weights", name, "--scale", "5"], ["--scale 5", str(scale)])


def test_masked_networks_are_exported_by_name(place, capfd):
    photographs.write(place / "pictures")
    argv = ["--space", "sr", "--weights", MASKED[0], "--data_test", "pictures", "--eval_limit", "1", "--repeats", "0"]
    assert export.main([*argv, "--out", "net.safetensors", "net.pt2"]) == 0
    again = sparsemask.load("net.safetensors")
    image = torch.rand(1, 3, 24, 32) * 255
    with torch.no_grad():
        assert torch.equal(again(image), sparsemask.load(MASKED[0])(image))
    Image.fromarray(np.full((12, 17, 3), 90, np.uint8)).save("in.png")
    assert upscale.main(["in.png", "out.png", "--weights", "net.safetensors"]) == 0
    argv = ["--space", "sr", "--weights", DENSE[0], "--data_test", "pictures", "--eval_limit", "1"]
    assert export.main([*argv, "--out", "dense.safetensors"]) == 0
    for path in ("dense.safetensors", DENSE[0]):  # the former says that it is of space "sr", without masks
        assert isinstance(sparsemask.load(path), sr_networks.SRNetwork)
    assert export.main([*[word if word != DENSE[0] else "dense.safetensors" for word in argv], "--out", "b.pt2"]) == 0


def test_pictures_are_labelled_by_name(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # the sample set stays where other tests have it
    picture = sorted((datasets.sample_folder() / "img").iterdir())[-1]
    assert predict.main([str(picture), "--weights", SHAPES, "--out-dir", "out"]) == 0
    assert "background" in capfd.readouterr().out
    found = json.loads(Path("out/classes.json").read_text())
    assert [found[key]["name"] for key in sorted(found, key=int)] == models.find(SHAPES).metadata()["classes"]
    labels = sparsemask.predict(SHAPES, picture).labels
    assert np.array_equal(labels, np.asarray(Image.open(f"out/{picture.stem}.png")))
    truth = np.asarray(Image.open(picture.parents[1] / "gt" / f"{picture.stem}.png"))
    assert (labels == truth)[truth != 255].mean() > 0.6
    assert evaluation.main(["--pretrained_model", SHAPES, "--sample", "--eval_limit", "2", "--n_worker", "0"]) == 0
    assert "(2 pictures)" in capfd.readouterr().out
    assert export.main(["--pretrained_model", SHAPES, "--sample", "--repeats", "0", "--out", "net.pt2"]) == 0


def test_a_room_is_labelled_by_name(place, capfd):
    (room,) = (make_rooms("made", seed=9, areas=1, rooms=1) / "original").glob("*.ply")  # one that it has not seen
    assert segment_points.main([str(room), "out.ply", "--weights", ROOMS, "--whole", "--grid", "0.08"]) == 0
    assert "0.08 m apart" in capfd.readouterr().out
    columns = read_ply("out.ply")
    assert (columns["pred"] == columns["label"]).mean() > 0.3  # four times as coarse, in one pass, and still no guess
    network, config = segment_points.load(models.find(ROOMS).path)
    made = segment_points_recipe(network, config)
    assert (made.settings.n_points, made.grid) == (4096, 0.04)  # as it was trained: nothing lies beside the file


def test_loading_by_name():
    kinds = {ROOMS: "smpointseg", SHAPES: "connectivity", **dict.fromkeys(MASKED, "sr")}
    for name, space in kinds.items():
        network = sparsemask.load(name)
        assert not network.training
        again = spaces.get(space).load(models.find(name).path).network
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(UseError, match="no network of that name ships: compact-x2, "):
        sparsemask.load("compact-x9")


@pytest.mark.parametrize("name", [*MASKED, SHAPES])
def test_the_page_shows_it(name):
    options = Namespace(gpu=-1, backend="auto", pixels=40_000)
    served = open_network(name, options)
    assert served.name.startswith(f"{name} (")
    served.warm_up()


def test_another_commands_network_is_refused(place, capfd):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("in.png")
    for main, argv, line in (
        (upscale.main, ["in.png", "out.png", "--weights", ROOMS], "sparsemask segment-points IN OUT --weights rooms"),
        (upscale.main, ["in.png", "out.png", "--weights", SHAPES], "sparsemask predict PICTURES --weights shapes"),
        (predict.main, ["in.png", "--weights", MASKED[0]], f"sparsemask upscale IN OUT --weights {MASKED[0]}"),
        (segment_points.main, ["in.ply", "out.ply", "--weights", SHAPES], "sparsemask predict PICTURES"),
    ):
        fails(capfd, main, argv, ["is for another command", line])
    with pytest.raises(UseError, match="sparsemask segment-points"):
        open_network(ROOMS, Namespace(gpu=-1, backend="auto", pixels=1000))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_ships_for_each_scale(place, capfd, scale):
    Image.fromarray(np.full((12, 17, 3), 90, np.uint8)).save("in.png")
    assert upscale.main(["in.png", "out.png", "--scale", str(scale)]) == 0
    assert f"compact-x{scale}" in capfd.readouterr().out
    assert Image.open("out.png").size == (17 * scale, 12 * scale)
