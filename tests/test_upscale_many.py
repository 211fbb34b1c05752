"""sparsemask upscale on folders, patterns and streams, with dense networks, within a budget of memory."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import literal_sr as literal
from small_pictures import scene
from sparsemask.cli import upscale
from sparsemask.ops.layout import to_channels_last
from sparsemask.spaces import sr_networks
from spoilt import truncate
from tiny import fails

W = ["--weights", "span.pth"]


@pytest.fixture(scope="module")
def weights():
    """A small SPAN's public file, whose outputs lie in the range of images."""
    state = literal.fill(literal.span_layout(2, 8, 2), dtype=torch.float32)
    state["upsampler.0.weight"] *= 0.02
    state["upsampler.0.bias"].fill_(0.5)
    return state


@pytest.fixture
def place(weights, tmp_path, monkeypatch):
    """Weights and a folder of four pictures in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    torch.save({"params_ema": weights}, "span.pth")
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(scene(number, (20, 31))).save(f"in/frame_{number:03d}.png")
    Image.fromarray(scene(9, (20, 31))).save("in/photo.jpg")
    return tmp_path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder(place, capfd):
    assert upscale.main(["in", "--out-dir", "out", *W]) == 0
    assert names(place / "out") == ["frame_000.png", "frame_001.png", "frame_002.png", "photo.jpg"]
    said = capfd.readouterr().out.splitlines()
    assert re.match(r"\[1/4, \d+ s left\] in/frame_000.png 31x20 -> out/frame_000.png 62x40", said[0])
    assert said[3].startswith("[4/4] in/photo.jpg 31x20 -> out/photo.jpg 62x40")
    assert "SPAN x2 (n_feats 8, n_blocks 2): span.pth" in said[0]
    assert said[-1].startswith("4 of 4 pictures enlarged in ") and said[-1].endswith(": out")


def test_the_picture_is_the_networks(place):
    upscale.main(["in/frame_000.png", "out.png", *W])
    net = sr_networks.load("span.pth")
    with torch.no_grad():
        image = torch.from_numpy(np.array(Image.open("in/frame_000.png"))).permute(2, 0, 1)[None].float()
        wanted = net(to_channels_last(image))[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open("out.png")), wanted)
    assert 5 < wanted.std()  # neither black nor white


def test_patterns_and_formats(place):
    assert upscale.main(["in/frame_*.png", "in/photo.jpg", "--out-dir", "out/deep", "--format", "webp", *W]) == 0
    assert names(place / "out/deep") == ["frame_000.webp", "frame_001.webp", "frame_002.webp", "photo.webp"]


def test_one_name_in_two_folders(place):
    (place / "more").mkdir()
    Image.fromarray(scene(5, (20, 31))).save("more/frame_000.png")
    assert upscale.main(["in/frame_000.png", "more", "--out-dir", "out", *W]) == 0
    assert names(place / "out/in") == names(place / "out/more") == ["frame_000.png"]


def test_a_bad_picture_among_many_is_named_and_the_rest_done(place, capfd):
    truncate(place / "in/frame_001.png", 0.5)
    assert upscale.main(["in", "gone.png", "--out-dir", "out", *W]) == 1
    assert names(place / "out") == ["frame_000.png", "frame_002.png", "photo.jpg"]
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "in/frame_001.png" in errors[0] and "picture not found: gone.png" in errors[1]
    assert said.out.splitlines()[-1].endswith("2 failed (named above)")
    assert "3 of 5 pictures enlarged" in said.out


def test_alpha_and_16_bits_are_kept(place):
    Image.fromarray(np.linspace(0, 65535, 620).reshape(20, 31).astype(np.uint16)).save("in/deep.png")
    clear = Image.fromarray(scene(1, (20, 31)))
    clear.putalpha(Image.fromarray(np.full((20, 31), 99, np.uint8)))
    clear.save("in/clear.png")
    assert upscale.main(["in/deep.png", "in/clear.png", "--out-dir", "out", *W]) == 0
    assert Image.open("out/deep.png").mode == "I;16"
    assert np.unique(np.array(Image.open("out/deep.png"))).size > 256
    assert Image.open("out/clear.png").mode == "RGBA"
    assert set(np.array(Image.open("out/clear.png").getchannel("A")).flat) == {99}


def stream(monkeypatch, data: bytes) -> io.BytesIO:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, write=lambda text: 1 / 0))
    return out


def test_streams(place, monkeypatch, capfd):
    upscale.main(["in/frame_000.png", "out.png", *W])
    capfd.readouterr()
    out = stream(monkeypatch, (place / "in/frame_000.png").read_bytes())
    assert upscale.main(["-", "-", *W]) == 0
    assert np.array_equal(np.array(Image.open(out)), np.array(Image.open("out.png")))
    assert "stdin 31x20 -> - 62x40" in capfd.readouterr().err
    out = stream(monkeypatch, b"hello")
    assert upscale.main(["-", "-", *W]) == 2
    assert "stdin: not a picture" in capfd.readouterr().err
    assert not out.getvalue()


def test_a_stream_into_a_folder(place, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((place / "in/photo.jpg").read_bytes())))
    assert upscale.main(["-", "in/frame_000.png", "--out-dir", "out", *W]) == 0
    assert names(place / "out") == ["frame_000.png", "stdin.png"]


def test_a_budget_of_memory(place, capfd):
    Image.fromarray(scene(1, (120, 160))).save("large.png")
    for name, more in (("whole.png", []), ("tiled.png", ["--tile", "64"]), ("budget.png", ["--memory", "20G"])):
        assert upscale.main(["large.png", name, *W, *more]) == 0
    whole, tiled, budget = (np.array(Image.open(f"{name}.png")).astype(int) for name in ("whole", "tiled", "budget"))
    # What memory this process has decides on tiles, and tiles on the last bit.
    assert np.abs(whole - tiled).max() <= 1 and np.abs(whole - budget).max() <= 1
    capfd.readouterr()
    fails(
        capfd, upscale.main, ["large.png", "no.png", *W, "--memory", "1M"], ["1 MB is too small", "160x120", "needed"]
    )
    assert not (place / "no.png").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["in", "out.png", *W], ["in: is a folder"]),
        (["in/photo.jpg", *W], ["OUT", "--out-dir"]),
        (["in/photo.jpg", "in/frame_000.png", "out.png", *W], ["2 pictures need --out-dir"]),
        (["in/*.tif", "--out-dir", "out", *W], ["in/*.tif", "no picture"]),
        (["-", "-", "--out-dir", "out", *W], ["standard input", "once"]),
        (["in", "--out-dir", "in", *W], ["would be replaced"]),
        (["in", "--out-dir", "span.pth", *W], ["is a file"]),
        (["empty", "--out-dir", "out", *W], ["empty", "no pictures"]),
        (["in", "--out-dir", "out", "--format", "gif", *W], ["gif", "webp"]),
        (["in/photo.jpg", "out.png", "--format", "png", *W], ["--format is for --out-dir"]),
        (["in/photo.jpg", "out.png", "--memory", "lots", *W], ["--memory", "lots"]),
        (["in/photo.jpg", "out.png", "--show-masks", "masks", *W], ["SPAN", "no masks"]),
        (["in/photo.jpg", "out.png", "--scale", "3", *W], ["--scale 3", "magnify by 2"]),
        (["in/photo.jpg", "out.png", "--tile", "7", *W], ["32 is the least"]),
        (["in", "--out-dir", "out", "--weights", "other.pth"], ["other.pth", "RRDBNet", "known are"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input(place, capfd, argv, words):
    torch.save({"conv_first.weight": torch.zeros(64, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.zeros(1)}, "other.pth")
    (place / "empty").mkdir()
    before = sorted(path.name for path in place.rglob("*"))
    fails(capfd, upscale.main, argv, words)
    assert sorted(path.name for path in place.rglob("*")) == before
