"""Budgets of fine-grained masks in milliseconds: costs, what follows from them, and searches within one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from literal_sparse import one_thread  # noqa: F401
from point_crops import crop
from small_clouds import CROPS, NETWORK, rooms
from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.search import run as search_run
from sparsemask.spaces.sparse_conv import SMSR, SMPointSeg, SMStereo, mask_costs
from sparsemask.spaces.sparse_conv.mask_costs import MaskBudget, MaskCosts, measure_costs, module_kept
from sparsemask.spaces.sparse_conv.masking import hard_masks, mean_kept
from sparsemask.spaces.sparse_conv.plan import Machine
from sparsemask.sparse import backend
from sparsemask.tasks.stereo.batch import StereoPair
from spoilt import listing
from tiny import fails, killed_at

MACHINE = Machine("cpu", "a processor", 8, 1, torch.__version__)
MODULES = {"encoder.0": (0.5, 1.0), "encoder.1": (-2.0, 4.0)}  # the first one's masks cost, whatever they keep
COSTS = MaskCosts(MACHINE, "64 points", 10.0, MODULES)
DATA = ["--task", "s3dis", "--data_root", "data", *CROPS]
SEARCH = [
    "--search", "--space", "smpointseg", *DATA, *NETWORK, "--batch_size", "2", "--n_worker", "0",
    "--checkpoint_interval", "4", "--eval_interval", "4", "--log_interval", "1", "--lr", "0.01",
]  # fmt: skip


def test_a_module_pays_where_its_masks_save_something_worth_having():
    assert COSTS.paying() == ["encoder.1"]
    assert COSTS.even("encoder.1") == 0.5
    small = MaskCosts(MACHINE, "64 points", 10.0, {"a": (-0.05, 0.1), "b": (-2.0, 0.0)})
    assert small.paying() == []  # a saves half a hundredth; what b takes does not depend on what it keeps


def test_a_budget_is_a_kept_fraction_of_what_pays():
    budget = MaskBudget.of(COSTS, 9.0)
    assert budget.masked == ("encoder.1",)
    assert budget.keep == pytest.approx(0.25)
    assert COSTS.predict({"encoder.1": budget.keep}) == pytest.approx(9.0)
    assert MaskBudget.of(COSTS, "90%") == budget
    with pytest.raises(UseError, match=r"--budget_ms 12: without masks the network takes 10 ms at 64 points already"):
        MaskBudget.of(COSTS, 12.0)
    with pytest.raises(UseError, match=r"--budget_ms 50%: the least that masks reach is 8.4 ms, where they keep 0.1"):
        MaskBudget.of(COSTS, "50%")
    nothing = MaskCosts(MACHINE, "64 points", 10.0, {"encoder.0": (0.5, 1.0)})
    with pytest.raises(UseError, match="no module's masks would save time there"):
        MaskBudget.of(nothing, 9.0)


def test_costs_keep_in_a_file(tmp_path):
    path = tmp_path / "mask_costs.json"
    COSTS.save(path)
    assert MaskCosts.load(path) == COSTS
    damaged = {"format": 1, "machine": 3, "size": "", "unmasked": 1, "modules": {}}
    for content in ("{}", '{"format": 2}', "[]", json.dumps(damaged)):
        path.write_text(content)
        with pytest.raises(UseError, match=r"mask_costs\.json"):
            MaskCosts.load(path)


def networks():
    torch.manual_seed(0)
    small = SMStereo(16)
    pair = StereoPair(torch.rand(1, 3, 16, 32), torch.rand(1, 3, 16, 32))
    return [
        (SMSR(2, 16, 2), 255 * torch.rand(1, 3, 24, 24), ["body.0", "body.1"]),
        (SMPointSeg(6, 5, (8, 16), 8, 0.1), crop(levels=2), ["encoder.0", "encoder.1"]),
        (small, pair, ["dres2", "dres3", "dres4"]),
    ]


@pytest.mark.parametrize("which", range(3), ids=["smsr", "smpointseg", "smstereo"])
def test_every_family_is_measured(which):
    network, inputs, names = networks()[which]
    space = spaces.get(["smsr", "smpointseg", "smstereo"][which])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    costs = measure_costs(space, network, inputs, seconds=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert list(costs.modules) == names and costs.unmasked > 0
    assert all(abs(a) + abs(b) < 100 * costs.unmasked for a, b in costs.modules.values())


@torch.no_grad()
@pytest.mark.parametrize("which", range(3), ids=["smsr", "smpointseg", "smstereo"])
def test_masks_are_set_to_what_is_measured(which):
    network, inputs, names = networks()[which]
    network.eval()
    with backend("native"):
        for fraction in (0.3, 0.7):
            found = mask_costs._keep(network, inputs, fraction)
            assert list(found) == names
            # Within what the thresholds can do: stereo's coarser masks keep all that a finer voxel keeps.
            assert all(abs(kept - fraction) < (0.35 if which == 2 else 0.1) for kept in found.values())


@torch.no_grad()
def test_modules_keep_what_the_network_says():
    for network, inputs, _ in networks():
        network.eval()
        network(inputs)
        kept = module_kept(network)
        assert set(kept) == set(network.mask_modules())
        if not network.kept_weights:
            assert float(torch.stack(list(kept.values())).mean()) == pytest.approx(float(mean_kept(network)))


@pytest.fixture
def place(tmp_path, monkeypatch, one_thread) -> Path:  # noqa: F811
    """A folder with rooms as working directory; costs are these, not this machine's."""
    rooms(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mask_costs, "measure_costs", lambda *_: COSTS)
    with backend("reference"):
        yield tmp_path


