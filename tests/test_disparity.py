"""sparsemask disparity: two pictures in, colours and maps out, in tiles too; one clear line for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sparsemask import UseError
from sparsemask.cli import disparity
from sparsemask.pictures.stereo import colours
from sparsemask.spaces.smstereo.checkpoints import load_smstereo, save_smstereo
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.sparse import backend
from sparsemask.synthetic.stereo_scenes import make_scene
from sparsemask.tasks.stereo.batch import StereoPair, make_pair, pad16, unpad
from sparsemask.tasks.stereo.files import read_disparity
from sparsemask.tasks.stereo.tiles import Box, boxes, fitting_tile, memory, outer, run_tiles
from spoilt import truncate
from tiny import borrow_kernels, fails


@pytest.fixture(autouse=True, scope="module")
def plain_arithmetic():
    """One backend and one thread: for so few pixels more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("reference"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A random network, as a file."""
    path = tmp_path_factory.mktemp("weights") / "smstereo.safetensors"
    torch.manual_seed(0)
    save_smstereo(path, SMStereo(maxdisp=16))
    return path


SCENE = make_scene(np.random.default_rng(0), 33, 58, 12)


@pytest.fixture
def place(weights, tmp_path, monkeypatch) -> Path:
    """A pair in the working directory, and a network that is found in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    home = borrow_kernels(tmp_path / "home")
    monkeypatch.setenv("SPARSEMASK_HOME", str(home))
    (home / "weights").mkdir()
    (home / "weights" / weights.name).symlink_to(weights)
    for side in ("left", "right"):
        Image.fromarray(getattr(SCENE, side)).save(f"{side}.png")
    return tmp_path


def test_all_that_is_written_is_the_networks(place, weights, capfd):
    argv = ["left.png", "right.png", "out.png", "--png16", "d.png", "--pfm", "d.pfm", "--show-masks", "masks"]
    assert disparity.main(argv) == 0
    said = capfd.readouterr().out
    assert "58x33 -> " in said and "kept fraction" in said and "smstereo.safetensors" in said
    with torch.no_grad():
        expected = unpad(load_smstereo(weights)(pad16(make_pair(SCENE.left, SCENE.right))), 33, 58)[0].numpy()
    assert np.allclose(read_disparity("d.pfm"), expected, atol=1e-4)
    assert np.allclose(read_disparity("d.png"), expected, atol=1 / 256)
    high = max(1.0, np.percentile(expected, 99.8))
    found = np.array(Image.open("out.png")).astype(int)
    assert abs(found - colours(expected, high=high)).max() <= 8  # one step of the colours
    assert np.array(Image.open("masks/left_masks.png").convert("L")).std() > 5
    assert disparity.main(["left.png", "right.png", "alone.pfm"]) == 0
    assert np.array_equal(read_disparity("alone.pfm"), read_disparity("d.pfm"))


@pytest.mark.parametrize("kind", ["L", "LA", "RGBA", "P", "I;16"])
def test_every_kind_of_picture(place, kind):
    for side in ("left", "right"):
        made = Image.open(f"{side}.png")
        if kind == "I;16":
            made = Image.fromarray(np.array(made.convert("L")).astype(np.uint16) * 257)
        (made if kind == "I;16" else made.convert(kind)).save(f"{side}.png")
    assert disparity.main(["left.png", "right.png", "out.png"]) == 0
    with Image.open("out.png") as out:
        assert (out.mode, out.size) == ("RGB", (58, 33))


# More disparities than the picture is wide, and fewer than trained with: the weights do not care.
@pytest.mark.parametrize("most", ["16", "96"])
def test_another_maxdisp(place, most):
    assert disparity.main(["left.png", "right.png", "d.pfm", "--maxdisp", most]) == 0
    found = read_disparity("d.pfm")
    assert found.shape == (33, 58) and np.isfinite(found).all() and 0 < found.max() < int(most)


def smaller(place: Path) -> None:
    Image.open("right.png").crop((0, 0, 50, 33)).save("right.png")


# What is spoilt, the flags, and words of the one line.
BAD = {
    "sizes": (smaller, [], ["right.png: 50x33 pixels", "left.png has 58x33", "one size"]),
    "missing": (lambda p: Path("right.png").unlink(), [], ["right.png"]),
    "torn": (lambda p: truncate(Path("left.png")), [], ["left.png"]),
    "maxdisp": (None, ["--maxdisp", "100"], ["--maxdisp 100: must be a multiple of 16: try 112"]),
    "weights": (None, ["--weights", "none.pt"], ["none.pt"]),
    "no weights": (lambda p: (p / "home/weights/smstereo.safetensors").unlink(), [], ["no weights", "--weights"]),
    "tile": (None, ["--tile", "16"], ["--tile 16: at least 64"]),
    "memory": (None, ["--memory", "0.1"], ["0.1 GB are too few", "need about"]),
    "both": (None, ["--memory", "1", "--tile", "64"], ["not allowed"]),
    "suffix": (None, ["--png16", "a.pfm"], ["a.pfm: expected a name that ends in .png"]),
    "twice": (None, ["--png16", "out.png"], ["out.png: named twice"]),
    "folder": (None, ["--pfm", "no/a.pfm"], ["no/a.pfm: no such folder"]),
    "room": (None, ["--png16", "a.png", "--maxdisp", "512"], ["below 256", "--pfm"]),
    "masks": (None, ["--show-masks", "left.png"], ["left.png: is a file"]),
}


@pytest.mark.parametrize("case", BAD)
def test_one_clear_line_and_nothing_written(place, capfd, case):
    spoil, flags, words = BAD[case]
    if spoil is not None:
        spoil(place)
    before = sorted(place.rglob("*"))
    fails(capfd, disparity.main, ["left.png", "right.png", "out.png", *flags], words)
    assert sorted(place.rglob("*")) == before


def test_names_that_are_none(place, capfd):
    fails(capfd, disparity.main, ["left.png", "right.png", "out.txt"], ["out.txt", ".png"])
    fails(capfd, disparity.main, ["left.png", "right.png", "a.pfm", "--pfm", "b.pfm"], ["the same twice"])


@pytest.mark.parametrize(("size", "tile"), [((64, 256), (64, 64)), ((144, 80), (64, 96)), ((16, 16), (64, 64))])
def test_tiles_make_up_the_picture(size, tile):
    seen = torch.zeros(size, dtype=torch.int)
    for box in boxes(*size, tile):
        box.of(seen).add_(1)
        assert box.bottom - box.top <= tile[0] and box.right - box.left <= tile[1]
        assert all(side % 16 == 0 for side in (*box, *outer(box, *size, 48)))
    assert (seen == 1).all()
    assert outer(Box(128, 192, 256, 320), 400, 800, 48) == Box(64, 256, 144, 384)


def local(pair: StereoPair) -> torch.Tensor:
    """A matcher that sees a few pixels and 32 disparities, and no farther."""
    shifted = [F.pad(pair.right, (d, 0))[..., : pair.right.shape[-1]] for d in range(32)]
    costs = torch.stack([F.avg_pool2d((pair.left - one).abs().mean(1), 5, 1, 2) for one in shifted], 1)
    return costs.argmin(1).float()


def test_tiles_see_what_lies_farther_left_in_the_right_picture():
    frame = make_scene(np.random.default_rng(1), 160, 320, 30)
    pair = make_pair(frame.left, frame.right)
    masks = lambda: [last[0] > 8]
    last = [None]

    def run(part):
        found = local(part)
        last[0] = F.avg_pool2d(found[:, None], 4)[:, :, None].expand(-1, -1, 3, -1, -1)
        return found

    found, kept = run_tiles(run, pair, 32, (64, 80), masks)
    assert torch.equal(found, local(pair))
    run(pair)
    assert torch.equal(kept[0], masks()[0]) and kept[0].shape == (1, 1, 3, 40, 80)


def test_a_budget_is_kept():
    whole = memory(384, 1248, 192)
    assert fitting_tile(384, 1248, 192, whole) == (384, 1248)
    areas = []
    for budget in (0.9 * whole, 0.7 * whole, 0.6 * whole):
        tile = fitting_tile(384, 1248, 192, budget)
        parts = [outer(box, 384, 1248, 192) for box in boxes(384, 1248, tile)]
        assert max(memory(b.bottom - b.top, b.right - b.left, 192) for b in parts) <= budget
        areas.append(tile[0] * tile[1])
    assert areas == sorted(areas, reverse=True) and areas[-1] < 384 * 1248
    with pytest.raises(UseError, match="too few for --maxdisp 192"):
        fitting_tile(384, 1248, 192, 2e8)


_PEAK = """
import sys, torch
from pathlib import Path
from sparsemask.sparse import set_backend
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.tasks.stereo.batch import StereoPair
torch.set_num_threads(1)
height, width, most = map(int, sys.argv[1:])
set_backend(network := SMStereo(most).eval(), "gather")
with torch.no_grad():
    network(StereoPair(*torch.randn(2, 1, 3, height, width)))
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


# What budgets are reckoned by is not less than what a process really holds.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process held")
@pytest.mark.slow
def test_no_more_memory_than_reckoned():
    size = (128, 384, 96)
    done = subprocess.run([sys.executable, "-c", _PEAK, *map(str, size)], capture_output=True, text=True, check=True)
    assert 0.3 * memory(*size) < int(done.stdout) * 1024 < memory(*size)


def test_in_tiles_the_command_says_so(place, capfd):
    frame = make_scene(np.random.default_rng(1), 32, 240, 12)
    for side in ("left", "right"):
        Image.fromarray(getattr(frame, side)).save(f"{side}.png")
    for flags in ([], ["--tile", "128"]):
        assert disparity.main(["left.png", "right.png", f"{len(flags)}.pfm", *flags, "--show-masks", "m"]) == 0
    assert "tiles of 128x128 at most" in capfd.readouterr().out
    whole, tiled = read_disparity("0.pfm"), read_disparity("2.pfm")
    # Inside their overlap tiles see what the whole sees, but for the hourglasses, which see farther.
    assert tiled.shape == whole.shape and abs(whole - tiled).mean() < 0.05
