"""retrain/specialize.py: from a retrained run to masks, a table and files; resumed exactly; other tasks; bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from small_pictures import make_folder
from sparsemask.masks import load_mask
from sparsemask.masks.spatial import load_masks
from sparsemask.retrain import connectivity as retrain_connectivity
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.retrain.specializing.forms import differs
from sparsemask.search import run as search_run
from sparsemask.spaces.specialized.space import SpecializedSpace
from sparsemask.sparse import backend
from sparsemask.weights import load_weights
from tiny import SMALL, borrow_kernels, data_flags, fails, make_data
from without_images import without_images

FEW = [*SMALL[2:], "--eval_interval", "4"]
TRAIN = [*data_flags(Path("data")), *FEW, "--max_iter", "4", "--rounds", "1", "--max_stride", "8"]
TRAIN += ["--thres", "0.73"]  # about where mask branches begin: some places are dropped, some kept


@pytest.fixture(autouse=True)
def one_backend():
    """Runs are compared bit by bit, so the arithmetic must not be whichever is fastest at the moment."""
    with backend("reference"):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, a retrained network (runs/r) and one specialised from it (runs/s); not to be touched."""
    folder = tmp_path_factory.mktemp("trained")
    make_data(folder / "data", n=8)
    with pytest.MonkeyPatch.context() as patch, backend("reference"):
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
        flags = ["--mask_path", "unet", *data_flags(Path("data")), *SMALL, "--max_iter", "2", "--name", "r"]
        with without_images():
            assert retrain_train.main(flags) == 0
        assert retrain_specialize.main([*TRAIN, "--name", "s"]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch, no_images) -> Path:
    """A copy of it as working directory, where runs draw nothing."""
    folder = tmp_path / "place"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return folder


