"""The ground truth of the connectivity search: its tables, what is read from them, and how their masks are drawn."""

import gzip
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from bench import front_picture, mask_table, mask_truth
from bench.mask_data import Log, add_confusion, batch_indices, learning_rates, mean_iou, spread_evenly
from sparsemask.errors import UseError
from sparsemask.masks.decoder import as_decoder
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def entries():
    """Masks of a small table."""
    return mask_table.table_masks(24, 65)


@pytest.fixture
def table(tmp_path, entries):
    """A table whose scores are known: its masks, its content and its file."""
    rng = np.random.default_rng(0)
    settings = {"pictures": {"name": "sample", "crop": 65, "held_out": 6}, "budget": {"steps": 5, "batch": 2}}
    settings["seeds"] = [0, 1]
    results = [
        {"mask": number, "seed": seed, "miou": float(number / 100 + 0.02 * rng.random())}
        for number in range(len(entries))
        for seed in (0, 1)
    ]
    made = mask_table.make_table(settings, entries, results, [])
    path = tmp_path / "mask_table_sample.json.gz"
    mask_table.write_table(path, made)
    return entries, made, path


def test_a_table_is_read_as_it_was_written(table):
    entries, made, path = table
    truth = mask_truth.load_truth(path)
    assert truth.masks == [entry.mask for entry in entries]
    assert truth.names == [entry.name for entry in entries]
    assert truth.miou.tolist() == [row["miou"] for row in made["rows"]]
    assert truth.number("dense") == truth.number(as_decoder(named_mask("dense", 9), 64))
    assert truth.number("no such mask") is None
    before = path.read_bytes()
    mask_table.write_table(path, made)
    assert path.read_bytes() == before


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 12, 60)  # with ties
    second = first + rng.normal(0, 4, 60)
    rho, low, high = mask_truth.rank_correlation(first, second)
    assert rho == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert low < rho < high and high - low < 0.5
    assert np.isnan(mask_truth.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])[0])


def test_scores_are_compared_with_the_truth(table):
    truth = mask_truth.load_truth(table[2])
    assert truth.spearman(truth.score)[0] == pytest.approx(1)
    assert truth.spearman(-truth.score)[0] == pytest.approx(-1)
    some = {mask: float(score) for mask, score in zip(truth.masks[:9], truth.score, strict=False)}
    assert truth.spearman(some)[0] == pytest.approx(1)
    with pytest.raises(UseError, match="2 scores for"):
        truth.spearman([0.1, 0.2])
    assert 0.9 < truth.agreement()[0] <= truth.ceiling() <= 1


def test_the_percentile_counts_masks_of_at_most_a_cost(table):
    truth = mask_truth.load_truth(table[2])
    costs = truth.cost("multiply_adds")
    limit = float(np.median(costs))
    inside = np.flatnonzero(costs <= limit)
    best = inside[truth.score[inside].argmax()]
    assert truth.percentile(1.0, limit) == 100 and truth.percentile(-1.0, limit) == 0
    assert truth.percentile(truth.score[best], limit) == pytest.approx(100 * (1 - 0.5 / len(inside)))
    with pytest.raises(UseError, match="no mask of at most 1; the least is"):
        truth.percentile(0.5, 1)
    with pytest.raises(UseError, match="no costs '97/1'"):
        truth.percentile(0.5, 1, "97/1")


def test_the_front_is_what_nothing_beats(table):
    truth = mask_truth.load_truth(table[2])
    costs = truth.cost("multiply_adds")
    front = truth.front()
    for number in range(len(costs)):
        better = (costs <= costs[number]) & (truth.score > truth.score[number])
        assert (number in front) == (not better.any())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(format=7), "format 7"),
        (lambda t: t["rows"].append(t["rows"][0]), "different masks"),
        (lambda t: t["rows"][0].update(miou=[1.5, 0.1]), "between 0 and 1"),
        (lambda t: t["rows"][0].update(mask=[1, 2, 3]), "not a decoder mask"),
        (lambda t: t["ms"].update({"97/1": [1.0]}), "positive cost"),
        (lambda t: t.pop("rows"), "not a table"),
    ],
)
def test_a_table_that_is_none_is_refused(table, change, words):
    _, made, path = table
    change(made)
    mask_table.write_table(path, made)
    with pytest.raises(UseError, match=words):
        mask_truth.load_truth(path)


