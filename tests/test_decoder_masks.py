"""Masks of the wider space: what they accept, what they clean, and that files and checkpoints give them back."""

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.masks.decoder import (
    DOWN,
    FULL,
    POINTWISE,
    SEPARABLE,
    UP,
    DecoderMask,
    as_decoder,
    decoder_mask,
    load_decoder,
    load_mask,
    save_decoder,
    save_mask,
)
from sparsemask.spaces.connectivity.encoding import mask_word, read_mask
from sparsemask.spaces.connectivity.named_masks import available_masks, is_named, named_mask, random_decoder


def small(**changes) -> DecoderMask:
    """Stages 1 and 3 of five features, the output at stage 3; stage 2 reaches nothing."""
    takes = np.zeros((5, 5, 2), dtype=bool)
    for place in ((1, 1, DOWN), (2, 2, DOWN), (3, 2, UP), (3, 3, DOWN)):
        takes[place] = True
    given = {"operations": [0, FULL, 0, SEPARABLE, 9], "widths": [0, 64, 8, 32, 7], "context": True}
    return decoder_mask(takes, **{**given, **changes})


def test_only_what_the_output_depends_on_is_kept():
    mask = small()
    assert mask.stages == [1, 3] and mask.output == 3 and mask.deepest == 1
    assert mask.operations.tolist() == [0, FULL, 0, SEPARABLE, 0] and mask.widths.tolist() == [0, 64, 0, 32, 0]


def test_the_global_average_needs_the_deepest_end_point():
    takes = np.array(small().connections)
    takes[1, 0, UP] = True
    assert decoder_mask(takes, [0] * 5, [8] * 5).deepest == 0


def test_files_and_checkpoints_give_it_back(tmp_path):
    mask = small()
    save_decoder(tmp_path / "m.npy", mask, {"run": "x"})
    assert load_decoder(tmp_path / "m.npy") == mask
    assert DecoderMask.unpack(mask.packed()) == mask
    assert b"operation" in (tmp_path / "m.npy").read_bytes()[:300]  # the header says so
    with pytest.raises(UseError, match="booleans"):
        load_mask(tmp_path / "m.npy")


def test_published_masks_are_read_as_before(tmp_path):
    takes = np.tri(3, dtype=bool)[..., None].repeat(2, -1)
    save_mask(tmp_path / "m.npy", takes)
    assert (load_decoder(tmp_path / "m.npy") == takes).all()
    same = as_decoder(takes, 64)
    assert set(same.operations) == {POINTWISE} and set(same.widths) == {64} and same.output == 2 and not same.context


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"operations": [0, 3, 0, 0, 0]}, "unknown operation"),
        ({"widths": [0, 60, 8, 32, 7]}, "multiples of 8"),
        ({"widths": [0, 64, 8, 4096, 7]}, "up to 1024"),
        ({"widths": [64]}, "as many operations and widths"),
    ],
)
def test_what_is_no_decoder_is_refused(changes, line):
    with pytest.raises(UseError, match=line):
        small(**changes)


def test_other_records_are_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros(4, np.dtype([("takes", "?", (3, 2)), ("operation", "u1")])))
    with pytest.raises(UseError, match="records of another kind"):
        load_decoder(tmp_path / "m.npy")
    with pytest.raises(UseError, match="shape"):
        DecoderMask.unpack(small().packed()[:, 1:])


MOBILENET, RESNET, SHALLOW = [32, 32, 32, 16, 16, 8, 4, 2, 2], [32, 16, 8, 4, 2], [2, 1]


@pytest.mark.parametrize(
    ("name", "strides", "lines"),
    [
        ("fpn", MOBILENET, {0: "E0", 3: "E3 D0", 5: "E5 D3", 6: "E6 D0 D3 D5"}),
        ("fpn", RESNET, {0: "E0", 1: "E1 D0", 2: "E2 D1", 3: "E3 D0 D1 D2"}),
        ("unet-3x3", RESNET, {0: "E0", 1: "E1 D0", 2: "E2 D1", 3: "E3 D2"}),
        ("unet-3x3", [8, 8, 2], {0: "E0", 1: "E1 D0"}),
    ],
)
def test_classic_decoders_stop_at_stride_4(name, strides, lines):
    mask = named_mask(name, len(strides), strides=strides, depth=24)
    read = {
        i: " ".join(
            [f"E{j}" for j in np.flatnonzero(mask.connections[i, :, DOWN])]
            + [f"D{j - 1}" for j in np.flatnonzero(mask.connections[i, :, UP])]
        )
        for i in mask.stages
    }
    assert read == lines and not mask.context
    assert all(mask.operations[i] == FULL and mask.widths[i] == 24 for i in mask.stages)


