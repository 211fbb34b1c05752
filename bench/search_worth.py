"""What searches are worth by the ground truth: nothing is trained but the decoders that they found.

    python bench/search_worth.py --table bench/data/mask_table_sample.json.gz --run runs/NAME [--run runs/OTHER ...]
    python bench/search_worth.py --partial runs-table-sample --run runs/NAME       a table that is not finished yet

For every run, by the retrained masks of bench/mask_table.py:

- one-shot: every mask of the table is scored with the run's own network, as the search scores candidates; the rank
  correlation of these scores with the truth, over all masks and within each third of cost.
- The masks that the run gives, retrained as the table's masks were: the same features, steps and seeds. Of a one-shot
  search these are the picks from its front at three budgets, a quarter, half and three quarters of the way from the
  cheapest mask to the dense decoder; of the others the pruned mask. Each is placed among the table's masks of at most
  its milliseconds, and beside the eight random masks of the table that are nearest in milliseconds.

The table's named masks stand beside them. All milliseconds are predicted by one cost table of the machine at hand.
Finished scores and trainings are lines of OUT/results.jsonl: the command goes on where it was stopped. The result is
OUT/worth.md, and OUT/found.json, which `bench/front_picture.py --found` draws among the table's masks.

The features are those that the table was made with (`--features`, the folder that `bench/mask_table.py --out` names).
Where they are gone they are made anew; one mask of the table is always trained again, to see that its score comes back.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.mask_data import Log, Pictures, read_log, spread_evenly
from bench.mask_table import (
    BACKBONE,
    DEPTH,
    N_CLASS,
    Budget,
    decoder_job,
    kept_masks,
    make_table,
    pack,
    prepare,
    run_jobs,
    write_table,
)
from bench.mask_truth import BUDGETS, Truth, load_truth
from sparsemask import runs, training_setup
from sparsemask.datasets import backbone_weights
from sparsemask.devices import arithmetic
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError, command, say
from sparsemask.files import read_json, sha256, write_json, write_text
from sparsemask.masks.decoder import MULTIPLE, DecoderMask, as_decoder
from sparsemask.search import run as search_run
from sparsemask.search.connectivity import FAMILY
from sparsemask.search.connectivity.one_shot_front import OneShotBuilt
from sparsemask.search.connectivity.scoring import Scorer
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.budget import Budget as CostBudget
from sparsemask.spaces.connectivity.budget import Costs, open_costs
from sparsemask.spaces.connectivity.budget_rules import prune_to_budget
from sparsemask.spaces.connectivity.cost_table import cost_table
from sparsemask.spaces.connectivity.front_files import choose, read_front
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.prune_rules import prune_report
from sparsemask.tables import markdown_table
from sparsemask.training_setup import Context

RANDOM = 8  # random masks of about a pick's milliseconds
_AGREE = 0.02  # of mean IoU: a mask of the table that is trained again comes nearer than that


# --- runs ------------------------------------------------------------------------------------------------------------


class Search:
    """A finished search run and its network.

    Args:
        folder: of the run.

    Raises:
        UseError: not a search of decoders for the table's encoder.
    """

    def __init__(self, folder: Path):
        run = runs.find(folder)
        if not run.last.exists():
            raise UseError(f"{folder}: the run has no checkpoint yet; go on with it by --resume {folder}")
        state = checkpoint.load(run.last, "connectivity")
        if state["verb"] != "search":
            raise UseError(f"{folder}: a run of '{state['verb']}'; give search runs")
        parser = search_run.parser("connectivity")
        config = parser.resolve(checkpoint.saved_flags(state, parser, run.last))
        for name, wanted in (("backbone_name", BACKBONE), ("depth", DEPTH), ("n_class", N_CLASS)):
            if config[name] != wanted:
                raise UseError(f"{folder}: a search with {name} {config[name]}; the table's masks have {wanted}")
        task = training_setup.open_task(config)
        where = arithmetic(config.device.gpu, config.device.type)
        self.context = Context(task.config, run, where, task, state)
        self.name, self.digest, self.way = run.folder.name, sha256(run.last), config.family.way
        self.built = FAMILY.build(self.context)
        self.built.model.load_state_dict(state["model"])
        self.built.model.to(where.device, where.parameters)

    @property
    def config(self) -> Any:
        """The run's configuration."""
        return self.context.config

    def scorer(self) -> Scorer:
        """What the search scored its candidates with; stages of any width that is a multiple of 8 can be scored."""
        built = self.built
        if not isinstance(built, OneShotBuilt):
            raise UseError(f"{self.name}: a {self.way} search, which scores no candidates")
        built.model.widths = tuple(range(MULTIPLE, built.model.depth + 1, MULTIPLE))
        return Scorer(built.model, built.task, built.held, self.config, self.context.arithmetic)

    def scores(self, mask: DecoderMask) -> bool:
        """Whether its network was trained for decoders like this one, apart from the widths of stages."""
        return self.built.decoders.wide or is_published(mask)

    def trained_width(self, mask: DecoderMask) -> bool:
        """Whether every stage has one of the widths that its network was trained at."""
        return set(mask.widths[mask.stages].tolist()) <= set(self.built.decoders.widths)

    def pruned(self) -> tuple[str, DecoderMask]:
        """The mask that pruning gives, and by what bound.

        Raises:
            UseError: the weights leave no network.
        """
        section = self.config.family
        weights = [weight.detach().cpu().numpy() for weight in self.built.model.raw_weights()]
        report = prune_report(weights, section.thres)
        if section.budget is not None and not report.problem:
            costs = open_costs(self.config, self.context.run, unit=section.budget.unit)
            report = prune_to_budget(weights, section.thres, section.budget, costs)
        if report.problem:
            raise UseError(f"{self.context.run.folder}: no mask: {report.problem}")
        bound = f"weights above {section.thres:g}" if section.budget is None else section.budget.text()
        return bound, as_decoder(report.mask, DEPTH)


