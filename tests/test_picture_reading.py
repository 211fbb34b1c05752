"""One way of reading pictures for every task: upright, scaled values, all suffixes; and one reader of lists."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask import UseError
from sparsemask.pictures.files import read_picture as read_any
from sparsemask.resize import imresize
from sparsemask.tasks import get
from sparsemask.tasks.classification.layouts import find_pictures
from sparsemask.tasks.dense.data import read_grey
from sparsemask.tasks.edges.data import EdgesDataset
from sparsemask.tasks.saliency.data import SaliencyDataset, all_pairs
from sparsemask.tasks.stereo import layouts
from sparsemask.tasks.stereo.files import PairFiles, read_frame
from sparsemask.tasks.stereo.files import read_picture as read_stereo
from sparsemask.tasks.super_resolution.data import SuperResolutionDataset
from sparsemask.tasks.super_resolution.folders import Pair
from sparsemask.VOC12 import check
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.images import SUFFIXES, picture_notes, picture_size, read_picture
from sparsemask.VOC12.lists import columns_of, pairs_from_lists, read_list, read_names
from sparsemask.VOC12.palette import read_label, save_label

STORED = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
# What a viewer shows of pixels stored under each orientation (EXIF 2.32, tag 274).
SHOWN = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: np.rot90(STORED, -1),
    7: np.rot90(STORED, 2).transpose(1, 0, 2),
    8: np.rot90(STORED),
}
LOSSLESS = {"png": {}, "tif": {}, "webp": {"lossless": True, "exact": True}}


def tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turned(path: Path, orientation: int = 6, pixels: np.ndarray = STORED, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=tag(orientation), **more)
    return path


# ---- orientation


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("orientation", SHOWN)
def test_pictures_are_read_upright(tmp_path, suffix, orientation):
    path = turned(tmp_path / f"a.{suffix}", orientation, **LOSSLESS[suffix])
    wanted = SHOWN[orientation]
    for read in (read_picture, read_stereo, lambda one: read_any(one).colour):
        np.testing.assert_array_equal(read(path), wanted)
    assert picture_size(path) == wanted.shape[:2]
    said = picture_notes(path)
    assert said == ([] if orientation == 1 else [f"turned upright by EXIF orientation {orientation}"])


def test_jpeg_deep_and_grey_files_and_labels_are_turned_too(tmp_path):
    path = turned(tmp_path / "a.jpg", 8, quality=100, subsampling=0)
    assert np.abs(read_picture(path).astype(int) - SHOWN[8]).mean() < 6 and picture_size(path) == (10, 6)
    deep = turned(tmp_path / "deep.png", 6, STORED[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(deep)[..., 1], SHOWN[6][..., 0])
    mask = turned(tmp_path / "mask.png", 6, STORED[..., 0])
    np.testing.assert_array_equal(read_grey(mask), SHOWN[6][..., 0])
    np.testing.assert_array_equal(read_label(mask), SHOWN[6][..., 0])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    """Some tools write eXIf after IDAT: the size, which decodes nothing, must know it as the pixels do."""
    file = io.BytesIO()
    Image.fromarray(STORED).save(file, "PNG")
    data = file.getvalue()
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    made_on = chunk(b"tEXt", b"date:create\0" + b"2" * 25)
    (tmp_path / "a.png").write_bytes(data[:-12] + made_on + chunk(b"eXIf", exif) + data[-12:])
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<rdf:Description tiff:Orientation="6"/>'
    (tmp_path / "b.png").write_bytes(data[:-12] + made_on + chunk(b"iTXt", xmp) + data[-12:])
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name), SHOWN[6])
        assert picture_size(tmp_path / name) == (10, 6)
    (tmp_path / "c.png").write_bytes(data[:-12] + made_on + data[-12:])
    assert picture_size(tmp_path / "c.png") == (6, 10)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"\0" * 40, b"Exif\0\0II*\0\x08\0\0\0"]
)
def test_broken_metadata_leaves_a_picture_as_it_is(tmp_path, exif):
    Image.fromarray(STORED).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (6, 10, 3) and picture_size(tmp_path / "a.jpg") == (6, 10)
    assert picture_size(turned(tmp_path / "b.png", 9)) == (6, 10)  # there is no orientation 9


UPRIGHT = np.arange(60, dtype=np.uint8).reshape(10, 6) % 3


def labels(folder: Path, label: np.ndarray, values=(0, 1, 2)) -> Path:
    path = folder / "label.png"
    Image.fromarray(np.array(values, np.uint8)[label]).save(path)
    return path


@pytest.mark.parametrize(
    ("made", "values"),
    [(SegmentationDataset, (0, 1, 2)), (SaliencyDataset, (0, 255, 0)), (EdgesDataset, (0, 255, 0))],
)
def test_labels_fit_the_upright_picture_or_exif_is_named(tmp_path, made, values):
    picture = turned(tmp_path / "a.png")
    more = {"n_class": 3} if made is SegmentationDataset else {"classes": ("no", "yes")}
    whole = made([(picture, labels(tmp_path, UPRIGHT, values))], crop_size=4, training=False, **more)
    np.testing.assert_array_equal(whole.load(0)[0], SHOWN[6])
    assert whole[0][1].shape == (10, 6)
    labels(tmp_path, UPRIGHT.T, values)
    with pytest.raises(UseError, match=r"label.png: 10x6 pixels.*a.png has 6x10 upright.*EXIF orientation is 6.*10x6"):
        whole.load(0)


def test_predictions_of_turned_pictures_have_their_upright_size(tmp_path):
    from sparsemask.retrain import train as retrain_train

    for part in ("img", "gt"):
        (tmp_path / part).mkdir()
    turned(tmp_path / "img" / "a.png")
    save_label(tmp_path / "gt" / "a.png", UPRIGHT)
    (tmp_path / "l.txt").write_text("a\n")
    flags = {"im_path": tmp_path / "img", "gt_path": tmp_path / "gt", "training_list": tmp_path / "l.txt"}
    given = {**{k: str(v) for k, v in flags.items()}, "eval_list": str(tmp_path / "l.txt"), "n_class": 3}
    task = get("segmentation", retrain_train.parser().resolve({"task": "segmentation", "crop_size": 16, **given}))
    [cut] = task._unpad(0, task.eval_data[0][1])
    np.testing.assert_array_equal(cut.numpy(), UPRIGHT)


def test_check_opens_pictures_upright_and_names_exif(tmp_path, capsys):
    picture = turned(tmp_path / "a.jpg", quality=95)
    label = labels(tmp_path, UPRIGHT)
    assert check.check_all([(picture, label)], 3).faults == []
    labels(tmp_path, UPRIGHT.T)
    [fault] = check.check_all([(picture, label)], 3).faults
    assert fault.kind == "sizes" and "EXIF orientation is 6" in fault.text and "turn that one" in fault.text


def test_super_resolution_reads_upright(tmp_path):
    large = np.random.default_rng(1).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    hr = turned(tmp_path / "hr.png", 6, np.rot90(large))
    Image.fromarray(imresize(large, 0.5)).save(tmp_path / "lr.png")
    for kind in ("img", "auto"):
        low, high = SuperResolutionDataset([Pair(hr, tmp_path / "lr.png")], 2, kind=kind).load(0)
        np.testing.assert_array_equal(high, large)
        np.testing.assert_array_equal(low, imresize(large, 0.5))
    low, high = SuperResolutionDataset([Pair(hr, None)], 2).load(0)
    np.testing.assert_array_equal(low, imresize(large, 0.5))
    Image.fromarray(imresize(np.ascontiguousarray(np.rot90(large)), 0.5)).save(tmp_path / "lr.png")
    with pytest.raises(UseError, match=r"lr.png: 12x16 pixels times 2 do not fit .*32x24.*EXIF orientation is 6"):
        SuperResolutionDataset([Pair(hr, tmp_path / "lr.png")], 2)


def test_classification_reads_upright(tmp_path):
    for name, orientation in (("cat", 6), ("dog", 1)):
        pixels = STORED if orientation == 6 else SHOWN[6]
        for k in range(3):
            turned(tmp_path / name / f"{k}.png", orientation, pixels)
    found = find_pictures(tmp_path).training  # all of one upright size: held in memory
    np.testing.assert_array_equal(found.pictures[0], SHOWN[6])


def test_stereo_reads_upright_and_names_exif(tmp_path):
    left = turned(tmp_path / "left.png")
    right = tmp_path / "right.png"
    Image.fromarray(SHOWN[6]).save(right)
    Image.fromarray(np.full((10, 6), 512, np.uint16)).save(tmp_path / "d.png")
    frame = read_frame(PairFiles("a", left, right, tmp_path / "d.png"))
    np.testing.assert_array_equal(frame.left, SHOWN[6])
    Image.fromarray(np.full((6, 10), 512, np.uint16)).save(tmp_path / "d.png")
    with pytest.raises(UseError, match="d.png: 10x6 values for the 6x10 pixels of .*EXIF orientation is 6"):
        read_frame(PairFiles("a", left, right, tmp_path / "d.png"))
    Image.fromarray(STORED).save(right)
    with pytest.raises(UseError, match="right.png: 10x6 pixels, but the left .*6x10 upright .*EXIF orientation is 6"):
        read_frame(PairFiles("a", left, right))


# ---- values


GREY = np.linspace(0, 255, 60).round().astype(np.uint8).reshape(6, 10)
SCALED = {
    "16 bits": (GREY.astype(np.uint16) * 257, "16 bits a value became 8"),
    "32 bits": (GREY.astype(np.int32) * 257, "16 bits a value became 8"),
    "floats of 0 to 1": (GREY.astype(np.float32) / 255, "floats of 0 to 1 were multiplied by 255"),
    "floats of 0 to 255": (GREY.astype(np.float32), "floats of 0 to 255 were rounded"),
}


@pytest.mark.parametrize("kind", SCALED)
def test_other_values_are_scaled_and_said(tmp_path, kind):
    values, note = SCALED[kind]
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_picture, read_stereo):
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), GREY[..., None].repeat(3, 2))
    np.testing.assert_allclose(read_any(tmp_path / "a.tif").colour[..., 0], GREY, atol=1e-3)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.tif"), GREY)
    assert picture_notes(tmp_path / "a.tif") == [note]


REFUSED = {
    "12 bits": (GREY.astype(np.uint16) * 16, "no value above 4080 of 65535, of 12 bits or fewer"),
    "negative": (GREY.astype(np.int32) - 100, "values from -100 to 155, expected 0 to 65535"),
    "beyond": (GREY.astype(np.int32) * 1000, "values from 0 to 255000"),
    "not finite": (np.where(GREY > 250, np.nan, GREY / 255).astype(np.float32), "not finite"),
    "of no scale": (GREY.astype(np.float32) / 100, "floats from 0 to 2.55, expected 0 to 1 or 0 to 255"),
    "of 16 bits": (GREY.astype(np.float32) * 257, "floats from 0 to 6.554e"),
    "negative floats": (GREY.astype(np.float32) / 255 - 0.5, "floats from -0.5 to 0.5"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_no_known_scale_are_refused(tmp_path, kind):
    values, words = REFUSED[kind]
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_picture, read_stereo, read_any, read_grey):
        with pytest.raises(UseError, match=f"a.tif: .*{words}") as caught:
            read(tmp_path / "a.tif")
        assert "\n" not in str(caught.value)


def test_sixteen_bits_a_colour_are_said(tmp_path):
    rows = b"".join(b"\0" + np.full((4, 3), 0x8001, ">u2").tobytes() for _ in range(3))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert (read_picture(tmp_path / "a.png") == 0x80).all()
    assert picture_notes(tmp_path / "a.png") == read_any(tmp_path / "a.png").remarks == ["16 bits a colour became 8"]


def test_every_task_says_how_its_first_pictures_are_read(tmp_path, capsys):
    from small_classes import options as classification_options
    from small_pictures import options as enlarging_options
    from sparsemask.retrain import train as retrain_train

    floats = np.random.default_rng(0).random((70, 80)).astype(np.float32)
    wanted = "0.tif: floats of 0 to 1 were multiplied by 255"
    for name, label in (("0", 0), ("1", 1), ("2", 2)):
        saved(tmp_path / f"img/{name}.tif", floats)
        saved(tmp_path / f"gt/{name}.png", (np.indices((70, 80)).sum(0) % 3).astype(np.uint8))
        saved(tmp_path / f"classes/{'ab'[label > 0]}/{name}.tif", floats)
        saved(tmp_path / f"classes/{'ab'[label > 0]}/{name}x.tif", floats)
    (tmp_path / "l.txt").write_text("0\n1\n2\n")
    folders = {"im_path": str(tmp_path / "img"), "gt_path": str(tmp_path / "gt"), "n_class": 3}
    lists = dict.fromkeys(("training_list", "eval_list"), str(tmp_path / "l.txt"))
    made = retrain_train.parser().resolve({"task": "segmentation", "crop_size": 16, **folders, **lists})
    get("segmentation", made).check()
    assert capsys.readouterr().err.count(wanted) == 2
    get("super_resolution", enlarging_options(hr_path=tmp_path / "img")).check()
    assert wanted in capsys.readouterr().err
    get("classification", classification_options(data_root=tmp_path / "classes", image_size=16)).check()
    assert wanted in capsys.readouterr().err


def test_a_jpeg_is_no_label(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg")
    with pytest.raises(UseError, match="a.jpg: .*JPEG, whose compression changes class numbers"):
        read_label(tmp_path / "a.jpg")


# ---- suffixes


def saved(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, {".ppm": "PPM", ".pgm": "PPM"}.get(path.suffix.lower()))
    return path


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".TIF", ".Bmp", ".WEBP"])
def test_every_task_finds_pictures_of_every_suffix(tmp_path, suffix):
    grey = suffix == ".pgm"
    pixels = STORED[..., 0] if grey else STORED
    # Segmentation by lists, saliency by folders, class folders, a stereo layout, a folder for super-resolution.
    picture = saved(tmp_path / f"img/a{suffix}", pixels)
    label = saved(tmp_path / "gt/a.png", UPRIGHT.T)
    (tmp_path / "l.txt").write_text("a\n")
    assert pairs_from_lists(tmp_path / "img", tmp_path / "gt", tmp_path / "l.txt") == [(picture, label)]
    picture = saved(tmp_path / f"s/images/a{suffix}", pixels)
    mask = saved(tmp_path / "s/ground_truth_mask/a.png", UPRIGHT.T)
    assert all_pairs(tmp_path / "s") == [(picture, mask)]
    for name in ("c/cat", "c/dog"):
        for k in range(2):
            saved(tmp_path / f"{name}/{k}{suffix}", pixels)
    assert len(find_pictures(tmp_path / "c").training) == 2
    for side in ("left", "right"):
        saved(tmp_path / f"f/x_{side}{suffix}", pixels)
    np.savez(tmp_path / "f/x_disp.npz", np.full((6, 10), 2.0))
    layout, [pair] = layouts.find_pairs(tmp_path / "f")
    assert layout == "flat" and pair.right.name == f"x_right{suffix}" and pair.name == "x"
    from sparsemask.tasks.super_resolution.folders import pictures

    assert [path.name for path in pictures(tmp_path / "img")] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".gif"])
def test_labels_of_every_format_that_keeps_numbers(tmp_path, suffix):
    saved(tmp_path / "img/a.jpg", STORED)
    label = saved(tmp_path / f"gt/a{suffix}", UPRIGHT.T)
    (tmp_path / "l.txt").write_text("a\n")
    pairs = pairs_from_lists(tmp_path / "img", tmp_path / "gt", tmp_path / "l.txt")
    assert pairs[0][1] == label
    np.testing.assert_array_equal(SegmentationDataset(pairs, 3).load(0)[1], UPRIGHT.T)


# ---- lists


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        ("a.jpg a.png", ["a.jpg", "a.png"]),
        ("a.jpg\ta.png", ["a.jpg", "a.png"]),
        ("a.jpg, a.png", ["a.jpg", "a.png"]),
        ("a.jpg;a.png", ["a.jpg", "a.png"]),
        ("my photo.jpg my label.png", ["my photo.jpg", "my label.png"]),
        ("\"my photo.jpg\" 'my label.png'", ["my photo.jpg", "my label.png"]),
        ('"a.jpg" my label.png', ["a.jpg", "my label.png"]),
        ("it's.jpg it's.png", ["it's.jpg", "it's.png"]),
        ("a.b.JPG c.d.PNG", ["a.b.JPG", "c.d.PNG"]),
        ("'tis.jpg b.png", ["'tis.jpg", "b.png"]),
        ('"left 1" "right 1"', ["left 1", "right 1"]),
        ("left right", ["left", "right"]),
    ],
)
def test_columns_of_a_line(entry, columns):
    assert columns_of(entry) == columns


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_any_editor(tmp_path, code):
    text = '# made by hand\r\n\r\nstraße\r\n  "two words"\r\nb # c\r\n'
    (tmp_path / "l.txt").write_bytes(text.encode(code))
    assert read_list(tmp_path / "l.txt") == ["straße", '"two words"', "b # c"]
    assert read_names(tmp_path / "l.txt") == ["straße", "two words", "b # c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\0b", "not a text file"), (b"\xff\xfe\x00", "not a text file"), (b"\n#\n", "list is empty")],
)
def test_files_that_are_no_lists(tmp_path, content, words):
    (tmp_path / "l.txt").write_bytes(content)
    for read in (read_list, layouts.read_list):
        with pytest.raises(UseError, match=words):
            read(tmp_path / "l.txt")
        with pytest.raises(UseError, match="a folder or a device"):
            read(tmp_path)


def test_stereo_lists_are_read_as_all_lists_are(tmp_path):
    text = "\ufeff# pairs\n\nmy left.png my right.png my map.pfm\n"
    text += "\"l 2.tif\", 'r 2.tif'\nsets/a.jpg\tsets/b.jpg\tsets/d.npz\n"
    (tmp_path / "l.txt").write_text(text, encoding="utf-8")
    found = layouts.read_list(tmp_path / "l.txt")
    assert [pair.left.name for pair in found] == ["my left.png", "l 2.tif", "a.jpg"]
    assert [pair.right.name for pair in found] == ["my right.png", "r 2.tif", "b.jpg"]
    assert [pair.disparity and pair.disparity.name for pair in found] == ["my map.pfm", None, "d.npz"]
    (tmp_path / "l.txt").write_text("# one\na.png\n")
    with pytest.raises(UseError, match="line 2: 1 names"):
        layouts.read_list(tmp_path / "l.txt")


def test_quotes_and_dots_in_every_labelling_tasks_lists(tmp_path):
    for name in ("my photo", "v1.2"):
        saved(tmp_path / f"images/{name}.jpg", STORED)
        saved(tmp_path / f"ground_truth_mask/{name}.png", UPRIGHT.T)
    (tmp_path / "l.txt").write_text('"my photo"\nv1.2\n')
    wanted = ["my photo.jpg", "v1.2.jpg"]
    pairs = pairs_from_lists(tmp_path / "images", tmp_path / "ground_truth_mask", tmp_path / "l.txt")
    assert [picture.name for picture, _ in pairs] == wanted
    from sparsemask.tasks.saliency.data import split

    found = split(all_pairs(tmp_path), "training", str(tmp_path / "l.txt"), None)
    assert [picture.name for picture, _ in found] == wanted
