"""Sections of a report on what a run learnt: key figures, curves, connections, drawings, costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsemask import masks
from sparsemask.masks.decoder import DecoderMask, connections_of
from sparsemask.report import charts, drawings, html
from sparsemask.report.origin import command_of
from sparsemask.report.run_data import Contents, number
from sparsemask.tables import duration, format_count

TITLES = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy", "psnr": "PSNR (dB)", "ssim": "SSIM"}
TITLES |= {"epe": "EPE (px)", "d1": "D1", "d1_ok": "1 - D1"}
TITLES |= {f"bad{n}": f"off by more than {n} px" for n in (1, 2, 3)}
TITLES |= {"oa": "overall accuracy", "macc": "mean accuracy"}
TITLES |= {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "loss": "cross-entropy"}
_NOT_YET = "not measured"


def tiles(c: Contents) -> str:
    """The key figures, a tile each."""
    size = number(c.info.get("input_size"))
    at = f"at {size:.0f}×{size:.0f}" if size else ""
    items = [tile(TITLES.get(k, k.replace("_", " ")), f"{v:.3f}", where(c)) for k, v in list(c.metrics.items())[:3]]
    items = items or [tile("quality", "–", _NOT_YET)]
    count, connections_detail = _connections(c)
    items.append(tile("connections", "–" if count is None else str(count), connections_detail))
    network = "network found" if c.verb == "search" else ""
    for name, title in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
        value = number(c.info.get(name))
        detail = ", ".join(filter(None, [at if name == "multiply_adds" else "", network]))
        items.append(tile(title, "–", _NOT_YET) if value is None else tile(title, format_count(value), detail))
    time = number(c.info.get("milliseconds"))
    detail = ", ".join(filter(None, [f"one picture {at}".strip(), network]))
    items.append(tile("milliseconds", "–", _NOT_YET) if time is None else tile("milliseconds", f"{time:.1f}", detail))
    spent = number(c.info.get("seconds"))
    done = f"{c.rows[-1]['step']:g} steps" if c.rows else ""
    items.append(tile("time spent", "–" if spent is None else duration(spent), done or _NOT_YET))
    return f'<ul class="tiles">{"".join(items)}</ul>'


def tile(title: str, value: str, detail: str = "") -> str:
    """A tile of the report's head: a value under its title."""
    small = f"<small>{html.escape(detail)}</small>" if detail else ""
    return f"<li><span>{html.escape(title)}</span><strong>{html.escape(value)}</strong>{small}</li>"


def where(c: Contents) -> str:
    """What the scores of a run were measured on."""
    count = number(c.evaluation.get("pictures"))
    return f"evaluated on {count:.0f} pictures" if count else "last validation while training"


def _connections(c: Contents) -> tuple[int | None, str]:
    """How many connections, and which count that is."""
    if c.mask is not None:
        total = len(c.mask) * (len(c.mask) + 1)
        pruned = ", pruned" if c.verb == "search" else ""
        return masks.count_connections(connections_of(c.mask)), f"of {total}{pruned}"
    if c.info.get("connections") is None and "network" in c.info:
        return None, "the baseline without a mask"
    last = charts.last_value(c.rows, "connections")
    if last is not None:
        return int(last), f"above {c.thres:g}, not yet pruned"
    return None, "no mask yet"


def curves(c: Contents) -> str:
    """Loss, quality and all else of metrics.jsonl over the steps."""
    panels = charts.curves(c.rows)
    if not panels:
        return html.absent("No curves: metrics.jsonl holds no numbers (a line is written every --log_interval steps).")
    figures = "".join(html.figure(svg, title, "chart") for title, svg in panels)
    legend = '<p class="legend"><span class="key train">training</span> <span class="key valid">validation</span></p>'
    return f'{legend}<div class="panels">{figures}</div>'