def is_published(mask: DecoderMask) -> bool:
    """Whether a mask is of the published space: 1x1 convolutions of one width, the last stage as output."""
    widths = mask.widths[mask.stages]
    return not mask.context and not mask.operations.any() and mask.output == len(mask) - 1 and (widths == DEPTH).all()


# --- tables ----------------------------------------------------------------------------------------------------------


def partial_table(folder: Path, out: Path) -> Path:
    """Write a table of the masks that have all their seeds in a folder of mask_table.py's, which is only read.

    Returns:
        Its file, in `out`.

    Raises:
        UseError: no such folder, or no mask is finished.
    """
    if not (folder / "settings.json").is_file() or not (folder / "masks.json").is_file():
        raise UseError(f"{folder}: no results of bench/mask_table.py in it")
    settings = read_json(folder / "settings.json")
    entries = kept_masks(folder / "masks.json", settings["masks"], settings["pictures"]["crop"])
    table = make_table(settings, entries, read_log(folder / "results.jsonl"), [])
    if not table["rows"]:
        raise UseError(f"{folder}: no mask has all its seeds yet")
    path = out / f"mask_table_{table['set']}.json.gz"
    write_table(path, table)
    say(f"{len(table['rows'])} masks of {len(entries)} have all their seeds")
    return path


def priced(truth: Truth, prices: Costs, cost: str) -> Truth:
    """A table whose milliseconds are those of a cost table; a line where it had others."""
    ms = np.array([prices.predict(mask) for mask in truth.masks])
    former = truth.costs.get(cost)
    if former is not None and not np.allclose(former, ms, rtol=1e-3):
        error = float(np.median(np.abs(ms / former - 1)))
        say(f"the table's milliseconds were predicted by other measurements (median difference {error:.1%}): anew here")
    return replace(truth, costs={**truth.costs, cost: ms})


def subset(truth: Truth, numbers: Sequence[int]) -> Truth:
    """The table of some of its masks."""
    return replace(
        truth,
        masks=[truth.masks[n] for n in numbers],
        names=[truth.names[n] for n in numbers],
        miou=truth.miou[list(numbers)],
        costs={key: values[list(numbers)] for key, values in truth.costs.items()},
        whole={},
    )


def thirds(costs: np.ndarray) -> list[np.ndarray]:
    """Numbers of the cheapest third, the middle and the dearest."""
    return np.array_split(np.argsort(costs, kind="stable"), 3)


@once
def encoder_strides() -> list[int]:
    """Strides of the end points of the table's encoder, deepest first."""
    return list(backbones.strides(BACKBONE))


