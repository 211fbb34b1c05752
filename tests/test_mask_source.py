"""What names a mask, and the one type that it becomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemask import UseError
from sparsemask.masks import save_mask
from sparsemask.masks.decoder import DecoderMask, save_decoder
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.mask_source import BASELINE, Mask, resolve_mask
from sparsemask.spaces.connectivity.named_masks import named_mask

NAME = "mobilenet_v2"


def test_a_name_is_made_for_the_backbone():
    mask = resolve_mask("unet", NAME)
    assert np.array_equal(mask.connections, named_mask("unet", 9))
    assert mask.note == {"backbone_name": NAME, "strides": backbones.strides(NAME)} and not mask.lines
    assert np.array_equal(resolve_mask("random-5", NAME, 3).connections, named_mask("random-5", 9, 3))


def test_a_file_keeps_its_note(tmp_path):
    save_mask(tmp_path / "m.npy", named_mask("dense", 9), {"checkpoint": "last.pt"})
    mask = resolve_mask(str(tmp_path / "m.npy"), NAME)
    assert np.array_equal(mask.connections, named_mask("dense", 9)) and mask.note["checkpoint"] == "last.pt"


def test_the_published_mask_is_of_its_backbone():
    assert resolve_mask("sparsemask-voc", NAME).note["backbone_name"] == NAME


def test_the_baseline_has_no_connections():
    mask = resolve_mask(BASELINE, NAME)
    assert mask.connections is None and mask.entry == mask.argument == BASELINE
    assert Mask.of_checkpoint(mask.entry) == Mask(None)


def test_a_checkpoint_gives_back_what_it_took():
    mask = resolve_mask("unet", NAME)
    assert isinstance(mask.entry, torch.Tensor)
    again = Mask.of_checkpoint(mask.entry)
    assert np.array_equal(again.argument, mask.connections)


def test_decoders_of_the_wider_space_come_from_files_names_and_checkpoints(tmp_path):
    fpn = resolve_mask("fpn", NAME, depth=16)
    assert isinstance(fpn.decoder, DecoderMask) and set(fpn.decoder.widths) == {0, 16}
    assert np.array_equal(fpn.connections, fpn.decoder.connections)
    save_decoder(tmp_path / "m.npy", fpn.decoder, dict(fpn.note))
    assert resolve_mask(str(tmp_path / "m.npy"), NAME).decoder == fpn.decoder
    assert fpn.entry.dtype == torch.int32 and Mask.of_checkpoint(fpn.entry).argument == fpn.decoder
    with pytest.raises(UseError, match="not a decoder mask"):
        Mask.of_checkpoint(fpn.entry[:, 1:])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resolve_mask(None, NAME), "--mask_path is missing"),
        (lambda: resolve_mask("unett", NAME), "unknown mask 'unett'; did you mean 'unet'"),
        (lambda: resolve_mask("gone.npy", NAME), "gone.npy"),
        (lambda: Mask.of_checkpoint("unett"), "unknown mask 'unett'"),
    ],
)
def test_what_is_no_mask_is_refused(call, words):
    with pytest.raises(UseError, match=words):
        call()