def test_files_that_are_no_tables_are_refused(tmp_path):
    path = tmp_path / "mask_table_x.json.gz"
    with pytest.raises(UseError, match="no such table"):
        mask_truth.load_truth(path)
    for content in (b"nothing", gzip.compress(b"{"), gzip.compress(b"[]")):
        path.write_bytes(content)
        with pytest.raises(UseError, match="not a table of masks"):
            mask_truth.load_truth(path)


def test_docs_follow_from_the_tables_of_the_repository():
    page, found = mask_truth.DOCS.read_text(encoding="utf-8"), mask_truth.tables()
    assert (mask_truth.BEGIN in page) == bool(found)
    if found:
        assert mask_truth.docs_block(found) in page, "python bench/mask_truth.py --docs"
    for truth in found:
        assert len(truth.masks) >= 300 and truth.miou.shape[1] >= 2


def test_the_block_in_the_docs_is_replaced(table):
    truth = mask_truth.load_truth(table[2])
    block = mask_truth.docs_block([truth])
    assert f"{len(truth.masks)} masks" in block and "| dense " in block
    first = mask_truth.docs_with_block("# Page\n\ntext\n", block)
    assert first.startswith("# Page\n\ntext\n\n## ") and block in first
    second = mask_truth.docs_with_block(first, f"{mask_truth.BEGIN}\n\nother\n\n{mask_truth.END}")
    assert "other" in second and block not in second and second.count("## ") == 1


def test_masks_are_spread_over_costs_and_shapes():
    cost = mask_table.DecoderCost(65)
    strides = mask_table.new_encoder(None).strides
    masks = mask_table.spread_masks(30, lambda rng: mask_table.draw(rng, strides), cost, seed=0)
    assert len(set(masks)) == 30
    assert masks == mask_table.spread_masks(30, lambda rng: mask_table.draw(rng, strides), cost, seed=0)
    costs = np.log([cost(mask) for mask in masks])
    low, middle, high = np.histogram(costs, 3, (costs.min(), costs.max()))[0]
    assert low >= 3 and min(middle, high) >= 8  # few masks are as cheap as the cheapest third
    assert len({mask.deepest for mask in masks}) >= 7 and len({len(mask.stages) for mask in masks}) >= 5


@pytest.mark.parametrize("name", ["unet", "sparsemask-voc", "random-7", "fpn", "unet-3x3"])
def test_the_formula_of_multiply_adds_is_what_the_network_executes(name):
    from sparsemask.costs import multiply_adds

    mask = as_decoder(named_mask(name, 9, 3, (32, 32, 32, 16, 16, 8, 4, 2, 2)), 64)
    cost = mask_table.DecoderCost(65)
    network = PrunedNetwork(mask, num_classes=21)
    # The network may compute the whole encoder; the formula counts it as deep as it is used.
    unused = cost.encoder[0] - cost.encoder[mask.deepest]
    executed = multiply_adds(network, (1, 3, 65, 65))
    assert cost(mask) in (executed, executed - unused)


def test_given_features_train_as_the_whole_network_sees_them(tmp_path):
    """A pool's batch through a decoder gives what the network gives on the pictures."""
    torch.manual_seed(0)
    mask = as_decoder(named_mask("random-6", 9, 5), 64)
    network = mask_table.build(mask, mask_table.new_encoder(None)).eval()
    images = torch.randn(3, 3, 65, 65)
    with torch.no_grad():
        end_points = network.backbone(images)
        pool = _pool(end_points, torch.zeros(3, 65, 65, dtype=torch.uint8))
        decoder = mask_table.build(mask, mask_table.GivenFeatures(network.backbone.channels, network.backbone.strides))
        state = {k: v for k, v in network.state_dict().items() if not k.startswith("backbone.")}
        decoder.load_state_dict(state)
        rows = torch.tensor([2, 0])
        got = decoder.eval()(pool.batch(rows, mask_table.read_end_points(mask)), (65, 65))
        expected = network(images[rows], (65, 65))
    torch.testing.assert_close(got, expected, atol=0.02 * float(expected.abs().max()), rtol=0.02)
    read = mask_table.read_end_points(mask)
    assert 0 < len(read) < 9
    unread = pool.batch(rows, read)[min({*range(9)} - read)]
    assert not unread.any() and unread.shape[0] == 2