def budget(truth: Truth, share: float, prices: Costs, cost: str) -> float:
    """As :meth:`Truth.budget`, the dense decoder's cost predicted where the table lacks it."""
    least, dense = truth.cost(cost).min(), prices.predict(named_mask("dense", len(encoder_strides())))
    return float(least + share * (dense - least))


def describe(mask: DecoderMask) -> str:
    """A mask in words: connections, strides of its output and of its deepest end point, what stages do."""
    strides = encoder_strides()
    words = [f"{int(mask.connections.sum())} connections", f"/{strides[mask.deepest]} to /{strides[mask.output]}"]
    counts = [(int((mask.operations[mask.stages] == number).sum()), name) for number, name in ((1, "sep"), (2, "3x3"))]
    words += [f"{count} {name}" for count, name in counts if count]
    return ", ".join(words + ["context"] * bool(mask.context))


# --- scores and trainings --------------------------------------------------------------------------------------------


def key(mask: DecoderMask) -> str:
    """A short word for a mask, in results."""
    return hashlib.sha256(mask.packed().numpy().tobytes()).hexdigest()[:16]


def score_masks(search: Search, truth: Truth, log: Log, limit: int = 0) -> np.ndarray:
    """(N,) scores of the table's masks by the run's network, NaN where there is none; finished ones are read.

    With a limit only so many masks are scored, spread over the multiply-adds.
    """
    done = {row["mask"]: row["score"] for row in log.rows() if row.get("run") == search.digest}
    order = np.argsort(truth.cost("multiply_adds"), kind="stable").tolist()
    scored = [truth.masks[number] for number in order if search.scores(truth.masks[number])]
    scored = spread_evenly(scored, limit) if limit else scored
    missing = [mask for mask in scored if key(mask) not in done]
    scorer, began = search.scorer() if missing else None, time.monotonic()
    for count, mask in enumerate(missing, 1):
        done[key(mask)] = score = scorer(mask)
        log.add({"run": search.digest, "mask": key(mask), "score": score})
        if count % 25 == 0 or count == len(missing):
            say(f"{search.name}: {count}/{len(missing)} masks scored, {time.monotonic() - began:.0f} s")
    return np.array([done.get(key(mask), np.nan) for mask in truth.masks])


@dataclass(frozen=True)
class Trainer:
    """Trains decoders as those of a table were trained.

    Attributes:
        truth: the table.
        log: keeps what is finished.
        features: the folder of mask_table.py's results, where the encoder's features lie.
        root: the devkit, for a table of VOC.
        pretrained: the encoder's ImageNet weights, for a table of VOC.
        jobs: processes.
        together: decoders side by side in one of them.
    """

    truth: Truth
    log: Log
    features: Path
    root: str = ""
    pretrained: str | None = None
    jobs: int = 1
    together: int = 4

    @cached_property
    def _begin(self) -> tuple:
        """What a process needs; the features are made where they are not there."""
        settings = self.truth.settings
        fields = {**settings["pictures"], "root": self.root, "scales": tuple(settings["pictures"]["scales"])}
        cache = prepare(Pictures(**fields), self.features, self.pretrained, "cpu", settings["encoder_steps"])
        return str(cache.folder), "cpu", Budget(**settings["budget"]), self.pretrained

    def known(self, mask: DecoderMask) -> list[float] | None:
        """Mean IoU by seed where it is known: from the table, or trained before."""
        number = self.truth.number(mask)
        if number is not None:
            return self.truth.miou[number].tolist()
        done = self._done()
        found = [done.get((key(mask), seed)) for seed in self.truth.settings["seeds"]]
        return None if None in found else found

    def _done(self) -> dict[tuple[str, int], float]:
        return {(row["mask"], row["seed"]): row["miou"] for row in self.log.rows() if "miou" in row}

    def train(self, wanted: Sequence[tuple[DecoderMask, int]]) -> dict[tuple[str, int], float]:
        """Mean IoU of (mask, seed) trainings; those that are finished are read."""
        done, groups = self._done(), []
        missing = [(mask, seed) for mask, seed in dict.fromkeys(wanted) if (key(mask), seed) not in done]
        for seed in sorted({seed for _, seed in missing}):
            masks = [mask for mask, of in missing if of == seed]
            groups += [(masks[i : i + self.together], seed) for i in range(0, len(masks), self.together)]
        if groups:
            tasks = [([pack(mask) for mask in masks], seed) for masks, seed in groups]
            members = {id(task): masks for task, (masks, _) in zip(tasks, groups, strict=True)}
            for task, (scores, seconds) in run_jobs(self.jobs, self._begin, decoder_job, tasks):
                for mask, miou in zip(members[id(task)], scores, strict=True):
                    self.log.add({"mask": key(mask), "seed": task[1], "miou": miou, "seconds": round(seconds, 1)})
                say(f"{len(scores)} decoders trained with seed {task[1]}, {seconds:.0f} s")
        return self._done()

    def train_all(self, masks: Sequence[DecoderMask]) -> None:
        """Train what is not known, with all seeds of the table."""
        seeds = self.truth.settings["seeds"]
        self.train([(mask, seed) for mask in masks if self.known(mask) is None for seed in seeds])

    def control(self) -> tuple[int, float, float]:
        """The table's cheapest mask trained again with the first seed: its number, the table's score, the new one."""
        number = int(self.truth.cost("multiply_adds").argmin())
        mask, seed = self.truth.masks[number], self.truth.settings["seeds"][0]
        return number, float(self.truth.miou[number, 0]), self.train([(mask, seed)])[key(mask), seed]


