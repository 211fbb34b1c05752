"""How groups are learnt to vanish: learning rates, the proximal step, what ends a search, what a checkpoint keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_classes import write_npz
from small_hinge import hinged, options, task
from sparsemask.devices import Arithmetic
from sparsemask.errors import UseError
from sparsemask.search.group_sparsity import GroupSearch
from sparsemask.search.proximal import factors
from sparsemask.spaces.group_sparsity import groups
from sparsemask.spaces.group_sparsity.threshold import kept_sets

CPU = Arithmetic(torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "noise")


def begun(data, *argv: str, arch: str = "resnet8", **more):
    """(method, network, its optimizer, options)"""
    found, made = options(data, *argv), hinged(arch, **more)
    model, method = made.network, GroupSearch(found, made.reduction)
    (one,) = method.optimizers(model, found)
    return method, model, one, found


def step(method, model, one, scheduled: float = 0.1) -> None:
    """One training step as the engine takes it."""
    generator = torch.Generator().manual_seed(method.steps_done)
    one.zero_grad()
    model.train()
    x = torch.randn(6, 3, 8, 8, generator=generator)
    F.cross_entropy(model(x), torch.arange(6)).backward()
    for group, share in zip(one.param_groups, (0.01, 1, 1), strict=False):
        group["lr"] = scheduled * share
    method.before_update(model, one.param_groups)
    one.step()
    method.after_step(model)


@pytest.mark.parametrize("arch", ["resnet8", "resnet11", "resnext11", "densenet10", "small_hinge:OwnCNN"])
def test_every_parameter_is_in_one_group(data, arch):
    more = {"arch_options": {"block": "bottleneck", "shortcut": "C"}} if arch == "resnet11" else {}
    method, model, one, _ = begun(data, "--lr_ratio", "0.01", arch=arch, **more)
    listed = [id(p) for group in one.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    rates = {group["name"]: group["lr"] for group in one.param_groups}
    assert rates.pop("network") == pytest.approx(1e-3) and set(rates.values()) == {0.1}
    # Matched by identity: shortcut and stem convolutions are 1x1 too, and no matrices.
    matrices = {id(w) for s in method.sets for w in groups.weights(model, s) if w.shape[2:] == (1, 1)}
    assert {id(p) for g in one.param_groups[1:] for p in g["params"]} == matrices


def test_a_probe_replaces_nothing_and_a_step_moves_everything(data):
    # The published probe rebuilt parameters that the optimizer then no longer knew.
    method, model, one, found = begun(data, "--sparse", "0.01")
    step(method, model, one)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    method.evaluate(model, task(found), CPU, found)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    step(method, model, one)
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name][1])]


@pytest.mark.parametrize("regularizer", ["l1", "l1/2", "l1-2", "logsum", "l0"])
def test_the_proximal_step_is_each_sets_own(data, regularizer):
    method, model, one, _ = begun(data, "--sparse", "8", "--layer_balancing", "--regularizer", regularizer)
    means = [float(groups.norms(model, s).detach().mean()) for s in method.sets]
    assert method.balance == pytest.approx(means)
    method.rate = 0.1
    before = [groups.norms(model, s).detach() for s in method.sets]
    directions = [groups.weights(model, s)[0].detach().clone() for s in method.sets]
    method.after_step(model)
    for s, norms, mean, was in zip(method.sets, before, means, directions, strict=True):
        by = factors(regularizer, norms, 8 * 0.1 * mean)
        assert torch.allclose(groups.norms(model, s), norms * by, atol=1e-6)
        if len(s.members) == 1:  # rows keep their direction
            assert torch.allclose(groups.weights(model, s)[0], was * by.view(1, -1, 1, 1), atol=1e-6)
    assert sum(int((groups.norms(model, s) == 0).sum()) for s in method.sets) > 0


def test_the_first_steps_only_train(data):
    method, model, one, _ = begun(data, "--sparse", "50", "--prox_start", "2", "--prox_freq", "2")
    zeros = []
    for _ in range(4):
        step(method, model, one)
        zeros.append(sum(int((groups.norms(model, s) == 0).sum()) for s in method.sets))
    assert zeros[:3] == [0, 0, 0] and zeros[3] > 0  # step 3 is not due, step 4 is


def test_strength_falls_as_the_penalty_does(data):
    method, *_ = begun(data, "--sparse", "0.3", "--anneal", "3", "--anneal_at", "10", "5")
    found = []
    for value in (11, 7, 2):
        method.penalties = {"loss_p1": value}
        found.append(method._annealed())
    assert found == pytest.approx([0.3, 0.1, 0.1 / 3])


def test_learning_rates_follow_the_gradients(data):
    method, model, one, _ = begun(data, "--sparse", "0")
    method.gradient_ratio = 1.5
    model.zero_grad()
    for s in method.first:  # gradients of 1.5 : 1
        groups.weights(model, s)[0].grad = torch.full_like(groups.weights(model, s)[0], 1.5)
    for s in method.second:
        groups.weights(model, s)[0].grad = torch.ones_like(groups.weights(model, s)[0])
    method.before_update(model, one.param_groups)
    assert method.gradient_ratio == pytest.approx(1.5)
    assert [g["lr"] for g in one.param_groups] == pytest.approx([5.785e-4, 5.785e-2, 0.1], rel=1e-3)
    assert method.rate == 0.1  # groups shrink by the scheduled rate of P2


@pytest.mark.parametrize("arch", ["resnext11", "densenet10"])
def test_networks_of_one_kind_of_groups_keep_their_rates(data, arch):
    method, model, one, _ = begun(data, arch=arch)
    step(method, model, one)
    assert method.gradient_ratio is None and one.param_groups[-1]["lr"] == 0.1


def test_the_penalty_as_a_loss_shrinks_too(data):
    method, model, one, _ = begun(data, "--sparsify", "sgd", "--sparse", "0.1")
    loss, figures = method.penalty(model, 0)
    expected = {p: [groups.norms(model, s).sum() for s in method.sets if s.projection == p] for p in ("P1", "P2")}
    means = [float(torch.stack(v).detach().mean()) for v in expected.values()]  # a ResNet's: the mean over its matrices
    assert [figures["loss_p1"], figures["loss_p2"]] == pytest.approx(means)
    assert float(loss) == pytest.approx(0.1 * sum(means))
    loss.backward()
    before = sum(means)
    one.param_groups[1]["lr"] = one.param_groups[2]["lr"] = 0.01
    one.step()
    method.after_step(model)  # no proximal step beside it
    assert sum(method.penalty(model, 1)[1][k] for k in ("loss_p1", "loss_p2")) < before


def test_a_search_ends_near_its_target(data):
    method, model, one, found = begun(data, "--target", "0.5", "--stop_limit", "0.1", "--thres", "0.005")
    step(method, model, one)
    ratio = method.evaluate(model, task(found), CPU, found)["ratio"]
    assert ratio > 0.9 and not method.finished
    with torch.no_grad():  # half of all rows vanish: under a pair's multiply-adds for 60 %
        for s in method.sets:
            groups.scale_(model, s, (torch.arange(s.count) % 2).float())
    ratio = method.evaluate(model, task(found), CPU, found)["ratio"]
    kept = kept_sets(method.reduction.norms(model), 0.005, 0.2)
    assert all(k.mean() == 0.5 for k in kept.values())
    assert ratio == method.reduction.cost(kept)["multiply-adds"] / method.reduction.baseline["multiply-adds"]
    assert 0.4 < ratio <= 0.6 and method.finished


def test_what_a_checkpoint_keeps(data):
    method, model, one, found = begun(data, "--layer_balancing", "--sparse", "0.1")
    step(method, model, one)
    again, other, *_ = begun(data, "--layer_balancing", "--sparse", "0.1", seed=5)
    assert again.balance != method.balance
    again.restore(method.state())
    assert repr(again.state()) == repr(method.state())
    assert math.isfinite(again.gradient_ratio)
    again.restore({})  # of a checkpoint without any: as it was
    assert again.balance == method.balance


def test_ratios_need_partners(data):
    with pytest.raises(UseError, match="--same_ratio: this network's two kinds of groups do not match"):
        begun(data, "--same_ratio", arch="resnext11")
    method, *_ = begun(data, "--same_ratio")
    block = lambda name: name.partition(".body")[0]
    assert [block(a) for a, _ in method.partners] == [block(b) for _, b in method.partners]
    with pytest.raises(UseError, match="unknown regularizer"):
        begun(data, "--regularizer", "l7")


def test_an_untouched_network_costs_what_the_plain_one_does(data):
    found = hinged("resnet20", shape=(3, 32, 32)).reduction
    everything = {s.name: np.ones(s.count, bool) for s in found.sets}
    assert found.ratio(everything, "multiply-adds", "none") == pytest.approx(1.1127, abs=1e-4)
    assert found.ratio(everything, "params", "none") == pytest.approx(1.1196, abs=1e-4)
    # Merged, pairs are what they were made of; double ReLUs are not counted.
    assert found.ratio(everything, "multiply-adds", "auto") == pytest.approx(1, abs=0.003)
