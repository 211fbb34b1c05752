"""The front of a search: masks of which none is beaten in score and cost, a file each, and what they cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json
from sparsemask.masks.decoder import DecoderMask, load_decoder, save_decoder
from sparsemask.spaces.connectivity.budget import Budget

FOLDER, FILE = "front", "front.json"  # in a run's folder, and in that
_NEAR = 0.98  # of the best score: without a budget the cheapest mask that reaches this is taken
_NAME = re.compile(r"\d{2,4}\.npy")


@dataclass(frozen=True, eq=False)
class Point:
    """A mask of a front.

    Attributes:
        mask: of either space.
        score: of the task's primary metric, on training pictures that were kept back.
        ms: predicted milliseconds of one picture; None where the search did not reckon in them.
        multiply_adds: of one picture.
        steps: of a training of the whole network that the score is after; 0: of one of the decoder alone. Scores
            after different trainings do not compare.
        file: its name in the front's folder; empty before it is written.
    """

    mask: np.ndarray | DecoderMask
    score: float
    ms: float | None
    multiply_adds: int
    steps: int = 0
    file: str = ""

    def cost(self, unit: str) -> float:
        """What it costs in a budget's unit; infinite where that is not known."""
        if unit == "ms":
            return math.inf if self.ms is None else self.ms
        return float(self.multiply_adds)


def choose(points: Sequence[Point], budget: Budget | None) -> Point:
    """The best mask within a budget; without one the cheapest that is nearly as good as the best.

    Of masks of which some were trained whole those that were count alone.

    Raises:
        UseError: no mask is within the budget, or there is none at all.
    """
    if not points:
        raise UseError("the front is empty: no candidate had a score; search with more --candidates")
    if budget is None:
        points = _longest(points)
        unit = "ms" if all(point.ms is not None for point in points) else "multiply-adds"
        enough = _NEAR * max(point.score for point in points)
        return min((point for point in points if point.score >= enough), key=lambda point: point.cost(unit))
    within = [point for point in points if point.cost(budget.unit) <= budget.most]
    if not within:
        least = min(point.cost(budget.unit) for point in points)
        what = (
            f"the cheapest costs {budget.text(least)}" if math.isfinite(least) else "it has no predicted milliseconds"
        )
        raise UseError(
            f"{budget.flag}: no mask of the front is within it, {what}; raise it, or search with {budget.flag}"
        )
    return max(_longest(within), key=lambda point: (point.score, -point.cost(budget.unit)))


def _longest(points: Sequence[Point]) -> list[Point]:
    """Those whose scores are after the longest training."""
    longest = max(point.steps for point in points)
    return [point for point in points if point.steps == longest]


def write_front(
    folder: Path, points: Sequence[Point], facts: Mapping[str, Any], note: Mapping[str, Any]
) -> list[Point]:
    """Write a front: a mask file with its note a point, and front.json, which is written last.

    Args:
        folder: of the run.
        points: the cheapest first.
        facts: further entries of front.json.
        note: entries of the note beside every mask.

    Returns:
        The points with the names of their files.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        if _NAME.fullmatch(old.with_suffix(".npy").name):
            old.unlink()
    written = []
    for number, point in enumerate(points):
        entries = {"score": point.score, "predicted_ms": point.ms, "multiply_adds": point.multiply_adds}
        if point.steps:
            entries["steps"] = point.steps
        file = f"{number:02d}.npy"
        save_decoder(place / file, point.mask, {**note, **entries, "connections": connections(point.mask)})
        written.append(replace(point, file=file))
    rows = [
        {
            "file": p.file,
            "score": p.score,
            "ms": p.ms,
            "multiply_adds": p.multiply_adds,
            "steps": p.steps,
            "connections": connections(p.mask),
        }
        for p in written
    ]
    write_json(place / FILE, {**facts, "points": rows})
    return written


def read_front(folder: Path) -> list[Point]:
    """Read the front of a run's folder.

    Raises:
        UseError: there is none, it is damaged, or one of its masks is.
    """
    path = folder / FOLDER / FILE
    if not path.is_file():
        raise UseError(
            f"{folder}: no front in it: the search is not finished, or the file is gone; "
            f"search/run.py --resume {folder} writes it"
        )
    rows = read_json(path).get("points")
    points = []
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or not _NAME.fullmatch(str(row.get("file"))):
            raise UseError(f"{path}: not a front: its points name no mask files")
        numbers = [row.get(name) for name in ("score", "ms", "multiply_adds")] + [row.get("steps", 0)]
        valid = [number is None or _is_number(number) for number in numbers]
        if not all(valid) or any(numbers[i] is None for i in (0, 2, 3)):
            raise UseError(f"{path}: not a front: score or cost of {row['file']} is no number")
        if not (file := path.parent / row["file"]).is_file():
            raise UseError(f"{path}: names {row['file']}, which is gone; search/run.py --resume {folder} writes it")
        points.append(Point(load_decoder(file), *numbers, row["file"]))
    return points


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def connections(mask: np.ndarray | DecoderMask) -> int:
    """Number of connections of a mask of either space."""
    return int(np.count_nonzero(mask.connections if isinstance(mask, DecoderMask) else mask))
