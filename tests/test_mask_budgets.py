"""Budgets in milliseconds of sparsified and specialised networks: modules without masks, costs, loops, commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import literal_sr as literal
import sparsemask
from literal_sparse import one_thread  # noqa: F401
from small_pictures import make_folder
from sparsemask import spaces
from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError
from sparsemask.retrain import specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.spaces import sr_networks
from sparsemask.spaces.connectivity import named_mask
from sparsemask.spaces.sparse_conv import mask_costs, planning
from sparsemask.spaces.sparse_conv.mask_costs import MaskBudget, MaskCosts, measure_costs, module_kept
from sparsemask.spaces.sparse_conv.masking import blocks, channel_logits, mean_kept
from sparsemask.spaces.sparse_conv.plan import Machine
from sparsemask.spaces.sparsified import SparsifiedNetwork, budget, regions
from sparsemask.spaces.sparsified.network import RegionMasks
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.spaces.specialized.space import SpecializedSpace
from sparsemask.sparse import available_backends, backend, set_mask_mode
from spoilt import listing
from tiny import SMALL, borrow_kernels, data_flags, fails, make_data
from without_images import without_images

MACHINE = Machine("cpu", "a processor", 8, 1, torch.__version__)
BACKENDS = [name for name, reason in available_backends().items() if reason is None and name not in ("auto", "triton")]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def one_backend() -> Iterator[None]:
    """Not whichever is fastest at the moment; a test may choose another inside."""
    with backend("reference"):
        yield


def specialised(**more) -> SpecializedNetwork:
    """A network of which some modules have data masks, others channel masks alone, all keeping about a half."""
    torch.manual_seed(0)
    arguments = {"depth": 8, "num_classes": 4, "max_stride": 16, "place_stride": 8, **more}
    network = SpecializedNetwork(named_mask("unet", 9), **arguments).eval()
    for module in network.mask_modules().values():
        if module.branch() is not None:
            torch.nn.init.zeros_(module.branch_end()[1])
            module.branch()[1].weight.data.mul_(5)
    return network


def sparsified() -> tuple[SparsifiedNetwork, torch.Tensor]:
    """A network of three regions whose masks keep about a half."""
    torch.manual_seed(0)
    x = 255 * torch.rand(1, 3, 24, 32)
    network = SparsifiedNetwork(sr_networks.EDSR(2, 16, 3), x).eval()
    with torch.no_grad():
        for masks in network.region_masks:
            masks.spa_mask[-1].bias.zero_()
        for parameter in network.bypasses.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, x


# ---- modules without masks


def test_specialised_modules_have_owners():
    network = specialised()
    modules = network.mask_modules()
    assert list(modules) == list(network.masked)
    assert {module.branch() is None for module in modules.values()} == {True, False}
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 96))
        kept = module_kept(network, hard=True)
    owners = [name.rpartition(".")[0] for name in blocks(network)]
    assert list(kept) == list(modules) == owners
    total = sum(
        float(weight.sum()) * float(kept[name]) for name, weight in zip(kept, network.kept_weights, strict=True)
    )
    assert total + float(network.kept_base) == pytest.approx(float(mean_kept(network, hard=True)), abs=1e-5)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("chosen", BACKENDS)
@torch.no_grad()
def test_a_specialised_module_without_masks_is_the_dense_one(chosen, chained):
    space, network, x = SpecializedSpace(), specialised(), torch.randn(2, 3, 61, 83)
    modules = network.mask_modules()
    masked = space.fast_form(network, chained)
    with backend(chosen):
        masked(x)
        before = multiply_adds(masked, [x])
    opened = [name for name, module in modules.items() if module.branch() is not None][::2]
    for name in opened:
        modules[name].open_masks()
    form = space.fast_form(network, chained)
    with backend("reference"):
        wanted = network(x)
    with backend(chosen):
        torch.testing.assert_close(form(x), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        assert multiply_adds(form, [x]) > before  # a half of each module was dropped
    for name, module in form.mask_modules().items():
        if name in opened:
            assert module.mask.all() and module.mask.shape == modules[name].mask.shape and module.overhead() == 0
    for module in modules.values():
        module.open_masks()
    dense = space.dense_form(network)(x)
    with backend(chosen):
        form = space.fast_form(network, chained)
        torch.testing.assert_close(form(x), dense, rtol=0, atol=1e-4 * float(dense.abs().max()))
        assert multiply_adds(form, [x]) <= 1.01 * multiply_adds(space.dense_form(network), [x])


@torch.no_grad()
def test_a_region_without_masks_is_computed_plainly():
    network, x = sparsified()
    network.region_masks[1].open_masks()
    called = []
    for number, masks in enumerate(network.region_masks):
        masks.spa_mask.register_forward_hook(lambda *_, number=number: called.append(number))
        network.bypasses[number].register_forward_hook(lambda *_, number=number: called.append(10 + number))
    logits = [masks.spa_mask.logits for masks in network.region_masks]
    network.region_masks[1].spa_mask.logits = lambda *_: pytest.fail("a mask branch is computed")
    found = network(x)
    assert 11 not in called and 10 in called
    assert network.masks[1].all() and [len(kept) for kept in network.kept] == [2, 2, 2]
    network.region_masks[1].spa_mask.logits = logits[1]
    with torch.enable_grad():  # as where it is trained: the branch keeps everything
        wanted = network(x)
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    part = (network.regions[1].branch + network.regions[1].bypass) / multiply_adds(network.network, [x])
    share = part * x.shape[-1] * x.shape[-2] / (24 * 32)
    before = network.kept_base
    network.region_masks[1].spa_mask[-1].weight.fill_(0.1)
    assert network.kept_base - before == pytest.approx(share, rel=1e-4)
    assert len(network.budget_logits()) == 3


def test_a_region_without_masks_stays_so_in_training():
    network, x = sparsified()
    network.region_masks[0].open_masks()
    before = network.region_masks[0].spa_mask[-1].bias.clone()
    set_mask_mode(network.train(), "soft")
    network(x).square().mean().backward()
    assert network.masks[0].detach().all() and not network.masks[1].detach().all()
    for logits in network.budget_logits():
        logits.add_(100)
    assert torch.equal(network.region_masks[0].spa_mask[-1].bias, before)


# ---- costs


def test_modules_add_up_to_whole_networks():
    costs = MaskCosts(MACHINE, "8x8", 20.0, {"a": (-4.0, 6.0), "b": (-2.0, 3.0), "c": (1.0, 1.0)})
    whole = [({"a": k, "b": k}, 20 - 5 + 12 * k) for k in (0.2, 0.5, 0.8)]  # alone -6 + 9·k
    right = costs.adding_up(["a", "b"], whole)
    assert right.modules["c"] == (1.0, 1.0)
    assert right.modules["a"] == pytest.approx((-4 + 2 / 3, 8.0)) and right.modules["b"] == pytest.approx(
        (-2 + 1 / 3, 4)
    )
    for kept, ms in whole:
        assert right.predict(kept) == pytest.approx(ms)
    assert costs.adding_up([], []) is costs


def test_many_modules_may_each_save_little():
    many = MaskCosts(MACHINE, "8x8", 100.0, {f"m{n}": (-0.5, 1.0) for n in range(20)})
    assert len(many.paying()) == 20 and not MaskCosts(MACHINE, "8x8", 100.0, {"m": (-0.5, 1.0)}).paying()


@pytest.mark.parametrize("which", ["sr", "specialized"])
def test_the_spaces_are_measured(which):
    network, inputs = sparsified() if which == "sr" else (specialised(), torch.randn(1, 3, 64, 96))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    costs = measure_costs(spaces.get(which), network, inputs, seconds=0.2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert list(costs.modules) == list(network.mask_modules()) and costs.unmasked > 0
    assert costs.size == f"{inputs.shape[-1]}x{inputs.shape[-2]}"


@pytest.mark.parametrize("chosen", ["reference", "native"])
@torch.no_grad()
def test_modules_are_timed_by_themselves_on_what_they_read(chosen, monkeypatch):
    """A region's call gives what it gives inside of the network: what the next one's mask branch reads."""
    if chosen not in BACKENDS:
        pytest.skip("no compiled kernels here")
    network, x = sparsified()
    calls = network.module_calls(x)
    assert list(calls) == list(network.mask_modules())
    with backend(chosen):
        read: dict[int, torch.Tensor] = {}
        numbers, draw = {id(masks): number for number, masks in enumerate(network.region_masks)}, RegionMasks.draw

        def drawn(self, x, *rest):
            read[numbers.get(id(self), -1)] = x
            return draw(self, x, *rest)

        monkeypatch.setattr(RegionMasks, "draw", drawn)
        network(x)
        whole = dict(read)
        masked, plain = (call() for call in calls["region_masks.1"])
        torch.testing.assert_close(read[1], whole[1], rtol=0, atol=1e-3)
        torch.testing.assert_close(masked, whole[2], rtol=0, atol=1e-3)
        wanted = network.network.body[1](whole[1])
        torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-3)
        assert not torch.allclose(plain, masked, atol=1e-2)
        network, x = specialised(), torch.randn(1, 3, 64, 96)
        calls = network.module_calls(x)
        assert list(calls) == list(network.mask_modules())
        dense = SpecializedSpace().fast_form(network, chained=False)
        for module in network.mask_modules().values():
            module.open_masks()
        opened = SpecializedSpace().fast_form(network, chained=False)
        final = opened.decoder(dense.backbone(x), {})
        last = [name for name in calls if name.startswith("stage_masks.")][-1]
        torch.testing.assert_close(calls[last][1](), final, rtol=0, atol=1e-3 * float(final.abs().max()))
        for masked, plain in calls.values():
            first, second = masked(), plain()
            assert type(first) is type(second)


@torch.no_grad()
def test_channel_masks_alone_keep_what_is_asked():
    network, x = specialised(), torch.randn(1, 3, 64, 96)
    found = mask_costs._keep(network, x, 0.5)
    narrow = [name for name, module in network.mask_modules().items() if module.branch() is None]
    assert narrow and all(abs(found[name] - 0.5) < 0.1 for name in narrow)


def test_features_of_any_size_are_masked():
    """Branches whose logits are in the hundreds: what they are favoured by is looked for that far."""
    network, x = sparsified()
    with torch.no_grad():
        for masks in network.region_masks:
            masks.spa_mask.first().weight.mul_(50)
        for fraction in (0.3, 0.7):
            found = mask_costs._keep(network, x, fraction)
            assert all(abs(kept - fraction) < 0.1 for kept in found.values())


@pytest.mark.parametrize("rest_is_slower", [True, False])
def test_masks_that_do_not_pay_are_dropped_from_specialised_networks(monkeypatch, rest_is_slower):
    network, x = specialised(), torch.randn(1, 3, 64, 96)
    names = list(network.mask_modules())
    monkeypatch.setattr(planning, "gains", lambda *_: {name: 1.0 if n < 3 else -1.0 for n, name in enumerate(names)})
    monkeypatch.setattr(planning, "timer", lambda *_, **__: lambda *_: ({False: 2.0 * rest_is_slower, True: 1.0}, 1.0))
    dropped = planning.drop_costly(SpecializedSpace(), network, x, 0.1)
    assert dropped == (names if rest_is_slower else names[:3]) == planning.open_modules(network)


# ---- sparsify


def pretend(
    monkeypatch, network: torch.nn.Module, x: torch.Tensor, slower: float = 1.1
) -> dict[str, tuple[float, float]]:
    """Costs of this network's regions, and a clock by which the network takes some factor of what they say."""
    found = regions.find_regions(network, regions.traced(network, x))
    lines = {f"region_masks.{n}": ((-3.0, 5.0) if n else (0.5, 1.0)) for n in range(len(found))}
    costs = MaskCosts(MACHINE, "32x24", 20.0, lines)

    def clock(sparse: SparsifiedNetwork, example: torch.Tensor, threads: int) -> float:
        with torch.no_grad():
            sparse(example)
            kept = {name: float(value) for name, value in module_kept(sparse).items() if name != "region_masks.0"}
        return slower * costs.predict(kept)

    monkeypatch.setattr(budget, "measure_costs", lambda *_: costs)
    monkeypatch.setattr(budget, "_milliseconds", clock)
    return lines


