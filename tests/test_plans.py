"""Plans: any choice of backends is the same function, constant masks need no branch, files hold for one machine."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from literal_sparse import one_thread  # noqa: F401
from point_crops import crop
from sparsemask import files, spaces
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.spaces.smpointseg.block import Reading
from sparsemask.spaces.sparse_conv import SMSR, SMPointSeg, SMStereo, planning
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.plan import (
    Machine,
    Plan,
    Plans,
    digest,
    in_cache,
    keep_plans,
    load_plans,
    path_of,
    save_plans,
)
from sparsemask.sparse import available_backends, backend, repeatable
from sparsemask.tasks.stereo.batch import StereoPair

CPU = torch.device("cpu")
SPACES = ("smsr", "smpointseg", "smstereo")
ABLE = [name for name in ("native", "dense", "gather", "reference") if available_backends()[name] is None]
MASKS = ("mixed", "all dense", "none dense", "never kept", "always kept")
few = settings(max_examples=10, deadline=None, derandomize=True)
fewer = settings(max_examples=4, deadline=None, derandomize=True)


@torch.no_grad()
def masked(network: MaskedNetwork, draw: torch.Generator, kinds: list[str]) -> MaskedNetwork:
    """Channel masks drawn, and data masks that keep about half, or never or always, module by module."""
    for module, kind in zip(network.mask_modules().values(), kinds, strict=True):
        share = {"all dense": 1.1, "none dense": -1.0}.get(kind, 0.4)
        for logits in module.channel_parameters():
            dense = (torch.rand(logits.shape[:-1], generator=draw) < share).float()
            logits.copy_(torch.stack([dense, 1 - dense], -1))
        weight, bias = module.branch_end()
        weight.copy_(torch.randn(weight.shape, generator=draw))
        if kind in ("never kept", "always kept") and bias is not None:
            weight.zero_()
            bias.copy_(torch.tensor([0.0, 1.0 if kind == "always kept" else -1.0]))
        elif kind == "never kept":
            weight.zero_()
    return network.eval()


def make(name: str, seed: int, kinds: list[str], size: tuple[int, int] = (9, 12)):
    """A small network of a space and an input."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    if name == "smsr":
        network = SMSR(n_feats=8, n_modules=2, n_layers=3, reduction=2)
        return masked(network, draw, kinds[:2]), 255 * torch.rand(1, 3, *size, generator=draw)
    if name == "smpointseg":
        network = SMPointSeg(d_in=6, n_class=5, channels=(8, 12, 16), n_neighbors=8, radius=0.3)
        return masked(network, draw, kinds[:3]), crop(16 * size[0], seed=seed)
    network = SMStereo(16)
    sides = torch.randn(2, 1, 3, 16 * (size[0] % 2 + 1), 16 * (size[1] % 3 + 1), generator=draw)
    return masked(network, draw, kinds[:3]), StereoPair(*sides)


def plan_of(network: MaskedNetwork, inputs, backends: dict[str, str]) -> Plan:
    return Plan(Machine.here(CPU), tuple(inputs.shape), backends, 0.5, {"plan": 1.0, "unmasked": 2.0})


def literal(network: MaskedNetwork, inputs) -> torch.Tensor:
    """Everything convolved, masks predicted and multiplied; gradients keep constant masks from being folded."""
    twin = copy.deepcopy(network)
    twin.plans = None
    with backend("reference"), torch.enable_grad():
        return twin(inputs).detach()


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


def any_choice(name: str, seed: int, kinds: list[str], size: tuple[int, int]) -> None:
    network, inputs = make(name, seed, kinds, size)
    draw = torch.Generator().manual_seed(seed)
    pick = lambda: ABLE[int(torch.randint(len(ABLE), (), generator=draw))]
    network.plans = Plans([plan_of(network, inputs, {part: pick() for part in network.parts()})])
    with torch.no_grad():
        same(network(inputs), literal(network, inputs))


seeds, kinds = st.integers(0, 10**6), st.lists(st.sampled_from(MASKS), min_size=3, max_size=3)
sizes = st.tuples(st.integers(2, 12), st.integers(1, 12))


@pytest.mark.parametrize("name", ["smsr", "smpointseg"])
@few
@given(seeds, kinds, sizes)
def test_any_choice_is_masked_dense(name, seed, kinds, size):
    any_choice(name, seed, kinds, size)


@fewer
@given(seeds, kinds, sizes)
def test_any_choice_is_masked_dense_for_stereo(seed, kinds, size):
    any_choice("smstereo", seed, kinds, size)


