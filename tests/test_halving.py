"""Successive halving of one-shot searches: rungs, pyramids, who enters and who goes on, whole trainings, kills."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_costs import FakeCosts
from literal_sparse import one_thread  # noqa: F401
from one_shot import FEW, command_line, folder_with_data, points, refuses, search  # noqa: F401
from sparsemask.masks.decoder import FULL
from sparsemask.search import run as search_run
from sparsemask.search.connectivity.front import Candidate, FrontSearch, mask_key
from sparsemask.search.connectivity.halving import Rung, WholeScorer, entrants, halve, pyramids, rungs, survivors
from sparsemask.search.connectivity.one_shot import DecoderSpace
from sparsemask.spaces.connectivity.budget import Budget
from sparsemask.spaces.connectivity.front_files import Point, choose
from sparsemask.spaces.connectivity.named_masks import named_mask
from tiny import fails

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")

MOBILENET = (32, 32, 32, 16, 16, 8, 4, 2, 2)
DEEP = DecoderSpace(MOBILENET, 64, True)
COSTS = FakeCosts(9, 64)


def test_rungs_halve_the_candidates_and_double_the_steps():
    assert rungs(8, 2) == [Rung(8, 1, 1), Rung(4, 2, 1), Rung(2, 4, 2)]
    assert rungs(12, 2) == [Rung(12, 1, 1), Rung(6, 2, 1), Rung(3, 4, 2)]
    assert rungs(5, 3) == [Rung(5, 1, 1), Rung(2, 2, 3)] and rungs(3, 1) == [Rung(3, 1, 1)]
    assert rungs(2, 2) == [Rung(2, 1, 2)] and rungs(1, 2) == [Rung(1, 1, 2)] and rungs(0, 2) == []


def test_pyramids_are_fpn_and_what_is_near_it():
    shapes = list(pyramids(DEEP.doubled()))
    masks = [mask for shape in shapes for mask in shape]
    keys = [mask.key for mask in masks]
    assert len(set(keys)) == len(keys)
    for width in (64, 128):
        assert named_mask("fpn", 9, strides=MOBILENET, depth=width).key in keys
    assert {MOBILENET[mask.output] for mask in masks} == {4, 8} and {mask.deepest for mask in masks} == set(range(6))
    assert {mask.context for mask in masks} == {False, True}
    for shape in shapes:  # of one shape but for the widths
        assert len({mask.connections.tobytes() + mask.operations.tobytes() for mask in shape}) == 1
        assert max(int(mask.widths.max()) for mask in shape) == 128
    for mask in masks:
        assert set(mask.operations[mask.stages].tolist()) == {FULL}
        wide = mask.widths[mask.stages[0]]
        assert (mask.widths[mask.stages[:-1]] == wide).all() and 32 <= mask.widths[mask.output] <= wide >= 64
    # A backbone without end points of these strides has none.
    assert list(pyramids(DecoderSpace((64, 32, 16), 64, True))) == []


def of(count: int, **changes) -> FrontSearch:
    return FrontSearch(Path("front"), DEEP.doubled(), COSTS.predict, 1, count, "weights", **changes)


def test_half_of_the_entrants_are_the_best_and_the_others_pyramids():
    rng, plain = np.random.default_rng(0), DEEP.plain()
    ranked = [
        Candidate(mask, 0.5 + 0.01 * n, COSTS.predict(mask))
        for n, mask in enumerate(DEEP.random(rng) for _ in range(9))
    ]
    masks = entrants(of(0), ranked, 8, plain)
    best = [c.mask.key for c in ranked[:4:-1]]
    assert [mask.key for mask in masks[:5]] == [*best, plain.key] and len({mask.key for mask in masks}) == 8
    known = {mask.key for shape in pyramids(DEEP.doubled()) for mask in shape}
    assert all(mask.key in known and COSTS.predict(mask) <= COSTS.predict(plain) for mask in masks[5:])
    assert all(COSTS.predict(mask) >= 0.8 * COSTS.predict(plain) for mask in masks[5:])
    assert [mask.key for mask in entrants(of(0), ranked, 8, plain)] == [mask.key for mask in masks]
    assert [mask.key for mask in entrants(of(1), ranked, 8, plain)] != [mask.key for mask in masks]
    # Of what is far below the best one none enters before pyramids.
    poor = [*ranked[-1:], *(replace(c, score=0.1) for c in ranked[:-1])]
    assert [mask.key for mask in entrants(of(0), poor, 8, plain)][:2] == [ranked[-1].mask.key, plain.key]
    # Within a budget, `plain` too; what is too dear makes room.
    most = 0.8 * COSTS.predict(plain)
    cheap = entrants(of(0, most=most), ranked, 8, plain)
    assert len(cheap) == 8 and all(COSTS.predict(mask) <= most for mask in cheap)
    assert entrants(of(0, most=0.1), ranked, 8, plain) == []
    # Of the published space there are no pyramids.
    published = DecoderSpace(MOBILENET, 64, False)
    search = FrontSearch(Path("front"), published.doubled(), COSTS.predict, 1, 0, "weights")
    unet = published.plain()
    few = [Candidate(named_mask("dense", 9), 0.5, 1.0)]
    assert {mask_key(mask) for mask in entrants(search, few, 8, unet)} == {mask_key(few[0].mask), mask_key(unet)}


def test_the_best_go_on_and_of_equal_ones_the_cheaper():
    masks = [named_mask("fpn", 9, strides=MOBILENET, depth=width) for width in (16, 32, 48, 64)]
    scored = [
        Candidate(mask, score, cost)
        for mask, score, cost in zip(masks, (0.2, 0.4, 0.4, 0.3), (1, 3, 2, 4), strict=True)
    ]
    assert [mask.key for mask in survivors(scored, 3)] == [masks[2].key, masks[1].key, masks[3].key]


def worth(mask) -> float:
    return 1 / COSTS.predict(mask)


def climb(folder: Path, seen: list, dies_at: int | None = None) -> list[list[Candidate]]:
    search = FrontSearch(folder, DEEP.doubled(), COSTS.predict, 1, 0, "weights")
    masks = [shape[0] for shape in pyramids(DEEP.doubled())][:8]

    def score(near: FrontSearch, rung: Rung, title: str) -> None:
        def evaluate(mask) -> float:
            if len(seen) == dies_at:
                raise KeyboardInterrupt
            seen.append((mask.key, rung))
            return worth(mask)

        near.prepare()
        near.work(evaluate)

    return halve(search, masks, 2, "50 steps", score)


@pytest.mark.parametrize("dies_at", [3, 9, 13])
def test_killed_rungs_train_nothing_twice(tmp_path, dies_at):
    seen, alone = [], []
    with pytest.raises(KeyboardInterrupt):
        climb(tmp_path / "killed", seen, dies_at)
    done, wanted = climb(tmp_path / "killed", seen), climb(tmp_path / "alone", alone)
    assert seen == alone and len(seen) == 8 + 4 + 2
    keys = [[[(mask_key(c.mask), c.score) for c in rung] for rung in found] for found in (done, wanted)]
    assert keys[0] == keys[1] and [len(rung) for rung in done] == [8, 4, 2]
    best = sorted((worth(c.mask) for c in done[0]), reverse=True)
    assert sorted((c.score for c in done[-1]), reverse=True) == best[:2]


def test_masks_that_were_trained_whole_are_chosen_among_themselves():
    mask = named_mask("unet", 4)
    points = [Point(mask, 0.6, 1.0, 10), Point(mask, 0.3, 3.0, 30, 200), Point(mask, 0.5, 9.0, 90, 200)]
    assert choose(points, None) is points[2] and choose(points, Budget("ms", 5)) is points[1]
    assert choose(points, Budget("ms", 2)) is points[0]


# --- as a part of a search -------------------------------------------------------------------------------------------


def search_halving(name: str, *more: str) -> int:
    return search(name, *FEW, "--halving", "4", "--halving_steps", "4", *more)


def test_a_search_killed_while_it_halves_goes_on_bit_for_bit(here, monkeypatch, capfd):
    plain, calls = WholeScorer._score, []

    def counting(self, mask, times, seed):
        calls.append((mask_key(mask), times, seed))
        return plain(self, mask, times, seed)

    monkeypatch.setattr(WholeScorer, "_score", counting)
    assert search_halving("alone") == 0
    said = capfd.readouterr()
    assert "halving 2 of 2 2/2" in said.err and ", 4 of them and of pyramids trained whole" in said.out
    alone = list(calls)
    assert [times for _, times, _ in alone] == [1] * 4 + [2] * 4 and len(set(alone)) == 8
    calls.clear()

    def dying(self, mask, times, seed):
        if len(calls) == 6:  # with one of two trainings of a candidate done
            raise RuntimeError("as if killed")
        return counting(self, mask, times, seed)

    with monkeypatch.context() as patch:
        patch.setattr(WholeScorer, "_score", dying)
        with pytest.raises(RuntimeError):
            search_halving("killed", "--resume")
    assert search_halving("killed", "--resume") == 0
    assert calls == alone and points("killed") == points("alone")
    assert search_halving("two", "--front_workers", "2") == 0 and points("two")
    content = json.loads(Path("runs/alone/front/front.json").read_text())
    assert [len(rung) for rung in content["halving"]] == [4, 2]
    assert {row["steps"] for row in content["points"]} <= {0, 4} and content["points"][-1]["steps"] == 4


def test_a_candidate_is_trained_as_retraining_trains_it(here, monkeypatch):
    """The same loop, the encoder along, the same every time, and never on the samples that it is scored on."""
    from sparsemask.engine import loop
    from sparsemask.search.connectivity import halving

    networks = {}

    def noting(network, method, task, *others):
        metrics = loop.fit_unrecorded(network, method, task, *others)
        networks["whole"], networks["samples"] = network, [len(task.train_data), len(method.held.eval_data)]
        return metrics

    monkeypatch.setattr(halving, "fit_unrecorded", noting)
    assert search_halving("s", "--halving", "1", "--halving_draws", "1", "--seed", "3") == 0
    # Samples that are scored on are not trained on; together they are the training samples.
    assert networks["samples"] == [8, 1] and len(Path("data/train.txt").read_text().split()) == 9
    before = {name: value.clone() for name, value in networks["whole"].state_dict().items()}
    assert search_halving("again", "--halving", "1", "--halving_draws", "1", "--seed", "3") == 0
    for name, value in networks["whole"].state_dict().items():
        assert torch.equal(value, before[name]), name
    start = torch.load("runs/s/checkpoints/last.pt", weights_only=True)["model"]
    moved = [
        name for name, value in before.items() if name.startswith("backbone.") and not torch.equal(start[name], value)
    ]
    assert any("running" not in name for name in moved)  # the encoder is trained along, from the search's


def test_costs_of_another_size_than_that_of_training(here, monkeypatch):
    sizes = []
    costs = FakeCosts(4)
    table = "sparsemask.spaces.connectivity.budget.cost_table"
    monkeypatch.setattr(table, lambda _, size, **__: sizes.append(size) or costs)
    assert search_halving("s", "--halving", "0", "--cost_size", "65", "--budget_ms", "20") == 0
    assert set(sizes) == {(65, 65)}
    assert json.loads(Path("runs/s/run.json").read_text())["input_size"] == 65


def test_alone_a_process_of_a_group_is_the_only_one(monkeypatch):
    """What the first process trains while the others wait must not wait for them."""
    from sparsemask.engine import distributed

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    assert (distributed.rank(), distributed.world()) == (1, 2)
    with distributed.alone():
        assert (distributed.rank(), distributed.world()) == (0, 1)
        assert distributed.total(torch.ones(1)).item() == 1  # no group is asked
    assert (distributed.rank(), distributed.world()) == (1, 2)


def test_a_training_that_diverges_scores_nothing(here, monkeypatch):
    from sparsemask.finite import NotFiniteError
    from sparsemask.search.connectivity import halving

    def diverging(*_):
        raise NotFiniteError("the loss is no longer finite")

    monkeypatch.setattr(halving, "fit_unrecorded", diverging)
    assert search_halving("s") == 0
    assert {score for _, score, _, steps in points("s") if steps} == {0.0}


def test_bad_numbers_leave_nothing(here, capfd):
    refuses(capfd, [("--halving", "-1"), ("--halving_steps", "0"), ("--halving_draws", "0"), ("--halving", "many")])
    fails(capfd, search_run.main, command_line("x", "--halving", "many"), ["expected a whole number, not 'many'"])
    for method in ("published", "latency"):
        argv = command_line("x", "--halving", "2", "--method", method, "--budget_ms", "20")
        fails(capfd, search_run.main, argv[:-2] if method == "published" else argv, ["--", "only --method one-shot"])
    assert not Path("runs/x").exists()
