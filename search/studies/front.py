"""The Pareto front of a study: table, plot, files and masks for retraining."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sparsemask.errors import UseError
from sparsemask.files import write_bytes, write_json, write_text
from sparsemask.pictures import style
from sparsemask.report import write_study_report
from sparsemask.search.studies.plan import Plan
from sparsemask.search.studies.storage import RETRIES, folder_name
from sparsemask.tables import Columns, format_count, markdown_table, table

_MANY = 100  # trials, from which on dots are small
_LABELS = 10  # points of a front that are labelled at most
_OURS = re.compile(r"trial-\d{4,}\.[a-z]+")
_HEADERS = {
    "connections": "connections",
    "parameters": ("parameters", format_count),
    "multiply_adds": ("multiply-adds", format_count),
    "milliseconds": ("ms", ".1f"),
}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points, in order of rising cost.

    Args:
        points: (quality, cost) of each; higher quality and lower cost are better. Of equal points all or none are
            returned.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
    front: list[int] = []
    for i in order:
        if not front or points[i][0] > points[front[-1]][0] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def report(plan: Plan, trials: Sequence[FrozenTrial]) -> str:
    """Write front.json, front.md, front.png, report.html and masks/ into the study's folder; a summary to print."""
    folder = Path(plan.folder)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    front = [complete[i] for i in pareto([tuple(t.values) for t in complete])]
    mask_files = save_masks(folder / "masks", plan, front)
    rows = [_row(plan, trial, mask_files) for trial in front]
    summary = _summary(trials)
    everything = [_row(plan, t, mask_files) for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    content = {"study": plan.study, "objectives": plan.objectives, "summary": summary, "front": rows}
    write_json(folder / "front.json", {**content, "trials": everything})
    if not front:
        return f"{summary}; nothing to show yet"
    draw_front(folder / "front.png", plan, complete, front)
    columns = _columns(plan)
    given_up = {"trial": "trial", "pruned": "given up because"}
    parts = [f"# Study {plan.study}", summary, "![The trials and their front](front.png)"]
    parts += ["## Pareto front", markdown_table(rows, columns)]
    parts += ["## All complete trials", markdown_table([r for r in everything if not r["pruned"]], columns)]
    if any(r["pruned"] for r in everything):
        parts += ["## Given up", markdown_table([r for r in everything if r["pruned"]], given_up)]
    write_text(folder / "front.md", "\n\n".join(parts) + "\n")
    lines = [f"\nPareto front, {plan.objectives[0]} up and {plan.objectives[1]} down:\n", table(rows, columns), ""]
    page = write_study_report(folder)
    lines += [f"{summary}; {folder / 'front.png'}, front.md, front.json", f"report: {page}"]
    if mask_files:
        lines.append(f"the front's masks, for retrain --mask_path: {folder / 'masks'}/")
    return "\n".join(lines)


def save_masks(folder: Path, plan: Plan, front: Sequence[FrozenTrial]) -> dict[int, str]:
    """Write the masks of trials and their notes from the storage into a folder; masks of other trials are removed.

    Args:
        folder: to write to.
        plan: the study.
        front: the trials.

    Returns:
        The file's name by trial number.

    Raises:
        UseError: a damaged mask, or an invalid file name in the storage.
    """
    files = {}
    for trial in front:
        facts = trial.user_attrs
        if "mask" not in facts:
            continue
        path = folder / f"{folder_name(trial.number)}{Path(str(facts.get('mask_file'))).suffix}"
        if not _OURS.fullmatch(path.name):
            raise UseError(f"trial {trial.number}: the storage names a mask file '{facts.get('mask_file')}'")
        try:
            data = base64.b64decode(facts["mask"], validate=True)
        except (binascii.Error, ValueError):
            raise UseError(f"trial {trial.number}: the mask in the storage is damaged") from None
        result = dict(zip(plan.objectives, trial.values, strict=True))
        origin = {"study": plan.study, "trial": trial.number, "params": trial.params, "result": result}
        write_json(path.with_suffix(".json"), {**facts.get("note", {}), **origin})
        write_bytes(path, data)
        files[trial.number] = path.name
    names = {name for mask in files.values() for name in (mask, str(Path(mask).with_suffix(".json")))}
    for path in folder.glob("trial-*") if folder.is_dir() else ():
        if path.name not in names and _OURS.fullmatch(path.name):
            path.unlink()
    return files


def _row(plan: Plan, trial: FrozenTrial, mask_files: dict[int, str]) -> dict:
    facts = trial.user_attrs
    values = dict(zip(plan.objectives, trial.values, strict=True)) if trial.values else {}
    row = {"trial": trial.number, **{name: facts.get(name) for name in _HEADERS}, **values, **trial.params}
    row |= {"search_quality": facts.get("search_quality"), "seconds": facts.get("seconds")}
    row |= {
        "folder": facts.get("folder"),
        "mask": f"masks/{mask_files[trial.number]}" if trial.number in mask_files else None,
    }
    return {**row, "pruned": facts.get("pruned")}


def _columns(plan: Plan) -> Columns:
    columns = {"trial": "trial", plan.objectives[0]: (plan.objectives[0], ".4f"), **_HEADERS}
    return {**columns, **{name: (name, _short) for name in plan.ranges}}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _summary(trials: Sequence[FrozenTrial]) -> str:
    """Number of trials by final state, as text."""
    states = [trial.state for trial in trials]
    labels = [
        (TrialState.COMPLETE, "complete"),
        (TrialState.PRUNED, "given up as hopeless"),
        (TrialState.RUNNING, "running"),
        (TrialState.WAITING, "waiting"),
    ]
    parts = [f"{states.count(state)} {label}" for state, label in labels if states.count(state)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    again = {history[-1] for trial in trials if (history := trial.system_attrs.get("retry_history"))}
    ends = {"broken off and taken up again": 0, "failed": 0, "left after killing its workers": 0}
    for trial in failed:
        if trial.number in again:
            ends["broken off and taken up again"] += 1
        elif "error" in trial.user_attrs:
            ends["failed"] += 1
        elif trial.user_attrs.get("deaths", 0) >= RETRIES and "duplicate" not in trial.user_attrs:
            ends["left after killing its workers"] += 1
    parts += [f"{count} {label}" for label, count in ends.items() if count]
    return f"trials: {', '.join(parts) or 'none'}"


def draw_front(path: Path, plan: Plan, complete: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> Path:
    """Plot quality over cost: every complete trial as a dot, those of the front connected and numbered."""
    quality, cost = plan.objectives
    peak = max(trial.values[1] for trial in complete)
    unit, prefix = next(((u, w) for u, w in ((1e9, "G "), (1e6, "M "), (1e3, "k ")) if peak >= u / 10), (1.0, ""))
    names = {
        "multiply_adds": f"{prefix}multiply-adds",
        "milliseconds": "milliseconds",
        "parameters": f"{prefix}parameters",
    }
    unit = 1.0 if cost == "milliseconds" else unit
    with style.drawing():
        fig = style.figure(6.4, 4.2)
        axes = style.place(fig, 0.65, 0.55, 5.5, 3.0)
        axes.grid()
        axes.set_axisbelow(True)
        xs, ys = [t.values[1] / unit for t in complete], [t.values[0] for t in complete]
        small = len(complete) > _MANY
        axes.scatter(xs, ys, s=9 if small else 26, color=style.BLUE, alpha=0.35 if small else 0.5, lw=0, zorder=3)
        xs, ys = [t.values[1] / unit for t in front], [t.values[0] for t in front]
        axes.step(xs, ys, where="post", color=style.ORANGE, lw=1.2, zorder=4)
        axes.scatter(xs, ys, s=20 if small else 34, color=style.ORANGE, zorder=5)
        axes.margins(0.13, 0.14)
        axes.set(xlabel=names[cost], ylabel="mean IoU" if quality == "miou" else quality.replace("_", " "))
        axes.set_title(f"Study {plan.study}", size=style.TITLE, pad=20)
        which = "each with its trial" if len(set(zip(xs, ys, strict=True))) <= _LABELS else "some with their trials"
        note = f"up and left is better; orange: the front, {which} and (connections); blue: the other trials"
        axes.text(0, 1.02, note, transform=axes.transAxes, size=style.SMALL, color=style.GREY, va="bottom")
        if not math.isclose(max(ys), 0):
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        _number(axes, front, xs, ys)
        return style.save(fig, path)


def _number(axes, front: Sequence[FrozenTrial], xs: list[float], ys: list[float]) -> None:
    """Label the points with their trials and connections, without overlaps; of many some, from end to end."""
    labels: dict[tuple[float, float], list[FrozenTrial]] = {}
    for trial, x, y in zip(front, xs, ys, strict=True):
        labels.setdefault((x, y), []).append(trial)
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(_LABELS, len(labels))).round().astype(int)).tolist()
    labelled = [[*labels.items()][i] for i in chosen]
    points = [axes.transData.transform(point) for point, _ in labelled]
    inch = axes.figure.dpi
    heights = style.spread([y + 0.06 * inch for _, y in points], 0.13 * inch, -math.inf, math.inf)
    for (x, y), height, (_, trials) in zip(points, heights, labelled, strict=True):
        size = trials[0].user_attrs.get("connections")
        text = ", ".join(str(trial.number) for trial in trials) + ("" if size is None else f" ({size})")
        options = dict(ha="right", size=style.SMALL, color=style.INK, zorder=6)
        axes.annotate(text, (x - 0.06 * inch, height), xycoords="figure pixels", **options)
        if abs(height - y) > 0.2 * inch:
            axes.plot([x, x - 0.05 * inch], [y, height], transform=None, color=style.GREY, lw=0.6, zorder=4)
