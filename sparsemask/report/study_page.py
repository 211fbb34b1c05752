"""A study's page: its front, its trials with links to their own pages, and how to go on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sparsemask.command_lines import spoken
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_text
from sparsemask.report import html, sections
from sparsemask.report.page import FILE, shell
from sparsemask.report.run_data import number
from sparsemask.tables import duration, format_count

FRONT = "front.json"
_COSTS = ("connections", "parameters", "multiply_adds", "milliseconds")
_NAMES = {**sections.TITLES, "multiply_adds": "multiply-adds"}
_OTHER = ("trial", "folder", "mask", "pruned", "search_quality", "seconds", *_COSTS)
_FOLDER = re.compile(r"trial-\d{4,}")
_MASK = re.compile(r"masks/trial-\d{4,}\.[a-z]+")
_MOST = 2000  # trials that are listed


def write_study_report(folder: Path) -> Path:
    """Write `report.html` into a study's folder, atomically, from its `front.json`; return its path.

    Raises:
        UseError: no readable front.json.
    """
    write_text(folder / FILE, build_study_page(folder))
    return folder / FILE


def build_study_page(folder: Path) -> str:
    """The page as text; UseError where front.json is none of a study."""
    content = read_json(folder / FRONT)
    objectives, problems = content.get("objectives"), []
    if not (isinstance(objectives, list) and len(objectives) == 2 and all(isinstance(one, str) for one in objectives)):
        raise UseError(f"{folder / FRONT}: no front of a study")
    front, every = (_trials(content.get(name)) for name in ("front", "trials"))
    complete = [trial for trial in every if not trial.get("pruned")]
    given_up = [trial for trial in every if trial.get("pruned")]
    name = html.escape(folder.resolve().name)
    head = (
        f'<p class="kicker">study</p>\n<h1>{name}</h1>\n<p class="state">{html.escape(content.get("summary", ""))}</p>'
    )
    drawn = ""
    if (folder / "front.png").exists():
        try:
            picture = html.picture(folder / "front.png", "Quality against cost of all trials, and their front")
            drawn = html.figure(picture, "Every complete trial; the line is the front", kind="paper")
        except (OSError, ValueError) as error:
            problems.append(f"front.png: {str(error)[:200]}")
    parts = [
        ("front", "Front", drawn + _table(folder, front, objectives) if front else html.absent("Nothing to show yet.")),
        ("trials", "All complete trials", _table(folder, complete, objectives)),
        ("given-up", "Given up", _reasons(given_up)),
        ("going-on", "How to go on", _next(folder, front)),
    ]
    source = f"of\n<code>{html.escape(folder)}</code>"
    return shell(f"{name} · study", head, _tiles(front, every, objectives), parts, problems, source)


def _trials(value: object) -> list[dict]:
    """Of what stands in a file, what are trials."""
    listed = value if isinstance(value, list) else []
    return [one for one in listed[:_MOST] if isinstance(one, dict) and number(one.get("trial")) is not None]


def _tiles(front: Sequence[dict], every: Sequence[dict], objectives: Sequence[str]) -> str:
    quality, cost = objectives
    best = max((v for one in front if (v := number(one.get(quality))) is not None), default=None)
    least = min((v for one in front if (v := number(one.get(cost))) is not None), default=None)
    spent = sum(number(one.get("seconds")) or 0 for one in every)
    title = _NAMES.get(quality, quality)
    items = [
        sections.tile("trials", str(len(every)), f"{len(front)} on the front"),
        sections.tile(f"best {title}", "–" if best is None else f"{best:.4f}"),
        sections.tile(f"least {_NAMES.get(cost, cost)}", "–" if least is None else _shown(cost, least)),
        sections.tile("time spent", duration(spent), "of all trials together"),
    ]
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _shown(name: str, value: object) -> str:
    found = number(value)
    if found is None:
        return "–" if value is None else str(value)[:60]
    if name in ("parameters", "multiply_adds"):
        return format_count(found)
    return f"{found:.1f}" if name == "milliseconds" else f"{found:.4g}"


def _table(folder: Path, trials: Sequence[dict], objectives: Sequence[str]) -> str:
    """A row a trial: objectives, costs, flags; its number leads to its retraining's page where that is there."""
    if not trials:
        return ""
    names = [objectives[0], *(name for name in _COSTS if any(trial.get(name) is not None for trial in trials))]
    names += sorted({str(name) for trial in trials for name in trial} - {*names, *objectives, *_OTHER})[:20]
    rows = []
    for trial in trials:
        label, at = f"{trial['trial']:.0f}", str(trial.get("folder"))
        page = f"{at}/retrain/{FILE}"
        if _FOLDER.fullmatch(at) and (folder / page).is_file():
            label = f'<a href="{page}">{label}</a>'
        rows.append((label, *(html.escape(_shown(name, trial.get(name))) for name in names)))
    heads = ("trial", *(_NAMES.get(name, name)[:40] for name in names))
    return html.table(heads, rows, kind="trials")


def _reasons(trials: Sequence[dict]) -> str:
    rows = [(f"{one['trial']:.0f}", html.escape(str(one.get("pruned"))[:300])) for one in trials]
    return html.table(("trial", "because"), rows, kind="plain") if rows else ""


def _next(folder: Path, front: Sequence[dict]) -> str:
    masks = [mask for one in front if _MASK.fullmatch(mask := str(one.get("mask")))]
    if not masks:
        return ""
    line = html.paragraph("Retrain a mask of the front, for longer or on other data:")
    return line + html.command(spoken("retrain", f"--mask_path {shlex.quote(str(folder / masks[-1]))}"))