@pytest.mark.parametrize("name", SPACES)
def test_the_plan_that_was_measured_is_masked_dense(name):
    network, inputs = make(name, 3, ["mixed", "all dense", "never kept"])
    plan = planning.make_plan(spaces.get(name), network, inputs, seconds=0.05)
    assert set(plan.backends) == set(network.parts()) and plan.machine == Machine.here(CPU)
    assert plan.milliseconds["plan"] <= plan.milliseconds["skip"]
    network.plans = Plans([plan])
    with torch.no_grad():
        same(network(inputs), literal(network, inputs))
    assert planning.words(spaces.get(name), network, plan)[0].startswith("plan: ")


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", ["all dense", "always kept"])
def test_with_everything_kept_it_is_the_dense_network(name, kind):
    if name == "smpointseg" and kind == "always kept":
        pytest.skip("the branch of points ends without a bias: its masks are never all kept for its weights' sake")
    network, inputs = make(name, 4, [kind] * 3)
    space = spaces.get(name)
    plan = planning.make_plan(space, network, inputs, seconds=0.02)
    network.plans = Plans([plan])
    dense = space.dense_form(network)
    with torch.no_grad():
        same(network(inputs), dense(inputs))
        counts = []
        for call in (network, dense):
            with FlopCounterMode(display=False) as counter:
                call(inputs)
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]  # no mask branch either
    assert all(bool((fractions == 1).all()) for fractions in network.kept)
    assert all(bool(mask.all()) for mask in network.masks)
    assert "nothing is masked" in planning.words(space, network, plan)[0]


@pytest.mark.parametrize("name", SPACES)
def test_constant_masks_are_those_that_would_be_predicted(name):
    for number, kind in enumerate(MASKS):
        network, inputs = make(name, 5 + number, [kind] * 3)
        with torch.no_grad():
            out, masks = network(inputs), network.masks
        expected = literal(network, inputs)
        same(out, expected)
        with torch.no_grad():
            constant = [module.constant_mask() for module in network.mask_modules().values()]
        count = len(masks) // len(constant)  # masks of a module
        for mask, value in zip(masks, [one for one in constant for _ in range(count)], strict=True):
            assert mask.dtype == torch.bool and (value is None or bool((mask == value).all()))
        known = {"all dense": True, "never kept": False, "always kept": None if name == "smpointseg" else True}
        assert set(constant) == {known.get(kind)}


def test_masks_that_the_public_code_reads_twice_are_predicted():
    # With tail_bias_count 2 the mask selects a bias too, and all channels dense is not all there is to it.
    torch.manual_seed(0)
    network = SMPointSeg(
        d_in=6, n_class=5, channels=(8, 12, 16), n_neighbors=8, radius=0.3, reading=Reading(tail_bias_count=2)
    )
    network, inputs = masked(network, torch.Generator().manual_seed(0), ["all dense"] * 3), crop(64)
    with torch.no_grad():
        same(network(inputs), literal(network, inputs))
        assert not all(bool(mask.all()) for mask in network.masks)


def test_weights_that_change_change_what_is_constant():
    network, inputs = make("smsr", 6, ["all dense"] * 3)
    with torch.no_grad():
        network(inputs)
        assert all(bool(mask.all()) for mask in network.masks)
        for module in network.mask_modules().values():
            module.channel_parameters()[0].data[..., 0] -= 5  # as an optimizer might, without a word
        network(inputs)
        assert not all(bool(mask.all()) for mask in network.masks)
        same(network(inputs), literal(network, inputs))
    network.train()
    assert all(module.constant_mask() is None for module in network.mask_modules().values())


def backends_called(network, inputs, monkeypatch) -> set[str]:
    """Which backends a forward pass asks for."""
    asked: set[str] = set()
    able = dispatch.able
    monkeypatch.setattr(dispatch, "able", lambda name, x: asked.add(name) or able(name, x))
    with torch.no_grad():
        network(inputs)
    monkeypatch.setattr(dispatch, "able", able)
    return asked


def test_a_plan_is_followed_outside_of_repeatable_runs_alone(monkeypatch):
    network, inputs = make("smsr", 7, ["mixed"] * 3)
    network.plans = Plans([plan_of(network, inputs, dict.fromkeys(network.parts(), "gather"))])
    assert backends_called(network, inputs, monkeypatch) == {"gather"}
    with repeatable():
        assert backends_called(network, inputs, monkeypatch) == {"auto"}
    with backend("reference"):  # who says so decides
        assert backends_called(network, inputs, monkeypatch) == {"reference"}
    assert backends_called(network, torch.rand(1, 3, 64, 64), monkeypatch) == {"auto"}  # far larger than planned
    with pytest.MonkeyPatch.context() as unable:  # as under autocast
        unable.setattr(type(dispatch.find("gather")), "why_not", lambda *_: "not in this type")
        assert backends_called(network, inputs, unable) == {"auto"}
    nearly = torch.rand(1, 3, inputs.shape[2] + 1, inputs.shape[3])
    assert backends_called(network, nearly, monkeypatch) == {"gather"}