def _pool(end_points, labels):
    pool = mask_table.FeaturePool.__new__(mask_table.FeaturePool)
    pool.features = [e.permute(0, 2, 3, 1).contiguous().half() for e in end_points]
    pool.labels = labels
    return pool


def test_a_training_depends_on_its_mask_and_seed_alone():
    torch.manual_seed(1)
    backbone = mask_table.new_encoder(None).eval()
    with torch.no_grad():
        end_points = backbone(torch.randn(6, 3, 33, 33))
    pool = _pool(end_points, torch.randint(0, 21, (6, 33, 33), dtype=torch.uint8))
    masks = [as_decoder(named_mask("random-5", 9, seed), 64) for seed in (1, 2)]
    budget = mask_table.Budget(steps=3, batch=2, lr=0.01)
    together = mask_table.train_decoders(masks, 0, pool, pool, budget, "cpu")
    alone = [mask_table.train_decoders([mask], 0, pool, pool, budget, "cpu")[0] for mask in masks]
    assert together == alone
    assert together != mask_table.train_decoders(masks, 1, pool, pool, budget, "cpu")


def test_without_graphs_steps_are_launched_one_by_one(monkeypatch, capsys):
    torch.manual_seed(2)
    with torch.no_grad():
        end_points = mask_table.new_encoder(None).eval()(torch.randn(4, 3, 33, 33))
    pool = _pool(end_points, torch.randint(0, 21, (4, 33, 33), dtype=torch.uint8))
    mask, budget = as_decoder(named_mask("random-3", 9, 1), 64), mask_table.Budget(steps=2, batch=2, lr=0.01)
    indices = batch_indices(4, 2, 2, seed=0)

    def refuse(network, *rest):
        network.fc_conv.weight.data.zero_()  # what warming up has changed
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(mask_table, "_capture", refuse)
    states = []
    for train in (mask_table._train_in_turn, mask_table._train_graphs):
        torch.manual_seed(3)
        features = mask_table.GivenFeatures(mask_table._features().channels, mask_table._features().strides)
        network = mask_table.build(mask, features).train()
        train([network], [mask], pool, indices, budget)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert capsys.readouterr().err == "no CUDA graphs: operation not permitted when stream is capturing\n"


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, entries):
    """Only missing trainings run, longest first; with none missing, nothing is prepared."""
    monkeypatch.setattr(mask_table, "table_masks", lambda count, side: entries[:6])
    prepared, ran = [], []
    monkeypatch.setattr(mask_table, "prepare", lambda *a: prepared.append(a))

    def run_jobs(jobs, begin, work, tasks):
        for task in tasks:
            ran.append((len(task[0]), task[1]))
            if len(ran) == 3:
                raise KeyboardInterrupt
            yield task, ([0.5] * len(task[0]), 1.0)

    monkeypatch.setattr(mask_table, "run_jobs", run_jobs)
    command = ["--out", str(tmp_path), "--masks", "3", "--together", "2"]
    with pytest.raises(KeyboardInterrupt):
        mask_table.main(command)
    mask_table.main(command)
    truth = mask_truth.load_truth(tmp_path / "mask_table_sample.json.gz")
    assert len(truth.masks) == 6 and len(prepared) == 2
    assert sum(count for count, _ in ran) - ran[2][0] == 12
    mask_table.main(command)
    assert len(prepared) == 2
    with pytest.raises(UseError, match="other settings .budget."):
        mask_table.main([*command, "--steps", "7"])


def test_milliseconds_are_added_without_training(table, monkeypatch, capsys):
    """The table's masks get what the machine's cost table predicts; a second price stands beside the first."""
    asked = []

    class Prices:
        def predict(self, mask):
            return 2.0 + len(mask.stages)

    def cost_table(backbone, size, **options):
        asked.append((backbone, size, options["threads"]))
        return Prices()

    module = types.SimpleNamespace(cost_table=cost_table)
    monkeypatch.setitem(sys.modules, "sparsemask.spaces.connectivity.cost_table", module)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    path = table[2]
    mask_table.main(["--price", str(path), "--size", "97", "256", "--threads", "1"])
    truth = mask_truth.load_truth(path)
    assert asked == [("mobilenet_v2", (97, 97), 1), ("mobilenet_v2", (256, 256), 1)]
    assert truth.cost("97/1").tolist() == [2.0 + len(mask.stages) for mask in truth.masks]
    assert "256/1" in truth.costs and "ms (97×97, 1 thread)" in mask_truth.summary(truth)
    assert truth.percentile(2.0, 3.0, "97/1") == 100
    with pytest.raises(UseError, match="no such table"):
        mask_table.main(["--price", str(path.with_name("absent.gz"))])