# --- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pick:
    """A mask that a run gives, or why it gives none.

    Attributes:
        run: its name.
        bound: the budget in words.
        mask: None where there is none.
        most: the budget in milliseconds; None where the run has another bound.
        problem: why there is none.
    """

    run: str
    bound: str
    mask: DecoderMask | None
    most: float | None = None
    problem: str = ""


def picks(search: Search, truth: Truth, prices: Costs, cost: str) -> list[Pick]:
    """The masks that a run gives: at three budgets from its front, or the one that pruning gives."""
    if search.way != "one-shot":
        return [Pick(search.name, *search.pruned())]
    points = [replace(point, ms=prices.predict(point.mask)) for point in read_front(search.context.run.folder)]
    found = []
    for share in BUDGETS:
        most = budget(truth, share, prices, cost)
        bound = f"{share:.0%}: {most:.2f} ms"
        try:
            mask = as_decoder(choose(points, CostBudget("ms", most)).mask, DEPTH)
            found.append(Pick(search.name, bound, mask, most))
        except UseError as error:
            found.append(Pick(search.name, bound, None, most, str(error)))
    return found


def best_by_scores(search: Search, truth: Truth, scores: np.ndarray, prices: Costs, cost: str) -> list[Pick]:
    """The masks of the table that a run's scores put first within each budget: a search of the table alone."""
    found, costs = [], truth.cost(cost)
    for share in BUDGETS:
        most = budget(truth, share, prices, cost)
        inside = np.flatnonzero((costs <= most) & ~np.isnan(scores))
        if len(inside):
            mask = truth.masks[inside[scores[inside].argmax()]]
            found.append(Pick(f"{search.name}, table by its scores", f"{share:.0%}: {most:.2f} ms", mask, most))
    return found


def nearest_random(truth: Truth, mask: DecoderMask, ms: float, cost: str) -> np.ndarray:
    """Numbers of the random masks of the table that are nearest in milliseconds to a mask, itself left out."""
    numbers = [n for n, name in enumerate(truth.names) if name is None and truth.masks[n] != mask]
    order = np.argsort(np.abs(truth.cost(cost)[numbers] - ms), kind="stable")
    return np.array(numbers, int)[order[:RANDOM]]


def correlation_rows(truth: Truth, scores: np.ndarray, cost: str, trained: np.ndarray) -> Iterator[dict]:
    """Rank correlations of scores with the truth: of all masks, of those of trained widths, within thirds of cost.

    Args:
        truth: the table.
        scores: (N,), NaN where there is none.
        cost: by which the masks are divided.
        trained: (N,) whether the search's network was trained at the widths of a mask.
    """
    known = np.flatnonzero(~np.isnan(scores))
    parts = {"all": known, "of widths that the search trains": known[trained[known]]}
    costs = truth.cost(cost)[known]
    for name, part in zip(("cheapest third", "middle third", "dearest third"), thirds(costs), strict=True):
        words = f"{name}: {costs[part].min():.2f} to {costs[part].max():.2f} ms" if len(part) else name
        parts[words] = known[part]
    for name, numbers in parts.items():
        if len(numbers):
            inside = subset(truth, numbers)
            rho, low, high = inside.spearman(scores[numbers])
            most = inside.ceiling() if inside.miou.shape[1] > 1 else float("nan")
            interval = f"{low:.2f} to {high:.2f}"
            yield {"masks": name, "count": len(numbers), "rho": rho, "interval": interval, "ceiling": most}


