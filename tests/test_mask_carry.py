"""Masks carried to other backbones, in words, and through the verbs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid import Pyramid
from sparsemask import UseError
from sparsemask.masks import DOWN, UP, load_mask, mask_note, save_mask, why_unusable
from sparsemask.masks.decoder import decoder_mask
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.mask_source import carry_mask, fit_mask, mask_lines, origin
from sparsemask.spaces.connectivity.named_masks import random_decoder
from tiny import SMALL, data_flags, make_data

MOBILENET = [32, 32, 32, 16, 16, 8, 4, 2, 2]
RESNET = [32, 16, 8, 4, 2]
LIGHT = ["--gpu", "-1", "--n_worker", "0"]


def made_of(n_features: int, *connections) -> np.ndarray:
    mask = np.zeros((n_features, n_features, 2), dtype=bool)
    for connection in connections:
        mask[connection] = True
    return mask


VOC = named_mask("sparsemask-voc", 9)
CASES = {
    # The three features of stride 32 become one, and so do the stages of their size.
    "published to ResNet": (VOC, MOBILENET, RESNET, [
        "stage 0 (/32) <- E_0, G", "stage 1 (/16) <- E_1, G", "stage 4 (/2) <- E_0, E_1, E_4, G, D_0, D_1",
    ]),
    # No stride 2 there: its feature goes, but the output stage is still the output stage.
    "published to ConvNeXt": (VOC, MOBILENET, [32, 16, 8, 4], [
        "stage 0 (/32) <- E_0, G", "stage 1 (/16) <- E_1, G", "stage 3 (/4) <- E_0, E_1, G, D_0, D_1",
    ]),
    # A shallower feature there that no feature here is like gets nothing of its own.
    "published to strides down to 1": (VOC, MOBILENET, [32, 16, 8, 4, 2, 1], [
        "stage 0 (/32) <- E_0, G", "stage 1 (/16) <- E_1, G", "stage 5 (/1) <- E_0, E_1, E_4, G, D_0, D_1",
    ]),
    # Stride 16 is absent: E_3, stage 3 and the use of D_3 go.
    "published past a missing stride": (VOC, MOBILENET, [32, 8, 4, 2], [
        "stage 0 (/32) <- E_0, G", "stage 3 (/2) <- E_0, E_3, G, D_0",
    ]),
    "more features of a size there": (named_mask("unet", 2), [4, 2], [4, 4, 2, 2], [
        "stage 0 (/4) <- E_0", "stage 3 (/2) <- E_2, D_0",
    ]),
    "three of a size into two": (
        made_of(3, (0, 0, DOWN), (1, 1, DOWN), (2, 2, DOWN), (2, 1, UP), (2, 2, UP)), [4, 4, 4], [4, 4], [
        "stage 0 (/4) <- E_0", "stage 1 (/4) <- E_1, D_0",
    ]),
    # Stage 1 lived on stage 0 alone; its uses go with it.
    "what lives on a dropped stage": (
        made_of(3, (0, 0, DOWN), (1, 1, UP), (2, 2, UP), (2, 2, DOWN)), [8, 4, 2], [4, 2], ["stage 1 (/2) <- E_1"],
    ),
    "what only dropped stages used": (
        made_of(3, (0, 0, DOWN), (1, 1, UP), (2, 2, UP), (2, 2, DOWN)), [8, 4, 2], [8, 2], ["stage 1 (/2) <- E_1"],
    ),
    # The global average has one size everywhere.
    "the average alone": (made_of(2, (1, 0, UP)), [16, 8], [7, 5, 3], ["stage 2 (/3) <- G"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_carried_masks(name):
    mask, strides_from, strides_to, lines = CASES[name]
    assert mask_lines(carry_mask(mask, strides_from, strides_to), strides_to) == lines


@pytest.mark.parametrize("name", ["unet", "dense"])
@pytest.mark.parametrize("strides_to", [RESNET, [32, 32, 16, 8, 4, 2], [32, 16, 8, 4, 2, 2]])
def test_a_unet_remains_a_unet(name, strides_to):
    # Not below stride 2 twice over: with no feature of that rank here, the last stage has none of its own there.
    carried = carry_mask(named_mask(name, 9), MOBILENET, strides_to)
    assert (carried == named_mask(name, len(strides_to))).all()


def test_nothing_left_is_said():
    with pytest.raises(UseError, match="from strides 16, 8 to 4, 2: nothing is left for the output stage"):
        carry_mask(made_of(2, (0, 0, DOWN), (1, 1, UP), (1, 1, DOWN)), [16, 8], [4, 2])
    with pytest.raises(UseError, match="for 9 features, this backbone has 5"):
        carry_mask(VOC, RESNET, MOBILENET)


strides = st.lists(st.sampled_from([64, 32, 16, 8, 4, 2, 1]), min_size=1, max_size=9).map(
    lambda s: sorted(s, reverse=True)
)


def place(k: int, here: list[int], there: list[int]) -> int | None:
    """Where feature k goes, by the docstring's first rule."""
    same = [i for i, stride in enumerate(there) if stride == here[k]]
    rank = here[:k].count(here[k])
    return (same[rank] if rank < len(same) else same[-1]) if same else None


