"""The verbs on the space smsr: search, prune, retrain, evaluate; resumed exactly; masks and weights belong together."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from small_pictures import make_folder
from sparsemask import flags
from sparsemask.backends.native import Native
from sparsemask.config import RunConfig
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.flags import RunSection
from sparsemask.masks.spatial import load_masks
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.spaces.smsr.space import SMSRNetwork
from sparsemask.spaces.sparse_conv import SMSR, load_smsr, planning
from sparsemask.spaces.sparse_conv.budget_calibration import meet_budget
from sparsemask.spaces.sparse_conv.masking import blocks, channel_logits, mean_kept
from sparsemask.spaces.sparse_conv.plan import Machine, Plan
from sparsemask.spaces.sparse_conv.search_method import SparseConvSearch, SparseMaskSection
from sparsemask.sparse import available_backends, backend
from sparsemask.tasks.super_resolution.task import SuperResolutionTask
from sparsemask.weights import load_weights
from spoilt import listing
from tiny import borrow_kernels, fails, killed_at

SMALL = [
    "--n_feats", "8", "--n_modules", "2", "--patch_size", "8", "--batch_size", "2", "--test_every", "4", "--n_worker",
    "0", "--checkpoint_interval", "2", "--eval_interval", "3", "--log_interval", "1", "--lr", "0.01",
]  # fmt: skip
DATA = ["--hr_path", "data"]
SEARCH = ["--search", "--space", "smsr", *DATA, *SMALL]
PUBLIC = ["--space", "smsr", "--data_test", "data", "--eval_limit", "1"]
TRAIN = [*DATA, "--masks", "all", *[a for a in SMALL if a not in ("--n_feats", "--n_modules")][2:]]


@pytest.fixture(autouse=True)
def one_backend():
    """Resumed runs are compared bit by bit, so the arithmetic must not be whichever is fastest at the moment."""
    with backend("reference"):
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with pictures and a finished search (runs/s); not to be touched."""
    folder = tmp_path_factory.mktemp("searched")
    make_folder(folder / "data", 4, (32, 40))
    with pytest.MonkeyPatch.context() as patch, backend("reference"):
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        assert search_run.main([*SEARCH, "--max_iter", "6", "--keep", "0.5", "--name", "s"]) == 0
        assert prune_prune.main(["--run", "runs/s"]) == 0
    return folder