def test_a_run_leaves_masks_weights_table_and_pictures(place):
    run = place / "runs/s"
    info = json.loads((run / "run.json").read_text())
    assert info["state"] == "finished" and info["verb"] == "specialize"
    masks = load_masks(run / "mask.npz")
    masks.check_weights(run / "network.safetensors")
    assert np.array_equal(masks.connectivity, load_mask(place / "runs/r/mask.npy"))
    forms = {row["form"]: row for row in json.loads((run / "forms.json").read_text())}
    assert list(forms) == ["dense", "kernels", "masked", "sparse"]
    assert forms["masked"]["miou"] == pytest.approx(forms["sparse"]["miou"], abs=1e-3)  # the same masks
    assert forms["sparse"]["multiply_adds"] < forms["masked"]["multiply_adds"]
    assert all(row["ms"] > 0 for row in forms.values())
    shown = forms["sparse"]["multiply_adds"] / forms["dense"]["multiply_adds"]
    assert masks.mean_kept == pytest.approx(shown, abs=0.02)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"kept", "kept_soft", "tau", "lambda", "val_miou", "val_kept"} <= rows[-1].keys()
    for name in ("curves", "samples", "masks"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 5000
    report = (run / "report.html").read_text()
    assert "specialize" in report and "masked" in report


def test_a_specialised_network_is_evaluated_pruned_again_and_retrained(place, capfd):
    assert retrain_eval.main(["--run", "runs/s", "--rounds", "1", "--out", "predicted"]) == 0
    said = capfd.readouterr().out
    assert "mIoU" in said and "kept" in said
    assert list((place / "predicted").glob("*.png"))
    flags = ["--mask_path", "runs/s/mask.npz", *data_flags(Path("data")), *FEW, "--max_iter", "2", "--name", "again"]
    assert retrain_train.main(flags) == 0
    before, after = (load_weights(place / f"runs/{name}/network.safetensors") for name in ("s", "again"))
    fixed = [name for name in before if ".locate." in name or name.endswith("ch_mask")]
    assert fixed and all(torch.equal(before[name], after[name]) for name in fixed)
    assert not torch.equal(before["fc_conv.weight"], after["fc_conv.weight"])


def test_the_dense_network_can_teach(place, capfd):
    plain = [json.loads(line) for line in (place / "runs/s/metrics.jsonl").read_text().splitlines()]
    assert retrain_specialize.main([*TRAIN, "--teacher", "runs/r", "--distill", "0.5", "--name", "t"]) == 0
    assert f"teacher: {place}/runs/r/network.safetensors, weight 0.5" in capfd.readouterr().out
    taught = [json.loads(line) for line in (place / "runs/t/metrics.jsonl").read_text().splitlines()]
    assert taught[0]["loss_task"] < plain[0]["loss_task"]  # half of it is the distance to the network it starts from


OWN = ["--backbone_name", "pyramid:Pyramid"]


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A working directory with data and a small retrained network, runs/r."""
    make_data(tmp_path / "data", n=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.setattr(retrain_connectivity, "draw_architecture", lambda *_, **__: None)
    flags = ["--mask_path", "unet", *data_flags(Path("data")), *SMALL, *OWN, "--max_iter", "2", "--name", "r"]
    assert retrain_train.main(flags) == 0
    return tmp_path


def spoilt(make):
    """A form whose outputs are not those that it should have."""

    def form(self, network):
        made = make(self, network)
        made.register_forward_hook(lambda module, inputs, output: -output)
        return made

    return form


@pytest.mark.parametrize(
    ("which", "pair"),
    [
        ("fast_form", "'masked' and 'sparse'"),
        pytest.param("kernel_form", "'dense' and 'kernels'", marks=pytest.mark.slow),
    ],
)
def test_forms_that_must_be_equal_and_are_not_claim_no_speed(small, monkeypatch, capfd, which, pair):
    monkeypatch.setattr(SpecializedSpace, which, spoilt(getattr(SpecializedSpace, which)))
    assert retrain_specialize.main([*TRAIN, *OWN, "--name", which]) == 1
    out, error = capfd.readouterr()
    assert f"{pair} must be equal and are not" in out and f"{pair} must be equal" in error
    assert "times as fast" not in out and "next:" not in out
    assert all("ms" not in row for row in json.loads((small / f"runs/{which}/forms.json").read_text()))
    info = json.loads((small / f"runs/{which}/run.json").read_text())
    assert info["milliseconds"] is None and info["wrong"]
    assert "must be equal and are not" in (small / f"runs/{which}/report.html").read_text()


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (0.185, 0.106, True),
        (0.131, 0.039, True),
        (0.390, 0.3895, False),
        (3.9, 32.0, True),
        (28.31, 28.32, False),
        (0.5, float("nan"), True),
        (float("nan"), float("nan"), False),
        (0.5, float("inf"), True),
    ],
)
def test_figures_of_equal_forms(one, other, apart):
    assert differs(one, other) is apart
    assert differs(other, one) is apart


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(place, monkeypatch):
    calls, step = {"n": 0}, torch.optim.AdamW.step

    def dies(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] > 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dies)
        assert retrain_specialize.main([*TRAIN, "--name", "parts", "--checkpoint_interval", "2"]) != 0
    assert retrain_specialize.main(["--resume", "runs/parts"]) == 0
    one, other = (load_weights(place / f"runs/{name}/checkpoints/last.pt") for name in ("s", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_pictures_are_enlarged_by_a_searched_decoder(place):
    make_folder(place / "photos", 4, (32, 40))
    flags = [
        "--task", "super_resolution", "--run", "runs/r", "--hr_path", "photos", "--patch_size", "16", "--batch_size",
        "2", "--test_every", "4", "--n_worker", "0", "--max_iter", "2", "--eval_interval", "2", "--log_interval", "1",
        "--lr", "0.001", "--rounds", "0", "--bn_reestimate", "0", "--name", "sr",
    ]  # fmt: skip
    assert retrain_specialize.main(flags) == 0
    forms = {row["form"]: row for row in json.loads((place / "runs/sr/forms.json").read_text())}
    assert forms["sparse"]["psnr"] == pytest.approx(forms["masked"]["psnr"], abs=1e-2)
    assert load_masks(place / "runs/sr/mask.npz").config["scale"] == 2
    # Other verbs know by the run that its data are pictures to enlarge.
    assert retrain_eval.main(["--run", "runs/sr", "--rounds", "0"]) == 0
    assert retrain_export.main(["--run", "runs/sr", "--out", "sr.safetensors"]) == 0


def test_masks_that_cost_time_are_dropped(place, capfd):
    flags = [*TRAIN, "--masks", "paying", "--settle", "0.5", "--rounds", "0", "--name", "pay"]
    assert retrain_specialize.main(flags) == 0
    assert "masks" in capfd.readouterr().out
    forms = {row["form"]: row for row in json.loads((place / "runs/pay/forms.json").read_text())}
    assert forms["sparse"]["miou"] == pytest.approx(forms["masked"]["miou"], abs=1e-3)
    assert retrain_eval.main(["--run", "runs/pay", "--rounds", "0"]) == 0


def test_other_networks_are_specialised_from_dense_weights(place):
    make_folder(place / "photos", 4, (32, 40))
    data = [
        "--hr_path", "photos", "--patch_size", "8", "--batch_size", "2", "--test_every", "4", "--n_worker", "0",
        "--max_iter", "2", "--eval_interval", "2", "--log_interval", "1", "--lr", "0.01",
    ]  # fmt: skip
    small = ["--space", "smsr", "--n_feats", "8", "--n_modules", "1", *data]
    assert search_run.main(["--search", *small, "--name", "dense"]) == 0
    weights = ["--ft_model", "runs/dense/checkpoints/last.pt"]
    assert retrain_specialize.main([*small, *weights, "--rounds", "1", "--name", "fine"]) == 0
    forms = json.loads((place / "runs/fine/forms.json").read_text())
    assert [row["form"] for row in forms] == ["dense", "sparse"]  # these networks skip by themselves


@pytest.mark.parametrize(
    "more, words",
    [
        (["--run", "runs/nothing"], ["runs/nothing"]),
        (["--run", "runs/s"], ["runs/s", "specialize"]),
        (["--ft_model", "runs/r/checkpoints/last.pt"], ["--mask_path"]),
        (["--ft_model", "missing.pt", "--mask_path", "unet"], ["missing.pt"]),
        (["--ft_model", "runs/r/checkpoints/last.pt", "--run", "runs/r"], ["--run", "--ft_model"]),
        (["--mask_path", "dense"], ["dense", "connections"]),
        (["--depth", "16"], ["--depth 16"]),
        (["--max_stride", "1"], ["no module to mask"]),
        (["--settle", "1"], ["--settle 1", "must be learnt"]),
        (["--settle", "1.5"], ["--settle", "from 0 to 1"]),
        (["--space", "hinge"], ["hinge"]),
        (["--space", "smsr"], ["--ft_model"]),
        (["--task", "nonsense"], ["nonsense"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, capfd, more, words):
    flags = TRAIN if "--space" not in more else []
    fails(capfd, retrain_specialize.main, [*flags, "--name", "bad", *more], words)
    assert not (place / "runs/bad").exists()
