"""The verbs on the space hinge: search, prune, retrain, evaluate; resumed exactly; what does not fit is refused."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from small_classes import write_npz
from small_hinge import hinged
from sparsemask import flags, spaces
from sparsemask.engine.distillation import Teacher
from sparsemask.files import sha256
from sparsemask.masks.groups import GroupMask, load_mask, save_mask
from sparsemask.prune import prune as prune_prune
from sparsemask.prune.group_sparsity import budget as prune_group_budget
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.retrain.group_sparsity import GroupRetrainingSection
from sparsemask.retrain.group_sparsity.evaluation import slower_note
from sparsemask.retrain.group_sparsity.teacher import FineTuning
from sparsemask.search import run as search_run
from sparsemask.spaces.group_sparsity import records
from sparsemask.tasks import Task
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights
from tiny import fails, killed_at

DATA = ["--data_root", "data"]
SMALL = ["--batch_size", "10", "--n_worker", "0", "--log_interval", "1", "--checkpoint_interval", "2", "--lr", "0.05"]
SEARCH = ["--search", "--space", "hinge", "--arch", "resnet8", *DATA, *SMALL, "--lr_ratio", "1", "--prox_start", "0"]
SEARCH += ["--schedule", "constant", "--warmup", "0", "--sparse", "0.5", "--thres", "0.01", "--layer_balancing"]
TRAIN = [*DATA, *SMALL, "--schedule", "constant", "--warmup", "0", "--max_iter", "4", "--name", "r"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with pictures, a finished search (runs/s), its mask of half the multiply-adds; not to be touched."""
    folder = tmp_path_factory.mktemp("searched")
    write_npz(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(folder / "home"))
        more = ["--max_iter", "5", "--eval_interval", "2", "--stop_limit", "0", "--target", "0.3", "--name", "s"]
        assert search_run.main([*SEARCH, *more]) == 0
        assert prune_prune.main(["--run", "runs/s", "--target", "0.5"]) == 0
    return folder