@pytest.fixture
def place(searched, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory."""
    folder = tmp_path / "place"
    shutil.copytree(searched, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    # The copy is another folder: its mask must point into it.
    assert prune_prune.main(["--run", "runs/s"]) == 0
    return folder


def test_search_leaves_what_a_run_leaves(place):
    run = place / "runs/s"
    info = json.loads((run / "run.json").read_text())
    assert info["state"] == "finished"
    assert 0 < info["kept_fraction"] < 1
    assert 0 < info["multiply_adds"] < info["multiply_adds_dense"]
    assert info["milliseconds"] > 0 and info["milliseconds_dense"] > 0
    assert set(info["masks"]) == {"body.0.body", "body.1.body"}
    assert yaml.safe_load((run / "config.yaml").read_text())["space"] == "smsr"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"kept", "kept_soft", "tau", "lambda", "dense_channels", "val_psnr", "val_kept"} <= rows[-1].keys()
    for name in ("curves", "samples", "masks"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 5000


@pytest.mark.usefixtures("no_images")
def test_masks_move_with_the_budget(place):
    # A low and a high budget pull the kept fraction apart, from the same start.
    found = []
    for keep in ("0.05", "0.95"):
        more = ["--keep", keep, "--sparse", "50", "--sparse_epochs", "0", "--mask_lr_mult", "100", "--max_iter", "25"]
        assert search_run.main([*SEARCH, *more, "--eval_interval", "25", "--name", f"k{keep}"]) == 0
        rows = (place / f"runs/k{keep}/metrics.jsonl").read_text().splitlines()
        found.append(json.loads(rows[-1])["kept"])
    assert found[0] < found[1] - 0.1


@pytest.mark.usefixtures("no_images")
def test_masks_settle(place):
    # Of five steps three learn masks; then these are fixed, and the weights go on.
    more = ["--keep", "0.6", "--settle", "0.4", "--max_iter", "5", "--eval_interval", "5", "--checkpoint_interval", "1"]
    more += ["--sparse_start", "0", "--sparse_epochs", "0"]
    assert search_run.main([*SEARCH, *more, "--name", "settled"]) == 0
    rows = [json.loads(line) for line in (place / "runs/settled/metrics.jsonl").read_text().splitlines()]
    assert [row["lambda"] > 0 for row in rows] == [True, True, True, False, False]
    assert rows[3]["dense_channels"] == rows[4]["dense_channels"]
    assert len({row["loss"] for row in rows}) == 5


def test_statistics_are_taken_with_hard_masks():
    # Batch norms re-estimated under the noise of learning fit no network that is ever run.
    net = SMSR(n_feats=8, n_modules=1)
    method = SparseConvSearch(
        RunConfig(
            run=RunSection(),
            network=SMSRNetwork(space="smsr"),
            family=SparseMaskSection(settle=0.5, keep=0.5, constant_tau=True),
        )
    )
    method.steps = 4
    modes = lambda: {one.mask_mode for one in net.modules() if hasattr(type(one), "mask_mode")}
    for step, mode in ((0, "soft"), (-1, "hard"), (1, "soft"), (2, "hard"), (3, "hard")):
        method.before_step(net, step)
        assert modes() == {mode}
        assert all(p.requires_grad == (mode == "soft") for b in blocks(net).values() for p in [b.ch_mask])


@pytest.mark.parametrize("keep", [0.45, 0.6, 0.9, 0.0])
def test_one_threshold_meets_a_budget_and_keeps_the_order(keep):
    torch.manual_seed(0)
    net = SMSR(n_feats=16, n_modules=2).train()
    pictures = torch.rand(2, 3, 16, 16) * 255
    for module in net.modules():
        if hasattr(module, "threshold") and hasattr(module, "logits"):
            module.threshold = 0.78
    before = [channel_logits(b).detach().clone() for b in blocks(net).values()]
    shift = meet_budget(net, pictures, keep)
    assert net.training
    with torch.no_grad():
        net.eval()(pictures)
    kept = float(mean_kept(net, hard=True))
    for block, was in zip(blocks(net).values(), before, strict=True):  # all alike: what mattered more still does
        assert torch.allclose(channel_logits(block)[..., 0], was[..., 0] + shift)
        assert torch.equal(channel_logits(block)[..., 1], was[..., 1])
    assert abs(kept - keep) < 0.05 if keep else shift == 0, kept  # nothing at all is out of reach


@pytest.mark.usefixtures("no_images")
def test_the_published_loss_is_the_default_and_tau_can_stay(place):
    assert search_run.main([*SEARCH, "--config", "published", "--max_iter", "4", "--constant_tau", "--name", "p"]) == 0
    rows = [json.loads(line) for line in (place / "runs/p/metrics.jsonl").read_text().splitlines()]
    assert all(row["tau"] == 1 for row in rows)
    assert all(row["loss_sparse"] == row["kept_soft"] for row in rows)
    # λ = min((epoch - 1) / 50, 1) · 0.1, epochs being thousandths of the run: step 1 of 4 is epoch 251.
    assert [row["lambda"] for row in rows] == pytest.approx([0, 0.1, 0.1, 0.1])
    assert yaml.safe_load((place / "runs/p/config.yaml").read_text())["milestones"][0] == 0.199


def test_pruning_writes_masks_with_where_they_come_from(place, capfd):
    assert prune_prune.main([]) == 0  # the newest run's space is found
    said = capfd.readouterr().out
    masks = load_masks(place / "mask.npz")
    last = place / "runs/s/checkpoints/last.pt"
    assert masks.sha256 == sha256(last) and Path(masks.checkpoint) == last
    assert (masks.space, masks.task, masks.threshold) == ("smsr", "super_resolution", 0.5)
    assert masks.config["n_feats"] == 8 and masks.channels["body.0.body"].shape == (4, 8)
    shown = float(re.search(r"^kept fraction ([\d.]+)", said, re.M)[1])
    assert shown == pytest.approx(masks.mean_kept, abs=2e-3) and "--mask_path mask.npz" in said
    note = json.loads((place / "mask.json").read_text())
    assert note["sha256"] == masks.sha256 and note["kept_fraction"] == pytest.approx(masks.mean_kept)
    assert (place / "runs/s/mask_thres_0.5.npz").exists()
    info = json.loads((place / "runs/s/run.json").read_text())
    assert masks.mean_kept == pytest.approx(info["kept_fraction"], abs=1e-6)  # the same masks, the same pictures


def test_a_higher_threshold_keeps_less(place):
    kept = []
    for thres in ("0.01", "0.5", "0.99"):
        assert prune_prune.main(["--run", "runs/s", "--thres", thres, "--out", f"m{thres}.npz"]) == 0
        kept.append(load_masks(place / f"m{thres}.npz").mean_kept)
    assert kept[0] >= kept[1] >= kept[2] and kept[0] > kept[2]


def test_retraining_moves_the_weights_and_not_the_masks(place, capfd):
    assert retrain_train.main(["--mask_path", "mask.npz", *TRAIN, "--max_iter", "4", "--name", "r"]) == 0
    said = capfd.readouterr().out
    assert "retrained: psnr" in said and "next: " in said
    run = place / "runs/r"
    before, after = load_weights(place / "runs/s/checkpoints/last.pt"), load_weights(run / "network.safetensors")
    masked = [name for name in before if "spa_mask" in name or "ch_mask" in name]
    assert all(torch.equal(before[name], after[name]) for name in masked)
    assert not torch.equal(before["head.0.weight"], after["head.0.weight"])
    # The run's own mask file belongs to its own network.
    masks = load_masks(run / "mask.npz")
    masks.check_weights(run / "network.safetensors")
    assert yaml.safe_load((run / "config.yaml").read_text())["n_feats"] == 8  # the mask's, not the preset's
    assert load_smsr(run / "network.safetensors").config["n_modules"] == 2


def test_evaluation_prints_quality_beside_cost(place, capfd):
    assert retrain_train.main(["--mask_path", "mask.npz", *TRAIN, "--max_iter", "2", "--name", "r"]) == 0
    capfd.readouterr()
    assert retrain_eval.main(["--rounds", "1", "--out", "larger"]) == 0  # the newest retraining, space and all
    said = capfd.readouterr().out
    for word in ("PSNR dB", "SSIM", "kept", "dense ms", "multiply-adds", "at 1280x720", "dense channels by layer"):
        assert word in said
    info = json.loads((place / "runs/r/run.json").read_text())
    found = info["eval"]
    assert found["psnr"] == pytest.approx(info["result"]["psnr"], abs=1e-6)
    assert found["each"][0].keys() >= {"picture", "psnr", "ssim", "kept", "executed", "dense", "ms", "dense_ms", "gain"}
    assert 0 < found["share"] < 1
    assert len(list((place / "larger").glob("*.png"))) == len(found["each"])
    report = (place / "runs/r/report.html").read_text()
    for word in ("Quality by picture", "Masks", "kept fraction", "arxiv.org/abs/2006.09603"):
        assert word in report
    assert "Connection weights" not in report
    # A search has nothing but a sentence to say there, so it has no such card.
    assert "Quality" not in (place / "runs/s/report.html").read_text()


def test_plans_lie_beside_the_weights(place, capfd):
    assert prune_prune.main(["--run", "runs/s"]) == 0
    assert retrain_train.main(["--mask_path", "mask.npz", *TRAIN, "--max_iter", "2", "--name", "r"]) == 0
    assert "plan: masks keep" in capfd.readouterr().out
    beside = Path("runs/r/network.plan.json")
    (made,) = json.loads(beside.read_text())["plans"]
    assert set(made["backends"]) == {"body.0", "body.1"} and made["machine"]["threads"] == torch.get_num_threads()
    foreign = {**made, "machine": {**made["machine"], "processor": "another"}}
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "plans": [foreign]}))
    assert retrain_eval.main(["--run", "runs/r", "--rounds", "1"]) == 0
    out = capfd.readouterr().out
    assert "of another machine: measured again on this one" in out and "plan: masks keep" in out
    assert len(json.loads(beside.read_text())["plans"]) == 2
    assert retrain_eval.main(["--run", "runs/r", "--rounds", "1"]) == 0
    assert "another machine" not in capfd.readouterr().out
    assert len(load_smsr("runs/r/network.safetensors").plans) == 2


def test_an_evaluation_leaves_nothing_beside_weights_of_others(place, capfd):
    weights = Path("others/smsr.pt")
    weights.parent.mkdir()
    shutil.copy("runs/s/checkpoints/last.pt", weights)
    argv = ["--pretrained_model", str(weights), *PUBLIC, "--rounds", "1"]
    assert retrain_eval.main(argv) == 0
    assert "plan: masks keep" in capfd.readouterr().out
    assert list(weights.parent.iterdir()) == [weights]
    assert len(load_smsr(weights).plans) == 1  # from the cache
    (kept,) = (Path(os.environ["SPARSEMASK_HOME"]) / "plans").iterdir()
    before = kept.read_bytes()
    assert retrain_eval.main(argv) == 0  # follows it, and measures no other
    assert json.loads(kept.read_text()) == json.loads(before)


def test_masks_are_dropped_where_asked_and_within_the_bound(place, capfd, monkeypatch):
    monkeypatch.setattr(planning, "gains", lambda network, *_: {name: 1.0 for name in network.mask_modules()})
    assert retrain_eval.main(["--run", "runs/s", "--rounds", "0", "--unmask", "1000"]) == 0
    assert "without the masks of body.0, body.1: psnr" in capfd.readouterr().out
    unmasked = load_smsr("runs/s/unmasked.safetensors")
    assert unmasked.plans is not None and all(bool((one == 1).all()) for one in kept_of(unmasked))
    # With weights of no run: into the working directory.
    weights = Path("others/smsr.pt")
    weights.parent.mkdir()
    shutil.copy("runs/s/checkpoints/last.pt", weights)
    assert retrain_eval.main(["--pretrained_model", str(weights), *PUBLIC, "--rounds", "0", "--unmask", "1000"]) == 0
    assert load_smsr("unmasked.safetensors").plans is not None
    assert list(weights.parent.iterdir()) == [weights]
    with pytest.MonkeyPatch.context() as worse:
        scores = iter([40.0, 30.0, 30.0])
        worse.setattr(SuperResolutionTask, "metrics", lambda *_: {"psnr": next(scores)})
        assert retrain_eval.main(["--run", "runs/s", "--rounds", "0", "--unmask", "0.1"]) == 0
    assert "no mask that costs time can go within that" in capfd.readouterr().out


def test_a_retraining_drops_masks_that_cost_time_where_asked(place, capfd, monkeypatch):
    argv = ["--mask_path", "mask.npz", *TRAIN, "--max_iter", "4", "--masks", "paying"]
    gains = {"body.0": 1.0, "body.1": -1.0}
    monkeypatch.setattr(planning, "gains", lambda *_: gains)
    faster = Plan(Machine.here(torch.device("cpu")), (1, 3, 8, 8), {}, 0.5, {"plan": 1.0, "unmasked": 2.0})
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(planning, "make_plan", lambda *_: faster)
        with killed_at(2):
            retrain_train.main([*argv, "--name", "stopped"])
    line = "masks cost more time here than they save: dropped those of body.0; 1 of 2 modules keep theirs"
    assert line in capfd.readouterr().out
    gains["body.1"] = 1.0  # a resumed run does not measure again
    assert retrain_train.main(["--resume", "runs/stopped"]) == 0
    assert "dropped" not in capfd.readouterr().out
    first, second = load_masks("runs/stopped/mask.npz").channels.values()
    assert first.all() and not second.all()
    assert not next(iter(load_masks("runs/stopped/searched.npz").channels.values())).all()
    assert retrain_train.main([*argv, "--name", "dense"]) == 0
    out = capfd.readouterr().out
    assert "dropped those of body.0, body.1; training goes on without masks" in out
    assert "plan: nothing is masked, the network is computed densely" in out
    assert all(bool((one == 1).all()) for one in kept_of(load_smsr("runs/dense/network.safetensors")))


def test_a_specialisation_drops_masks_that_cost_time_when_they_are_fixed(place, capfd, monkeypatch):
    monkeypatch.setattr(planning, "gains", lambda *_: {"body.0": 1.0, "body.1": -1.0})
    faster = Plan(Machine.here(torch.device("cpu")), (1, 3, 8, 8), {}, 0.5, {"plan": 1.0, "unmasked": 2.0})
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(planning, "make_plan", lambda *_: faster)
        argv = ["--space", "smsr", "--ft_model", "runs/s/checkpoints/last.pt", *DATA, *SMALL, "--masks", "paying"]
        argv += ["--keep", "0.5", "--settle", "0.75", "--max_iter", "8", "--rounds", "0", "--name", "stopped"]
        with killed_at(6):  # masks are fixed before the third step
            retrain_specialize.main(argv)
    assert "dropped those of body.0; 1 of 2 modules keep theirs" in capfd.readouterr().out
    assert retrain_specialize.main(["--resume", "runs/stopped"]) == 0
    out = capfd.readouterr().out
    assert "dropped" not in out and "missed" not in out
    first, second = load_masks("runs/stopped/mask.npz").channels.values()
    assert first.all() and not second.all()


def kept_of(network: SMSR) -> list[torch.Tensor]:
    with torch.no_grad():
        network(255 * torch.rand(1, 3, 16, 16))
    return list(network.kept)


def test_an_exported_file_has_its_plan(place, capfd):
    assert retrain_export.main(["--run", "runs/s", "--out", "a.safetensors", "--eval_limit", "1"]) == 0
    assert "plan: masks keep" in capfd.readouterr().out and Path("a.plan.json").exists()
    assert len(load_smsr("a.safetensors").plans) == 1


def test_evaluation_of_files_and_of_tiles(place, capfd):
    path = "runs/s/checkpoints/last.pt"
    figures = []
    for more in ([], ["--tile", "32"], ["--flips"]):
        argv = ["--pretrained_model", path, "--mask_path", "mask.npz", "--data_test", "data", "--rounds", "0", *more]
        assert retrain_eval.main(argv) == 0
        lines = capfd.readouterr().out.splitlines()
        figures.append(next(float(line.split()[1]) for line in lines if line.startswith("PSNR")))
    assert figures[0] == pytest.approx(figures[1], abs=2e-3)  # tiles are the whole
    assert figures[2] != figures[0]


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize("verb", ["search", "retrain"])
def test_a_stopped_run_resumes_bit_for_bit(place, verb):
    main, argv = {
        "search": (search_run.main, [*SEARCH, "--keep", "0.5"]),
        "retrain": (retrain_train.main, ["--mask_path", "mask.npz", *TRAIN]),
    }[verb]
    argv = [*argv, "--max_iter", "7"]
    assert main([*argv, "--name", "alone"]) == 0
    with killed_at(5):
        main([*argv, "--name", "stopped"])
    assert main(["--resume", "runs/stopped"]) == 0
    a, b = (torch.load(place / f"runs/{n}/checkpoints/last.pt", weights_only=True) for n in ("alone", "stopped"))
    assert a["step"] == b["step"] == 7
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    rows = [(place / f"runs/{n}/metrics.jsonl").read_text() for n in ("alone", "stopped")]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("no_images")
def test_a_runs_own_configuration_repeats_it(place):
    config = yaml.safe_load((place / "runs/s/config.yaml").read_text())
    config["name"] = "again"
    (place / "again.yaml").write_text(yaml.safe_dump(config))
    assert search_run.main(["--config", "again.yaml"]) == 0
    a, b = (load_weights(place / f"runs/{n}/checkpoints/last.pt") for n in ("s", "again"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ("argv", "newest"),
    [
        (["--space", "smsr"], None),
        (["--resume", "runs/s"], None),
        (["--run", "runs/s"], None),
        (["--config", "runs/s/config.yaml"], None),
        (["--mask_path", "mask.npz"], None),
        (["--checkpoint", "runs/s/checkpoints/last.pt"], None),
        (["--pretrained_model", "runs/s/checkpoints/last.pt"], None),
        ([], "search"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_the_space_is_found(place, argv, newest):
    assert flags.space_of(argv, newest) == "smsr"


def test_the_space_is_connectivity_where_nothing_says_otherwise(place):
    for argv in ([], ["--mask_path", "unet"], ["--mask_path", "gone.npz"], ["--run", "gone"], ["--checkpoint", "x"]):
        assert flags.space_of(argv) == "connectivity"
    assert flags.space_of([], "retrain") == "connectivity"  # no such run


def other_checkpoint(place):
    state = torch.load("runs/s/checkpoints/last.pt", weights_only=True)
    state["model"]["head.0.weight"] += 1
    torch.save(state, "runs/s/checkpoints/last.pt")


def gone_checkpoint(place):
    (place / "runs/s/checkpoints/last.pt").unlink()


def torn_mask(place):
    (place / "mask.npz").write_bytes((place / "mask.npz").read_bytes()[:300])


def nothing(place):
    pass


@pytest.mark.parametrize(
    ("spoil", "more", "words"),
    [
        (other_checkpoint, [], ["made from another checkpoint", "last.pt"]),
        (gone_checkpoint, [], ["is gone", "--search_checkpoint"]),
        (torn_mask, ["--space", "smsr"], ["mask.npz", "truncated"]),
        (nothing, ["--scale", "3"], ["--scale 3", "has 2"]),
        (nothing, ["--task", "edges"], ["--task edges", "super_resolution"]),
        (nothing, ["--search_checkpoint", "data/0001.png"], ["another checkpoint"]),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_does_not_belong_together_is_refused(place, capfd, spoil, more, words):
    spoil(place)
    before = listing(place)
    fails(capfd, retrain_train.main, ["--mask_path", "mask.npz", *TRAIN, *more, "--name", "new"], words)
    assert listing(place) == before


@pytest.mark.parametrize(
    ("main", "argv", "words"),
    [
        (search_run.main, [*SEARCH, "--n_feats", "2"], ["n_feats", "at least 4"]),
        (search_run.main, [*SEARCH, "--keep", "1.5"], ["[0, 1)"]),
        (search_run.main, [*SEARCH, "--pretrained_model", "no.pt"], ["no.pt"]),
        (search_run.main, [*SEARCH, "--backbone_name", "vgg16"], ["--backbone_name"]),
        (search_run.main, ["--search", "--task", "super_resolution", "--sample"], ["smsr"]),
        (prune_prune.main, ["--run", "runs/s", "--out", "mask.npy"], [".npz"]),
        (retrain_train.main, ["--space", "smsr", *TRAIN], ["--mask_path is missing"]),
        (retrain_eval.main, ["--run", "runs/s", "--backend", "abacus"], ["unknown backend 'abacus'", "gather"]),
        (retrain_eval.main, ["--run", "runs/s", "--scale", "4"], ["--scale 4", "has 2"]),
        (retrain_eval.main, ["--run", "runs/s", "--tile", "5"], ["32 is the least"]),
        (retrain_eval.main, ["--space", "smsr", "--pretrained_model", "data/0001.png"], ["0001.png"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input(place, capfd, main, argv, words):
    before = listing(place)
    fails(capfd, main, [*argv, "--name", "new"] if main is search_run.main else argv, words)
    assert listing(place) == before


def test_a_task_of_its_own_has_flags_of_its_own():
    actions = search_run.parser("smsr").actions()
    assert {"scale", "hr_path", "patch_size", "n_feats", "keep"} <= set(actions)
    assert not {"crop_size", "n_class", "backbone_name"} & set(actions)
    assert SuperResolutionTask.primary == "psnr"
    with pytest.raises(UseError, match="unknown space"):
        search_run.parser("galaxy")


@pytest.mark.real
@pytest.mark.slow
def test_the_issue_s_line_prints_the_published_row(tmp_path, monkeypatch, capfd, shared_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_DATA", str(shared_data))
    weights = str(shared_data / "smsr_x2.pt")
    argv = ["--space", "smsr", "--pretrained_model", weights, "--data_test", "set5", "--rounds", "0"]
    assert retrain_eval.main(argv) == 0
    said = capfd.readouterr().out
    assert "PSNR 37.991 dB  SSIM 0.9601" in said
    assert "985 k parameters" in said and "224.1 G as published papers count" in said and "223.8 G dense" in said
    assert "24 9 3 0 of 64" in said


@pytest.mark.skipif(available_backends()["native"] is not None, reason="no C++ compiler here")
def test_what_skips_wrongly_has_no_speed(place, monkeypatch, capfd):
    # As kernels that were wrong on some processors had one.
    for name in ("conv", "block", "attended_block"):
        own = getattr(Native, name)
        monkeypatch.setattr(Native, name, lambda self, *given, own=own: own(self, *given) * 9)
    with backend("native"):
        assert retrain_eval.main(["--run", "runs/s", "--rounds", "1"]) == 1
        out, error = capfd.readouterr()
        assert "must be equal and are not" in error and "times as fast" not in out and "dense ms" not in out
        argv = [*TRAIN, "--mask_path", "mask.npz", "--max_iter", "2", "--name", "r"]
        assert retrain_train.main(argv) == 1
    out, error = capfd.readouterr()
    assert "no speed is claimed" in error and "retrained: " in out and " ms (dense" not in out
    info = json.loads((place / "runs/r/run.json").read_text())
    assert info["milliseconds"] is None and info["state"] == "finished"
