"""Whole residual blocks as groups: their removal is exact, their costs are counted, every verb takes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hinge import lively, one_thread, published_count  # noqa: F401
from small_classes import write_npz
from small_hinge import hinged
from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.masks.groups import GroupMask, load_mask, save_mask
from sparsemask.prune import prune as prune_prune
from sparsemask.prune.group_sparsity import scores as prune_scores
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.spaces.group_sparsity import groups, networks
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.compress import remove_groups
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.networks.layers import ResidualBlock
from sparsemask.spaces.group_sparsity.pairs import Pair, groups_of, hinge, merge
from sparsemask.spaces.group_sparsity.reduction import Hinged
from sparsemask.spaces.group_sparsity.rules import block_set, plan_for, variants
from sparsemask.spaces.group_sparsity.tracing.graph import trace
from sparsemask.weights import load_weights
from tiny import fails

pytestmark = pytest.mark.usefixtures("one_thread")

# Network, its options, what is beside the blocks; two blocks a stage but where it is said.
NETWORKS = {
    "basic": ("resnet14", {}, "blocks"),
    "basic, strided shortcuts": ("resnet14", {"shortcut": "strided"}, "blocks"),
    "basic, projections": ("resnet14", {"shortcut": "C"}, "blocks"),
    "bottleneck": ("resnet20", {"block": "bottleneck", "shortcut": "C"}, "blocks"),
    "aggregated": ("resnext20", {}, "blocks"),
    "wide": ("wrn16_10", {"widen": 1}, "blocks"),
    "rows too": ("resnet14", {}, "svd+blocks"),
    "columns too": ("resnet14", {"shortcut": "C"}, "columns+blocks"),
    "channels too": ("resnet14", {"shortcut": "C"}, "channels+blocks"),
    "all ranks and channels too": ("resnet14", {}, "graph+blocks"),
    "bottlenecks and their channels": ("resnet20", {"block": "bottleneck", "shortcut": "C"}, "svd+blocks"),
    "groups of convolutions too": ("resnext20", {}, "svd+blocks"),
    "wide, with pairs": ("wrn16_10", {"widen": 1}, "columns+blocks"),
}
# Which of six blocks are kept; the first of every stage changes the size or the channels, but for the first stage's.
KEPT = {"all": [1] * 6, "some": [1, 0, 0, 1, 1, 0], "a stage gone": [1, 1, 0, 0, 1, 1], "one left": [0, 0, 0, 0, 0, 1]}


def made(name: str) -> tuple[nn.Module, tuple]:
    arch, options, variant = NETWORKS[name]
    network = lively(arch, **options)
    plan = plan_for(arch, variant, network)
    network = hinge(network, plan, "p-identity").double()
    return network, groups_of(network, plan)


def without_branches(network: nn.Module, kept: np.ndarray) -> nn.Module:
    """A copy whose dropped blocks' last layers give zero, found by class, apart from the toolkit's sets."""
    network = copy.deepcopy(network)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    for block, stays in zip(blocks, kept, strict=True):
        if not stays:
            children = [m for m in block.children() if not isinstance(m, nn.ReLU)]
            last = children[-2]  # before the shortcut
            last = last if isinstance(last, nn.BatchNorm2d | nn.Conv2d) else list(last.children())[-1]
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
    return network


@pytest.mark.parametrize("which", KEPT)
@pytest.mark.parametrize("name", NETWORKS)
def test_removal_is_exact_and_costs_are_those_of_what_is_built(name, which):
    network, sets = made(name)
    graph = trace(network, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    removal = Removal(graph, sets)
    blocks, random = np.array(KEPT[which], bool), np.random.default_rng(0)
    kept = {s.name: random.random(s.count) > 0.4 if s.name != "blocks" else blocks for s in sets}
    assert len(kept["blocks"]) == 6
    before = network.state_dict()
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    with torch.no_grad():
        result = remove_groups(network, removal, kept)
        small = result.network
        wanted = removal.zero_(without_branches(network, blocks), {n: k for n, k in kept.items() if n != "blocks"})(x)
        assert (small(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max().clamp_min(1)
        assert (removal.zero_(copy.deepcopy(network), kept)(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    left = [module for module in small.modules() if isinstance(module, ResidualBlock)]
    assert len(left) == blocks.sum()  # the others are not computed
    gone = np.zeros(graph.count, bool)
    gone[result.removed] = True
    accounting = Accounting(network, graph, branches=removal.branches)
    counted = accounting.count(gone)
    bare = removal.remove(copy.deepcopy(network), gone).float()  # without what constants are folded into
    assert (counted.published, counted.parameters) == published_count(bare)
    merge(small, accounting.remaining_pairs(gone))  # none of them is gone
    assert not any(isinstance(module, Pair) for module in small.modules())


def test_identities_vanish_and_shortcuts_stay():
    network, sets = made("basic, projections")
    removal = Removal(trace(network, torch.zeros(1, 3, 32, 32, dtype=torch.float64)), sets)
    small = remove_groups(network, removal, {"blocks": np.array(KEPT["one left"], bool)}).network
    assert isinstance(small.features[1][0], nn.Identity) and isinstance(small.features[2][1], nn.Identity)
    assert [name for name, _ in small.features[2][0].named_children()] == ["downsample", "act"]
    names = {name for name in small.state_dict() if name.startswith("features.2.")}
    assert names and all(name.startswith("features.2.0.downsample.") for name in names)


def test_a_block_that_channels_leave_nothing_of_but_one_stands():
    network, sets = made("channels too")
    removal = Removal(trace(network, torch.zeros(1, 3, 32, 32, dtype=torch.float64)), sets)
    gone = removal.gone({s.name: np.zeros(s.count, bool) for s in sets if s.name != "blocks"})
    assert not any(gone[inside].all() for inside in removal.branches.values())


@pytest.mark.parametrize("name", ["basic", "wide"])
def test_norms_are_root_mean_squares_and_shrink_to_zero(name):
    network, (s,) = made(name)
    weights = [network.get_submodule(member.module).weight for member in s.members]
    assert len({w.numel() for w in weights}) == 3  # stages of different widths
    expected = torch.stack([w.square().mean().sqrt() for w in weights])
    assert torch.allclose(groups.norms(network, s), expected, rtol=1e-12)
    groups.norms(network, s).sum().backward()
    gradients = torch.stack([w.grad.square().mean().sqrt() for w in weights])
    assert torch.allclose(groups.gradient_norms(network, s), gradients, rtol=1e-12)
    groups.scale_(network, s, torch.tensor([1.0, 0.5, 0, 1, 1, 1]))
    assert torch.allclose(groups.norms(network, s), expected * torch.tensor([1, 0.5, 0, 1, 1, 1]), rtol=1e-12)


@pytest.mark.parametrize("variant", ["blocks", "columns+blocks"])
def test_files_rebuild_the_network(tmp_path, variant):
    space, network = spaces.get("hinge"), hinged("resnet14", variant=variant)
    config = space.config({"arch": "resnet14", "variant": variant, "input_shape": (3, 8, 8)})
    random = np.random.default_rng(0)
    kept = {s.name: random.random(s.count) > 0.4 for s in network.reduction.sets}
    kept = {**{name: k | (np.arange(len(k)) == 0) for name, k in kept.items()}, "blocks": np.array(KEPT["some"], bool)}
    for merging in ("auto", "plan"):
        merged = network.reduction.merged(network.reduction.removal.gone(kept), merging)
        mask = GroupMask(config, kept, merged, sha256="0" * 64)
        small = space.compressed(network, mask).network
        save_mask(tmp_path / "m.npz", mask)
        again = load_mask(tmp_path / "m.npz")
        assert (again.kept["blocks"] == kept["blocks"]).all() and again.config["variant"] == variant
        built = space.network(again, state=small.state_dict()).eval()
        space.save(tmp_path / "n.safetensors", small, mask)
        loaded = space.load(tmp_path / "n.safetensors").network
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(built(x), small(x)) and torch.equal(loaded(x), small(x))
    other = hinged("resnet20", variant="blocks")
    with pytest.raises(UseError, match="the mask is of another network"):
        space.compressed(other, mask)


def test_which_networks_have_blocks():
    assert variants("resnet56")[-1] == variants("resnext164")[-1] == variants("wrn16_10")[-1] == "blocks"
    assert block_set(networks.create("resnet56")).count == 27 and block_set(networks.create("resnet164")).count == 54
    with pytest.raises(UseError, match="vgg16 has no variant 'blocks'"):
        plan_for("vgg16", "blocks", networks.create("vgg16"))
    network = networks.create("resnet14")
    for wrong in ("+blocks", "rows+blocks", "blocks+svd", "blocks+blocks"):
        with pytest.raises(UseError, match="resnet14 has no variant"):
            plan_for("resnet14", wrong, network)


# By loss ------------------------------------------------------------------------------------------------------------


def test_blocks_go_in_the_order_of_the_least_loss(monkeypatch):
    network = hinged("resnet14", variant="blocks")
    torch.manual_seed(1)
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(10, (6,))) for _ in range(2)]
    monkeypatch.setattr(prune_scores, "training_batches", lambda *_: batches)
    task = SimpleNamespace(loss=lambda out, y: F.cross_entropy(out, y, reduction="sum"), count=len)
    where = SimpleNamespace(device=torch.device("cpu"), parameters=torch.float32)
    config = SimpleNamespace(family=SimpleNamespace(remain=0.5, score_batches=2))
    state = copy.deepcopy(network.network.state_dict())
    found = prune_scores.elimination_order(network, task, config, where)["blocks"]
    assert all(torch.equal(value, state[key]) for key, value in network.network.state_dict().items())

    def loss(gone):  # by hand: statistics of each batch, branches zero
        other = without_branches(network.network, np.array([b not in gone for b in range(6)])).train()
        with torch.no_grad():
            return sum(float(F.cross_entropy(other(x), y)) for x, y in batches)

    gone = []
    for _ in range(3):
        gone.append(min((b for b in range(6) if b not in gone), key=lambda b: loss([*gone, b])))
    assert [found[b] for b in gone] == [1, 2, 3] and sorted(found) == [1, 2, 3, 6, 6, 6]


def test_only_blocks_are_scored_by_loss():
    network = hinged("resnet14", variant="svd+blocks")
    with pytest.raises(UseError, match="scores residual blocks alone"):
        prune_scores.elimination_order(Hinged(network.network, network.reduction), None, None, None)


# The verbs ----------------------------------------------------------------------------------------------------------

DATA = ["--data_root", "data"]
SMALL = ["--batch_size", "10", "--n_worker", "0", "--log_interval", "1", "--lr", "0.05", "--schedule", "constant"]
SEARCH = ["--search", "--space", "hinge", "--arch", "resnet14", *DATA, *SMALL, "--lr_ratio", "1", "--warmup", "0"]


def test_every_verb(tmp_path, monkeypatch, capfd):
    write_npz(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    more = ["--variant", "blocks", "--max_iter", "3", "--sparse", "0.5", "--stop_limit", "0", "--name", "s"]
    assert search_run.main([*SEARCH, *more]) == 0
    rows = [json.loads(line) for line in Path("runs/s/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_p1"] < rows[0]["loss_p1"]  # the blocks shrink
    prune = ["--run", "runs/s", "--score_batches", "1"]
    assert prune_prune.main([*prune, "--target", "0.5", "--curve", "0.8", "--scores", "loss"]) == 0
    assert "blocks left out one after another" in capfd.readouterr().out
    mask, note = load_mask("mask.npz"), json.loads(Path("mask.json").read_text())
    assert 1 <= mask.kept["blocks"].sum() < 6 and len(note["curve"]) == 2
    timed = ["--by", "milliseconds", "--target", "0.6", "--batch", "2", "--out", "timed.npz"]
    assert prune_prune.main([*prune, *timed]) == 0
    assert json.loads(Path("timed.json").read_text())["milliseconds_share"] > 0
    train = [*DATA, *SMALL, "--warmup", "0", "--max_iter", "2", "--name", "r"]
    assert retrain_train.main(["--mask_path", "mask.npz", *train]) == 0
    assert retrain_eval.main(["--run", "runs/r", "--rounds", "1"]) == 0
    state = load_weights("runs/r/network.safetensors")
    parameters = sum(v.numel() for k, v in state.items() if not any(w in k for w in ("running_", "num_batches")))
    assert parameters == note["parameters"] < note["parameters_dense"]
    assert retrain_export.main(["--run", "runs/r", "--out", "net.safetensors"]) == 0
    assert load_weights("net.safetensors").keys() == state.keys()


def test_loss_needs_blocks_said_in_one_line(tmp_path, monkeypatch, capfd):
    write_npz(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    assert search_run.main([*SEARCH, "--max_iter", "1", "--name", "s"]) == 0
    capfd.readouterr()
    fails(capfd, prune_prune.main, ["--run", "runs/s", "--scores", "loss"], ["--variant blocks"])
