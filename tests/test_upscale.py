"""sparsemask upscale and analyse: any picture in, a larger one of its kind out; one clear line for what is wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from small_pictures import scene
from sparsemask.cli import analyse, upscale
from sparsemask.pictures.files import Picture, read_picture, write_picture
from sparsemask.spaces.sparse_conv import load_smsr, save_smsr
from sparsemask.sparse import backend
from spoilt import truncate
from test_smsr import network
from tiny import borrow_kernels, fails


@pytest.fixture(autouse=True)
def one_backend():
    with backend("reference"):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Networks of two scales, as files."""
    folder = tmp_path_factory.mktemp("weights")
    for scale in (2, 3):
        save_smsr(folder / f"smsr_x{scale}.safetensors", network(scale=scale))
    return folder


@pytest.fixture
def place(weights, tmp_path, monkeypatch):
    """Weights and a picture in the working directory, nothing to be found by chance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    for file in weights.iterdir():
        shutil.copy(file, tmp_path)
    colours().save(tmp_path / "in.png")
    return tmp_path


def colours() -> Image.Image:
    return Image.fromarray(scene(1, (20, 31)))


def with_alpha() -> Image.Image:
    made = colours()
    made.putalpha(Image.fromarray(np.linspace(0, 255, 620).reshape(20, 31).astype(np.uint8)))
    return made


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 620).reshape(20, 31).astype(np.uint16))


def clear_palette() -> Image.Image:
    made = colours().convert("P")
    made.info["transparency"] = 0
    return made


# Kind of picture, its file, and the mode of what comes out.
KINDS = {
    "colour": (colours, "a.png", "RGB"),
    "grey": (lambda: colours().convert("L"), "a.png", "L"),
    "black and white": (lambda: colours().convert("1"), "a.png", "L"),
    "grey and alpha": (lambda: with_alpha().convert("LA"), "a.png", "LA"),
    "alpha": (with_alpha, "a.png", "RGBA"),
    "palette": (lambda: colours().convert("P"), "a.png", "RGB"),
    "clear palette": (clear_palette, "a.png", "RGBA"),
    "16 bits": (deep, "a.png", "I;16"),
    "jpeg": (colours, "a.jpg", "RGB"),
    "inks": (lambda: colours().convert("CMYK"), "a.jpg", "RGB"),
    "tiff": (colours, "a.tif", "RGB"),
    "webp": (with_alpha, "a.webp", "RGBA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture(place, capfd, kind):
    make, name, mode = KINDS[kind]
    made = make()
    made.save(name, **({"transparency": 0} if kind == "clear palette" else {}))
    assert upscale.main([name, "out.png", "--weights", "smsr_x2.safetensors"]) == 0
    with Image.open("out.png") as out:
        assert (out.mode, out.size) == (mode, (62, 40))
        if "A" in mode:
            wanted = read_picture(name).alpha
            got = np.asarray(out.getchannel("A").resize((31, 20), Image.Resampling.BOX))
            assert np.abs(got.astype(int) - wanted).mean() < 8
    assert "31x20 -> out.png 62x40" in capfd.readouterr().out


def test_the_picture_is_the_networks(place):
    upscale.main(["in.png", "out.png", "--weights", "smsr_x2.safetensors"])
    net = load_smsr("smsr_x2.safetensors")
    with torch.no_grad():
        wanted = net(torch.from_numpy(np.array(Image.open("in.png"))).permute(2, 0, 1)[None].float())[0]
    assert np.array_equal(np.array(Image.open("out.png")), wanted.clamp(0, 255).round().byte().permute(1, 2, 0).numpy())


def test_grey_16_bits_are_kept_to_the_last(tmp_path):
    deep().save(tmp_path / "a.png")
    assert write_picture(tmp_path / "b.png", read_picture(tmp_path / "a.png")) == []
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), np.array(Image.open(tmp_path / "b.png")))


def test_turned_cameras_profiles_and_resolution(place):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colours().save("a.jpg", exif=exif, icc_profile=profile, dpi=(300, 300))
    upscale.main(["a.jpg", "out.png", "--weights", "smsr_x2.safetensors"])
    with Image.open("out.png") as out:
        assert out.size == (40, 62)  # upright
        assert out.info["icc_profile"] == profile
        assert round(out.info["dpi"][0]) == 300


def test_floats_are_scaled_and_said(place, capfd):
    grey = np.array(colours().convert("L"))
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(grey.astype(np.float32) / 255).save("a.tif")
    for name, out in (("grey.png", "b.png"), ("a.tif", "c.png")):
        assert upscale.main([name, out, "--weights", "smsr_x2.safetensors"]) == 0
    assert "note: a.tif: floats of 0 to 1 were multiplied by 255" in capfd.readouterr().out
    assert np.abs(np.array(Image.open("b.png")).astype(int) - np.array(Image.open("c.png"))).max() <= 1
    Image.fromarray(grey.astype(np.float32) / 100).save("a.tif")
    fails(capfd, upscale.main, ["a.tif", "d.png", "--weights", "smsr_x2.safetensors"], ["a.tif", "floats from 0"])


def test_what_a_format_cannot_hold_is_said(place, capfd):
    with_alpha().save("a.png")
    upscale.main(["a.png", "out.jpg", "--weights", "smsr_x2.safetensors"])
    assert "note: JPEG has no transparency" in capfd.readouterr().out
    assert write_picture(place / "b.jpg", Picture(np.zeros((4, 4, 3), np.float32), grey=True, deep=True)) == [
        "16 bits became 8"
    ]


def test_masks_are_drawn(place):
    assert upscale.main(["in.png", "out.png", "--weights", "smsr_x2.safetensors", "--show-masks", "masks"]) == 0
    assert {p.name for p in (place / "masks").iterdir()} == {"in_masks.png", "in_module1.png", "in_module2.png"}
    picture, shown = np.array(Image.open("in.png")), np.array(Image.open("masks/in_module1.png"))
    net = load_smsr("smsr_x2.safetensors")
    with torch.no_grad():
        net(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    kept = net.masks[0][0, 0].numpy()
    # Kept places as they are, dropped ones changed.
    assert np.array_equal(shown[kept], picture[kept])
    assert (shown[~kept] != picture[~kept]).any(axis=-1).mean() > 0.95


@pytest.mark.parametrize("where", ["variable names a file", "variable names a folder", "cache"])
def test_weights_are_found(place, monkeypatch, capfd, where):
    if where == "cache":
        (place / "home/weights").mkdir(parents=True)
        (place / "smsr_x3.safetensors").rename(place / "home/weights/smsr_x3.safetensors")
    else:
        monkeypatch.setenv("SPARSEMASK_WEIGHTS", str(place / ("smsr_x3.safetensors" if "file" in where else "")))
    assert upscale.main(["in.png", "out.png", "--scale", "3"]) == 0
    assert "62x40" not in capfd.readouterr().out
    assert Image.open("out.png").size == (93, 60)


def test_tiles_and_ensemble(place):
    outs = []
    for more in ([], ["--tile", "32"], ["--ensemble"]):
        upscale.main(["in.png", "out.png", "--weights", "smsr_x2.safetensors", *more])
        outs.append(np.array(Image.open("out.png")).astype(int))
    assert np.abs(outs[0] - outs[1]).max() <= 1
    assert (outs[0] != outs[2]).any()


def torn(path):
    truncate(path / "in.png", 0.5)


def no_picture(path):
    (path / "in.png").write_text("hello")


def nothing(path):
    pass


W = ["--weights", "smsr_x2.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "argv", "words"),
    [
        (nothing, ["gone.png", "out.png", *W], ["picture not found: gone.png"]),
        (nothing, [".", "out.png", *W], ["is a folder"]),
        (torn, ["in.png", "out.png", *W], ["in.png", "truncated"]),
        (no_picture, ["in.png", "out.png", *W], ["in.png", "not a picture"]),
        (nothing, ["in.png", "out.txt", *W], ["out.txt", ".png"]),
        (nothing, ["in.png", "no/out.png", *W], ["no such folder: no"]),
        (nothing, ["in.png", "out.png", "--scale", "8"], ["no weights for x8", "--weights", "SPARSEMASK_WEIGHTS"]),
        (nothing, ["in.png", "out.png", "--weights", "gone.pt"], ["gone.pt"]),
        (nothing, ["in.png", "out.png", "--weights", "in.png"], ["in.png"]),
        (nothing, ["in.png", "out.png", *W, "--scale", "3"], ["--scale 3", "magnify by 2"]),
        (nothing, ["in.png", "out.png", *W, "--tile", "7"], ["32 is the least"]),
        (nothing, ["in.png", "out.png", *W, "--backend", "abacus"], ["unknown backend"]),
        (nothing, ["in.png"], ["OUT"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else getattr(v, "__name__", ""),
)
def test_bad_input(place, capfd, spoil, argv, words):
    spoil(place)
    before = sorted(p.name for p in place.rglob("*"))
    fails(capfd, upscale.main, argv, words)
    assert sorted(p.name for p in place.rglob("*")) == before


def test_a_bomb_is_refused(place, capfd, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    fails(capfd, upscale.main, ["in.png", "out.png", *W], ["in.png", "exceeds limit"])


def test_memory_that_does_not_suffice_is_an_error_of_use(place, capfd, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("sparsemask.spaces.sparse_conv.upscale", full)
    fails(capfd, upscale.main, ["in.png", "out.png", *W], ["not enough memory for 31x20", "--tile"])
    assert not (place / "out.png").exists()


def test_analyse_counts_zeros(place, capfd):
    assert analyse.main(["in.png", *W, "--out", "found"]) == 0
    said = capfd.readouterr().out
    for word in ("head.1", "body.0.body.body.0", "body.1.body.body.2", "collect.1", "without masks"):
        assert word in said
    lines = (place / "found/zeros.csv").read_text().splitlines()
    assert len(lines) == 1 + 8 * (1 + 2 * 3 + 1)
    assert (place / "found/zeros.png").stat().st_size > 5000
    share = float(said.splitlines()[-3].split("%")[0])
    assert analyse.main(["in.png", *W, "--masked"]) == 0
    assert float(capfd.readouterr().out.splitlines()[-1].split("%")[0]) > share  # what is dropped is zero too


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["in.png"], ["--weights FILE or --run FOLDER"]),
        (["in.png", "--weights", "a", "--run", "b"], ["one of the two"]),
        (["in.png", "--run", "gone"], ["gone: no run"]),
        (["gone.png", *W], ["picture not found"]),
    ],
)
def test_analyse_bad_input(place, capfd, argv, words):
    fails(capfd, analyse.main, argv, words)
