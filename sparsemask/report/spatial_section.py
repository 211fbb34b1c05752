"""Sections of a report on a network with fine-grained masks: kept fractions, costs, quality by image."""

from __future__ import annotations

from collections.abc import Mapping

from sparsemask.report import html
from sparsemask.report.metrics_section import classes, confusion
from sparsemask.report.origin import command_of
from sparsemask.report.run_data import Contents, number
from sparsemask.report.sections import TITLES, CostTable, duration, figure_of, heat, tile, where
from sparsemask.tables import format_count

PAPERS = {
    "smsr": ("SMSR", "https://arxiv.org/abs/2006.09603", "arXiv 2006.09603"),
    "smpointseg": ("SMPointSeg", "https://github.com/LongguangWang/SparseMask", "Wang et al., TPAMI 2022"),
    "smstereo": ("SMStereo", "https://github.com/LongguangWang/SparseMask", "Wang et al., TPAMI 2022"),
}
_NOT_YET = "not measured"
_PICTURES = {  # that an evaluation draws, by name
    "psnr": "PSNR of every picture, bicubic's and the network's",
    "epe": "End-point error of every pair",
}


def tiles(c: Contents) -> str:
    """The key figures, a tile each."""
    items = [
        tile(TITLES.get(k, k.replace("_", " ")), f"{v:.3f}" if abs(v) < 10 else f"{v:.2f}", where(c))
        for k, v in c.metrics.items()
        if k in ("psnr", "ssim", "miou", "oa", "macc", "epe", "d1", "f_beta", "ods")
    ] or [tile("quality", "–", _NOT_YET)]
    kept, budget = number(c.info.get("kept_fraction")), number(c.config.get("keep"))
    on = str(c.info.get("measured_on") or "")
    most = c.config.get("budget_ms")
    asked = f"budget {budget:g}" if budget is not None else f"budget {most}{'' if isinstance(most, str) else ' ms'}"
    detail_kept = ", ".join(filter(None, [asked if budget is not None or most is not None else "", on]))
    items.append(
        tile("kept fraction", "–", _NOT_YET) if kept is None else tile("kept fraction", f"{kept:.3f}", detail_kept)
    )
    count = number(c.info.get("parameters"))
    items.append(tile("parameters", "–", _NOT_YET) if count is None else tile("parameters", format_count(count)))
    for name, title, form in (
        ("multiply_adds", "multiply-adds", format_count),
        ("milliseconds", "milliseconds", lambda v: f"{v:.1f}"),
    ):
        value, dense = number(c.info.get(name)), number(c.info.get(f"{name}_dense"))
        detail = f"of {form(dense)} dense ({100 * value / dense:.0f} %)" if value is not None and dense else ""
        items.append(tile(title, "–", _NOT_YET) if value is None else tile(title, form(value), detail))
    spent = number(c.info.get("seconds"))
    done = f"{c.rows[-1]['step']:g} steps" if c.rows else ""
    items.append(tile("time spent", "–" if spent is None else duration(spent), done or _NOT_YET))
    return f'<ul class="tiles">{"".join(items)}</ul>'


