"""What searches are worth by the ground truth: scores of masks, picks retrained as the table's, the report."""

import types
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import mask_data, mask_table, mask_truth, search_worth
from fake_costs import FakeCosts, use_fake_costs
from literal_sparse import one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.masks.decoder import as_decoder
from sparsemask.search import run as search_run
from sparsemask.spaces.connectivity.front_files import read_front
from sparsemask.spaces.connectivity.named_masks import named_mask
from tiny import borrow_kernels
from without_images import without_images

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
MASKS, COST = 6, "33/1"
SMALL = [
    "--crop_size", "33", "--batch_size", "4", "--bn_reestimate", "1", "--n_worker", "0", "--eval_limit", "4",
    "--bn_momentum", "0.1", "--sample", "--search",
]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a table's results (some seeds are not there yet), and with three searches."""
    folder = tmp_path_factory.mktemp("worth")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, without_images():
        use(folder, patch)
        torch.set_num_threads(1)
        pictures = mask_data.choose_pictures(None, crop=33, side=65, views=1, held_out=4, limit=8)
        settings = {"pictures": asdict(pictures), "budget": asdict(mask_table.Budget(steps=2, batch=2, lr=0.005))}
        log = mask_data.Log(folder / "table", {**settings, "masks": MASKS, "seeds": [0, 1], "encoder_steps": 1})
        entries = mask_table.kept_masks(folder / "table/masks.json", MASKS, 33)
        cache = mask_table.prepare(pictures, folder / "table", None, "cpu", 1)
        pools = [mask_table.FeaturePool(cache, part, "cpu", 9) for part in ("train", "val")]
        for seed in (0, 1):
            budget = mask_table.Budget(**settings["budget"])
            scores = mask_table.train_decoders([e.mask for e in entries], seed, *pools, budget, "cpu")
            for number, miou in enumerate(scores):
                if (number, seed) != (len(entries) - 1, 1):
                    log.add({"mask": number, "seed": seed, "miou": miou})
        flags = [*SMALL, "--max_iter", "2"]
        one_shot = [
            "--method",
            "one-shot",
            "--held_out",
            "0.02",
            "--candidates",
            "6",
            "--front_workers",
            "1",
            "--name",
            "one",
        ]
        assert search_run.main([*flags, *one_shot]) == 0
        assert search_run.main([*flags, "--method", "published", "--name", "published"]) == 0
        assert search_run.main([*flags, "--name", "latency", "--budget_ms", "15"]) == 0
    torch.set_num_threads(threads)
    return folder


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with costs made up."""
    patch.chdir(folder)
    patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
    patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    costs = use_fake_costs(patch, 9)
    costs.depth = 64
    patch.setattr(search_worth, "cost_table", lambda *_, **__: costs)


@pytest.fixture
def table(here, monkeypatch, tmp_path):
    """The table of what is finished, priced."""
    use(here, monkeypatch)
    truth = mask_truth.load_truth(search_worth.partial_table(Path("table"), tmp_path))
    return search_worth.priced(truth, FakeCosts(9, 64), COST)


def run(out: Path, *more: str) -> str:
    search_worth.main(["--partial", "table", "--out", str(out), *more])
    return (out / "worth.md").read_text()


def test_searches_are_compared_with_the_truth(here, monkeypatch, tmp_path, capsys):
    """All in one: what is printed follows from the results, and a second call neither scores nor trains."""
    use(here, monkeypatch)
    before = (here / "table/results.jsonl").read_bytes()
    report = run(tmp_path, *(word for name in ("one", "published", "latency") for word in ("--run", f"runs/{name}")))
    assert (
        f"'sample', not finished: {MASKS + 6 - 1} masks, 2 seeds" in report
        and "Scores of **one** against the truth" in report
    )
    assert all(f"| {name} " in report for name in ("unet", "fpn", "dense", "sparseacn", "sparsemask-voc"))
    for words in ("25%: ", "50%: ", "75%: ", "weights above 0.001", "15 ms", "one, table by its scores"):
        assert words in report
    again = next(line for line in report.split("\n") if "trained again" in line).split("trained again: ")[1]
    assert again[:5] == again.split("in the table ")[1][:5]  # the features and the protocol are the table's
    assert "cannot be compared" not in report
    assert (here / "table/results.jsonl").read_bytes() == before
    capsys.readouterr()
    monkeypatch.setattr(search_worth, "run_jobs", lambda *_: pytest.fail("trains again"))
    monkeypatch.setattr(search_worth.Search, "scorer", lambda _: pytest.fail("scores again"))
    assert run(tmp_path, "--run", "runs/one", "--run", "runs/published", "--run", "runs/latency") == report


def test_scores_are_those_of_the_search(here, monkeypatch):
    """A run that is opened again scores its front as the search did, whatever was scored before."""
    use(here, monkeypatch)
    search = search_worth.Search(Path("runs/one"))
    scorer, points = search.scorer(), read_front(Path("runs/one"))
    scorer(as_decoder(named_mask("unet", 9), 64))
    times = search.config.family.final_times  # the front is of the finalists, trained for longer
    assert [scorer(point.mask, times) for point in points] == [point.score for point in points]
    with pytest.raises(UseError, match="scores no candidates"):
        search_worth.Search(Path("runs/published")).scorer()


def test_masks_of_other_widths_are_scored_and_told_apart(here, table):
    search = search_worth.Search(Path("runs/one"))
    mask = as_decoder(named_mask("unet-3x3", 9, strides=(32, 32, 32, 16, 16, 8, 4, 2, 2), depth=40), 64)
    assert not search.trained_width(mask) and search.trained_width(as_decoder(named_mask("unet", 9), 64))
    assert 0 <= search.scorer()(mask) <= 1
    assert not search_worth.is_published(mask) and search_worth.is_published(as_decoder(named_mask("dense", 9), 64))


def test_a_pruned_mask_is_that_of_the_search(here, monkeypatch):
    use(here, monkeypatch)
    bound, mask = search_worth.Search(Path("runs/latency")).pruned()
    assert bound == "15 ms" and FakeCosts(9, 64).predict(mask) <= 15
    bound, mask = search_worth.Search(Path("runs/published")).pruned()
    assert bound == "weights above 0.001" and int(mask.connections.sum()) == 90


def test_picks_are_the_front_s_best_within_a_budget(here, table):
    costs = FakeCosts(9, 64)
    found = search_worth.picks(search_worth.Search(Path("runs/one")), table, costs, COST)
    points = read_front(Path("runs/one"))
    assert [pick.most for pick in found] == [table.budget(share, COST) for share in mask_truth.BUDGETS]
    for pick in found:
        inside = [point for point in points if costs.predict(point.mask) <= pick.most]
        if not inside:
            assert pick.mask is None and "no mask of the front is within it" in pick.problem
            continue
        assert pick.mask == max(inside, key=lambda point: (point.score, -costs.predict(point.mask))).mask


def test_the_table_by_scores_is_a_pick_of_the_table(table):
    search = types.SimpleNamespace(name="x")
    found = search_worth.best_by_scores(search, table, table.score, FakeCosts(9, 64), COST)
    for pick in found:
        number = table.number(pick.mask)
        assert table.cost(COST)[number] <= pick.most
        assert table.score[number] == table.score[table.cost(COST) <= pick.most].max()
    nothing = np.full(len(table.masks), np.nan)
    assert search_worth.best_by_scores(search, table, nothing, FakeCosts(9, 64), COST) == []


def test_a_row_says_where_a_pick_lies(table):
    costs, number = FakeCosts(9, 64), int(np.argsort(table.cost(COST))[len(table.masks) // 2])
    mask = table.masks[number]
    ms = table.cost(COST)[number]
    pick = search_worth.Pick("x", "b", mask, most=1e9)
    row = search_worth.pick_row(pick, table, lambda _: [0.9, 1.0], costs, COST)
    assert row["miou"] == pytest.approx(0.95) and row["percentile"] == 100 == row["of_budget"]
    assert row["inside"] == int((table.cost(COST) <= ms).sum())
    rivals = search_worth.nearest_random(table, mask, ms, COST)
    assert number not in rivals and all(table.names[n] is None for n in rivals)
    distance = np.abs(table.cost(COST) - ms)
    others = [n for n, name in enumerate(table.names) if name is None and n != number and n not in rivals]
    assert not others or distance[rivals].max() <= distance[others].min()
    assert row["above"] == f"{len(rivals)} of {len(rivals)}" and row["best"] == table.score[rivals].max()
    random = table.score[rivals]
    assert row["random"] == f"{random.mean():.3f} ± {random.std(ddof=1) / len(random) ** 0.5:.3f}"
    none = search_worth.pick_row(search_worth.Pick("x", "b", None, problem="why"), table, None, costs, COST)
    assert none == {"run": "x", "bound": "b", "mask": "why"}


def test_named_masks_that_are_beaten_say_by_what(table):
    dense, unet = table.number("dense"), table.number("unet")
    ms = table.cost(COST)
    found = [{"run": "a", "ms": ms[unet] - 0.01, "miou": float(table.score[unet])}, {"run": "none"}]
    rows = {row["name"]: row for row in search_worth.named_rows(found, table, COST)}
    assert set(rows) == {name for name in table.names if name} and len(rows) >= 6
    assert rows["unet"]["beaten"].startswith("a (") and rows["unet"]["ms"] == ms[unet]
    assert (rows["dense"]["beaten"] == "-") == (table.score[unet] < table.score[dense])
    found[0]["miou"] -= 1e-6
    rows = {row["name"]: row for row in search_worth.named_rows(found, table, COST)}
    assert rows["unet"]["beaten"] == "-"


def test_budgets_are_the_table_s(table):
    costs = FakeCosts(9, 64)
    for share in (0, 0.25, 1):
        assert search_worth.budget(table, share, costs, COST) == pytest.approx(table.budget(share, COST))
    without = search_worth.subset(table, [n for n, name in enumerate(table.names) if name != "dense"])
    assert search_worth.budget(without, 1, costs, COST) == pytest.approx(table.budget(1, COST))


def test_correlations_are_given_within_thirds_of_cost(table):
    scores, trained = table.score.copy(), np.arange(len(table.masks)) % 2 == 0
    rows = list(search_worth.correlation_rows(table, scores, COST, trained))
    counts = [row["count"] for row in rows]
    assert counts[:2] == [len(table.masks), int(trained.sum())] and sum(counts[2:]) == len(table.masks)
    assert all(row["rho"] == pytest.approx(1) for row in rows)
    thirds = search_worth.thirds(table.cost(COST))
    costs = [table.cost(COST)[part] for part in thirds]
    assert costs[0].max() <= costs[1].min() and costs[1].max() <= costs[2].min()
    # Scores that follow the truth among cheap masks alone: the other thirds say so.
    scores[np.concatenate(thirds[1:])] *= -1
    assert [round(row["rho"]) for row in search_worth.correlation_rows(table, scores, COST, trained)][2:] == [1, -1, -1]
    scores[:3] = np.nan
    assert next(search_worth.correlation_rows(table, scores, COST, trained))["count"] == len(table.masks) - 3


def test_milliseconds_of_a_table_are_those_of_this_machine(table, capsys):
    costs = FakeCosts(9, 64)
    assert table.cost(COST).tolist() == [costs.predict(mask) for mask in table.masks]
    assert not capsys.readouterr().out
    other = replace(table, costs={**table.costs, COST: 2 * table.cost(COST)})
    assert search_worth.priced(other, costs, COST).cost(COST).tolist() == table.cost(COST).tolist()
    assert "predicted by other measurements (median difference 50.0%)" in capsys.readouterr().out


def test_features_of_another_table_are_noticed(here, monkeypatch, tmp_path):
    use(here, monkeypatch)
    monkeypatch.setattr(
        search_worth, "run_jobs", lambda _, __, ___, tasks: ((t, ([0.9] * len(t[0]), 1)) for t in tasks)
    )
    assert "cannot be compared with it" in run(tmp_path)


def test_bad_input_is_one_line(here, monkeypatch, tmp_path):
    use(here, monkeypatch)
    with pytest.raises(UseError, match="no results of bench/mask_table.py"):
        search_worth.main(["--partial", str(tmp_path)])
    with pytest.raises(UseError, match="no run here"):
        run(tmp_path, "--run", "runs/absent")
    flags = [*SMALL, "--max_iter", "1", "--name", "thin", "--depth", "8", "--exp_path"]
    assert search_run.main([*flags, str(tmp_path / "runs")]) == 0
    with pytest.raises(UseError, match="a search with depth 8; the table's masks have 64"):
        run(tmp_path, "--run", str(tmp_path / "runs/thin"))
    (tmp_path / "runs/thin/checkpoints/last.pt").unlink()
    with pytest.raises(UseError, match="no checkpoint yet"):
        run(tmp_path, "--run", str(tmp_path / "runs/thin"))
