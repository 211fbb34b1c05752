"""Logs of a run: metrics.jsonl, the progress line."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from sparsemask.errors import UseError, say
from sparsemask.files import write_text
from sparsemask.tables import duration


class JsonLines:
    """Rows of JSON, one a line, each with a ``step``; reopened at a step it forgets what lies after it."""

    def __init__(self, path: str | Path, step: int = 0):
        self.path = Path(path)
        kept = [row for row in read_rows(self.path) if row["step"] <= step] if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the life of the run

    def add(self, row: dict) -> None:
        """Append one row."""
        self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: str | Path) -> list[dict]:
    """Rows of a .jsonl file; a truncated last line (a killed run) is dropped, any other is a UseError."""
    rows, lines = [], Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError
            rows.append(row)
        except (ValueError, RecursionError):
            if number < len(lines) - 1:
                raise UseError(f"{path}: line {number + 1} is not a row of metrics") from None
    return rows


class Progress:
    """A bar on a terminal; elsewhere one line at most every ten seconds.

    Args:
        total: steps there are.
        start: steps that were done before.
        title: stands before them.
        show: whether anything is shown.
        unit: what a step is.
    """

    def __init__(self, total: int, start: int, title: str, show: bool = True, unit: str = "step"):
        self._title, self._total, self._show, self._bar = title, total, show, None
        self._last, self._began, self._start = 0.0, time.monotonic(), start
        if show and _has_width(sys.stderr):
            from tqdm import tqdm

            # tqdm measures the terminal; a width of its own would wrap on narrow ones.
            self._bar = tqdm(total=total, initial=start, desc=title, unit=unit, dynamic_ncols=True)

    def update(self, step: int, displayed: dict) -> None:
        """Report that step `step` is done; `displayed` are the metrics beside the bar."""
        if not self._show:
            return
        metrics = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in displayed.items())
        if self._bar is not None:
            self._bar.set_postfix_str(metrics, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= float(os.environ.get("SPARSEMASK_PROGRESS_SECONDS", 10)) or step == self._total:
            self._last = now
            rate = (now - self._began) / max(1, step - self._start)
            left = f"{duration(rate * (self._total - step))} left" if step < self._total else "done"
            say("  ".join(filter(None, (f"{self._title} {step}/{self._total}", metrics, left))), sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _has_width(stream: TextIO) -> bool:
    """Whether a stream is a terminal with room for a bar; those of containers and of `script` may be 0 columns wide."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def _plain(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON knows no NaN
    return value
