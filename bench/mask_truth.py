"""What retrained masks say about a search: reads the tables that bench/mask_table.py has made, trains nothing.

python bench/mask_truth.py              what each table holds
python bench/mask_truth.py --docs       write the same into docs/results/connectivity.md

truth = load_truth("sample")
truth.spearman(scores)                  rank correlation of a search's own scores with the truth, with its interval
truth.percentile(0.61, ms=7.5, cost="97/1")   where a result lies among all masks of at most its milliseconds
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sparsemask.errors import UseError, command
from sparsemask.files import write_text
from sparsemask.masks.decoder import DecoderMask
from sparsemask.tables import markdown_table

FORMAT = 1
DATA = ROOT / "bench" / "data"
DOCS = ROOT / "docs" / "results" / "connectivity.md"
BEGIN, END = "<!-- bench/mask_truth.py --docs: begin -->", "<!-- bench/mask_truth.py --docs: end -->"
BUDGETS = (0.25, 0.5, 0.75)
_TITLES = {"sample": "embedded sample set", "voc": "PASCAL VOC 2012, 739 pictures"}


@dataclass(frozen=True)
class Truth:
    """A table of retrained masks.

    Attributes:
        name: of the set of pictures.
        settings: what the trainings had in common.
        masks: N masks, all different.
        names: of those that have one, else None.
        miou: (N, S), a column a seed.
        costs: (N,) by what is counted: "multiply_adds", and predicted milliseconds by "SIDE/THREADS".
        whole: scores of networks that were trained as a whole, by the mask's number.
    """

    name: str
    settings: dict
    masks: list[DecoderMask]
    names: list[str | None]
    miou: np.ndarray
    costs: dict[str, np.ndarray]
    whole: dict[int, float]

    @cached_property
    def score(self) -> np.ndarray:
        """(N,): mean of the seeds."""
        return self.miou.mean(1)

    def number(self, mask: DecoderMask | str) -> int | None:
        """The number of a mask, or of a name; None where the table lacks it."""
        found = self.names if isinstance(mask, str) else self.masks
        return found.index(mask) if mask in found else None

    def cost(self, cost: str) -> np.ndarray:
        """(N,) of a kind of cost.

        Raises:
            UseError: the table has no such costs.
        """
        if cost not in self.costs:
            raise UseError(
                f"the table '{self.name}' has no costs '{cost}' (known: {', '.join(self.costs)}); "
                "bench/mask_table.py --price adds milliseconds"
            )
        return self.costs[cost]

    def spearman(self, scores: Sequence[float] | Mapping[DecoderMask, float]) -> tuple[float, float, float]:
        """Rank correlation of scores with the truth, and its 95 % bootstrap interval.

        Args:
            scores: one a mask, in the table's order, NaN where there is none; or by mask.
        """
        if isinstance(scores, Mapping):
            scores = [scores.get(mask, np.nan) for mask in self.masks]
        values = np.asarray(scores, float)
        if values.shape != self.score.shape:
            raise UseError(f"{values.size} scores for {len(self.masks)} masks")
        known = ~np.isnan(values)
        return rank_correlation(values[known], self.score[known])

    def percentile(self, miou: float, ms: float, cost: str = "multiply_adds") -> float:
        """Percentage of the masks of at most a cost that a result is better than; a tie counts half.

        Args:
            miou: of the result, trained as the table's masks were.
            ms: the most that a mask may cost.
            cost: what is counted.

        Raises:
            UseError: no mask costs so little, or there are no such costs.
        """
        costs = self.cost(cost)
        rivals = self.score[costs <= ms]
        if not len(rivals):
            raise UseError(f"the table '{self.name}' has no mask of at most {ms:g}; the least is {costs.min():g}")
        return float(100 * ((rivals < miou).mean() + (rivals == miou).mean() / 2))

    def budget(self, share: float, cost: str = "multiply_adds") -> float:
        """The cost at a share of the way from the cheapest mask to the dense one (the dearest, where that lacks)."""
        costs = self.cost(cost)
        dense = self.number("dense")
        return float(costs.min() + share * ((costs.max() if dense is None else costs[dense]) - costs.min()))

    def front(self, cost: str = "multiply_adds") -> list[int]:
        """Numbers of the masks that no other beats in both, by rising cost."""
        costs, front = self.cost(cost), []
        for number in np.lexsort((-self.score, costs)):
            if not front or self.score[number] > self.score[front[-1]]:
                front.append(int(number))
        return front

    def agreement(self) -> tuple[float, float, float]:
        """Rank correlation of the first two seeds, with its interval."""
        return rank_correlation(self.miou[:, 0], self.miou[:, 1])

    def ceiling(self) -> float:
        """The rank correlation with the mean of the seeds that a perfect predictor would reach (Spearman-Brown)."""
        count, r = self.miou.shape[1], max(0.0, self.agreement()[0])
        return float(np.sqrt(count * r / (1 + (count - 1) * r)))


def load_truth(source: str | Path) -> Truth:
    """Read a table.

    Args:
        source: the name of a set whose table lies in bench/data, or a file.

    Raises:
        UseError: no such table, or not one.
    """
    path = DATA / f"mask_table_{source}.json.gz" if "." not in str(source) else Path(source)
    if not path.is_file():
        raise UseError(f"{path}: no such table; bench/mask_table.py makes it")
    try:
        table = json.loads(gzip.decompress(path.read_bytes()))
        rows = table["rows"]
        if table["format"] != FORMAT:
            raise UseError(f"{path}: a table of format {table['format']}, this version reads {FORMAT}")
        masks = [unpack(row["mask"]) for row in rows]
        costs = {"multiply_adds": np.array([row["multiply_adds"] for row in rows], float)}
        costs |= {key: np.array(values, float) for key, values in table["ms"].items()}
        miou = np.array([row["miou"] for row in rows], float)
        whole = {number: float(np.mean(row["whole"])) for number, row in enumerate(rows) if "whole" in row}
        truth = Truth(table["set"], table["settings"], masks, [row["name"] for row in rows], miou, costs, whole)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UseError(f"{path}: not a table of masks ({error})") from error
    if len(set(masks)) < len(masks) or not masks:
        raise UseError(f"{path}: a table has different masks, one at least")
    if miou.ndim != 2 or not ((miou >= 0) & (miou <= 1)).all():
        raise UseError(f"{path}: a mean IoU lies between 0 and 1")
    if any(values.shape != (len(masks),) or not (values > 0).all() for values in costs.values()):
        raise UseError(f"{path}: every mask has a positive cost")
    return truth


def unpack(numbers: Sequence[int]) -> DecoderMask:
    """The mask of a table's row of whole numbers, see :meth:`DecoderMask.packed`.

    Raises:
        UseError: the numbers are no mask.
    """
    # L rows of 2 L + 3 numbers.
    length = round((-3 + (9 + 8 * len(numbers)) ** 0.5) / 4)
    if length * (2 * length + 3) != len(numbers):
        raise UseError(f"not a decoder mask: {len(numbers)} numbers")
    return DecoderMask.unpack(torch.tensor(numbers, dtype=torch.int32).reshape(length, -1))


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, rounds: int = 2000
) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95 % bootstrap interval (percentiles of resampled pairs, fixed seed).

    Returns:
        (rho, low, high); NaN where a side has fewer than three values or only equal ones.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) < 3:
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(first), size=(rounds, len(first)))
    resampled = [_pearson(ranks(first[rows]), ranks(second[rows])) for rows in drawn]
    low, high = np.nanpercentile(resampled, (2.5, 97.5)) if not np.isnan(resampled).all() else (np.nan, np.nan)
    return _pearson(ranks(first), ranks(second)), float(low), float(high)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else float("nan")


def tables() -> list[Truth]:
    """The tables that lie in bench/data, by name."""
    return [load_truth(path) for path in sorted(DATA.glob("mask_table_*.json.gz"))]


def summary(truth: Truth) -> str:
    """What a table holds, in Markdown."""
    budget, pictures = truth.settings["budget"], truth.settings["pictures"]
    rho, low, high = truth.agreement()
    spread = f"{np.percentile(truth.score, 5):.3f} to {np.percentile(truth.score, 95):.3f}"
    lines = [
        f"**{_TITLES.get(truth.name, truth.name)}**: {len(truth.masks)} masks, {truth.miou.shape[1]} seeds, "
        f"{budget['steps']} steps of batch {budget['batch']} at {pictures['crop']}×{pictures['crop']}, encoder frozen; "
        f"{pictures['held_out']} validation pictures. Nine in ten masks have {spread} mIoU. The two seeds agree with "
        f"Spearman {rho:.2f} ({low:.2f} to {high:.2f}); no predictor can do better than {truth.ceiling():.2f}."
    ]
    if truth.whole:
        numbers = list(truth.whole)
        rho, low, high = rank_correlation(truth.score[numbers], [truth.whole[number] for number in numbers])
        lines[0] += (
            f" Of {len(numbers)} masks whose whole networks were trained, encoder too, the ranks agree with Spearman "
            f"{rho:.2f} ({low:.2f} to {high:.2f})."
        )
    kinds = [key for key in truth.costs if key != "multiply_adds"]
    cost = next((key for key in kinds if key.split("/")[0] == str(pictures["crop"])), (kinds or ["multiply_adds"])[0])
    unit, what = (1e6, "M multiply-adds") if cost == "multiply_adds" else (1, f"ms ({_sizes(cost)})")
    rows = [
        {
            "budget": f"{share:.0%} of the way to dense: {truth.budget(share, cost) / unit:.1f}",
            "masks": int((inside := truth.cost(cost) <= truth.budget(share, cost)).sum()),
            "mean": f"{truth.score[inside].mean():.3f}",
            "high": f"{np.percentile(truth.score[inside], 95):.3f}",
            "best": f"{truth.score[inside].max():.3f}",
        }
        for share in BUDGETS
    ]
    headers = {"budget": f"{what} at most", "masks": "masks", "mean": "mean mIoU"}
    lines.append(markdown_table(rows, {**headers, "high": "95th percentile", "best": "best"}))
    named = [
        {
            "mask": name,
            "cost": f"{truth.cost(cost)[number] / unit:.1f}",
            "miou": f"{truth.score[number]:.3f}",
            "percentile": f"{truth.percentile(truth.score[number], truth.cost(cost)[number], cost):.0f}",
        }
        for number, name in sorted(enumerate(truth.names), key=lambda item: truth.cost(cost)[item[0]])
        if name
    ]
    if named:
        headers = {"mask": "named mask", "cost": what, "miou": "mIoU"}
        lines.append(markdown_table(named, {**headers, "percentile": "percentile among masks of at most its cost"}))
    return "\n\n".join(lines)


def _sizes(cost: str) -> str:
    side, threads = cost.split("/")
    return f"{side}×{side}, {threads} thread{'s' if threads != '1' else ''}"


def docs_block(truths: Sequence[Truth]) -> str:
    """The part of the docs that follows from the tables, with its marks."""
    return "\n\n".join([BEGIN, *map(summary, truths), END])


def docs_with_block(text: str, block: str) -> str:
    """A page with its part of :func:`docs_block` replaced, or with a section for it at its end."""
    if BEGIN in text and END in text:
        return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]
    return f"{text.rstrip()}\n\n## What random masks reach\n\n{block}\n"


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="names or files; default: all of bench/data")
    parser.add_argument("--docs", action="store_true", help="write into docs/results/connectivity.md")
    options = parser.parse_args(argv)
    truths = [load_truth(name) for name in options.tables] or tables()
    if not truths:
        raise UseError(f"{DATA}: no tables; bench/mask_table.py makes them")
    if options.docs:
        write_text(DOCS, docs_with_block(DOCS.read_text(encoding="utf-8"), docs_block(truths)))
    print("\n\n".join(map(summary, truths)))


if __name__ == "__main__":
    sys.exit(command(main)())
