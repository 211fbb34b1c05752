"""Contents of a run's folder for its report; missing or truncated files are listed, not errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsemask import masks, options
from sparsemask.containers import read_yaml
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError, one_line
from sparsemask.files import read_json, write_text
from sparsemask.masks.decoder import DecoderMask, load_decoder
from sparsemask.runs import Run

CONFUSION = "confusion.json"


@dataclass
class Contents:
    """A run as read from its files. `problems`: what could not be read, a line each."""

    run: Run
    config: dict
    info: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    steps: np.ndarray | None = None
    """(T,) logged steps of a search."""
    weights: np.ndarray | None = None
    """(T, L(L+1)) the connections' weights at these steps, halved: in [0, 1]."""
    mask: np.ndarray | DecoderMask | None = None
    mask_file: Path | None = None
    note: dict = field(default_factory=dict)
    """What stands beside the mask: where it comes from."""
    classes: list[str] = field(default_factory=list)
    confusion: np.ndarray | None = None
    """(C, C) pixels, rows truth."""
    problems: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """search, retrain, …"""
        return str(self.info.get("verb", "run"))

    @property
    def fine(self) -> bool:
        """Whether the run's masks are fine-grained, over locations and channels, and not over connections."""
        return self.info.get("family") == "sparse_conv"

    @property
    def grouped(self) -> bool:
        """Whether the run's masks are groups of weights."""
        return self.info.get("family") == "group_sparsity"

    @property
    def packed(self) -> bool:
        """Whether the run's masks are .npz files, not connections."""
        return self.fine or self.grouped

    @property
    def state(self) -> str:
        """finished, running, or stopped (a killed run still says running, but nobody holds it)."""
        state = str(self.info.get("state", "unknown"))
        return "stopped before its end" if state == "running" and not self.run.is_held() else state

    @property
    def evaluation(self) -> dict:
        """Entries of the evaluation; empty before one."""
        metrics = self.info.get("eval")
        return metrics if isinstance(metrics, dict) else {}

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the evaluation, else of the last validation while training."""
        for source in (self.evaluation, self.info.get("result")):
            if isinstance(source, dict):
                metrics = {k: v for k, v in source.items() if k != "pictures" and number(v) is not None}
                if metrics:
                    return metrics
        last = next((row for row in reversed(self.rows) if any(k.startswith("val_") for k in row)), {})
        return {k[4:]: v for k, v in last.items() if k.startswith("val_") and number(v) is not None}

    @property
    def thres(self) -> float:
        """The search's threshold on halved weights."""
        return number(self.config.get("thres")) or 0.0


def number(value: object) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def read_run(run: Run) -> Contents:
    """Read a run's folder; UseError where it has no valid configuration."""
    config = _config(run.config)
    contents = Contents(run, config)
    contents.info = read_or_default(contents, run.info_file, read_json, {})
    contents.rows = [row for row in read_or_default(contents, run.metrics, read_rows, []) if _has_step(row)]
    wrong = contents.info.get("wrong")
    contents.problems += [str(line)[:300] for line in wrong] if isinstance(wrong, list) else []
    _history(contents)
    _mask(contents)
    _confusion(contents)
    return contents


def record_confusion(run: Run, classes: Sequence[str], matrix: np.ndarray) -> None:
    """Keep an evaluation's confusion matrix (C, C), rows truth, in the run's folder."""
    rows = ",\n  ".join(str([int(v) for v in row]) for row in np.asarray(matrix))
    write_text(
        run.folder / CONFUSION,
        f'{{"classes": {json.dumps(list(classes), ensure_ascii=False)},\n "matrix": [\n  {rows}]}}\n',
    )


def read_or_default(contents: Contents, path: Path, read: Callable, default):
    """`read(path)`; where the file is not readable the default, and a line among the problems."""
    try:
        return read(path)
    except FileNotFoundError:
        contents.problems.append(f"{path.name} is missing")
    except (UseError, OSError, ValueError, RecursionError) as error:
        missing = not path.exists()
        contents.problems.append(f"{path.name} is missing" if missing else one_line(error)[:300])
    return default