@pytest.mark.parametrize("asked", ["17 ms", "85%", 0.85])
def test_a_budget_is_met_as_it_is_measured(monkeypatch, capsys, asked):
    torch.manual_seed(0)
    network, x = sr_networks.EDSR(2, 16, 3).eval(), 255 * torch.rand(1, 3, 24, 32)
    pretend(monkeypatch, network, x)
    plain = network(x).detach()
    sparse = sparsemask.sparsify(network, x, budget=asked, steps=5)
    assert not sparse.training and budget._milliseconds(sparse, x, 1) == pytest.approx(17, rel=budget.NEAR)
    said = sparse.report.splitlines()
    assert said[0].startswith("budget: 17 ms of 20 without masks at 32x24; masks keep 0.30 of region_masks.1")
    assert said[1] == "without masks, which would save nothing there: region_masks.0"
    assert "ms measured, masks keep 0.1" in said[2] and not capsys.readouterr().err
    with torch.no_grad():
        sparse(x)
        assert sparse.masks[0].all() and sparse.region_masks[0].constant_mask() is True
        assert torch.equal(sparse.network(x), plain)


def test_a_budget_that_cannot_be_met_says_why(monkeypatch, capsys):
    torch.manual_seed(0)
    network, x = sr_networks.EDSR(2, 16, 3).eval(), 255 * torch.rand(1, 3, 24, 32)
    pretend(monkeypatch, network, x, slower=1.5)
    sparse = sparsemask.sparsify(network, x, budget="15.5 ms", steps=5)
    line = sparse.report.splitlines()[-1]
    assert line.startswith("budget 15.5 ms: missed, ") and line.endswith("masks keep the least there is, 0.1")
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": 0.5, "budget": "15 ms"}, "keep and budget: one of them"),
        ({"keep": None, "budget": "15 ms"}, "keep and budget: one of them"),
        ({"budget": "25 ms"}, "budget 25 ms: without masks the network takes 20 ms at 32x24 already"),
        ({"budget": "100%"}, "budget 100%: without masks the network takes 20 ms at 32x24 already"),
        ({"budget": "5 ms"}, r"budget 5 ms: the least that masks reach is 15 ms, .*region_masks.1 saves 2.5"),
        ({"budget": "fast"}, "budget: 'fast'; expected a share"),
        ({"budget": "150%"}, "budget: '150%'"),
        ({"budget": "0 ms"}, "budget: '0 ms'; expected more than 0 ms"),
    ],
)  # fmt: skip
def test_budgets_that_are_none(monkeypatch, arguments, words):
    network, x = sr_networks.EDSR(2, 16, 3).eval(), 255 * torch.rand(1, 3, 24, 32)
    pretend(monkeypatch, network, x)
    with pytest.raises(UseError, match=words) as error:
        sparsemask.sparsify(network, x, steps=2, **arguments)
    assert "\n" not in str(error.value)