def pick_row(pick: Pick, truth: Truth, known: Callable, prices: Costs, cost: str) -> dict:
    """What a pick reaches, beside the table's masks of at most its cost and random ones of about its cost."""
    row: dict[str, Any] = {"run": pick.run, "bound": pick.bound, "mask": pick.problem}
    if pick.mask is None:
        return row
    ms, miou = prices.predict(pick.mask), known(pick.mask)
    score = float(np.mean(miou))
    rivals = nearest_random(truth, pick.mask, ms, cost)
    random = truth.score[rivals]
    error = f" ± {random.std(ddof=1) / len(random) ** 0.5:.3f}" if len(random) > 1 else ""
    row |= {"mask": describe(pick.mask), "ms": ms, "miou": score, "seeds": ", ".join(f"{value:.3f}" for value in miou)}
    row["percentile"] = percentile(truth, score, ms, cost)
    row["inside"] = int((truth.cost(cost) <= ms).sum())
    if pick.most is not None:
        row["of_budget"] = percentile(truth, score, pick.most, cost)
    if len(random):
        row |= {"random": f"{random.mean():.3f}{error}", "best": float(random.max())}
        row["above"] = f"{int((random < score).sum())} of {len(random)}"
        times = truth.cost(cost)[rivals]
        row["range"] = f"{times.min():.2f} to {times.max():.2f}"
    return row


def percentile(truth: Truth, miou: float, ms: float, cost: str) -> float | None:
    """As :meth:`Truth.percentile`; None where the table has no mask so cheap."""
    return truth.percentile(miou, ms, cost) if (truth.cost(cost) <= ms).any() else None


def named_rows(found: Sequence[dict], truth: Truth, cost: str) -> Iterator[dict]:
    """The table's named masks, and which of the picks reach at least their mean IoU in less time."""
    for number in np.argsort(truth.cost(cost), kind="stable"):
        if truth.names[number] is None:
            continue
        ms, miou = float(truth.cost(cost)[number]), float(truth.score[number])
        better = [row for row in found if row.get("ms", ms) < ms and row["miou"] >= miou]
        beaten = "; ".join(f"{row['run']} ({row['ms']:.2f} ms, {row['miou']:.3f})" for row in better)
        row = {"name": truth.names[number], "ms": ms, "miou": miou, "beaten": beaten or "-"}
        yield {**row, "percentile": percentile(truth, miou, ms, cost)}


def write_report(
    truth: Truth, cost: str, dense: float, correlations: Mapping[str, list[dict]], found: list[dict], control: str
) -> str:
    """The whole in Markdown.

    Args:
        truth: the table.
        cost: which milliseconds of it.
        dense: those of the dense decoder.
        correlations: rows of :func:`correlation_rows` by run.
        found: rows of :func:`pick_row`.
        control: whether the table's scores come back.
    """
    side, threads = cost.split("/")
    unfinished = ", not finished" if truth.names.count(None) < truth.settings["masks"] else ""
    lines = [
        f"Table '{truth.name}'{unfinished}: {len(truth.masks)} masks, {truth.miou.shape[1]} seeds; milliseconds "
        f"predicted at {side}×{side}, {threads} thread(s). Budgets: shares of the way from the table's cheapest mask "
        f"({truth.cost(cost).min():.2f} ms) to the dense decoder ({dense:.2f} ms). {control}"
    ]
    columns = {"masks": "masks", "count": "number", "rho": ("Spearman", ".2f"), "interval": "95 % interval"}
    columns["ceiling"] = ("most that can be reached", ".2f")
    for run, rows in correlations.items():
        lines += [f"Scores of **{run}** against the truth:", markdown_table(rows, columns)]
    if found:
        columns = {"run": "run", "bound": "budget", "mask": "mask", "ms": ("ms", ".2f"), "miou": ("mIoU", ".3f")}
        columns |= {"seeds": "seeds", "percentile": ("percentile", ".0f"), "inside": "masks of at most its ms"}
        columns |= {"of_budget": ("percentile within the budget", ".0f"), "random": f"mean of {RANDOM} random masks"}
        columns |= {"best": ("best of them", ".3f"), "above": "above", "range": "their ms"}
        lines += ["Masks found, retrained as the table's:", markdown_table(found, columns)]
    if named := list(named_rows(found, truth, cost)):
        columns = {"name": "named mask", "ms": ("ms", ".2f"), "miou": ("mIoU", ".3f")}
        columns |= {"percentile": ("percentile", ".0f"), "beaten": "at least its mIoU in less time"}
        lines.append(markdown_table(named, columns))
    return "\n\n".join(lines) + "\n"