def test_the_mean_is_over_classes_of_the_truth():
    total = torch.zeros(4, 3, dtype=torch.long)
    logits = torch.eye(3)[torch.tensor([[[0, 0, 1, 2]]])].permute(0, 3, 1, 2)
    add_confusion(total, logits, torch.tensor([[[0, 0, 0, 255]]], dtype=torch.uint8))
    assert total.sum() == 4 and total[3].tolist() == [0, 0, 1]
    assert mean_iou(total) == pytest.approx(2 / 3)


def test_batches_pass_over_all_rows():
    indices = batch_indices(10, 5, 4, seed=3)
    assert indices.shape == (5, 4)
    assert sorted(indices.flatten()[:10].tolist()) == sorted(indices.flatten()[10:].tolist()) == list(range(10))
    assert indices.tolist() != batch_indices(10, 5, 4, seed=4).tolist()
    rates = learning_rates(100)
    assert rates.max() <= 1 and rates[0] < 0.1 and rates[-1] < 0.05 and rates.argmax() < 20
    assert spread_evenly(list("abcdef"), 3) == ["a", "c", "e"]


def test_results_survive_a_kill(tmp_path):
    log = Log(tmp_path, {"steps": 3})
    log.add({"mask": 1, "miou": 0.5})
    with log.path.open("a") as file:
        file.write('{"mask": 2, "mi')
    again = Log(tmp_path, {"steps": 3})
    assert again.rows() == [{"mask": 1, "miou": 0.5}]
    again.add({"mask": 2, "miou": 0.25})
    assert again.rows() == [{"mask": 1, "miou": 0.5}, {"mask": 2, "miou": 0.25}]
    with pytest.raises(UseError, match="other settings .steps."):
        Log(tmp_path, {"steps": 4})


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("optuna", "tensorboardX", "matplotlib", "tensorboard"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Blocker())
sys.argv = ["mask_table.py", "--help"]
import bench.mask_table, bench.decoders, bench.mask_truth
bench.mask_table.main()
"""


def test_the_tables_need_neither_optuna_nor_tensorboard():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--check" in done.stdout


def test_the_front_is_drawn_with_its_names(table, tmp_path):
    figures = {"set": "voc", "networks": {}}
    for number, (kind, name) in enumerate(
        [("searched", "a"), ("named", "unet"), ("hand-made", "FPN"), ("random", "r")]
    ):
        ms = {"256/1": {"eager": 10.0 + number}}
        figures["networks"][name] = {"kind": kind, "multiply_adds": 10**9, "ms": ms, "miou": [0.4 + number / 100, 0.45]}
    path = tmp_path / "decoders.json"
    path.write_text(json.dumps(figures))
    points, words, _ = front_picture.read_points(path, "256/1", "eager")
    assert [point.cost for point in points] == [10, 11, 12, 13] and "256×256, 1 thread" in words
    assert [point.name for point in front_picture.front_of(points)] == ["a", "unet", "FPN", "r"]
    with pytest.raises(UseError, match="no milliseconds '97/1'"):
        front_picture.read_points(path, "97/1", "eager")
    front_picture.main([str(path), "--out", str(tmp_path / "front.png")])
    front_picture.main([str(table[2]), "--out", str(tmp_path / "table.png")])
    assert (tmp_path / "front.png").stat().st_size > 5000 and (tmp_path / "table.png").stat().st_size > 5000


def test_found_masks_and_the_table_s_have_one_machine_s_milliseconds(table, tmp_path):
    path = Path(table[2])
    points, _, name = front_picture.read_points(path, None, "eager")
    ms = [100.0 + number for number in range(len(points))]
    cost = "97/1"
    found = {"set": name, "cost": cost, "found": [{"run": "a", "ms": 7.0, "miou": [0.5]}], "table_ms": ms}
    (tmp_path / "found.json").write_text(json.dumps(found))
    drawn = front_picture.with_found(points, tmp_path / "found.json", name, cost)
    assert [point.cost for point in drawn] == [*ms, 7.0]
    assert [point.scores for point in drawn[:-1]] == [point.scores for point in points]
    with pytest.raises(UseError, match="not of"):
        front_picture.with_found(points[1:], tmp_path / "found.json", name, cost)