def test_plans_of_other_machines_are_not_followed():
    network, inputs = make("smsr", 7, ["mixed"] * 3)
    mine = plan_of(network, inputs, dict.fromkeys(network.parts(), "gather"))
    for change in ({"processor": "another"}, {"threads": 7}, {"torch": "0.4"}, {"vector_width": 3}, {"device": "xpu"}):
        other = dataclasses.replace(mine, machine=dataclasses.replace(mine.machine, **change))
        assert Plans([other]).find(inputs.shape, CPU) is None
        assert Plans([other, mine]).find(inputs.shape, CPU) == mine
    torch.set_num_threads(2)
    assert Plans([mine]).find(inputs.shape, CPU) is None


WHOLES = {None: 1.0, "encoder.0": 2.0, "encoder.1": 2.0, "encoder.2": 2.0}  # a network with one module's masks


class Clock:
    """In the place of a timer: milliseconds by what is timed, which it calls once."""

    def __init__(self, wholes: dict[str | None, float] = WHOLES, **milliseconds: float):
        self.milliseconds = {**wholes, **milliseconds}

    def __call__(self, device, threads, seconds, warm=False):
        def time_all(functions, rounds):
            for function in functions.values():
                function()
            return {key: self.milliseconds[key] for key in functions}, 1.0

        return time_all


SLOW = {"native": 5.0, "gather": 5.0, "dense": 3.0, "reference": 3.0, "masked": 2.0, "opened": 1.0}  # parts
WHOLE = {"skip": 4.0, "dense": 3.0, "mixed": 3.5, "unmasked": 2.0}


def test_masks_that_save_no_time_come_out_dense(monkeypatch):
    network, inputs = make("smsr", 8, ["mixed"] * 3, (10, 14))
    monkeypatch.setattr(planning, "timer", Clock(**SLOW | WHOLE))
    plan = planning.make_plan(spaces.get("smsr"), network, inputs)
    assert set(plan.backends.values()) <= {"dense", "reference"} and len(plan.dense) == 2
    first, second = planning.words(spaces.get("smsr"), network, plan)
    kept = f"plan: masks keep {plan.kept:.2f} but save no time at 14x10 on this processor: computed densely"
    assert first.startswith(kept) and first.endswith("3.00 ms, 2.00 ms without masks") and "--unmask" in second
    monkeypatch.setattr(planning, "timer", Clock(**SLOW | WHOLE | {"native": 1.0, "gather": 1.0, "skip": 1.0}))
    plan = planning.make_plan(spaces.get("smsr"), network, inputs)
    assert plan.dense == []
    assert "all masked parts skip" in planning.words(spaces.get("smsr"), network, plan)[0]


@pytest.mark.parametrize("name", SPACES)
def test_masks_are_dropped_within_a_quality_alone(monkeypatch, name):
    network, inputs = make(name, 9, ["mixed"] * 3)
    before = copy.deepcopy(network.state_dict())
    monkeypatch.setattr(planning, "timer", Clock(**SLOW))
    modules = list(network.mask_modules())

    def quality(one: MaskedNetwork) -> float:
        with torch.no_grad():
            one(inputs)
            opened = [module.constant_mask() for module in one.mask_modules().values()]
        return 1.0 - 0.1 * opened.count(True)

    found = planning.unmask(network, inputs, quality, 1.0)
    assert sorted(found.modules) == sorted(modules) and found.after == pytest.approx(1.0 - 0.1 * len(modules))
    with torch.no_grad():
        same(found.network(inputs), spaces.get(name).dense_form(network)(inputs))
    one = planning.unmask(network, inputs, quality, 0.15)
    assert len(one.modules) == 1 and one.after == pytest.approx(0.9)
    none = planning.unmask(network, inputs, quality, 0.05)
    assert none.modules == [] and none.network is network
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def masked_modules(network: MaskedNetwork) -> list[str]:
    with torch.no_grad():
        return [name for name, module in network.mask_modules().items() if module.constant_mask() is None]


@pytest.mark.parametrize("name", SPACES)
def test_masks_that_cost_time_are_dropped_before_a_training(monkeypatch, name):
    space, modules = spaces.get(name), list(make(name, 9, ["mixed"] * 3)[0].mask_modules())
    faster = {"plan": 1.0, "unmasked": 2.0}
    for gains, whole, left in (
        (dict.fromkeys(modules, -1.0), faster, modules),  # all save time
        (dict.fromkeys(modules, 1.0), faster, []),
        (dict.fromkeys(modules, -1.0) | {modules[0]: 0.5}, faster, modules[1:]),
        (dict.fromkeys(modules, -1.0) | {modules[0]: 0.5}, {"plan": 2.1, "unmasked": 2.0}, []),  # for nothing
    ):
        network, inputs = make(name, 9, ["mixed"] * 3)
        monkeypatch.setattr(planning, "gains", lambda *_, gains=gains: gains)
        plan = dataclasses.replace(plan_of(network, inputs, {}), milliseconds=whole)
        monkeypatch.setattr(planning, "make_plan", lambda *_, plan=plan: plan)
        dropped = planning.drop_costly(space, network, inputs)
        assert masked_modules(network) == left
        assert dropped == [one for one in modules if one not in left]
        if not left:
            with torch.no_grad():
                same(network(inputs), space.dense_form(network)(inputs))