def masks(c: Contents) -> str:
    """Dense channels of every layer, kept locations of every module, and a drawing of these over an image."""
    parts, modules = [], _masks(c)
    if modules:
        layers = max(len(module["dense_channels"]) for module in modules.values())
        rows = []
        for name, module in modules.items():
            dense = [heat(count / module["channels"], f"{count:g}") for count in module["dense_channels"]]
            dense += ["<td></td>"] * (layers - len(dense))
            shares = [heat(module[key], f"{module[key]:.3f}") for key in ("locations", "kept")]
            rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(dense + shares)}</tr>')
        head = [*(f"layer {k + 1}" for k in range(layers)), "kept locations", "kept fraction"]
        head = "".join(f'<th scope="col">{title}</th>' for title in head)
        widths = {module["channels"] for module in modules.values()}
        of = f" of {widths.pop():g}" if len(widths) == 1 else ""
        note = (
            f"Layers: channels{of} that are computed everywhere, the others at kept locations only. Shares: "
            f"means over {c.info.get('measured_on') or 'the validation pictures'}."
        )
        parts.append(
            f'<p class="note">{html.escape(note)}</p><div class="scroll"><table class="heat weights modules">'
            f'<thead><tr><th scope="col">module</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        )
    parts.append(_forms(c))
    file = c.run.pictures / "masks.png"
    if file.exists():
        parts.append(figure_of(c, file, "Where each module computes: kept places bright, dropped ones dark"))
    return "".join(parts) or html.absent("No masks measured yet: they are at the end of a run.")


def _forms(c: Contents) -> str:
    """The dense, the masked and the skipping form side by side, where a run has compared them."""
    rows = c.info.get("forms")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    names = [name for name in (rows[0] if rows else ()) if name != "form"][:12]
    if not names:
        return ""
    form = lambda name, value: format_count(value) if name == "multiply_adds" else f"{value:.4g}"
    cells = [
        (html.escape(str(row.get("form"))[:40]), *(
            "–" if number(row.get(name)) is None else form(name, number(row[name])) for name in names
        ))
        for row in rows[:10]
    ]  # fmt: skip
    return html.table(
        ("form", *(html.escape(TITLES.get(name, str(name)[:40].replace("_", " "))) for name in names)),
        cells,
        kind="classes",
    )


def _masks(c: Contents) -> dict[str, dict]:
    """Checked entry `masks` of run.json."""
    entries = c.info.get("masks")
    if not isinstance(entries, Mapping):
        return {}
    good = {}
    for name, entry in entries.items():
        dense = entry.get("dense_channels") if isinstance(entry, Mapping) else None
        counts = [number(v) for v in dense] if isinstance(dense, list) else [None]
        shares = (
            [number(entry.get(k)) for k in ("locations", "kept", "channels")] if isinstance(entry, Mapping) else [None]
        )
        if None in counts or None in shares or not shares[2] or shares[2] < 0 or not counts:
            c.problems.append(f"run.json: the masks of {str(name)[:60]} are not readable")
            continue
        good[str(name)] = {
            "dense_channels": counts, "locations": shares[0], "kept": shares[1], "channels": shares[2]
        }  # fmt: skip
    return good


def costs(c: Contents) -> str:
    """Size, computation and time, sparse and dense beside each other."""
    info, rows = c.info, CostTable(c)
    on = f"mean of {info['measured_on']}" if info.get("measured_on") else ""
    sparse, dense = number(info.get("milliseconds")), number(info.get("milliseconds_dense"))
    one_digit = "{:.1f}".format
    every = "everything kept, mask branches included"
    rows.add("parameters", info.get("parameters"), format_count, "masks and their branches included")
    rows.add("multiply-adds executed", info.get("multiply_adds"), format_count, on)
    rows.add("multiply-adds dense", info.get("multiply_adds_dense"), format_count, every)
    rows.add("milliseconds", sparse, one_digit, f"{on}{rows.machine}")
    rows.add("milliseconds dense", dense, one_digit, "the same weights, no masks, no branches")
    rows.add("gain in time", dense / sparse if sparse and dense else None, "{:.2f}".format, "dense over sparse")
    return rows.text()


_COLUMNS = {
    "size": ("size", str), "bicubic_psnr": ("bicubic dB", "{:.2f}".format), "psnr": ("PSNR dB", "{:.3f}".format),
    "ssim": ("SSIM", "{:.4f}".format), "epe": ("EPE px", "{:.3f}".format), "bad1": ("> 1 px", "{:.2%}".format),
    "bad2": ("> 2 px", "{:.2%}".format), "bad3": ("> 3 px", "{:.2%}".format), "d1": ("D1", "{:.2%}".format),
    "kept": ("kept", "{:.3f}".format), "ms": ("ms", "{:.1f}".format), "dense_ms": ("dense ms", "{:.1f}".format),
    "gain": ("gain", "{:.2f}".format), "executed": ("multiply-adds", format_count), "dense": ("dense", format_count),
}  # fmt: skip


def quality(c: Contents) -> str:
    """The evaluation by class or by image."""
    if by_class(c):
        return classes(c) + confusion(c)
    per_image = c.evaluation.get("each")
    rows = [row for row in per_image if isinstance(row, Mapping)] if isinstance(per_image, list) else []
    if not rows:
        if c.verb == "search":
            return ""  # it is scored while it trains: in the curves
        return html.absent(f"Not evaluated yet: {command_of(c, 'eval')}")
    names = [name for name in _COLUMNS if any(_shown(row, name) is not None for row in rows)]
    cells = [
        (html.escape(str(row.get("picture"))[:60]), *(html.escape(_shown(row, name) or "–") for name in names))
        for row in [*rows[:200], {**c.evaluation, "picture": "mean", "size": ""}]
    ]
    parts = [html.paragraph(str(c.evaluation.get("protocol") or "")[:300], "note")]
    parts.append(html.table(("picture", *(_COLUMNS[name][0] for name in names)), cells, kind="classes"))
    for name, caption in _PICTURES.items():
        file = c.run.pictures / f"{name}.png"
        if file.exists():
            parts.append(figure_of(c, file, caption, 800, 200_000))
    return "".join(parts)


def by_class(c: Contents) -> bool:
    """Whether the evaluation scored classes."""
    return c.confusion is not None or isinstance(c.evaluation.get("iou"), Mapping)


def _shown(row: Mapping, name: str) -> str | None:
    value, form = row.get(name), _COLUMNS[name][1]
    if form is str:
        return str(value)[:20] if value else None
    return None if number(value) is None else form(value)
