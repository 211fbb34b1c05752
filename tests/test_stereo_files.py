"""Disparities and pictures of pairs from files, the layouts of the public sets, lists, crops and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemask import UseError
from sparsemask.tasks.stereo.batch import StereoPair, make_pair, normalise, pad16, picture_of, random_crop, unpad
from sparsemask.tasks.stereo.files import PairFiles, read_disparity, read_frame, read_picture, write_disparity
from sparsemask.tasks.stereo.layouts import find_pairs, read_list, split
from spoilt import truncate

RNG = np.random.default_rng(0)
MAP = (RNG.random((6, 9)) * 8 + 1).astype(np.float32)
MAP[0, 0] = MAP[5, 8] = 0


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def picture(seed: int = 0, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def pfm(path: Path, values: np.ndarray, scale: str, head: str = "Pf") -> Path:
    """A PFM byte by byte: rows from the bottom up, byte order by the sign of its scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = "<f4" if scale.startswith("-") else ">f4"
    header = f"{head}\n{values.shape[1]} {values.shape[0]}\n{scale}\n".encode()
    path.write_bytes(header + values[::-1].astype(order).tobytes())
    return path


# The scale's size says nothing about the values: SceneFlow writes 1, Middlebury 0.003922.
@pytest.mark.parametrize("scale", ["-1.0", "1.0", "-0.003922", "-1"])
def test_pfm_of_both_byte_orders(tmp_path, scale):
    assert np.array_equal(read_disparity(pfm(tmp_path / "a.pfm", MAP, scale)), MAP)


def test_what_is_no_value(tmp_path):
    values = MAP.copy()
    values[1, :4] = np.inf, -np.inf, np.nan, -3
    expected = MAP.copy()
    expected[1, :4] = 0
    np.savez(tmp_path / "a.npz", values)
    np.save(tmp_path / "a.npy", values)
    for file in (pfm(tmp_path / "a.pfm", values, "-1"), tmp_path / "a.npz", tmp_path / "a.npy"):
        found = read_disparity(file)
        assert found.dtype == np.float32 and np.array_equal(found, expected)


def test_written_maps_are_read_back(tmp_path):
    values = MAP.copy()
    values[2, :3] = np.nan, np.inf, 0.0001
    for name, bound in (("a.png", 1 / 512), ("a.pfm", 0)):
        write_disparity(tmp_path / name, values)
        found = read_disparity(tmp_path / name)
        known = np.isfinite(values) & (values > 0)
        # A value that rounds to 0 must not become none.
        assert np.array_equal(found > 0, known)
        assert abs(found - values)[known].max() <= max(bound, 1 / 256 * (name == "a.png"))
    raw = np.asarray(Image.open(tmp_path / "a.png"))
    assert raw.dtype == np.uint16 and raw[3, 3] == round(MAP[3, 3] * 256)
    assert (tmp_path / "a.pfm").read_bytes().startswith(b"Pf\n9 6\n-1.0\n")


def test_a_png_has_no_room(tmp_path):
    with pytest.raises(UseError, match=r"300.0 px are more than .*below 256"):
        write_disparity(tmp_path / "a.png", np.full((2, 2), 300.0))
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(UseError, match=".png or .pfm"):
        write_disparity(tmp_path / "a.tif", MAP)


def torn(path: Path) -> Path:
    truncate(path)
    return path


def two_arrays(path: Path) -> Path:
    np.savez(path, a=MAP, b=MAP)
    return path


def made_npy(path: Path, values) -> Path:
    np.save(path, values, allow_pickle=True)
    return path