def worth(options: argparse.Namespace) -> str:
    """Score, train and compare; returns the report."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    path = partial_table(Path(options.partial), out) if options.partial else Path(options.table)
    truth = load_truth(path)
    pretrained = None
    if truth.name == "voc":
        file = backbone_weights(BACKBONE, options.pretrained_model)
        if not options.voc_root or file is None:
            raise UseError(f"{path}: a table of VOC: give --voc_root and --pretrained_model, as it was made with")
        pretrained = str(file)
    side, cost = truth.settings["pictures"]["crop"], f"{truth.settings['pictures']['crop']}/{options.threads}"
    searches = [Search(Path(folder)) for folder in options.run]
    for search in searches:
        if (truth.name == "sample") != bool(search.config.data.sample):
            raise UseError(f"{search.name}: a search on other pictures than those of the table '{truth.name}'")
    torch.set_num_threads(options.threads)
    prices = cost_table(BACKBONE, (side, side), depth=DEPTH, n_class=N_CLASS, threads=options.threads, progress=say)
    truth = priced(truth, prices, cost)
    log = Log(out, truth.settings)
    features = Path(options.features or options.partial or "runs-mask-table")
    root = os.fspath(Path(options.voc_root).resolve()) if options.voc_root else ""
    trainer = Trainer(truth, log, features, root, pretrained, options.jobs, options.together)
    correlations, chosen, from_runs = {}, [], []
    for search in searches:
        if search.way == "one-shot":
            scores = score_masks(search, truth, log, options.scored)
            trained = np.array([search.trained_width(mask) for mask in truth.masks])
            correlations[search.name] = list(correlation_rows(truth, scores, cost, trained))
            chosen += best_by_scores(search, truth, scores, prices, cost)
        mine = picks(search, truth, prices, cost)
        from_runs, chosen = from_runs + mine, chosen + mine
    number, before, after = trainer.control()
    control = f"Mask {number} trained again: {after:.3f}, in the table {before:.3f}."
    if abs(after - before) > _AGREE:
        control += " **The features are not those of the table: what is retrained here cannot be compared with it.**"
    trainer.train_all([pick.mask for pick in chosen if pick.mask is not None])
    found = [pick_row(pick, truth, trainer.known, prices, cost) for pick in chosen]
    own = [{"run": p.run, "ms": prices.predict(p.mask), "miou": trainer.known(p.mask)} for p in from_runs if p.mask]
    # With the table's own milliseconds of this machine: those in its file may be another's.
    table_ms = truth.cost(cost).tolist()
    write_json(out / "found.json", {"set": truth.name, "cost": cost, "found": own, "table_ms": table_ms})
    return write_report(truth, cost, budget(truth, 1.0, prices, cost), correlations, found, control)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--table", help="a table of bench/mask_table.py")
    source.add_argument("--partial", metavar="OUT", help="a folder of its results: the masks that are finished there")
    parser.add_argument("--run", action="append", default=[], help="a search run's folder; may be repeated")
    parser.add_argument("--out", default="runs-search-worth", help="folder of results")
    parser.add_argument("--features", help="folder of mask_table.py's results (default: OUT of --partial)")
    parser.add_argument("--voc_root", help="the devkit, for a table of VOC")
    parser.add_argument("--pretrained_model", help="ImageNet weights of MobileNetV2, for a table of VOC")
    parser.add_argument("--scored", type=int, default=0, help="masks that a one-shot's network scores; 0: all")
    parser.add_argument("--threads", type=int, default=1, help="of the predicted milliseconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread that train")
    parser.add_argument("--together", type=int, default=4, help="decoders that are trained side by side")
    options = parser.parse_args(argv)
    report = worth(options)
    write_text(Path(options.out) / "worth.md", report)
    print(report)


if __name__ == "__main__":
    sys.exit(command(main)())