def kept_of(run: str) -> list[float]:
    return [json.loads(line)["kept"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_a_search_ends_at_the_budget_and_leaves_masks_out_that_cannot_pay(place, capsys):
    flags = ["--budget_ms", "90%", "--sparse", "10", "--sparse_start", "0", "--mask_lr_mult", "30", "--settle", "0.2"]
    assert search_run.main([*SEARCH, *flags, "--max_iter", "48", "--name", "s"]) == 0
    text = capsys.readouterr().out
    assert "budget: 9 ms of 10 without masks at 64 points; masks keep 0.25 of encoder.1" in text
    assert "without masks, which would save nothing there: encoder.0" in text
    assert "budget 9 ms: " in text and "predicted" in text and "measured" in text
    state = torch.load("runs/s/checkpoints/last.pt", weights_only=True)
    network = SMPointSeg(6, 13, (4, 8), 4, 0.3)
    network.load_state_dict(state["model"])
    masks = hard_masks(network)
    assert masks["encoder.0"].all() and not masks["encoder.1"].all()
    assert torch.equal(network.encoder[0].ch_mask[..., 0], torch.full((2, 4), 20.0))
    assert network.eval().encoder[1].constant_mask() is None
    with torch.no_grad():
        assert network.encoder[0].constant_mask() is True
    assert kept_of("runs/s")[-1] == pytest.approx(0.25, abs=0.2)
    assert kept_of("runs/s")[0] > 0.6


def test_a_resumed_search_reckons_with_the_run_s_own_costs(place, monkeypatch):
    flags = [*SEARCH, "--budget_ms", "9", "--max_iter", "7"]
    assert search_run.main([*flags, "--name", "alone"]) == 0
    with killed_at(5):
        search_run.main([*flags, "--name", "stopped"])
    monkeypatch.setattr(mask_costs, "measure_costs", lambda *_: pytest.fail("measured again"))
    assert search_run.main(["--resume", "runs/stopped"]) == 0
    a, b = (torch.load(place / f"runs/{n}/checkpoints/last.pt", weights_only=True) for n in ("alone", "stopped"))
    assert a["step"] == b["step"] == 7
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget_ms", "12"], "without masks the network takes 10 ms"),
        (["--budget_ms", "40%"], "the least that masks reach is"),
        (["--budget_ms", "9", "--keep", "0.5"], "one budget at a time"),
        (["--budget_ms", "-1"], "budget_ms"),
        (["--budget_ms", "120%"], "at most 100%"),
    ],
)
def test_bad_budgets_are_one_line_and_leave_nothing(place, flags, words, capfd):
    before = listing(place)
    fails(capfd, search_run.main, [*SEARCH, *flags, "--max_iter", "4", "--name", "s"], [words])
    assert listing(place) == before
