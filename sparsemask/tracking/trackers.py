"""All trackers of one run, told alike; one that fails is left behind with a warning, and the training goes on."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import nn

from sparsemask.errors import UseError, one_line, say
from sparsemask.plugins import imported, is_own
from sparsemask.runs import Run
from sparsemask.tracking.names import KNOWN, NONE, check, split_names
from sparsemask.tracking.protocol import Histogram, TrackedRun, Tracker

_BINS = 64
_LONGEST = 2048  # pixels of an image's longer side


def _made(name: str) -> Tracker:
    """A tracker by its name in --track.

    Raises:
        UseError: there is none, or its package cannot be imported.
    """
    check(name)
    if is_own(name):
        tracker = imported(name, "tracker")()
        if not isinstance(tracker, Tracker):
            raise UseError(f"tracker '{name}': gives {type(tracker).__name__}, not a sparsemask.tracking.Tracker")
        return tracker
    module, _, kind = KNOWN[name].code.partition(":")
    made: Tracker = vars(importlib.import_module(module))[kind]()
    return made


class Trackers:
    """The trackers of one run; a context that ends them.

    Args:
        names: of --track; "none": there is nobody to tell.
    """

    def __init__(self, names: str = NONE):
        self._names = [name for name in split_names(names) if name != NONE]
        self._active: dict[str, Tracker] = {}
        self._step = 0

    def __bool__(self) -> bool:
        return bool(self._active)

    def begin(self, run: Run, verb: str, flags: Mapping[str, Any], step: int) -> None:
        """Begin to track a run, or go on with it, and note in its folder what the trackers know it as.

        Args:
            run: that is tracked.
            verb: what trains it.
            flags: its configuration, by name.
            step: that it is resumed after; 0 for a run that begins.

        Raises:
            UseError: as :meth:`start`.
        """
        folder, top = run.folder.resolve(), Path("runs").resolve()
        name = folder.relative_to(top).as_posix() if folder.is_relative_to(top) else folder.name
        known = run.info().get("trackers")
        found = self.start(TrackedRun(name, run.folder, verb, flags, step), known if isinstance(known, dict) else {})
        if found:
            run.note(trackers=found)

    def start(self, run: TrackedRun, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """Begin with all of them.

        Args:
            run: that is tracked.
            known: what the run is known as, by tracker, where it is resumed.

        Returns:
            The same, for the next resume.

        Raises:
            UseError: one cannot be started for a run that begins. For one that is resumed a warning says it.
        """
        found, self._step = dict(known or {}), run.step
        for name in self._names:
            told = TrackedRun(run.name, run.folder, run.verb, run.flags, run.step, found.get(name))
            try:
                tracker = _made(name)
                identity = tracker.start(told)
            except Exception as error:
                if run.step == 0:
                    self.finish(False)
                    raise UseError(f"--track {name}: {_words(error)}") from error
                _warn(name, error)
                continue
            self._active[name] = tracker
            if identity is not None:
                found[name] = identity
        return found

    def scalars(self, row: Mapping[str, Any]) -> None:
        """The finite numbers of a row of metrics, at its `step`."""
        self._step = row["step"]
        values = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._tell(lambda tracker: tracker.scalars(self._step, values))

    def weights(self, model: nn.Module, history: Mapping[str, Any]) -> None:
        """How a network's weights are spread after the last step, and what the masks are learnt from.

        Args:
            model: matrices and kernels of it that are trained.
            history: numbers by name, lists or mappings of them, as :meth:`sparsemask.engine.method.Method.history`
                gives them.
        """
        if not self._active:
            return
        spreads = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim >= 2:
                spreads[f"weights/{name}"] = histogram(parameter.detach().float().cpu().numpy())
        for name, values in history.items():
            numbers = values.values() if isinstance(values, Mapping) else values
            if isinstance(numbers, Iterable) and not isinstance(numbers, str):
                spreads[f"masks/{name}"] = histogram(np.asarray(list(numbers), np.float64))
        found = {name: spread for name, spread in spreads.items() if spread is not None}
        self._tell(lambda tracker: tracker.histograms(self._step, found))

    def pictures(self, files: Sequence[Path]) -> None:
        """Images drawn after the last step, by the names of their files; those that cannot be read are passed over."""
        if not self._active:
            return
        images = {}
        for file in files:
            with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(file) as image:
                image.thumbnail((_LONGEST, _LONGEST))
                images[file.stem] = np.asarray(_on_white(image))
        self._tell(lambda tracker: tracker.images(self._step, images))

    def finish(self, complete: bool) -> None:
        """End all of them."""
        self._tell(lambda tracker: tracker.finish(complete))
        self._active.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.finish(kind is None)

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                what(tracker)
            except Exception as error:  # another program's, a network's: whatever it is, training is worth more
                _warn(name, error)
                del self._active[name]
                with contextlib.suppress(Exception):
                    tracker.finish(False)


def histogram(values: np.ndarray) -> Histogram | None:
    """How the finite ones of some numbers are spread; None where there are none."""
    numbers = values[np.isfinite(values)].astype(np.float64)
    if not numbers.size:
        return None
    counts, edges = np.histogram(numbers, bins=_BINS)
    return Histogram(counts, edges, float(numbers.sum()), float(np.square(numbers).sum()))


def _on_white(image: Image.Image) -> Image.Image:
    """An image as RGB, transparent parts white."""
    if image.mode in ("RGBA", "LA", "PA"):
        whole = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return image.convert("RGB")


def _words(error: Exception) -> str:
    words = one_line(error)[:300] or type(error).__name__
    return words if isinstance(error, UseError) else f"{type(error).__name__}: {words}"


def _warn(name: str, error: Exception) -> None:
    say(f"note: no longer tracked by {name} ({_words(error)}); the run goes on, its folder holds all", sys.stderr)