# ---- commands


def costs_of(space: object, network: torch.nn.Module, *_) -> MaskCosts:
    """Of 20 ms; every third module's masks cost, whatever they keep."""
    names = list(network.mask_modules())
    share = 16 / len(names)
    lines = {name: (0.2, 1.0) if n % 3 == 0 else (-share, 1.2 * share) for n, name in enumerate(names)}
    return MaskCosts(MACHINE, "64x48", 20.0, lines)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a public network's file and pictures; costs are these, not this machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    monkeypatch.setattr(mask_costs, "measure_costs", costs_of)
    state = literal.edsr_state(literal.fill(literal.edsr_layout(2, 16, 3), dtype=torch.float32))
    torch.save({"state_dict": state}, "edsr.pth")
    make_folder(tmp_path / "photos", 4)
    return tmp_path


SR = [
    "--space", "sr", "--weights", "edsr.pth", "--hr_path", "photos", "--max_iter", "6", "--batch_size", "2",
    "--patch_size", "12", "--eval_interval", "6", "--rounds", "0", "--settle", "0.5", "--log_interval", "1",
]  # fmt: skip


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


def test_a_public_network_is_specialised_within_milliseconds(place, capfd):
    with without_images():
        assert specialize.main([*SR, "--budget_ms", "80%", "--name", "s"]) == 0
    said = capfd.readouterr().out
    assert "budget: 16 ms of 20 without masks at 64x48; masks keep 0.52 of region_masks.1, region_masks.2" in said
    assert "without masks, which would save nothing there: region_masks.0" in said and "budget 16 ms: " in said
    wanted = MaskBudget.of(MaskCosts.load("runs/s/mask_costs.json"), "80%")
    assert [row["kept"] for row in rows("s")][-1] == pytest.approx(wanted.keep, abs=0.2)
    network = spaces.get("sr").load("runs/s/network.safetensors").network
    with torch.no_grad():
        assert [masks.constant_mask() for masks in network.region_masks] == [True, None, None]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget_ms", "25"], ["--budget_ms 25: without masks the network takes 20 ms"]),
        (["--budget_ms", "10%"], ["--budget_ms 10%: the least that masks reach is", "region_masks.1 saves"]),
        (["--budget_ms", "80%", "--keep", "0.5"], ["one budget at a time"]),
    ],
)
def test_bad_budgets_are_one_line_and_leave_nothing(place, capfd, flags, words):
    before = listing(place)
    fails(capfd, specialize.main, [*SR, *flags, "--name", "s"], words)
    assert listing(place) == before


