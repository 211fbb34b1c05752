"""One-shot searches: sampled decoders, scores of candidates, the front and what picks from it, kills, bad input."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_costs import FakeCosts
from literal_sparse import one_thread  # noqa: F401
from one_shot import SMALL, command_line, search, use
from sparsemask import UseError
from sparsemask.masks.decoder import DecoderMask, load_decoder
from sparsemask.prune import prune as prune_prune
from sparsemask.search import run as search_run
from sparsemask.search.connectivity.front import Candidate, Encoding, FrontSearch, finalists, front
from sparsemask.search.connectivity.one_shot import DecoderSpace, OneShotNetwork
from sparsemask.spaces.connectivity.budget import Budget
from sparsemask.spaces.connectivity.front_files import Point, choose, read_front
from sparsemask.spaces.connectivity.named_masks import named_mask
from tiny import fails, make_data
from without_images import without_images

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")

STRIDES = (8, 4, 4, 2)
WIDE, PUBLISHED = DecoderSpace(STRIDES, 16, True), DecoderSpace(STRIDES, 16, False)


def searching(name: str, *more: str) -> int:
    return search(name, "--candidates", "12", "--refine", "3", *more, steps=6)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with data and a finished search, runs/s; not to be touched."""
    folder = tmp_path_factory.mktemp("one_shot")
    make_data(folder / "data")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, without_images():
        use(folder, patch)
        torch.set_num_threads(1)
        assert searching("s", "--budget_ms", "20") == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def here(searched, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory."""
    shutil.copytree(searched, tmp_path / "copy", symlinks=True)
    use(tmp_path / "copy", monkeypatch)
    return tmp_path / "copy"


def final(name: str) -> dict:
    return torch.load(Path("runs") / name / "checkpoints" / "last.pt", weights_only=True)


@pytest.mark.parametrize("space", [WIDE, PUBLISHED], ids=["wide", "published"])
def test_decoders_become_parameters_and_come_back(space):
    encoding, rng = Encoding(space), np.random.default_rng(0)
    masks = [space.random(rng) for _ in range(50)] + encoding.seeds(1, 20) + [space.largest(), space.smallest(rng)]
    assert len({encoding_key(mask) for mask in masks}) > 30
    for mask in masks:
        back = encoding.decode(encoding.encode(mask))
        assert encoding_key(back) == encoding_key(mask)


def encoding_key(mask) -> object:
    return mask.key if isinstance(mask, DecoderMask) else mask.tobytes()


@pytest.mark.parametrize("space", [WIDE, PUBLISHED], ids=["wide", "published"])
def test_any_parameters_are_a_decoder(space):
    """What a sampler may propose is mended into a decoder that can be built."""
    encoding, rng = Encoding(space), np.random.default_rng(0)
    network = OneShotNetwork(space, "pyramid:Pyramid", n_class=3).eval()
    x = torch.randn(1, 3, 33, 33)
    for share in (0.02, 0.2, 0.8):
        for _ in range(20):
            params = {n: d.choices[rng.integers(len(d.choices))] for n, d in encoding.distributions.items()}
            params |= {n: bool(rng.random() < share) for n, v in params.items() if isinstance(v, bool)}
            mask = encoding.decode(params)
            with torch.no_grad():
                assert network(x, mask).isfinite().all()


def test_named_candidates_are_as_wide_as_the_budget_lets_them_be():
    costs, encoding = FakeCosts(4, 16), Encoding(WIDE)
    fpn = {width: named_mask("fpn", 4, strides=STRIDES, depth=width) for width in WIDE.widths}
    most = costs.predict(fpn[8])
    assert most < costs.predict(fpn[16])
    fits = lambda mask: costs.predict(mask) <= most  # noqa: E731
    keys = {mask.key for mask in encoding.seeds(0, 8, fits=fits)}
    assert fpn[8].key in keys and fpn[16].key not in keys
    assert fpn[16].key in {mask.key for mask in encoding.seeds(0, 8)}
    # Where none is cheap enough they are what they are.
    assert fpn[16].key in {mask.key for mask in encoding.seeds(0, 8, fits=lambda mask: False)}


def test_sampled_decoders_depend_on_seed_and_step_alone(searched):
    from types import SimpleNamespace

    from sparsemask.search.connectivity.one_shot import OneShotSearch

    def method(seed):
        config = SimpleNamespace(run=SimpleNamespace(seed=seed), family=SimpleNamespace(masks_a_step=2))
        return OneShotSearch(config, WIDE)

    one, again, other = method(0), method(0), method(1)
    keys = [[m.key for m in one.sampled(step)] for step in range(8)]
    assert [[m.key for m in again.sampled(step)] for step in reversed(range(8))] == keys[::-1]
    assert [[m.key for m in other.sampled(step)] for step in range(8)] != keys
    flat = [key for masks in keys for key in masks]
    assert flat[0] == flat[8] == WIDE.largest().key
    assert int(DecoderMask.unpack(one.sampled(2)[0].packed()).connections.sum()) == 1  # the smallest
    assert len(set(flat)) >= 12


def test_a_run_begins_with_a_plain_decoder():
    from types import SimpleNamespace

    from sparsemask.search.connectivity.one_shot import OneShotSearch

    config = SimpleNamespace(run=SimpleNamespace(seed=0), family=SimpleNamespace(masks_a_step=2))
    method = OneShotSearch(config, WIDE)
    method.steps = 10
    assert [len(method.sampled(step)) for step in range(5, 10)] == [1, 1, 1, 2, 2]
    assert method.sampled(3)[0].key == WIDE.plain().key
    fpn = named_mask("fpn", 4, strides=STRIDES, depth=16)
    assert WIDE.plain().key == fpn.key and (PUBLISHED.plain() == named_mask("unet", 4)).all()
    assert replace(WIDE, first="unet").plain().operations.tolist() == [0] * 4


def test_a_decoder_is_tuned_alone_and_leaves_nothing_behind(here, monkeypatch):
    """Scores are of weights of a decoder's own, the same every time, whatever was scored before."""
    from sparsemask.search.connectivity import one_shot_front

    kept = []
    monkeypatch.setattr(one_shot_front, "search_front", lambda search, scorer, *others: kept.append(scorer))
    with contextlib.suppress(Exception):  # nothing was scored, so that there is no front to write
        searching("tuned", "--tune_steps", "8")
    scorer, masks = kept[0], [WIDE.plain(), WIDE.largest()]
    before = {name: value.clone() for name, value in scorer.model.state_dict().items()}
    losses = []
    loss = scorer.task.loss
    monkeypatch.setattr(scorer.task, "loss", lambda *a: losses.append(loss(*a)) or losses[-1])
    first = [scorer(mask) for mask in masks]
    assert losses[7] < losses[0] and losses[15] < losses[8]
    assert [scorer(mask) for mask in reversed(masks)] == first[::-1]
    torch.testing.assert_close(losses[8:16], losses[16:24], rtol=0, atol=0)
    parts = {name: value for name, value in scorer.model.state_dict().items() if "running" not in name}
    for name, value in parts.items():
        if "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def test_a_search_leaves_a_front(searched, monkeypatch):
    monkeypatch.chdir(searched)
    run, costs = Path("runs/s"), FakeCosts(4)
    content = json.loads((run / "front/front.json").read_text())
    points = read_front(run)
    assert content["score"] == "miou" and content["unit"] == "ms"
    assert len(points) == len(content["points"]) == len(list((run / "front").glob("*.npy")))
    for low, high in zip(points, points[1:], strict=False):  # none beats another
        assert low.ms < high.ms and low.score < high.score
    for point in points:
        assert isinstance(point.mask, DecoderMask) and point.ms == pytest.approx(costs.predict(point.mask))
        note = json.loads((run / "front" / point.file).with_suffix(".json").read_text())
        assert note["backbone_name"] == "pyramid:Pyramid" and note["predicted_ms"] == point.ms
        assert note["run"] == str(run.resolve())
    for cost, score, _ in content["candidates"]:
        assert any(p.ms <= cost and p.score >= score for p in points)
    info = json.loads((run / "run.json").read_text())
    assert info["budget"]["most"] == 20 and info["budget"]["predicted"] <= 20 and info["budget"]["measured_ms"] > 0
    assert final("s")["config"]["method"] == "one-shot"
    # Nothing that is scored on was trained on, and what validation scores was neither.
    assert info["front"]["candidates"] <= 12


def test_the_three_commands_chain(here, capfd):
    from sparsemask.retrain import train as retrain_train

    assert prune_prune.main(["--thres", "0.001"]) == 0
    said = capfd.readouterr().out
    assert "the search's budget: --budget_ms 20" in said and "front: " in said and "next: " in said
    mask, points = load_decoder("mask.npy"), read_front(Path("runs/s"))
    best = max((p for p in points if p.ms <= 20), key=lambda p: p.score)
    assert mask == best.mask
    cheapest = points[0]
    assert prune_prune.main(["--budget_ms", f"{cheapest.ms:.3f}1"]) == 0
    assert load_decoder("mask.npy") == cheapest.mask
    for how in ("encoder", "all"):
        argv = ["--mask_path", "mask.npy", "--max_iter", "2", "--inherit", how, *SMALL[:-2]]
        assert retrain_train.main(argv) == 0
    assert "inherited from the search: all that is kept" in capfd.readouterr().out


def test_the_published_space_and_macs(here, capfd):
    assert searching("p", "--decoder_space", "published", "--budget_macs", "15M") == 0
    points = read_front(Path("runs/p"))
    assert all(isinstance(point.mask, np.ndarray) for point in points)
    assert prune_prune.main(["--run", "runs/p", "--out", "p.npy"]) == 0
    assert FakeCosts(4).multiply_adds(load_decoder("p.npy")) <= 15e6


def test_a_killed_training_goes_on_bit_for_bit(here, monkeypatch):
    from sparsemask.engine.loop import Fit

    plain = Fit.train_step

    def dying(self, parts):
        if self.step == 4:
            raise RuntimeError("as if killed")
        return plain(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "train_step", dying)
        with pytest.raises(RuntimeError):
            searching("killed", "--budget_ms", "20", "--resume")
    assert searching("killed", "--budget_ms", "20", "--resume") == 0
    one, other = final("s"), final("killed")
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    # Candidates and scores follow from weights, seed and what was scored before.
    fronts = [[(p.score, p.ms) for p in read_front(Path("runs") / name)] for name in ("s", "killed")]
    assert fronts[0] == fronts[1]


def made_up(mask) -> float:
    """A score that more connections raise, with a bound."""
    count = int((mask.connections if isinstance(mask, DecoderMask) else mask).sum())
    return 1 - 1 / (1 + count)


@pytest.mark.parametrize("space", [WIDE, PUBLISHED], ids=["wide", "published"])
def test_a_killed_front_does_not_score_again(tmp_path, space):
    costs, seen = FakeCosts(4, 16), []
    make = lambda folder: FrontSearch(tmp_path / folder, space, costs.predict, 24, 0, "weights")  # noqa: E731

    def dying(mask):
        if len(seen) == 10:
            raise KeyboardInterrupt
        seen.append(encoding_key(mask))
        return made_up(mask)

    broken = make("killed")
    assert broken.prepare() == 0
    with pytest.raises(KeyboardInterrupt):
        broken.work(dying)
    assert broken.prepare() >= 10
    first = list(seen)

    def going_on(mask):
        seen.append(encoding_key(mask))
        return made_up(mask)

    broken.work(going_on)
    assert broken.prepare() == 24
    assert len(seen) == len(set(seen)) and seen[:10] == first
    alone = make("alone")
    alone.prepare()
    alone.work(made_up)
    both = [sorted((encoding_key(c.mask), c.score, c.cost) for c in s.scored()) for s in (broken, alone)]
    assert len(both[0]) > 12 and len(both[1]) > 12
    # Other weights: nothing of it holds.
    assert FrontSearch(tmp_path / "alone", space, costs.predict, 24, 0, "other weights").prepare() == 0


def test_candidates_far_above_the_budget_are_not_scored(tmp_path):
    costs, seen = FakeCosts(4, 16), []
    search = FrontSearch(tmp_path, WIDE, costs.predict, 16, 0, "weights", 10.0)
    search.prepare()
    search.work(lambda mask: seen.append(costs.predict(mask)) or made_up(mask))
    assert seen and max(seen) <= 12.5 and len(search.scored()) == len(seen)
    none = FrontSearch(tmp_path / "none", WIDE, costs.predict, 4, 0, "weights", 0.01)
    none.prepare()
    none.work(made_up)
    assert none.scored() == []


def test_the_front_is_what_nothing_beats():
    mask = named_mask("unet", 4)
    scored = [Candidate(mask, score, cost) for score, cost in ((0.5, 3), (0.4, 1), (0.3, 2), (0.5, 3), (0.6, 9))]
    assert [(c.score, c.cost) for c in front(scored)] == [(0.4, 1), (0.5, 3), (0.6, 9)]


def test_finalists_are_the_best_layer_by_layer():
    mask = named_mask("unet", 4)
    values = ((0.5, 3), (0.4, 1), (0.3, 2), (0.45, 4), (0.6, 9), (0.2, 8))
    scored = [Candidate(mask, *pair) for pair in values]
    pairs = lambda count: [(c.score, c.cost) for c in finalists(scored, count)]  # noqa: E731
    assert pairs(3) == [(0.4, 1), (0.5, 3), (0.6, 9)] and pairs(2) == [(0.5, 3), (0.6, 9)]
    assert pairs(5) == [*pairs(3), (0.3, 2), (0.45, 4)] and len(pairs(99)) == 6 and not finalists([], 3)
    # Those of little worth leave room for what is beaten by a hair.
    poor = [Candidate(mask, 0.01 + 0.001 * i, 1 + 0.1 * i) for i in range(8)]
    good = [Candidate(mask, *pair) for pair in ((0.6, 10), (0.599, 10.1), (0.598, 9.9))]
    kept = [(c.score, c.cost) for c in finalists([*poor, *good], 6)]
    assert {(c.score, c.cost) for c in good} <= set(kept) and len(kept) == 6


@pytest.mark.parametrize("space", [WIDE, PUBLISHED], ids=["wide", "published"])
def test_neighbours_differ_in_what_is_in_use(space):
    encoding, rng = Encoding(space), np.random.default_rng(0)
    changed = 0
    for _ in range(60):
        mask = space.random(rng)
        near = encoding.decode(encoding.neighbour(mask, rng))
        changed += encoding_key(near) != encoding_key(mask)
        before, after = encoding.encode(mask), encoding.encode(near)
        # A change of the output, or one that cuts stages off, takes more with it.
        assert sum(before[name] != after[name] for name in before) <= 2 * len(space.strides) + 8
    assert changed >= 45


def test_choosing():
    mask = named_mask("unet", 4)
    points = [Point(mask, 0.4, 1.0, 10), Point(mask, 0.595, 3.0, 30), Point(mask, 0.6, 9.0, 90)]
    assert choose(points, None) is points[1]  # nearly the best, at a third of its cost
    assert choose(points, Budget("ms", 2.9)) is points[0]
    assert choose(points, Budget("multiply-adds", 100)) is points[2]
    with pytest.raises(UseError, match=r"--budget_ms 0.5: no mask of the front is within it, the cheapest costs 1 ms"):
        choose(points, Budget("ms", 0.5))
    with pytest.raises(UseError, match="the front is empty"):
        choose([], None)


def test_bad_fronts_are_one_line(here, capfd):
    words = ["no mask of the front is within it, the cheapest costs"]
    fails(capfd, prune_prune.main, ["--budget_ms", "0.01"], words)
    fails(capfd, prune_prune.main, ["--checkpoint", "runs/s/checkpoints/last.pt"], ["name the run by --run"])
    file = Path("runs/s/front/front.json")
    content = json.loads(file.read_text())
    content["points"][0]["file"] = "../../mask.npy"
    file.write_text(json.dumps(content))
    fails(capfd, prune_prune.main, [], ["its points name no mask files"])
    content["points"][0]["file"] = "00.npy"
    file.write_text(json.dumps(content))
    Path("runs/s/front/00.npy").unlink()
    fails(capfd, prune_prune.main, [], ["names 00.npy, which is gone", "--resume runs/s"])
    file.unlink()
    fails(capfd, prune_prune.main, [], ["the search is not finished, or the file is gone"])
    assert not Path("mask.npy").exists()


def test_bad_flags_leave_nothing(here, capfd):
    flags = command_line("x")
    fails(capfd, search_run.main, [*flags, "--budget_ms", "0.5"], ["the least that any mask costs"])
    fails(capfd, search_run.main, [*flags, "--held_out", "0"], ["--held_out 0"])
    published = [*flags, "--decoder_space", "published", "--first_decoder", "fpn"]
    fails(capfd, search_run.main, published, ["--first_decoder fpn: not of the published space"])
    (here / "one.txt").write_text("000\n")
    one = [*flags, "--training_list", str(here / "one.txt")]
    fails(capfd, search_run.main, one, ["none can be kept back"])
    assert not Path("runs/x").exists()


@pytest.mark.parametrize("killed_at", [5, 14])
def test_a_search_killed_while_it_scores_goes_on_with_its_candidates(here, monkeypatch, killed_at):
    from sparsemask.search.connectivity.scoring import Scorer

    plain, calls = Scorer.__call__, []

    def dying(self, mask, times=1, draws=1):
        if len(calls) == killed_at:
            raise RuntimeError("as if killed")
        calls.append((encoding_key(mask), times))
        return plain(self, mask, times, draws)

    flags = ["killed", "--budget_ms", "20", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", dying)
        with pytest.raises(RuntimeError):
            searching(*flags)
    before = list(calls)

    def counting(self, mask, times=1, draws=1):
        calls.append((encoding_key(mask), times))
        return plain(self, mask, times, draws)

    monkeypatch.setattr(Scorer, "__call__", counting)
    assert searching(*flags) == 0
    assert len(before) == killed_at and len(set(calls)) == len(calls)
    fronts = [{(p.score, p.ms) for p in read_front(Path("runs") / name)} for name in ("s", "killed")]
    assert fronts[0] == fronts[1]


def test_several_processes_share_the_candidates(here):
    assert searching("two", "--budget_ms", "20", "--front_workers", "2") == 0
    assert read_front(Path("runs/two"))
    assert not list(Path("runs/two/front").glob("*.worker"))
    assert json.loads(Path("runs/two/run.json").read_text())["front"]["candidates"] <= 12
