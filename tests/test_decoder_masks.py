"""Masks of the wider space: what they accept, what they clean, and that files and checkpoints give them back."""

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.masks.connectivity import DOWN, UP, load_mask, save_mask
from sparsemask.masks.decoder import (
    FULL,
    POINTWISE,
    SEPARABLE,
    DecoderMask,
    as_decoder,
    decoder_mask,
    load_decoder,
    save_decoder,
)


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