def test_gains_of_a_network_in_one_call_are_those_of_whole_networks():
    network, inputs = make("smpointseg", 9, ["mixed", "all dense", "mixed"])
    assert network.in_one_call
    timed = {None: 3.0, "encoder.0": 3.5, "encoder.2": 2.0}
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(planning, "timer", Clock(timed))
        assert planning.gains(network, inputs, 0.1) == {"encoder.0": 0.5, "encoder.2": -1.0}


def test_files_say_for_which_weights_and_machines(tmp_path, capsys):
    network, inputs = make("smsr", 10, ["mixed"] * 3)
    space, weights = spaces.get("smsr"), tmp_path / "network.safetensors"
    space.save(weights, network)
    assert space.load(weights).network.plans is None
    plans = Plans([plan_of(network, inputs, dict.fromkeys(network.parts(), "gather"))])
    save_plans(path_of(weights), plans, digest(network.state_dict()))
    loaded = space.load(weights).network
    assert list(loaded.plans) == list(plans)
    with torch.no_grad():
        same(loaded(inputs), literal(network, inputs))
    with torch.no_grad():
        network.tail[0].weight.add_(1)
    space.save(weights, network)
    assert space.load(weights).network.plans is None
    assert "plans of other weights" in capsys.readouterr().err


def test_plans_of_weights_found_somewhere_lie_in_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    network, inputs = make("smsr", 10, ["mixed"] * 3)
    space, weights = spaces.get("smsr"), tmp_path / "data" / "public.safetensors"
    weights.parent.mkdir()
    space.save(weights, network)
    plans, state = Plans([plan_of(network, inputs, {})]), digest(network.state_dict())
    assert space.load(weights).network.plans is None
    assert keep_plans(weights, plans, state) == in_cache(state) and in_cache(state).is_relative_to(tmp_path / "home")
    assert [path.name for path in weights.parent.iterdir()] == ["public.safetensors"]
    copy_of = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy_of)
    for path in (weights, copy_of):  # found by what is in the file
        assert list(space.load(path).network.plans) == list(plans)
    # Where plans lie beside the weights, or the folder is a run's, they stay there.
    save_plans(path_of(copy_of), Plans(), state)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    for path in (copy_of, run / "network.safetensors"):
        assert keep_plans(path, plans, state) == path_of(path) and list(load_plans(path_of(path), state)) == list(plans)
    # Plans of other weights are not written over, and a run's folder may be read-only.
    assert keep_plans(copy_of, plans, "other") == in_cache("other") and load_plans(path_of(copy_of), state)
    written = files.write_json

    def read_only(path, value):
        if run in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        written(path, value)

    monkeypatch.setattr(files, "write_json", read_only)
    assert keep_plans(run / "network.safetensors", plans, state) == in_cache(state)
    assert not capsys.readouterr().err


def damaged(content: dict) -> list:
    plan = content["plans"][0]
    return [
        {**content, "format": 99}, {**content, "weights": 3}, {**content, "plans": {}}, {**content, "plans": [3]},
        {**content, "plans": [{}]}, {**content, "plans": [{**plan, "backends": {"body.0": "os.system"}}]},
        {**content, "plans": [{**plan, "backends": 5}]}, {**content, "plans": [{**plan, "shape": ["a"]}]},
        {**content, "plans": [{**plan, "machine": None}]}, {**content, "plans": [plan] * 1000}, [content],
    ]  # fmt: skip


def test_damaged_files_are_refused_and_do_not_stop_loading(tmp_path, capsys):
    network, inputs = make("smsr", 11, ["mixed"] * 3)
    space, weights = spaces.get("smsr"), tmp_path / "network.safetensors"
    space.save(weights, network)
    path, state = path_of(weights), digest(network.state_dict())
    save_plans(path, Plans([plan_of(network, inputs, {})]), state)
    for content in damaged(json.loads(path.read_text())):
        path.write_text(json.dumps(content))
        with pytest.raises(UseError, match=path.name):
            load_plans(path, state)
        assert space.load(weights).network.plans is None
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    path.write_text("{")
    assert space.load(weights).network.plans is None
