"""The report's section on the front of a one-shot search."""

from __future__ import annotations

from sparsemask.errors import UseError
from sparsemask.files import read_json
from sparsemask.report import html, sections
from sparsemask.report.run_data import Contents, number
from sparsemask.tables import format_count


def front(c: Contents) -> str:
    """The front: its picture, and a row a mask with score and costs."""
    path = c.run.folder / "front" / "front.json"
    try:
        content = read_json(path)
    except (UseError, OSError) as error:
        c.problems.append(f"front.json: {str(error)[:200]}")
        return html.absent("front.json is missing or not readable.")
    noted = c.info.get("front")
    chosen = noted.get("chosen") if isinstance(noted, dict) else None
    rows = []
    listed = content.get("points")
    for point in listed if isinstance(listed, list) else []:
        if not isinstance(point, dict) or number(point.get("score")) is None:
            continue
        ms, macs, count, whole = (number(point.get(name)) for name in ("ms", "multiply_adds", "connections", "steps"))
        name = html.escape(str(point.get("file"))[:40])
        rows.append(
            (
                f"<mark>{name}</mark>" if point.get("file") == chosen else name,
                f"{point['score']:.4f}",
                "–" if ms is None else f"{ms:.2f}",
                "–" if macs is None else html.escape(format_count(macs)),
                "–" if count is None else f"{count:.0f}",
                f"{whole:.0f}" if whole else "–",
            )
        )
    if not rows:
        return html.absent("The front is empty.")
    picture = c.run.pictures / "front.png"
    shown = "Score against predicted cost: the front, and the candidates whose scores compare with it"
    drawn = sections.figure_of(c, picture, shown) if picture.exists() else ""
    score = html.escape(sections.TITLES.get(str(content.get("score")), str(content.get("score")))[:60])
    heads = ("mask", score, "predicted ms", "multiply-adds", "connections", "steps, trained whole")
    halving = content.get("halving")
    rungs = [str(len(rung)) for rung in halving if isinstance(rung, list)] if isinstance(halving, list) else []
    steps = number(content.get("tune_steps"))
    weights = f"after {steps:.0f} steps of each decoder alone" if steps else "with the shared weights"
    text = f"Scores {weights}, on training pictures that were kept back; marked: the mask that is taken."
    if rungs:
        how = (
            f"By successive halving {', '.join(rungs)} candidates were" if rungs[1:] else f"{rungs[0]} candidates were"
        )
        rounds = ", in each round for twice as many steps" if rungs[1:] else ""
        text += (
            f" {how} trained whole{rounds}; their scores do not compare with those of decoders alone, and count before "
            "them."
        )
    return drawn + html.paragraph(text) + html.table(heads, rows, kind="plain")
