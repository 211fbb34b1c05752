"""A decoder of the wider space through the verbs: retrained, evaluated, exported, carried and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid import Pyramid
from sparsemask import exporting, runs, spaces
from sparsemask.exporting.validation import opened
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, SEPARABLE, DecoderMask, decoder_mask, load_decoder, save_decoder
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.retrain.connectivity import FAMILY
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity import PrunedNetwork, load_network, named_mask
from sparsemask.weights import load_weights, read_checkpoint
from tiny import SMALL, data_flags, fails, make_data

LIGHT = ["--gpu", "-1", "--n_worker", "0"]
STRIDES = list(Pyramid.strides)


def all_kinds() -> DecoderMask:
    """Every operation, three widths, the context block, the output at stride 4."""
    takes = np.zeros((4, 4, 2), dtype=bool)
    for place in ((0, 0, DOWN), (0, 0, UP), (1, 1, DOWN), (1, 1, UP), (2, 0, UP), (2, 1, UP), (2, 2, UP), (2, 2, DOWN)):
        takes[place] = True
    return decoder_mask(takes, [FULL, SEPARABLE, 0, 0], [16, 8, 24, 0], context=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with pictures, and a small backbone by name."""
    monkeypatch.setitem(backbones.BUILDERS, "pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    make_data(tmp_path / "data")
    save_decoder("m.npy", all_kinds(), {"backbone_name": "pyramid", "strides": STRIDES})
    return tmp_path


@pytest.mark.slow
def test_a_mask_file_of_the_wider_space_through_all_verbs(place, capsys):
    data = data_flags(place / "data")
    flags = [*SMALL, *data, "--backbone_name", "pyramid", *LIGHT]
    assert retrain_train.main([*flags, "--mask_path", "m.npy", "--name", "r", "--max_iter", "2"]) == 0
    assert "8 connections" in capsys.readouterr().out
    run = place / "runs" / "r"
    assert load_decoder(run / "mask.npy") == all_kinds()
    assert DecoderMask.unpack(read_checkpoint(run / "checkpoints" / "last.pt")["mask"]) == all_kinds()
    note = json.loads((run / "run.json").read_text())
    assert note["connections"] == 8 and (run / "pictures" / "architecture.png").stat().st_size > 5000
    page = (run / "report.html").read_text()
    assert "3×3, 16" in page and "8 connections, 3 of 4 stages" in page
    # A run that is opened again, the file that says what it is, and weights with the mask beside them.
    assert retrain_train.main(["--resume", "runs/r"]) == 0
    assert FAMILY.load_run(runs.find("runs/r")).mask == all_kinds()
    shared = load_network(run / "network.safetensors")
    assert shared.mask == all_kinds() and shared(torch.zeros(1, 3, 33, 33)).shape == (1, 4, 9, 9)
    assert load_weights(run / "network.safetensors").keys() == shared.state_dict().keys()
    capsys.readouterr()
    assert retrain_eval.main(["--run", "runs/r", *LIGHT]) == 0
    scores = capsys.readouterr().out
    weights = ["--pretrained_model", str(run / "network.safetensors"), *SMALL[:4], "--backbone_name", "pyramid"]
    assert retrain_eval.main([*data, *weights, "--mask_path", str(run / "mask.npy"), *LIGHT]) == 0
    line = next(line for line in scores.splitlines() if "mIoU" in line)
    assert line in capsys.readouterr().out
    for file in ("net.pt2", "net.safetensors"):
        assert retrain_export.main(["--run", "runs/r", "--out", file, "--repeats", "1", *LIGHT]) == 0, file
    assert retrain_train.main([*flags, "--mask_path", "m.npy", "--ft_model", str(run / "network.safetensors"),
                               "--name", "tuned", "--max_iter", "1"]) == 0  # fmt: skip


@pytest.mark.slow
def test_a_network_of_the_wider_space_is_specialised(place, capfd, no_images):
    strides = backbones.strides("mobilenet_v2")
    save_decoder("wide.npy", named_mask("unet-3x3", 9, strides=strides, depth=8), {"backbone_name": "mobilenet_v2"})
    flags = [*SMALL, *data_flags(place / "data"), *LIGHT]
    assert retrain_train.main([*flags, "--mask_path", "wide.npy", "--name", "r", "--max_iter", "1"]) == 0
    argv = [*flags, "--run", "runs/r", "--max_iter", "2", "--rounds", "1", "--max_stride", "8"]
    capfd.readouterr()
    assert retrain_specialize.main([*argv, "--name", "s"]) == 0
    forms = {row["form"]: row for row in json.loads(Path("runs/s/forms.json").read_text())}
    assert forms["sparse"]["miou"] == pytest.approx(forms["masked"]["miou"], abs=1e-6)
    shared = spaces.get("specialized").load("runs/s/network.safetensors").network
    assert shared.mask == load_decoder("wide.npy") and not shared.stage_masks and shared.masked
    assert retrain_eval.main(["--run", "runs/s", "--rounds", "1", *LIGHT]) == 0
    for file in ("net.pt2", "net.safetensors"):
        assert retrain_export.main(["--run", "runs/s", "--out", file, "--repeats", "1", *LIGHT]) == 0, file
    words = ["--where decoder", "wider space", "take encoder"]
    fails(capfd, retrain_specialize.main, [*argv, "--where", "decoder", "--name", "x"], words)


def test_named_decoders_of_the_wider_space_are_trained(place, capfd, no_images):
    flags = [*SMALL, *data_flags(place / "data"), "--backbone_name", "pyramid", *LIGHT, "--max_iter", "1"]
    assert retrain_train.main([*flags, "--mask_path", "fpn", "--name", "f"]) == 0
    wanted = named_mask("fpn", 4, strides=STRIDES, depth=8)
    assert load_decoder(place / "runs" / "f" / "mask.npy") == wanted
    fails(capfd, retrain_train.main, [*flags, "--mask_path", "fpn", "--depth", "12"], ["'fpn'", "multiples of 8"])
    # The mask of another backbone is carried, with its operations and widths.
    mask = named_mask("unet-3x3", 9, strides=backbones.strides("mobilenet_v2"), depth=16)
    save_decoder("other.npy", mask, {"backbone_name": "mobilenet_v2"})
    capfd.readouterr()
    assert retrain_train.main([*flags, "--mask_path", "other.npy", "--name", "c"]) == 0
    said = capfd.readouterr().out
    assert "stage 0 (/8, 3x3, 16 channels) <- E_0\nstage 1 (/4, 3x3, 16 channels) <- E_1, D_0" in said


def test_programs_of_the_wider_space_take_any_size(tmp_path):
    torch.manual_seed(0)
    network = PrunedNetwork(all_kinds(), Pyramid(), num_classes=4).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 40, 40))
    network.eval()
    batches = [torch.randn(1, 3, 40, 52), torch.randn(2, 3, 33, 35), torch.randn(3, 3, 17, 24)]
    made = spaces.get("connectivity").exportable(network, batches[0], {"n_class": 4})
    writers = {".pt2": exporting.export_program}
    if not exporting.why_not(".onnx", made):
        writers[".onnx"] = exporting.export_onnx
    for suffix, write in writers.items():
        path = write(made, tmp_path / f"net{suffix}", {"space": "connectivity"})
        run, note = opened(path, made)
        result = exporting.validate(path, run, made, batches, rounds=0, note=note)
        assert result.good and result.difference < 1e-5, suffix
