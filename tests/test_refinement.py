"""Refinement of one-shot fronts: changes of a decoder, what a round proposes, climbing, kills, several processes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_costs import FakeCosts
from literal_sparse import one_thread  # noqa: F401
from one_shot import FEW, folder_with_data, points, refuses, search  # noqa: F401
from sparsemask.masks.decoder import FULL, DecoderMask, as_decoder, decoder_mask
from sparsemask.search.connectivity.front import Candidate, Encoding, FrontSearch, front, mask_key
from sparsemask.search.connectivity.one_shot import DecoderSpace, OneShotNetwork
from sparsemask.search.connectivity.refinement import ROUND, changes, next_round, propose, rounds
from sparsemask.search.connectivity.scoring import Scorer

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")

STRIDES = (8, 4, 4, 2)
WIDE, PUBLISHED = DecoderSpace(STRIDES, 16, True), DecoderSpace(STRIDES, 16, False)
DEEP = DecoderSpace((32, 16, 8, 4), 16, True)
COSTS = FakeCosts(4, 16)


def differences(one, other) -> int:
    """Connections, operations, widths and contexts in which two decoders differ."""
    a, b = (as_decoder(mask, 16) for mask in (one, other))
    both = [i for i in a.stages if i in b.stages]
    parts = int((a.operations[both] != b.operations[both]).sum() + (a.widths[both] != b.widths[both]).sum())
    return int((a.connections != b.connections).sum()) + parts + (a.context != b.context)


@pytest.mark.parametrize("space", [WIDE, PUBLISHED], ids=["wide", "published"])
def test_changes_are_other_decoders_that_can_be_built(space):
    encoding, rng = Encoding(space), np.random.default_rng(0)
    network = OneShotNetwork(space, "pyramid:Pyramid", n_class=3).eval()
    x = torch.randn(1, 3, 33, 33)
    for mask in [space.random(rng) for _ in range(6)] + [space.plain(), space.smallest(rng)]:
        near = [other for kind in changes(encoding, mask) for other in kind]
        keys = [mask_key(other) for other in near]
        assert near and len(set(keys)) == len(keys) and mask_key(mask) not in keys
        assert keys == [mask_key(other) for kind in changes(encoding, mask) for other in kind]  # the same every time
        with torch.no_grad():
            for other in near:
                assert differences(mask, other) >= 1 and network(x, other).isfinite().all()


def test_changes_of_a_pyramid():
    """Of every kind; a stage that is left out hands its inputs on to its readers."""
    mask = DEEP.plain()  # stages 0 to 3, each reads the one before it, and the last all of them
    near = [other for kind in changes(Encoding(DEEP), mask) for other in kind]
    of = {stages: [o for o in near if o.stages == list(stages)] for stages in {tuple(o.stages) for o in near}}
    assert {(0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)} == set(of)
    assert any(other.context for other in near)
    for stage in mask.stages:
        assert {int(o.operations[stage]) for o in of[0, 1, 2, 3]} == {0, 1, 2}
        assert {int(o.widths[stage]) for o in of[0, 1, 2, 3]} == {16, 8}
    without = next(o for o in of[0, 2, 3] if o.connections[2, 1, 0])  # end point 1, which stage 1 read, and stage 0
    assert without.connections[2, 1, 1] and without.connections[2, 2, 0] and not without.connections[2, 2, 1]
    shorter = of[0, 1, 2][0]  # without the output stage: the one before it reads the stages that it read
    assert shorter.output == 2 and shorter.connections[2, 1, 1] and shorter.connections[2, 2, 1]
    back = [other.key for kind in changes(Encoding(DEEP), shorter) for other in kind if other.output == 3]
    assert back  # and a stage more


def known(*masks, score=0.5) -> list[Candidate]:
    return [Candidate(mask, score + 0.01 * n, COSTS.predict(mask)) for n, mask in enumerate(masks)]


def test_a_round_follows_from_what_is_known_alone():
    encoding, rng = Encoding(DEEP), np.random.default_rng(3)
    found = known(*sorted((DEEP.random(rng) for _ in range(30)), key=COSTS.predict))
    draw = lambda given, most=np.inf: propose(  # noqa: E731
        encoding, given, ROUND, np.random.default_rng(1), COSTS.predict, most
    )
    masks = draw(found)
    assert len(masks) == ROUND == len({mask_key(mask) for mask in masks})
    assert not {mask_key(mask) for mask in masks} & {mask_key(c.mask) for c in found}
    mixed = list(found)
    random.Random(0).shuffle(mixed)
    assert [mask_key(m) for m in draw(mixed)] == [mask_key(m) for m in masks]
    # Whoever is a parent costs no more than the budget, and no child does.
    most = float(np.median([c.cost for c in found]))
    assert max(map(COSTS.predict, draw(found, most))) <= most
    assert draw([]) == [] and draw(found, 0.0) == []


def test_changes_of_parents_alone_and_hardly_dearer():
    parent = DEEP.plain()
    masks = propose(Encoding(DEEP), known(parent), 12, np.random.default_rng(0), COSTS.predict, np.inf)
    listed = {mask_key(other) for kind in changes(Encoding(DEEP), parent) for other in kind}
    assert {mask_key(mask) for mask in masks} <= listed
    assert max(map(COSTS.predict, masks)) <= 1.05 * COSTS.predict(parent)
    # There may be fewer than are asked for.
    few = propose(Encoding(DEEP), known(parent), 10_000, np.random.default_rng(0), COSTS.predict, np.inf)
    assert 12 < len(few) == len({mask_key(mask) for mask in few}) <= len(listed)


def test_rounds_add_up():
    assert rounds(0) == [] and rounds(3) == [3] and rounds(2 * ROUND + 1) == [ROUND, ROUND, 1]


def worth(mask: DecoderMask) -> float:
    """A score with its top a few changes from the pyramid, at less cost than it."""
    target = decoder_mask(DEEP.plain().connections, [0, FULL, FULL, 0], [16, 8, 8, 16])
    return 1 / (1 + differences(mask, target))


def climb(folder: Path, evaluate=worth, rounds_wanted: int = 12) -> list[Candidate]:
    search = FrontSearch(folder, DEEP, COSTS.predict, 1, 0, "weights")
    found = [Candidate(DEEP.plain(), worth(DEEP.plain()), COSTS.predict(DEEP.plain()))]
    for number in range(rounds_wanted):
        near = next_round(search, found, number, ROUND)
        near.prepare()
        near.work(evaluate)
        found += near.scored()
    return found


def test_rounds_climb(tmp_path):
    start = Candidate(DEEP.plain(), worth(DEEP.plain()), COSTS.predict(DEEP.plain()))
    best = front(climb(tmp_path))[-1]
    assert best.score > 1.5 * start.score and best.cost < start.cost


def test_killed_rounds_score_nothing_twice(tmp_path):
    seen = []

    def dying(mask):
        if len(seen) == 11:
            raise KeyboardInterrupt
        seen.append(mask_key(mask))
        return worth(mask)

    with pytest.raises(KeyboardInterrupt):
        climb(tmp_path / "killed", dying, 3)

    def going_on(mask):
        seen.append(mask_key(mask))
        return worth(mask)

    both = climb(tmp_path / "killed", going_on, 3), climb(tmp_path / "alone", worth, 3)
    assert len(seen) == len(set(seen)) == 3 * ROUND
    keys = [sorted((mask_key(c.mask), c.score, c.cost) for c in found) for found in both]
    assert keys[0] == keys[1]
    # Other scores before it make another round: nothing of the old one holds.
    search = FrontSearch(tmp_path / "alone", WIDE, COSTS.predict, 1, 0, "weights")
    other = next_round(search, known(WIDE.largest()), 0, ROUND)
    assert other.prepare() == 0


# --- as a part of a search -------------------------------------------------------------------------------------------


def search_refining(name: str, *more: str) -> int:
    return search(name, *FEW, "--refine", "10", *more)


def test_a_search_killed_while_it_refines_goes_on_bit_for_bit(here, monkeypatch, capfd):
    plain, calls = Scorer.__call__, []

    def counting(self, mask, times=1, draws=1):
        calls.append((mask_key(mask), times))
        return plain(self, mask, times, draws)

    monkeypatch.setattr(Scorer, "__call__", counting)
    assert search_refining("alone") == 0
    said = capfd.readouterr()
    assert "refinement 2 of 2 4/4" in said.err and "6 candidates, 10 changes of the best" in said.out
    alone, finals = list(calls), sum(times > 1 for _, times in calls)
    assert len(alone) == 6 + 3 + 10 and finals == 13 and len(set(calls)) == len(calls)
    calls.clear()

    def dying(self, mask, times=1, draws=1):
        if len(calls) == 13:  # in the first round
            raise RuntimeError("as if killed")
        return counting(self, mask, times, draws)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", dying)
        with pytest.raises(RuntimeError):
            search_refining("killed", "--resume")
    assert search_refining("killed", "--resume") == 0
    assert calls == alone and points("killed") == points("alone")


def test_several_processes_refine(here):
    assert search_refining("one") == 0
    assert search_refining("two", "--front_workers", "2") == 0
    assert len(list(Path("runs/two/front").glob("round-*"))) == len(list(Path("runs/one/front").glob("round-*"))) == 2
    assert not list(Path("runs/two/front").rglob("*.worker")) and points("two")


def test_without_finalists_nothing_is_refined(here, capfd):
    assert search_refining("none", "--finalists", "0") == 0
    assert "refinement" not in capfd.readouterr().err and not list(Path("runs/none/front").glob("round-*"))
    assert search_refining("off", "--refine", "0") == 0
    assert "changes of the best" not in capfd.readouterr().out


def test_finalists_are_scored_as_a_mean_of_draws(here, monkeypatch):
    plain, drawn = Scorer._score, []

    def noting(self, mask, times, seed):
        drawn.append((times, seed - self.seed, plain(self, mask, times, seed)))
        return drawn[-1][2]

    monkeypatch.setattr(Scorer, "_score", noting)
    assert search_refining("drawn", "--refine", "0", "--final_draws", "3") == 0
    finals = [(draw, score) for times, draw, score in drawn if times == 2]
    assert [draw for draw, _ in finals] == [0, 1, 2] * 3 and all(draw == 0 for times, draw, _ in drawn if times == 1)
    means = [float(np.mean([score for _, score in finals[n : n + 3]])) for n in (0, 3, 6)]
    assert all(any(abs(score - mean) < 1e-12 for mean in means) for _, score, *_ in points("drawn"))
    assert len({score for _, score in finals}) > 3  # draws differ


def test_bad_numbers_leave_nothing(here, capfd):
    refuses(capfd, [("--refine", "-1"), ("--refine", "1.5"), ("--refine", "many"), ("--final_draws", "0")])