@pytest.mark.slow
def test_segmentation_is_specialised_within_milliseconds(place, capfd):
    make_data(place / "data", n=8)
    few = [*SMALL[2:], "--eval_interval", "4", *data_flags(Path("data"))]
    with without_images():
        first = ["--mask_path", "unet", *data_flags(Path("data")), *SMALL, "--max_iter", "2", "--name", "r"]
        assert retrain_train.main(first) == 0
        flags = ["--max_iter", "24", "--max_stride", "8", "--budget_ms", "85%", "--settle", "0.3", "--sparse", "30"]
        flags += ["--mask_lr_mult", "30", "--sparse_epochs", "0", "--rounds", "0", "--thres", "0.73", "--name", "s"]
        assert specialize.main([*few, *flags]) == 0
    said = capfd.readouterr().out
    costs = MaskCosts.load("runs/s/mask_costs.json")
    wanted = MaskBudget.of(costs, "85%")
    assert "budget: 17 ms of 20 without masks" in said and "budget 17 ms: " in said
    loaded = SpecializedSpace().load("runs/s/network.safetensors").network
    opened = planning.open_modules(loaded)
    assert opened == [name for name in costs.modules if name not in wanted.masked] and opened
    assert rows("s")[-1]["kept"] == pytest.approx(wanted.keep, abs=0.2)
    closed = [
        channel_logits(block) for name, block in blocks(loaded).items() if name.rpartition(".")[0] in wanted.masked
    ]
    assert not all(bool((logits[..., 0] >= logits[..., 1]).all()) for logits in closed)