@settings(max_examples=300, deadline=None)
@given(strides, strides, st.integers(1, 90), st.integers(0, 10**6))
def test_what_is_carried_is_usable_and_nothing_is_invented(here, there, k, seed):
    mask = named_mask(f"random-{min(k, len(here) * (len(here) + 1))}", len(here), seed)
    try:
        carried = carry_mask(mask, here, there)
    except UseError as error:
        assert "nothing is left" in str(error)
        # Only where the output stage took nothing that exists there.
        assert not mask[-1, 0, UP]
        assert all(place(j, here, there) is None for j in np.flatnonzero(mask[-1, :, DOWN]))
        return
    assert carried.shape == (len(there), len(there), 2) and not why_unusable(carried)
    if here == there:
        assert (carried == mask).all()
        return

    def stage_there(i):
        return len(there) - 1 if i == len(here) - 1 else place(i, here, there)

    stands_for = set()
    for i, j, kind in np.argwhere(mask).tolist():
        stage = stage_there(i)
        if kind == DOWN:
            stands_for.add((stage, place(j, here, there), DOWN))
        else:
            giver = stage_there(j - 1) if j else -1
            stands_for.add((stage, None if giver is None else giver + 1, UP))
    kept = {tuple(c) for c in np.argwhere(carried).tolist()}
    assert kept <= stands_for
    alive = {stage for stage, _, _ in kept}
    for stage, source, kind in stands_for - kept:
        # What is missing has lost an end: no match, a dead stage, or a stage that became one with its user.
        dead = kind == UP and source and (source - 1 not in alive or source - 1 == stage)
        assert stage is None or source is None or stage not in alive or dead
    # Every stage that is left reaches the output.
    for stage in alive - {len(there) - 1}:
        assert carried[:, stage + 1, UP].any()


def wide_of(n_features: int, *connections, context: bool = False):
    """A decoder whose stage i has operation i modulo 3 and 8 (i + 1) channels."""
    stages = range(n_features)
    mask = made_of(n_features, *connections)
    return decoder_mask(mask, [i % 3 for i in stages], [8 * (i + 1) for i in stages], context)


FPN = named_mask("fpn", 9, strides=MOBILENET, depth=48)
WIDE_CASES = {
    "the output goes with its size": (FPN, MOBILENET, RESNET, [
        "stage 0 (/32, 3x3, 48 channels) <- E_0",
        "stage 1 (/16, 3x3, 48 channels) <- E_1, D_0",
        "stage 2 (/8, 3x3, 48 channels) <- E_2, D_1",
        "stage 3 (/4, 3x3, 48 channels) <- E_3, D_0, D_1, D_2",
    ]),
    "its size is absent: the next coarser one": (FPN, MOBILENET, [32, 16, 8, 2], [
        "stage 0 (/32, 3x3, 48 channels) <- E_0",
        "stage 1 (/16, 3x3, 48 channels) <- E_1, D_0",
        "stage 2 (/8, 3x3, 48 channels) <- E_2, D_0, D_1",
    ]),
    "an output that is the last stage stays it": (
        wide_of(3, (0, 0, DOWN), (2, 1, UP), (2, 2, DOWN), context=True), [8, 4, 2], [8, 4], [
            "stage 0 (/8, 1x1, 8 channels, context) <- E_0", "stage 1 (/4, 3x3, 24 channels) <- D_0",
        ]),
    "stages that become one have the last one's operation": (
        wide_of(4, (0, 0, DOWN), (1, 1, DOWN), (2, 1, UP), (2, 2, UP)), [8, 8, 4, 2], [8, 4, 2], [
            "stage 0 (/8, separable 3x3, 16 channels) <- E_0", "stage 1 (/4, 3x3, 24 channels) <- D_0",
        ]),
}  # fmt: skip