def test_classic_decoders_need_strides_from_4_on():
    assert {"fpn", "unet-3x3"} <= set(available_masks()) and is_named("fpn")
    with pytest.raises(UseError, match="'fpn': needs the strides of the backbone's 9 end points"):
        named_mask("fpn", 9)
    with pytest.raises(UseError, match="'unet-3x3': no end point of stride 4 or more"):
        named_mask("unet-3x3", 2, strides=SHALLOW)
    with pytest.raises(UseError, match="'fpn': widths of stages are multiples of 8"):
        named_mask("fpn", 9, strides=MOBILENET, depth=20)


@pytest.mark.parametrize("strides", [MOBILENET, RESNET, SHALLOW, [8]])
def test_random_decoders_are_valid_and_of_all_shapes(strides):
    rng = np.random.default_rng(0)
    masks = [random_decoder(rng, len(strides), strides) for _ in range(400)]
    for mask in masks:
        again = decoder_mask(mask.connections, mask.operations, mask.widths, mask.context)
        assert again == mask  # valid, and nothing in it that the output does not depend on
    assert {strides[m.output] for m in masks} == {s for s in strides if s in (2, 4, 8, 16)} | {strides[-1]}
    assert {m.deepest for m in masks} == set(range(len(strides)))
    assert {len(m.stages) for m in masks} == set(range(1, len(strides) + 1))
    assert {m.context for m in masks} == {True, False}
    assert {int(m.widths[i]) for m in masks for i in m.stages} == {16, 24, 32, 48, 64}
    assert {int(m.operations[i]) for m in masks for i in m.stages} == {0, 1, 2}
    assert len({m.key for m in masks}) > (300 if len(strides) > 2 else 20)
    alike = [m for m in masks if not m.context and not m.operations.any() and m.output == len(strides) - 1]
    assert any(len({int(m.widths[i]) for i in m.stages}) == 1 for m in alike)  # published ones
    same = [random_decoder(np.random.default_rng(7), len(strides), strides) for _ in range(2)]
    assert same[0] == same[1]


def test_random_decoders_take_the_widths_given_and_refuse_wrong_ones():
    rng = np.random.default_rng(0)
    drawn = [random_decoder(rng, 5, RESNET, widths=(8, 40)) for _ in range(30)]
    assert {int(m.widths[i]) for m in drawn for i in m.stages} == {8, 40}
    with pytest.raises(UseError, match="multiples of 8"):
        random_decoder(rng, 5, RESNET, widths=(12,))
    with pytest.raises(UseError, match="4 end points has as many strides, not 5"):
        random_decoder(rng, 4, RESNET)


def test_decoders_are_words_and_come_back(tmp_path):
    rng = np.random.default_rng(0)
    for mask in (small(), *(random_decoder(rng, 5, RESNET) for _ in range(20))):
        word = mask_word(mask)
        assert " " not in word and read_mask(word, 5) == mask
    save_decoder(tmp_path / "m.npy", small())
    assert read_mask(str(tmp_path / "m.npy"), 5) == small()
    assert read_mask("fpn", 5, strides=RESNET, depth=16) == named_mask("fpn", 5, strides=RESNET, depth=16)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda word: word.replace(";0x", ";7x", 1), "stage 7 is outside of 5 features"),
        (lambda word: word.replace("x8", "x9"), "multiples of 8"),
        (lambda word: word.split(";")[0] + ";0x9x8", "unknown operation"),
        (lambda word: word.replace(";context", ";contex"), "unknown mask"),
    ],
)
def test_words_of_no_decoder_are_refused(change, words):
    word = "5:0e0,1e1,1u1;0x2x8,1x0x8;context"
    assert read_mask(word, 5).context
    with pytest.raises(UseError, match=words):
        read_mask(change(word), 5)
