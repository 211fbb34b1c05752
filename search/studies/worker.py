"""A worker of a study: takes trials until all are done; search, prune, retrain and evaluate in each.

A trial is given up ("pruned") when it is hopeless, which is so when

- the search or the retraining diverges, or does not fit into memory,
- the threshold leaves no mask that a network can be built from,
- the mask has more connections than --max_connections, where that is given,
- after the search, with `EARLIER` trials or more to compare with, its quality is below --hopeless times their median
  and its mask has no fewer connections than their median: a small mask may lie on the front even so.

Optuna's own pruners know one objective only.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import math
import os
import signal
import statistics
import threading
import time
from pathlib import Path

import torch
from optuna.trial import Trial, TrialState

from sparsemask.errors import UseError, one_line
from sparsemask.files import read_json, write_json
from sparsemask.options import write_config
from sparsemask.runs import Run
from sparsemask.search.studies.backend import StorageError
from sparsemask.search.studies.plan import VERBS, Plan
from sparsemask.search.studies.storage import DONE, Store, folder_name
from sparsemask.tables import duration

EARLIER = 4
_LARGEST_MASK = 40_000  # bytes kept in the storage, where a database's text may end at 64 KiB
# Of a trial's folder, what is shown with it.
_SHOWN = ("retrain/pictures/samples.png", "retrain/pictures/architecture.png", "retrain/report.html")
_FACTS = ("connections", "parameters", "multiply_adds", "milliseconds")


class Hopeless(Exception):
    """A trial is given up; the message is the reason."""


def work(plan: Plan) -> int:
    """Run trials until the study is done; returns the exit status."""
    store = Store(plan, begun=True)
    store.enlist()
    try:
        while True:
            trial, done = store.claim()
            if done:
                return 0
            if trial is None:
                time.sleep(1)  # the last trials are with other workers, one of which may die
                continue
            with store.beating(trial):
                _attempt(plan, store, trial)
    except KeyboardInterrupt:
        return 130
    finally:
        store.leave()


def _attempt(plan: Plan, store: Store, trial: Trial) -> None:
    """Run one trial and store its outcome."""
    start = time.monotonic()
    shown = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in trial.params.items())
    again = f" (again trial {trial.user_attrs['first']})" if "first" in trial.user_attrs else ""
    _say(f"trial {trial.number}{again}: {shown}")
    try:
        values, facts = run_trial(plan, store, trial)
    except Hopeless as why:
        seconds = time.monotonic() - start
        if store.tell(trial, TrialState.PRUNED, pruned=one_line(why)[:500], seconds=round(seconds, 1)):
            _say(f"trial {trial.number} given up after {duration(seconds)}: {one_line(why)}")
    except (KeyboardInterrupt, SystemExit):
        with contextlib.suppress(StorageError):  # it is found without a heartbeat then
            store.give_back(trial, died=False)
        raise
    except (UseError, OSError):  # the machine's trouble, not the trial's: another worker may finish it
        with contextlib.suppress(StorageError):
            store.give_back(trial, died=True)
        raise
    except Exception as error:
        store.tell(trial, TrialState.FAIL, error=one_line(repr(error))[:500])
        raise
    else:
        seconds = time.monotonic() - start
        if store.tell(trial, TrialState.COMPLETE, values, **facts, seconds=round(seconds, 1)):
            quality, cost = plan.objectives
            connections = f", {facts['connections']} connections" if facts.get("connections") is not None else ""
            took = f"{connections}, {duration(seconds)}"
            _say(f"trial {trial.number}: {quality} {values[0]:.4f}, {cost} {values[1]:.4g}{took}")
        else:
            _say(f"trial {trial.number}: taken for dead meanwhile, its result does not count")


def run_trial(plan: Plan, store: Store, trial: Trial) -> tuple[list[float], dict]:
    """Search, prune, retrain and evaluate.

    Returns:
        The two objectives' values, and user attributes to store.

    Raises:
        Hopeless: the trial is given up.
    """
    run = _hold(plan, trial)
    folder = run.folder
    write_json(folder / "trial.json", {"id": store.id, "params": trial.params})
    store.note(trial, folder=folder.name)
    quality, cost = plan.objectives
    with (
        open(folder / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        search_quality = _train(plan, "search", folder, trial.params).get(quality)
        mask, note = _prune(plan, folder, trial.params)
        connections = note.get("connections")
        store.note(trial, search_quality=search_quality if _finite(search_quality) else None, connections=connections)
        if why := hopeless(plan, search_quality, connections, store.trials()):
            raise Hopeless(why)
        result = _train(plan, "retrain", folder, trial.params, ["--mask_path", str(mask)])
    info = Run(folder / "retrain").info()
    values = [result.get(quality), info.get(cost)]
    if not all(map(_finite, values)):
        raise Hopeless(f"{quality} and {cost} after retraining are {values[0]} and {values[1]}")
    facts = {name: info[name] for name in _FACTS if info.get(name) is not None}
    if mask.stat().st_size <= _LARGEST_MASK:
        facts |= {"mask": base64.b64encode(mask.read_bytes()).decode(), "mask_file": mask.name, "note": note}
    store.attach(trial, [mask, *(folder / name for name in _SHOWN)])
    return [float(value) for value in values], facts


def hopeless(plan: Plan, quality: float | None, connections: int | None, trials: list) -> str:
    """Return why a trial is not worth retraining; empty if it is.

    Args:
        plan: with the limits.
        quality: after the search.
        connections: of its mask; None if it has none.
        trials: of the study, to compare with.
    """
    if not _finite(quality):
        return f"{plan.objectives[0]} after the search is {quality}"
    if plan.max_connections and (connections or 0) > plan.max_connections:
        return f"{connections} connections, more than --max_connections {plan.max_connections}"
    earlier = [t.user_attrs for t in trials if t.state in DONE and _finite(t.user_attrs.get("search_quality"))]
    if len(earlier) < EARLIER:
        return ""
    usual = statistics.median(attrs["search_quality"] for attrs in earlier)
    sizes = [attrs["connections"] for attrs in earlier if attrs.get("connections") is not None]
    small = connections is not None and bool(sizes) and connections < statistics.median(sizes)
    if quality < plan.hopeless * usual and not small:
        return (
            f"{plan.objectives[0]} {quality:.4f} after the search, the median of {len(earlier)} trials is {usual:.4f}"
        )
    return ""


def _hold(plan: Plan, trial: Trial) -> Run:
    """Lock the trial's folder; a retry uses the first attempt's, unless another process still holds it."""
    for name in (trial.user_attrs.get("folder"), folder_name(trial.number)):
        if name:
            with contextlib.suppress(UseError):
                return Run(Path(plan.folder) / name).hold()
    raise UseError(f"{Path(plan.folder) / folder_name(trial.number)}: another process is at work in it")


def _train(plan: Plan, verb: str, folder: Path, values: dict, arguments: list[str] | None = None) -> dict:
    """Search or retrain in the trial's folder, resuming a killed attempt; returns the last evaluation's metrics."""
    config = folder / f"{verb}.yaml"
    write_config(config, plan.call(verb, values))
    try:
        _call(
            verb, ["--config", str(config), "--exp_path", str(folder), "--name", verb, "--resume", *(arguments or [])]
        )
    except UseError as error:
        if "no longer finite" in str(error):
            raise Hopeless(f"{verb} diverged: {error}") from None
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Hopeless(f"{verb} does not fit into memory: {one_line(error)[:200]}") from None
    return Run(folder / verb).info().get("result", {})


def _prune(plan: Plan, folder: Path, values: dict) -> tuple[Path, dict]:
    """Prune the search; returns the mask's path and its note."""
    mask = folder / "mask.npy"
    flags = plan.call("prune", values)
    flags = [part for name, value in flags.items() for part in _spelled(name, value)]
    try:
        _call("prune", [*flags, "--run", str(folder / "search"), "--out", str(mask)])
    except UseError as error:
        raise Hopeless(str(error)) from None
    return mask, read_json(mask.with_suffix(".json"))


def _spelled(name: str, value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def _call(verb: str, argv: list[str]) -> None:
    """Run a command in this process; UseErrors are raised instead of printed."""
    importlib.import_module(VERBS[verb]).main.__wrapped__(argv)


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _say(line: str) -> None:
    print(line, flush=True)


def read_plan() -> Plan:
    """Read the plan from standard input, which stays open: when it is closed, the worker saves and stops."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            raise UseError("a worker is started by search/study.py, which hands it its plan")
        line += chunk
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    return Plan.from_json(line.decode())


def _stop_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