@pytest.mark.parametrize("case", WIDE_CASES)
def test_decoders_of_the_wider_space_are_carried_with_their_stages(case):
    mask, here, there, lines = WIDE_CASES[case]
    carried = carry_mask(mask, here, there)
    assert mask_lines(carried, there) == lines
    assert carry_mask(mask, here, here) == mask


@pytest.mark.parametrize("there", [RESNET, [32, 8, 4], [4, 2], [2], [16, 16, 1]])
def test_decoders_of_any_shape_are_carried_or_refused(there):
    rng, kept = np.random.default_rng(1), 0
    for _ in range(100):
        mask = random_decoder(rng, 9, MOBILENET)
        try:
            carried = carry_mask(mask, MOBILENET, there)
        except UseError as error:
            assert "nothing is left for the output stage" in str(error)
            continue
        kept += 1
        assert len(carried) == len(there) and carried.connections.sum() <= mask.connections.sum()
        assert {int(w) for w in carried.widths if w} <= {int(w) for w in mask.widths if w}
    assert kept


def test_masks_in_words():
    assert mask_lines(VOC, MOBILENET) == [
        "stage 1 (/32) <- E_0, G",
        "stage 2 (/32) <- E_2, G",
        "stage 3 (/16) <- E_3, G",
        "stage 8 (/2) <- E_0, E_1, E_2, E_3, E_8, G, D_1, D_2, D_3",
    ]
    assert mask_lines(named_mask("unet", 2)) == ["stage 0 <- E_0", "stage 1 <- E_1, D_0"]


@pytest.fixture
def pyramid(monkeypatch):
    """A backbone of strides 8, 4, 4, 2 under the name "pyramid"."""
    monkeypatch.setitem(backbones.BUILDERS, "pyramid", lambda in_channels=3, momentum=0.1: Pyramid())