@pytest.fixture
def place(searched, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory; what runs draw is looked at in the original."""
    folder = tmp_path / "place"
    shutil.copytree(searched, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    for module, name in ((records, "draw_groups"), (records, "draw_kept_groups"), (Context, "draw_training")):
        monkeypatch.setattr(module, name, lambda *_: None)
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_search_leaves_what_a_run_leaves(searched):
    run = searched / "runs/s"
    info = json.loads((run / "run.json").read_text())
    assert (info["state"], info["family"], info["space"]) == ("finished", "group_sparsity", "hinge")
    assert 0 < info["multiply_adds"] <= 1.2 * info["multiply_adds_dense"] and len(info["groups"]) == 6
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert {"loss_p1", "loss_p2", "lambda", "gradient_ratio", "val_top1", "val_ratio"} <= rows[-1].keys()
    assert rows[-1]["loss_p1"] < rows[0]["loss_p1"]  # the groups shrink
    for name in ("curves", "samples", "kept", "spectra"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 5000
    assert "2003.08935" in (run / "report.html").read_text()


def test_pruning_meets_the_target_and_says_what_is_left(place, capfd):
    mask = load_mask("mask.npz")
    last = place / "runs/s/checkpoints/last.pt"
    assert mask.sha256 == sha256(last) and mask.figures["multiply_adds_share"] == pytest.approx(0.5, abs=0.03)
    note = json.loads((place / "mask.json").read_text())
    assert note["multiply_adds"] / note["multiply_adds_dense"] == mask.figures["multiply_adds_share"]
    # Counted without building; the network that is built costs the same.
    network = spaces.get("hinge").network(mask)
    assert sum(p.numel() for p in network.parameters()) == note["parameters"]
    capfd.readouterr()
    for by, entry in (("params", "parameters"), ("multiply-adds", "multiply_adds")):
        assert prune_prune.main(["--run", "runs/s", "--by", by, "--target", "0.4", "--out", f"{entry}.npz"]) == 0
        found = json.loads((place / f"{entry}.json").read_text())
        assert found[entry] / found[f"{entry}_dense"] == pytest.approx(0.4, abs=0.03)
    assert "kept" in capfd.readouterr().out
    assert (place / "runs/s/mask_params_0.4.npz").exists()


def test_a_target_below_what_always_stays_is_said(place, capfd):
    assert prune_prune.main(["--run", "runs/s", "--target", "0.05", "--remain", "0.5"]) == 0
    assert "note: wanted 5.0% of the multiply-adds, reached" in capfd.readouterr().out
    assert all(kept.mean() >= 0.5 for kept in load_mask("mask.npz").kept.values())


@pytest.mark.parametrize("arch", ["resnet8", "densenet10", "small_hinge:OwnCNN"])
@pytest.mark.parametrize("variant", [None, "graph"])
def test_compressed_saved_loaded_is_the_masked_network(tmp_path, arch, variant):
    space = spaces.get("hinge")
    made = hinged(arch, variant=variant)
    network, found, rng = made.network, made.reduction, np.random.default_rng(0)
    kept = {s.name: rng.random(s.count) < 0.6 for s in found.sets}
    for k in kept.values():
        k[0] = True
    merged = found.merged(found.removal.gone(kept), "auto")
    config = space.config({"arch": arch, "variant": variant, "input_shape": (3, 8, 8)})
    mask = GroupMask(config, kept, merged)
    compressed = space.compressed(made, mask)
    small = compressed.network
    stays = found.removal.gone(kept)
    stays[compressed.removed] = False
    mask = GroupMask({**config, "stays": stays.nonzero()[0].tolist()}, kept, merged)
    space.save(tmp_path / "n.safetensors", small, mask)
    again = space.load(tmp_path / "n.safetensors")
    loaded, said = again.network, again.mask
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = found.removal.zero_(network, kept)(x).detach()
    assert torch.allclose(loaded(x), wanted, atol=1e-5 * (1 + float(wanted.abs().max())))
    assert said.merged == merged and sum(p.numel() for p in loaded.parameters()) < sum(
        p.numel() for p in network.parameters()
    )


def test_retraining_and_evaluation(place, capfd):
    assert retrain_train.main(["--mask_path", "mask.npz", *TRAIN]) == 0
    said = capfd.readouterr().out
    assert "teacher:" in said and "retrained: top1" in said
    run = place / "runs/r"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["arch"] == "resnet8"  # the mask's
    assert retrain_eval.main(["--rounds", "1", "--batch", "1", "2", "--out", "guesses"]) == 0  # the newest retraining
    said = capfd.readouterr().out
    for word in ("top-1", "published convention", "milliseconds, batch 2", "gain"):
        assert word in said
    info = json.loads((run / "run.json").read_text())
    assert info["eval"]["top1"] == pytest.approx(info["result"]["top1"])
    assert info["parameters"] == sum(v.numel() for k, v in load_weights(run / "network.safetensors").items()
                                     if not any(w in k for w in ("running_", "num_batches")))  # fmt: skip
    assert len(list(csv.reader((place / "guesses/predictions.csv").open()))) == 11
    # The shared file alone is enough, and its mask can be checked.
    path = ["--pretrained_model", "runs/r/network.safetensors", *DATA, "--rounds", "0"]
    assert retrain_eval.main([*path, "--mask_path", "mask.npz"]) == 0
    # And it can be trained on.
    assert retrain_train.main(["--space", "hinge", "--ft_model", path[1], *TRAIN[:-1], "more"]) == 0


def test_time_on_the_device_is_a_target(place, capfd):
    assert prune_prune.main(["--run", "runs/s", "--by", "milliseconds", "--target", "0.7", "--batch", "8"]) == 0
    note, mask = json.loads((place / "mask.json").read_text()), load_mask("mask.npz")
    assert note["milliseconds_share"] == note["milliseconds"] / note["milliseconds_dense"] > 0
    assert "channels pay in steps of" in (said := capfd.readouterr().out) and "measured" in said
    # A merged pair's rows cost nothing: none is dropped.
    assert all(mask.kept[f"{name}.rows"].all() for name in mask.merged)


def test_where_nothing_is_faster_the_plain_network_is_kept(place, monkeypatch, capfd):
    monkeypatch.setattr(prune_group_budget, "compare_times", lambda networks, *_, **__: dict.fromkeys(networks, 2.0))
    assert prune_prune.main(["--run", "runs/s", "--by", "milliseconds", "--target", "0.5", "--bn_reestimate", "0"]) == 0
    note, mask = json.loads((place / "mask.json").read_text()), load_mask("mask.npz")
    assert note["multiply_adds_true"] == note["multiply_adds_true_dense"]
    assert note["milliseconds_share"] == 1.0 and all(kept.all() for kept in mask.kept.values())
    assert note["top1_pruned"] == note["top1_searched"]  # the same function
    assert "the plain network is kept" in capfd.readouterr().out


def test_relative_norms_spare_no_layer_for_its_large_weights(place):
    spread = []
    for more in ([], ["--relative"]):
        assert prune_prune.main(["--run", "runs/s", "--target", "0.6", "--eval_limit", "10", *more]) == 0
        note = json.loads((place / "mask.json").read_text())
        assert note["rule"]["relative"] == bool(more) and note["multiply_adds"] < 0.65 * note["multiply_adds_dense"]
        spread.append(torch.tensor([one["kept"] / one["total"] for one in note["groups"].values()]).std())
    assert spread[1] < spread[0]


def test_a_curve_of_what_pruning_alone_costs(place, capfd):
    assert prune_prune.main(["--run", "runs/s", "--target", "0.6", "--curve", "0.9", "0.6", "--eval_limit", "20"]) == 0
    note = json.loads((place / "mask.json").read_text())
    assert [row["target"] for row in note["curve"]] == [0.9, 0.6]
    # The target's own row is the network of the mask, and both were evaluated alike.
    assert note["curve"][1]["top1"] == note["top1_batch_norms_adapted"]
    assert note["curve"][1]["share"] == pytest.approx(note["multiply_adds"] / note["multiply_adds_dense"])
    assert (place / "runs/s/pictures/tradeoff.png").stat().st_size > 5000
    assert "before retraining" in capfd.readouterr().out


@pytest.mark.parametrize(
    "times, said",
    [
        ([(0.5, 1.0, 1)], None),
        ([(1.02, 1.0, 1)], None),  # within what measuring errs
        (
            [(1.2, 1.0, 1)],
            ["120% of its time at batch 1)", "--by milliseconds --merge auto --batch 1,", "keep the plain"],
        ),
        ([(0.5, 1.0, 1), (3.0, 2.0, 8)], ["(150% of its time at batch 8)", "--batch 8,"]),
        ([], None),
    ],
)
def test_a_slower_network_is_called_so(times, said):
    rows = [{"milliseconds": t, "milliseconds_dense": d, "timed": {"batch": b, "compiled": False}} for t, d, b in times]
    note = slower_note(rows or [{"parameters": 3}])
    if said is None:
        assert note is None
    else:
        assert "\n" not in note and all(word in note for word in said)
        rows[-1]["timed"]["compiled"] = True
        assert "--compiled" in slower_note(rows[-1:])


@pytest.mark.parametrize("verb", ["search", "retrain"])
def test_a_stopped_run_goes_on_exactly(place, verb):
    main = {"search": search_run.main, "retrain": retrain_train.main}[verb]
    argv = [*SEARCH, "--max_iter", "6"] if verb == "search" else ["--mask_path", "mask.npz", *TRAIN[:-2]]
    assert main([*argv, "--name", "alone"]) == 0
    with killed_at(3):
        main([*argv, "--name", "stopped"])
    assert main(["--resume", "runs/stopped"]) == 0
    a, b = (torch.load(place / f"runs/{n}/checkpoints/last.pt", weights_only=True) for n in ("alone", "stopped"))
    assert a["step"] == b["step"] and repr(a["method"]) == repr(b["method"])
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    assert rows_of(place / "runs/alone") == rows_of(place / "runs/stopped")


def test_a_search_that_reached_its_target_is_over(place):
    argv = [*SEARCH, "--max_iter", "6", "--eval_interval", "2", "--target", "0.9", "--stop_limit", "2", "--name", "e"]
    assert search_run.main(argv) == 0
    assert [row["step"] for row in rows_of(place / "runs/e")] == [1, 2]
    assert search_run.main(["--resume", "runs/e"]) == 0
    assert [row["step"] for row in rows_of(place / "runs/e")] == [1, 2]


def test_weights_say_which_network_they_are_of(place, capfd):
    torch.manual_seed(0)
    network = spaces.get("hinge").plain({"arch": "resnet14", "arch_options": {"bias": False}})
    torch.save(network.state_dict(), "plain.pt")
    argv = [*SEARCH[:2], "hinge", *DATA, *SMALL, "--pretrained_model", "plain.pt", "--max_iter", "1", "--name", "p"]
    argv = ["--search", "--space", *argv[2:]]
    assert search_run.main(argv) == 0
    config = yaml.safe_load((place / "runs/p/config.yaml").read_text())
    assert config["arch"] == "resnet14" and config["arch_options"] == ["bias=False"]
    fails(capfd, search_run.main, [*argv[:-1], "q", "--arch", "resnet20"], ["--arch resnet20", "resnet14"])
    # A pruned network's teacher is by itself what the search started from.
    assert prune_prune.main(["--run", "runs/p", "--target", "0.6"]) == 0
    assert retrain_train.main(["--mask_path", "mask.npz", *TRAIN]) == 0
    assert "teacher: " + str(place / "plain.pt") in capfd.readouterr().out


class Echo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.bn = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(x) * self.weight


def test_the_teacher_is_in_evaluation_mode():
    # The published teacher saw each batch's own statistics, and remembered them.
    from types import SimpleNamespace

    model, teacher = torch.nn.Linear(3, 3), Echo().train()
    given = GroupRetrainingSection()
    method = FineTuning()
    method.teacher = Teacher(teacher, given.distill, given.temperature)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    task = SimpleNamespace(
        loss=lambda output, target: F.cross_entropy(output, target, reduction="sum"),
        teacher_loss=functools.partial(Task.teacher_loss, None),
    )
    whole = method.loss(model, task, x, model(x), y)
    halves = sum(method.loss(model, task, x[k], model(x[k]), y[k]) for k in (slice(0, 2), slice(2, 6)))
    assert torch.allclose(whole, halves)  # no picture's answer depends on the others
    assert int(teacher.bn.num_batches_tracked) == 0
    p, q = (teacher(x) / 4).softmax(1), (model(x) / 4).softmax(1)
    pull = (p * (p / q).log()).sum()
    assert torch.allclose(whole, 0.6 * task.loss(model(x), y) + 0.4 * 16 * pull, rtol=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--mask_path", "gone.npz"], ["gone.npz", "not found"]),
        (["--mask_path", "other.npz"], ["made from another checkpoint"]),
        (["--mask_path", "torn.npz"], ["torn.npz"]),
        (["--mask_path", "mask.npz", "--teacher", "gone.pt"], ["--teacher gone.pt"]),
        (["--mask_path", "mask.npz", "--arch", "resnet14"], ["--arch resnet14", "resnet8"]),
        ([], ["--mask_path is missing"]),
        (["--ft_model", "runs/s/checkpoints/last.pt"], ["no pruned network"]),
    ],
)
def test_what_does_not_fit_is_refused(place, capfd, argv, words):
    mask = load_mask("mask.npz")
    save_mask("other.npz", GroupMask(mask.config, mask.kept, mask.merged, checkpoint=mask.checkpoint, sha256="0" * 64))
    Path("torn.npz").write_bytes(Path("mask.npz").read_bytes()[:300])
    fails(capfd, retrain_train.main, ["--space", "hinge", *argv, *TRAIN], words)
    assert not (place / "runs/r").exists()


def test_masks_of_other_networks_and_versions_are_refused(place, capfd):
    mask = load_mask("mask.npz")
    other = GroupMask(
        {**mask.config, "arch": "resnet14"}, mask.kept, (), checkpoint=mask.checkpoint, sha256=mask.sha256
    )
    save_mask("other.npz", other)
    fails(capfd, retrain_train.main, ["--mask_path", "other.npz", *TRAIN], ["do not fit"])
    arrays = dict(np.load("mask.npz"))
    np.savez("newer.npz", **{**arrays, "format": np.array(9)})
    np.savez("foreign.npz", **{**arrays, "space": np.array("smsr")})
    fails(capfd, retrain_train.main, ["--space", "hinge", "--mask_path", "newer.npz", *TRAIN], ["newer version"])
    fails(capfd, retrain_train.main, ["--space", "hinge", "--mask_path", "foreign.npz", *TRAIN], ["space 'smsr'"])
    fails(capfd, prune_prune.main, ["--space", "hinge", "--checkpoint", "gone.pt"], ["gone.pt"])
    fails(capfd, prune_prune.main, ["--run", "runs/s", "--out", "mask.npy"], [".npz"])


def test_the_space_is_found(place):
    for argv in (["--mask_path", "mask.npz"], ["--run", "runs/s"], ["--checkpoint", "runs/s/checkpoints/last.pt"]):
        assert flags.space_of(argv) == "hinge"