# What is wrong with the file, and words of the line that says so.
BAD = {
    "missing": (lambda f: f / "none.pfm", "none.pfm: no such file"),
    "suffix": (lambda f: save(f / "a.bmp", picture()), "disparities are read from .png"),
    "8 bits": (lambda f: save(f / "a.png", picture()[..., 0]), "16 bits, 256 times"),
    "colours": (lambda f: save(f / "a.png", picture()), "16 bits, 256 times"),
    "torn pfm": (lambda f: torn(pfm(f / "a.pfm", MAP, "-1")), "a.pfm: not readable"),
    "torn png": (lambda f: torn(save(f / "a.png", (MAP * 256).astype(np.uint16))), "a.png: not readable"),
    "colour pfm": (lambda f: pfm(f / "a.pfm", MAP, "-1", "PF"), "three colours"),
    "no pfm": (lambda f: save(f / "a.png", picture()).rename(f / "a.pfm"), "no PFM"),
    "zero scale": (lambda f: pfm(f / "a.pfm", MAP, "0"), "not readable"),
    "two arrays": (lambda f: two_arrays(f / "a.npz"), "2 arrays, expected one (a, b)"),
    "torn npz": (lambda f: torn(two_arrays(f / "a.npz")), "a.npz: not readable"),
    "objects": (lambda f: made_npy(f / "a.npy", np.array([None])), "a.npy: not readable"),
    "three axes": (lambda f: made_npy(f / "a.npy", np.zeros((2, 2, 2))), "expected disparities (H, W)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_disparities_are_one_clear_line(tmp_path, case):
    make, words = BAD[case]
    with pytest.raises(UseError) as error:
        read_disparity(make(tmp_path))
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_grey_and_alpha_pictures_become_colours(tmp_path):
    whole = picture()
    grey, alpha = Image.fromarray(whole[..., 0]), Image.fromarray(whole)
    alpha.putalpha(Image.fromarray(whole[..., 1]))
    grey.save(tmp_path / "grey.png")
    alpha.save(tmp_path / "alpha.png")
    Image.fromarray(whole[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(whole).save(tmp_path / "a.webp", lossless=True)
    tripled = whole[..., :1].repeat(3, 2)
    for name, expected in (("grey", tripled), ("deep", tripled), ("alpha", whole)):
        assert np.array_equal(read_picture(tmp_path / f"{name}.png"), expected)
    assert np.array_equal(read_picture(tmp_path / "a.webp"), whole)


def pair_files(folder: Path, truth: np.ndarray = MAP, right: np.ndarray | None = None) -> PairFiles:
    save(folder / "l.png", picture(0))
    save(folder / "r.png", picture(1) if right is None else right)
    return PairFiles("a", folder / "l.png", folder / "r.png", pfm(folder / "d.pfm", truth, "-1"))


def test_a_frame_is_read(tmp_path):
    files = pair_files(tmp_path)
    save(tmp_path / "mask0nocc.png", np.where(MAP > 4, 255, 128).astype(np.uint8))
    save(tmp_path / "obj.png", (MAP > 5).astype(np.uint8))
    frame = read_frame(files._replace(noc=tmp_path / "mask0nocc.png", objects=tmp_path / "obj.png"))
    assert frame.size == (6, 9) and np.array_equal(frame.disparity, MAP)
    assert np.array_equal(frame.noc, MAP > 4) and np.array_equal(frame.foreground, MAP > 5)
    bare = read_frame(files._replace(disparity=None))
    assert not bare.disparity.any() and bare.noc is None and bare.foreground is None


# Truth times a factor, or of another size: what is said of it.
@pytest.mark.parametrize(
    ("truth", "right", "words"),
    [
        (MAP * 256, None, "of another scale: the largest is"),
        (MAP / 256, None, "of another scale: the largest is 0.03"),
        (MAP[:, :-1], None, "8x6 values for the 9x6 pixels"),
        (MAP, picture(1, (6, 8)), "8x6 pixels, but the left picture .* has 9x6"),
    ],
)
def test_what_does_not_fit_together(tmp_path, truth, right, words):
    with pytest.raises(UseError, match=words):
        read_frame(pair_files(tmp_path, truth, right))


def kitti(root: Path, names: list[str], folders=("image_2", "image_3", "disp_occ_0", "disp_noc_0", "obj_map")) -> Path:
    for name in names:
        for folder in folders:
            values = picture() if folder.startswith(("image", "colored")) else (MAP * 256).astype(np.uint16)
            save(root / folder / name, (MAP > 5).astype(np.uint8) if folder == "obj_map" else values)
    return root


def test_kitti_2015(tmp_path):
    kitti(tmp_path / "training", [f"{n:06d}_10.png" for n in range(5)])
    save(tmp_path / "training/image_2/000000_11.png", picture())  # the next picture of the film has no truth
    layout, pairs = find_pairs(tmp_path)
    assert layout == "KITTI" and [pair.name for pair in pairs] == [f"{n:06d}_10" for n in range(5)]
    assert pairs[1].disparity.parent.name == "disp_occ_0" and pairs[1].right.parent.name == "image_3"
    assert pairs[1].noc.parent.name == "disp_noc_0" and pairs[1].objects.parent.name == "obj_map"
    assert [[pair.name[5] for pair in split(pairs, which)] for which in ("training", "eval")] == [list("0123"), ["4"]]
    assert find_pairs(tmp_path / "training")[1] == pairs
    frame = read_frame(pairs[0])
    assert frame.foreground.any() and np.array_equal(frame.noc, frame.disparity > 0)


# Colours win where both are there; with non-occluded truth alone nobody says what is occluded.
def test_kitti_2012(tmp_path):
    grey = ("image_0", "image_1", "disp_noc")
    kitti(tmp_path, ["000000_10.png"], grey)
    [pair] = find_pairs(tmp_path)[1]
    assert pair.left.parent.name == "image_0" and pair.disparity.parent.name == "disp_noc" and pair.noc is None
    kitti(tmp_path, ["000000_10.png"], ("colored_0", "colored_1", "disp_occ"))
    [pair] = find_pairs(tmp_path)[1]
    assert pair.left.parent.name == "colored_0" and pair.noc == tmp_path / "disp_noc/000000_10.png"


def test_the_split_of_kitti_2015():
    pairs = [PairFiles(str(n), Path(f"{n}.png"), Path("r.png")) for n in range(200)]
    parts = [[pair.name for pair in split(pairs, which)] for which in ("training", "eval")]
    assert parts == [[str(n) for n in range(160)], [str(n) for n in range(160, 200)]]
    assert split(pairs[:1], "training") == split(pairs[:1], "eval") == pairs[:1]
    assert [len(split(pairs[:2], which)) for which in ("training", "eval")] == [1, 1]


@pytest.mark.parametrize("prefix", ["", "monkaa_", "FlyingThings3D/"])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_sceneflow(tmp_path, prefix, suffix):
    for part in ("TRAIN/A/0000", "TEST/B/0001"):
        for side in ("left", "right"):
            save(tmp_path / f"{prefix}frames_cleanpass/{part}/{side}/0006.{suffix}", picture())
            pfm(tmp_path / f"{prefix}disparity/{part}/{side}/0006.pfm", MAP, "-1")
    layout, pairs = find_pairs(tmp_path)
    assert layout == "SceneFlow" and len(pairs) == 2
    [test] = split(pairs, "eval")
    assert test.name == "B_0001_0006"[-len(test.name) :] or test.name.endswith("B_0001_0006")
    assert (test.right.parts[-2], test.disparity.parts[-2]) == ("right", "left")
    assert "TRAIN" in split(pairs, "training")[0].left.parts
    assert np.array_equal(read_frame(test).disparity, MAP)


def test_middlebury_and_flat(tmp_path):
    for scene in ("Adirondack", "Vintage"):
        folder = tmp_path / "m/trainingH" / scene
        save(folder / "im0.png", picture())
        save(folder / "im1.png", picture(1))
        pfm(folder / "disp0GT.pfm", MAP, "-1")
        save(folder / "mask0nocc.png", np.full((6, 9), 255, np.uint8))
    layout, pairs = find_pairs(tmp_path / "m")
    assert layout == "Middlebury" and [pair.name for pair in pairs] == ["Adirondack", "Vintage"]
    assert read_frame(pairs[1]).noc.all() and len(find_pairs(tmp_path / "m/trainingH/Vintage")[1]) == 1
    for side in ("left", "right"):
        save(tmp_path / f"f/motorcycle_{side}.png", picture())
    np.savez(tmp_path / "f/motorcycle_disp.npz", MAP)
    layout, [pair] = find_pairs(tmp_path / "f")
    assert (layout, pair.name) == ("flat", "motorcycle")


def test_lists(tmp_path):
    kitti(tmp_path / "d", ["1.png"])
    (tmp_path / "d/a.txt").write_text("image_2/1.png image_3/1.png disp_occ_0/1.png\n\nimage_2/1.png image_3/1.png\n")
    one, blind = read_list(tmp_path / "d/a.txt")
    assert one.noc == tmp_path / "d/disp_noc_0/1.png" and one.objects.is_file() and one.name == "image_2_1"
    assert blind.disparity is None and read_frame(blind).left.shape == (6, 9, 3)
    (tmp_path / "d/a.txt").rename(tmp_path / "a.txt")
    assert read_list(tmp_path / "a.txt", tmp_path / "d")[0] == one


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "list is empty"), ("a b c d", "line 1: 4 names"), ("a b c\nd", "line 2: 1 names"), (None, "list not found")],
)
def test_bad_lists(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UseError, match=words):
        read_list(tmp_path / "a.txt")


def test_bad_roots(tmp_path):
    with pytest.raises(UseError, match="no pairs in a layout that is known.*--training_list"):
        find_pairs(tmp_path)
    with pytest.raises(UseError, match="no such folder"):
        find_pairs(tmp_path / "none")
    kitti(tmp_path, ["1.png"])
    (tmp_path / "image_3/1.png").unlink()
    with pytest.raises(UseError, match="KITTI pairs, but .*image_3/1.png is missing"):
        find_pairs(tmp_path)


def test_normalisation_is_imagenets():
    made = normalise(np.full((2, 3, 3), 255, np.uint8))
    assert made.shape == (1, 3, 2, 3) and made.dtype == torch.float32
    assert made[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    whole = picture(2)
    assert np.array_equal(picture_of(normalise(whole)[0]), whole)


@pytest.mark.parametrize("size", [(16, 32), (17, 31), (1, 1), (33, 48)])
def test_padding_is_at_the_top_and_on_the_right(size):
    pair = make_pair(picture(0, size), picture(1, size))
    padded = pad16(pair)
    assert all(side % 16 == 0 and side - own < 16 for side, own in zip(padded.shape[-2:], size, strict=True))
    assert torch.equal(padded.left[..., padded.shape[-2] - size[0] :, : size[1]], pair.left)
    assert torch.equal(unpad(padded.right, *size), pair.right)
    assert float(padded.left.abs().sum()) == pytest.approx(float(pair.left.abs().sum()), rel=1e-5)


def test_crops_are_one_window_of_all(tmp_path):
    at = np.arange(20 * 30, dtype=np.float32).reshape(20, 30)
    pair = StereoPair(torch.from_numpy(at).expand(1, 3, -1, -1), torch.from_numpy(at + 0.5).expand(1, 3, -1, -1))
    seen = set()
    for seed in range(20):
        crop, truth = random_crop(pair, torch.from_numpy(at)[None], (8, 12), np.random.default_rng(seed))
        assert crop.shape == (1, 3, 8, 12) and truth.shape == (1, 8, 12)
        assert torch.equal(crop.left[0, 0], truth[0]) and torch.equal(crop.right[0, 2], truth[0] + 0.5)
        seen.add(float(truth[0, 0, 0]))
    assert len(seen) > 10
    crop, truth = random_crop(pair, torch.from_numpy(at)[None] + 1, (24, 32), np.random.default_rng(0))
    assert crop.shape == (1, 3, 24, 32) and (truth[0, :4] == 0).all() and (truth[0, :, 30:] == 0).all()


def test_batches():
    one, two = (make_pair(picture(seed), picture(seed + 1)) for seed in (0, 5))
    batch = StereoPair.collate([one, two])
    assert batch.shape == (2, 3, 6, 9) and len(batch) == 2 and torch.equal(batch.right[1], two.right[0])
    assert batch.to("cpu", torch.float64).right.dtype == torch.float64 and batch.device.type == "cpu"


@pytest.mark.real
def test_real_pairs(shared_data):
    import skimage

    layout, pairs = find_pairs(shared_data / "kitti2012_sample")
    assert layout == "KITTI" and [len(split(pairs, which)) for which in ("training", "eval")] == [9, 3]
    frame = read_frame(pairs[0])
    assert frame.size == (370, 1226) and 4 < frame.disparity[frame.disparity > 0].min() < frame.disparity.max() < 80
    _, [motorcycle] = find_pairs(Path(skimage.__file__).parent / "data")
    frame = read_frame(motorcycle)
    assert frame.size == (500, 741) and 0.92 < (frame.disparity > 0).mean() < 0.93
    assert frame.disparity.max() == pytest.approx(59.909, abs=1e-3)
