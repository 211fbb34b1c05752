"""Label formats, and the public commands that convert them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from sparsemask.errors import UseError
from sparsemask.VOC12 import convert_labels, convert_mat_to_png
from sparsemask.VOC12.palette import (
    VOC_CLASSES,
    VOC_COLOURS,
    ColourLabelError,
    colourise,
    encode_colours,
    out_of_range,
    read_label,
    save_label,
)
from voc_archives import (
    FROM_SBD,
    FROM_VOC,
    OWN,
    TRAIN,
    VAL,
    label,
    mat,
    sbd_files,
    state,
    unpack,
    voc_files,
)


def test_palette_is_the_devkits():
    # Known entries: aeroplane, person, tvmonitor, void.
    assert VOC_COLOURS[[0, 1, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES[15] == "person"


def test_colours_round_trip():
    index = np.append(np.arange(21), 255).astype(np.uint8).reshape(2, 11)
    np.testing.assert_array_equal(encode_colours(colourise(index)), index)
    with pytest.raises(ColourLabelError, match=r"first \(224, 224, 193\)"):
        encode_colours(np.array([[[224, 224, 193]]], np.uint8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_formats_read_by_index(bits, tmp_path):
    index = (np.arange(63).reshape(7, 9) % min(2**bits, 21)).astype(np.uint8)
    image = Image.fromarray(index)
    image.save(tmp_path / "grey.png")
    image.putpalette(VOC_COLOURS.tobytes())
    image.save(tmp_path / "palette.png", bits=bits)
    for name in ("grey.png", "palette.png"):
        np.testing.assert_array_equal(read_label(tmp_path / name), index)


def test_colour_labels_are_refused_unless_asked_for(tmp_path):
    Image.fromarray(colourise(label(4))).save(tmp_path / "colour.png")
    with pytest.raises(ColourLabelError, match="RGB picture where class indices are expected"):
        read_label(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_label(tmp_path / "colour.png", colours="decode"), label(4))


def test_reordered_palette_is_decoded_by_its_colours(tmp_path):
    order = np.array([4, 0, 255], np.uint8)  # entry 0 is the boat's colour: reading indices would be wrong
    image = Image.fromarray(np.array([[0, 1, 2, 0]], np.uint8))
    image.putpalette(VOC_COLOURS[order].tobytes())
    image.save(tmp_path / "x.png")
    assert read_label(tmp_path / "x.png", colours="decode").tolist() == [[4, 0, 255, 4]]


def test_save_label(tmp_path):
    save_label(tmp_path / "a" / "x.png", label(3).astype(np.int64))
    np.testing.assert_array_equal(read_label(tmp_path / "a" / "x.png"), label(3))
    for wrong in (np.full((2, 2), -1), np.full((2, 2), 256), np.zeros((2, 2, 3))):
        with pytest.raises(UseError, match="a label is"):
            save_label(tmp_path / "a" / "wrong.png", wrong)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    "values, n_class, wrong",
    [
        ([0, 20, 255], 21, []),
        ([0, 21, 254], 21, [21, 254]),
        ([1], 1, [1]),
        ([254, 255], 255, []),
        ([], 3, []),
    ],
)
def test_out_of_range(values, n_class, wrong):
    assert out_of_range(np.array(values, np.uint8), n_class) == wrong


# ---- the public helper commands


def test_convert_mat_to_png_completes_an_interrupted_conversion(tmp_path, capsys):
    root = unpack(tmp_path, sbd_files()) / "benchmark_RELEASE"
    target = root / "dataset" / "cls_png"
    target.mkdir()  # the folder being there must not mean that the work is done
    (target / f"{OWN[0]}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert convert_mat_to_png.main(["--sbd_path", str(root)]) == 0
    assert len(list(target.iterdir())) == 5
    np.testing.assert_array_equal(read_label(target / f"{OWN[0]}.png"), label(FROM_SBD))
    before = state(target)
    assert convert_mat_to_png.convert(root) == (0, 5)
    assert state(target) == before
    assert convert_mat_to_png.main(["--sbd_path", str(tmp_path / "nothing")]) == 2
    assert "error: SBD folder not found" in capsys.readouterr().err


def test_convert_labels(tmp_path, capsys):
    root = unpack(tmp_path, voc_files()) / "VOCdevkit" / "VOC2012"
    names = root / "ImageSets" / "Segmentation" / "trainval.txt"
    argv = [str(root / "SegmentationClass"), str(names), str(tmp_path / "new")]
    assert convert_labels.main(argv) == 0
    for name in TRAIN + VAL:  # TRAIN[1] is in colours
        np.testing.assert_array_equal(read_label(tmp_path / "new" / f"{name}.png"), label(FROM_VOC))
    before = state(tmp_path / "new")
    assert convert_labels.main(argv) == 0
    assert state(tmp_path / "new") == before and "0 labels converted, 5 were there" in capsys.readouterr().out
    (tmp_path / "bad.txt").write_text("../../x\n")
    for wrong in ([argv[0], argv[1], argv[0]], [argv[0], str(tmp_path / "bad.txt"), argv[2]]):
        assert convert_labels.main(wrong) == 2


def test_mat_layout_is_sbds():
    """The struct these tests write reads like SBD's: GTcls(1,1).Segmentation."""
    data = loadmat(io.BytesIO(mat(label(2))))
    assert data["GTcls"].shape == (1, 1) and "Segmentation" in data["GTcls"].dtype.names