def connections(c: Contents) -> str:
    """History and final value of every connection's weight."""
    if c.weights is None:
        if c.verb == "search":
            return html.absent("No history of the weights: history.jsonl is missing or empty.")
        return ""  # a retrained network's connections are fixed
    legend = "".join(f'<span class="key {kind}">from {origin}</span> ' for kind, origin in _KINDS.items())
    history = charts.weight_history(c.steps, c.weights, c.thres)
    caption = (
        f"Half of each of the {c.weights.shape[1]} connections' weights; dashed: the threshold {c.thres:g}. "
        "Pale lines end below it. Point at a line for its name."
    )
    return (
        f'<div class="beside"><div><p class="legend">{legend}</p>{html.figure(history, caption, "chart")}</div>'
        f"<div><h3>Where they ended</h3>{_heat_map(c.weights[-1], c.thres)}</div></div>"
    )


_KINDS = {"encoder": "the encoder (E)", "global": "the global average (G)", "decoder": "earlier stages (D)"}


def _heat_map(last: np.ndarray, thres: float) -> str:
    """The final weights by stage: a table coloured by value."""
    stages, start = [], 0
    while start < len(last):
        size = 2 * (len(stages) + 1)
        stages.append(last[start : start + size].reshape(-1, 2))
        start += size
    depth, rows = len(stages), []
    for i in reversed(range(depth)):
        for column, kind in ((0, "E"), (1, "D")):
            cells = [_heat_cell(v, thres) for v in stages[i][:, column]] + ["<td></td>"] * (depth - i - 1)
            first = f'<th scope="rowgroup" rowspan="2">D<sub>{i}</sub></th>' if column == 0 else ""
            rows.append(f'<tr>{first}<th scope="row" class="{kind}">{kind}</th>{"".join(cells)}</tr>')
    sources = [f"E<sub>{j}</sub><br>{f'D<sub>{j - 1}</sub>' if j else 'G'}" for j in range(depth)]
    head = "".join(f'<th scope="col">{name}</th>' for name in sources)
    kept = int((last > thres).sum())
    caption = (
        f"Final weight / 2 of every possible input of each stage; {kept} of {len(last)} above {thres:g}, the rest ×"
    )
    head = f'<tr><th scope="col">stage</th><th scope="col">from</th>{head}</tr>'
    return (
        f'<p class="note">{caption}.</p><div class="scroll"><table class="heat weights">'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cell(value: float, thres: float) -> str:
    return heat(value, f"{value:.2f}") if value > thres else '<td class="gone">×</td>'


def heat(share: float, text: str) -> str:
    """A table's cell coloured by a share in [0, 1]."""
    return f'<td{" class=hot" if share > 0.66 else ""} style="--v:{share:.2f}">{html.escape(text)}</td>'


def architecture(c: Contents) -> str:
    """The network that the mask describes."""
    if c.mask is not None:
        lists = [_whole(c.info.get(name) or c.note.get(name), len(c.mask)) for name in ("strides", "channels")]
        if lists[0] and lists[0] != sorted(lists[0], reverse=True):
            lists[0] = None
        svg = drawings.architecture(c.mask, *lists)
        source = c.mask_file.name if c.mask_file else f"the end of the search, cleaned at threshold {c.thres:g}"
        return html.figure(svg, f"The network of {source}: {_count(c.mask)}", "drawing")
    file = c.run.pictures / "architecture.png"
    if file.exists():
        return figure_of(c, file, "The network's encoder features, decoder stages and connections", 700)
    if _connections(c)[1].startswith("the baseline"):
        return html.absent("The baseline has no connections to draw: a classifier on the deepest feature, upsampled.")
    return html.absent("No mask to draw yet." + (f" Make one: {command_of(c, 'prune')}" if c.verb == "search" else ""))


def _count(mask: np.ndarray | DecoderMask) -> str:
    kept = connections_of(mask)
    used = int(kept.any(axis=(1, 2)).sum())
    return f"{masks.count_connections(kept)} connections, {used} of {len(mask)} stages"


def _whole(values: object, count: int) -> list[int] | None:
    """A list of `count` whole numbers, or None."""
    if not isinstance(values, list) or len(values) != count or any(not isinstance(v, int) for v in values):
        return None
    return values


def figure_of(c: Contents, file, alt: str, width: int = 820, limit: int = 800_000) -> str:
    """An image file of the run's folder as a figure on white; a line where it cannot be read."""
    try:
        return html.figure(html.picture(file, alt, width, limit), alt, "paper")
    except (OSError, ValueError, SyntaxError) as error:
        c.problems.append(f"{file.name}: not readable as a picture")
        return html.absent(f"{file.name} is not readable as a picture ({str(error)[:100]}).")


def samples(c: Contents) -> str:
    """Image, truth and prediction side by side."""
    file = c.run.pictures / "samples.png"
    if not file.exists():
        return html.absent("No sample predictions: they are drawn at the end of a run.")
    return figure_of(c, file, "Validation pictures, their truth, and the network's predictions")


class CostTable:
    """The table of a run's costs: name, value, detail."""

    def __init__(self, c: Contents):
        self._contents = c
        self.rows: list[tuple[str, str, str]] = []
        timed = c.info.get("timed")
        self.timed: Mapping = timed if isinstance(timed, Mapping) else {}
        self.machine = f", {self.timed.get('device')}, threads: {self.timed.get('threads')}" if self.timed else ""

    def add(self, name: str, value: object, form: Callable[[Any], str], detail: str = "") -> None:
        """Add a row, where the value is a number."""
        if number(value) is not None:
            self.rows.append((html.escape(name), html.escape(form(value)), html.escape(detail)))

    def text(self, note: str = "") -> str:
        """The table as HTML, with the run's time and files as its last rows, behind a note."""
        c, seconds = self._contents, self._contents.info.get("seconds")
        self.add("time spent", seconds, duration, "training and validation, resumed parts together")
        last = number(c.rows[-1]["step"]) if c.rows else None
        if last and number(seconds):
            self.add("seconds a step", seconds / last, lambda v: f"{v:.3g}", "validation included")
        for file in (c.run.folder / "network.safetensors", c.run.last):
            if file.is_file():
                self.add(file.name, file.stat().st_size, lambda v: f"{v / 1e6:.1f} MB", "on disk")
        if not self.rows:
            return html.absent("Nothing was measured: costs are noted at the end of a run.")
        return note + html.table((), self.rows, kind="plain costs")


def costs(c: Contents) -> str:
    """Everything measured about size and time."""
    info, rows = c.info, CostTable(c)
    size = number(info.get("input_size"))
    at = f"one picture of {size:.0f}×{size:.0f}" if size else "one picture"
    for name, title, detail in (
        ("parameters", "parameters", ""),
        ("decoder_parameters", "of these in the decoder", ""),
        ("multiply_adds", "multiply-adds", f", executed for {at}"),
    ):
        value = number(info.get(name))
        if value is not None:
            rows.add(title, value, format_count, f"{value:,.0f}{detail}")
    one_digit = "{:.1f}".format
    rows.add("milliseconds", info.get("milliseconds"), one_digit, f"median, {at}{rows.machine}")
    rows.add("spread of the milliseconds", rows.timed.get("spread"), one_digit, "between the quartiles")
    rows.rows += _budget(info.get("budget"))
    found = "taken from the front" if "front" in c.info else f"found when the search ended, at threshold {c.thres:g}"
    note = html.paragraph(f"Of the network {found}; time: of the search.")
    return rows.text(note if c.verb == "search" else "")


def _budget(noted: object) -> list[tuple[str, str, str]]:
    """Rows on the budget of a search: what was asked for, predicted and measured."""
    if not isinstance(noted, Mapping):
        return []
    in_ms = noted.get("unit") == "ms"
    names = {"most": "budget", "predicted": "predicted", "measured_ms": "measured"}
    details = {
        "most": "the most that the network may cost",
        "predicted": "from the costs of the encoder's and the decoder's parts on this machine",
        "measured_ms": "milliseconds of one picture, batch norms folded",
    }
    found = []
    for key, title in names.items():
        value = number(noted.get(key))
        if value is not None:
            text = f"{value:.1f}" + (" ms" if in_ms else "") if in_ms or key == "measured_ms" else format_count(value)
            found.append((html.escape(title), html.escape(text), html.escape(details[key])))
    return found