ORIGINS = {
    "no note, nine features": ({}, 9, ("mobilenet_v2", MOBILENET)),
    "no note, another number": ({}, 5, (None, None)),
    "by name": ({"backbone_name": "pyramid"}, 4, ("pyramid", [8, 4, 4, 2])),
    "by strides": ({"strides": RESNET}, 5, (None, RESNET)),
    "by both, the backbone not installed": ({"backbone_name": "x", "strides": RESNET}, 5, ("x", RESNET)),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_where_a_mask_comes_from(name, pyramid):
    note, n_features, wanted = ORIGINS[name]
    assert origin(note, n_features) == wanted


@pytest.mark.parametrize(
    "note, words",
    [
        ({"backbone_name": "pyramid"}, "m.npy: the note beside it does not fit: 9 features"),
        ({"backbone_name": "nonet"}, "m.npy: .* for another backbone: unknown backbone 'nonet'"),
        ({"strides": RESNET}, "does not fit: 9 features"),
        ({"strides": "32"}, "does not fit"),
        ({"strides": [2] * 8 + [-1]}, "does not fit"),
        ({"strides": MOBILENET[::-1]}, "does not fit"),
    ],
)
def test_a_note_that_does_not_fit_is_refused(note, words, pyramid):
    with pytest.raises(UseError, match=words):
        fit_mask(VOC, note, "pyramid", "m.npy")


def test_a_mask_is_fitted_only_where_it_must_and_can_be(pyramid):
    mask, note, lines = fit_mask(VOC, {"step": 7}, "mobilenet_v2")
    assert (mask == VOC).all() and lines == []
    assert note == {"step": 7, "backbone_name": "mobilenet_v2", "strides": MOBILENET}
    mask, note, lines = fit_mask(VOC, {"step": 7}, "pyramid", "m.npy")
    assert mask_lines(mask) == ["stage 3 <- E_3, G"]
    assert lines[0] == (
        "mask carried from mobilenet_v2 (strides 32, 32, 32, 16, 16, 8, 4, 2, 2) to pyramid (8, 4, 4, 2): "
        "15 connections become 2"
    )
    assert note["carried_from"] == {
        "step": 7, "mask_path": "m.npy", "backbone_name": "mobilenet_v2", "strides": MOBILENET, "connections": 15
    }  # fmt: skip
    # The carried mask is the new backbone's own from then on.
    again, note, lines = fit_mask(mask, note, "pyramid")
    assert (again == mask).all() and lines == [] and "carried_from" in note
    # Of unknown origin: taken at its word where the number of features agrees, else refused.
    unet = named_mask("unet", 4)
    assert (fit_mask(unet, {}, "pyramid")[0] == unet).all()
    with pytest.raises(UseError, match="m.npy: the mask is for 5 features, this backbone has 4"):
        fit_mask(named_mask("unet", 5), {}, "pyramid", "m.npy")


def test_a_carried_network_trains(pyramid):
    torch.manual_seed(0)
    net = PrunedNetwork(carry_mask(named_mask("unet", 9), MOBILENET, Pyramid.strides), Pyramid(), 8, num_classes=3)
    net(torch.randn(2, 3, 33, 47), (33, 47)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_pruning_prints_the_mask_and_notes_its_strides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = {f"module.decoders.Decoders_{i}._weight_": torch.tensor(VOC[i, : i + 1]) * 2.0 for i in range(9)}
    torch.save({"state_dict": weights}, "public.pth")
    assert prune_prune.main(["--checkpoint", "public.pth"]) == 0
    assert "\n".join(mask_lines(VOC, MOBILENET)) in capsys.readouterr().out
    assert mask_note("mask.npy")["strides"] == MOBILENET and (load_mask("mask.npy") == VOC).all()


def test_retraining_carries_the_mask_prints_keeps_and_draws_it(pyramid, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    data = make_data(tmp_path / "data")
    save_mask("m.npy", named_mask("unet", 9), {"backbone_name": "mobilenet_v2", "checkpoint": "search.pt"})
    flags = [*SMALL, *data_flags(data), "--backbone_name", "pyramid", "--max_iter", "2", *LIGHT]
    assert retrain_train.main([*flags, "--mask_path", "m.npy", "--name", "r"]) == 0
    said = capsys.readouterr().out
    assert "to pyramid (8, 4, 4, 2): 17 connections become 5" in said
    assert "stage 0 (/8) <- E_0\nstage 1 (/4) <- E_1, D_0\nstage 3 (/2) <- E_3, D_1" in said
    run = tmp_path / "runs" / "r"
    note = json.loads((run / "mask.json").read_text())
    assert note["carried_from"]["backbone_name"] == "mobilenet_v2" and note["strides"] == [8, 4, 4, 2]
    assert "checkpoint" not in note  # the search's encoder is another one
    assert len(load_mask(run / "mask.npy")) == 4 and (run / "pictures" / "architecture.png").stat().st_size > 5000
    assert retrain_eval.main(LIGHT) == 0
    # The file kept in the run serves as it is, and the old one is carried for evaluation, too.
    for path in (str(run / "mask.npy"), "m.npy", "sparsemask-voc"):
        weights = ["--pretrained_model", str(run / "network.safetensors"), "--depth", "8"]
        code = retrain_eval.main(
            [*data_flags(data), *weights, "--backbone_name", "pyramid", "--mask_path", path, *LIGHT]
        )
        assert code == (2 if path == "sparsemask-voc" else 0)
    assert re.search(r"do not fit|are missing", capsys.readouterr().err)
    assert retrain_train.main([*flags, "--mask_path", "m.npy", "--inherit", "all"]) == 2
    assert "the mask's search had another encoder" in capsys.readouterr().err
