"""Sections of a report on a network with group sparsity: groups kept by each layer, norms, costs.

They use these entries of run.json, any of which may be missing, and these drawings:

    groups            {set's name: {"kept": groups that stay, "total": all of them}}
    merged            names of the pairs that are one convolution again
    threshold         of the norms; target: {"by": "multiply-adds" ..., "wanted": share, "reached": share}
    parameters, multiply_adds, multiply_adds_true, milliseconds; each with _dense: of the network before
    timed             {"device", "threads", "batch", "compiled": whether both were}
    kept.png, spectra.png, tradeoff.png
"""

from __future__ import annotations

from collections.abc import Mapping

from sparsemask.report import html
from sparsemask.report.origin import command_of
from sparsemask.report.run_data import Contents, number
from sparsemask.report.sections import TITLES, duration, figure_of, heat, tile, where
from sparsemask.tables import format_count

PAPER = "Hinge", "https://arxiv.org/abs/2003.08935", "arXiv 2003.08935"
_NOT_YET = "not measured"
_COSTS = (
    ("parameters", "parameters", format_count, ""),
    ("multiply_adds", "multiply-adds", format_count, "as the paper counts, batch norms and ReLU modules included"),
    ("multiply_adds_true", "multiply-adds executed", format_count, "of convolutions and linear layers"),
    ("milliseconds", "milliseconds", "{:.2f}".format, "median"),
)


def tiles(c: Contents) -> str:
    """The key figures, a tile each."""
    items = [
        tile(TITLES.get(name, name), f"{value:.2%}", where(c))
        for name, value in c.metrics.items()
        if name in ("top1", "top5")
    ] or [tile("quality", "–", _NOT_YET)]
    sets = _sets(c)
    kept, total = (sum(counts[k] for counts in sets.values()) for k in (0, 1))
    merged = c.info.get("merged")
    detail = f"of {total:g}" + (f", pairs merged: {len(merged)}" if isinstance(merged, list) and merged else "")
    items.append(tile("groups kept", f"{kept:g}", detail) if sets else tile("groups kept", "–", _NOT_YET))
    for name, title, form, _ in _COSTS:
        value, dense = number(c.info.get(name)), number(c.info.get(f"{name}_dense"))
        if name != "multiply_adds_true":
            shown_value, shown_dense = _alike(value, dense, form)
            detail = f"{value / dense:.1%} of {shown_dense}" if value is not None and dense else ""
            items.append(tile(title, "–", _NOT_YET) if value is None else tile(title, shown_value, detail))
    spent = number(c.info.get("seconds"))
    done = f"{c.rows[-1]['step']:g} steps" if c.rows else ""
    items.append(tile("time spent", "–" if spent is None else duration(spent), done or _NOT_YET))
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _alike(value: float | None, dense: float | None, form) -> tuple[str, str]:
    """Both costs in the unit of the first, so that they can be compared."""
    unit = format_count(value).split()[1:] if form is format_count and value else ()
    if unit:
        form = lambda cost: format_count(cost, *unit)
    return tuple("–" if cost is None else form(cost) for cost in (value, dense))


def layers(c: Contents) -> str:
    """What every layer keeps, and the norms of its groups before and after."""
    parts, sets = [], _sets(c)
    threshold, target = number(c.info.get("threshold")), c.info.get("target")
    sentences = [f"Groups whose norm is below {threshold:.4g} are removed."] if threshold is not None else []
    if isinstance(target, Mapping) and None not in (number(target.get("wanted")), number(target.get("reached"))):
        by = str(target.get("by"))[:40]
        sentences.append(f"Wanted: {target['wanted']:.1%} of the {by}; reached: {target['reached']:.1%}.")
    if sentences:
        parts.append(html.paragraph(" ".join(sentences), "note"))
    drawings = (
        ("kept", "Share of its groups that each layer keeps"),
        ("spectra", "Norms of the groups of each layer, largest first, before and after the search"),
        ("tradeoff", "Accuracy over cost"),
    )
    drawn = [(c.run.pictures / f"{name}.png", caption) for name, caption in drawings]
    parts += [figure_of(c, file, caption, 900) for file, caption in drawn if file.exists()]
    if sets:
        rows = [
            f'<tr><th scope="row">{html.escape(name)}</th>{heat(kept / total, f"{kept:g}")}<td>{total:g}</td></tr>'
            for name, (kept, total) in sets.items()
        ]
        head = "".join(f'<th scope="col">{title}</th>' for title in ("set", "kept", "of"))
        table = (
            f'<table class="heat weights modules"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        )
        table = f'<div class="scroll">{table}</div>'
        parts.append(
            f"<details><summary>The same as a table</summary>{table}</details>" if drawn[0][0].exists() else table
        )
    return "".join(parts) or html.absent(
        f"No groups counted yet: {command_of(c, 'prune') if c.verb == 'search' else 'they are at the end of a run.'}"
    )


def _sets(c: Contents) -> dict[str, tuple[float, float]]:
    """run.json's entry `groups`: (kept, total) by the set's name; what is no part of a whole is left out and named."""
    entries, good = c.info.get("groups"), {}
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        kept, total = (number(entry.get(k)) for k in ("kept", "total")) if isinstance(entry, Mapping) else (None, None)
        if kept is None or not total or not 0 <= kept <= total:
            c.problems.append(f"run.json: the groups of {str(name)[:60]} are not readable")
        else:
            good[str(name)] = kept, total
    return good


def costs(c: Contents) -> str:
    """Size, computation and time of the network, beside what they were."""
    info, rows = c.info, []
    timed = info.get("timed") if isinstance(info.get("timed"), Mapping) else {}
    machine = ", ".join(f"{name} {timed[key]}" for key, name in _TIMED if key in timed)
    machine += ", both compiled" if timed.get("compiled") is True else ""
    for name, title, form, detail in _COSTS:
        value, dense = number(info.get(name)), number(info.get(f"{name}_dense"))
        if value is None:
            continue
        detail = ", ".join(filter(None, [detail, machine if name == "milliseconds" else ""]))
        share = f"{value / dense:.1%}" if dense else "–"
        rows.append((html.escape(title), *_alike(value, dense, form), share, html.escape(detail)))
    fast, slow = number(info.get("milliseconds")), number(info.get("milliseconds_dense"))
    if fast and slow:
        rows.append(("gain in time", f"{slow / fast:.2f}", "", "", "before over after"))
    if number(info.get("seconds")) is not None:
        note = "training and validation, resumed parts together"
        rows.append(("time spent", duration(info["seconds"]), "", "", note))
    for file in (c.run.folder / "network.safetensors", c.run.last):
        if file.is_file():
            rows.append((html.escape(file.name), f"{file.stat().st_size / 1e6:.1f} MB", "", "", "on disk"))
    if not rows:
        return html.absent("Nothing was measured: costs are noted at the end of a run.")
    return html.table(("", "after", "before", "share", ""), rows, kind="classes")


_TIMED = (("device", "device"), ("threads", "threads:"), ("batch", "batch"))