def _config(path: Path) -> dict:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UseError(f"{path}: not a run's configuration (a mapping of flags)")
    return options.plain({str(name): value for name, value in config.items()})


def _has_step(row: object) -> bool:
    return isinstance(row, dict) and number(row.get("step")) is not None


def _history(contents: Contents) -> None:
    if contents.packed or (contents.verb != "search" and not contents.run.history.exists()):
        return
    rows = [
        r
        for r in read_or_default(contents, contents.run.history, read_rows, [])
        if _has_step(r) and _weights(r) is not None
    ]
    rows = [r for r in rows if len(r["weights"]) == len(rows[-1]["weights"])]
    if rows:
        contents.steps = np.array([float(r["step"]) for r in rows])
        contents.weights = np.clip(np.abs(np.array([_weights(r) for r in rows])), 0, 2) / 2


def _weights(row: dict) -> list[float] | None:
    values = row.get("weights")
    values = [number(v) for v in values] if isinstance(values, list) else []
    depth = math.isqrt(len(values))
    complete = values and len(values) == depth * (depth + 1) and None not in values
    return values if complete else None


def _mask(contents: Contents) -> None:
    """The newest mask file of the folder; before a pruning, what the end of the search noted."""
    if contents.packed:
        contents.mask_file = max(contents.run.folder.glob("mask*.npz"), key=lambda p: p.stat().st_mtime, default=None)
        return
    files = sorted(contents.run.folder.glob("mask*.npy"), key=lambda p: p.stat().st_mtime)
    if files:
        contents.mask_file = files[-1]
        contents.mask = read_or_default(contents, files[-1], load_decoder, None)
        if files[-1].with_suffix(".json").exists():
            contents.note = read_or_default(contents, files[-1].with_suffix(".json"), read_json, {})
    elif contents.info.get("kept"):
        contents.mask = _from_names(str(contents.info["kept"]))
        if contents.mask is None:
            contents.problems.append("run.json: 'kept' does not name connections")


_LINK = re.compile(r"(?:E(\d{1,2})|D(\d{1,2})|(G))>D(\d{1,2})")


def names_of(mask: np.ndarray) -> str:
    """A mask in words: 'E0>D3 G>D3 D3>D8', to be noted in run.json."""
    names = []
    for stage, source, column in np.argwhere(mask).tolist():
        names.append(
            f"E{source}>D{stage}" if column == masks.DOWN else f"{f'D{source - 1}' if source else 'G'}>D{stage}"
        )
    return " ".join(names)


def _from_names(text: str) -> np.ndarray | None:
    links = [_LINK.fullmatch(name) for name in text.split()]
    if not links or None in links:
        return None
    depth = 1 + max(int(link[4]) for link in links)
    mask = np.zeros((depth, depth, 2), bool)
    for link in links:
        source = int(link[1]) if link[1] else int(link[2]) + 1 if link[2] else 0
        if source > int(link[4]):
            return None
        mask[int(link[4]), source, masks.DOWN if link[1] else masks.UP] = True
    return mask


def _confusion(contents: Contents) -> None:
    path = contents.run.folder / CONFUSION
    if not path.exists():
        return
    data = read_or_default(contents, path, read_json, {})
    classes, rows = data.get("classes"), data.get("matrix")
    square = isinstance(classes, list) and classes and isinstance(rows, list) and len(rows) == len(classes)
    square = square and all(isinstance(row, list) and len(row) == len(classes) for row in rows)
    if not square or any((number(v) or 0) < 0 or number(v) is None for row in rows for v in row):
        if data:
            contents.problems.append(f"{path.name} holds no confusion matrix")
        return
    contents.classes, contents.confusion = [str(name) for name in classes], np.array(rows, dtype=float)
