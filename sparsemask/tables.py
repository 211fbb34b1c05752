"""Plain text and Markdown tables, and how numbers are formatted in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from sparsemask.errors import UseError

_NUMBER = re.compile(r"^[-+]?\.?\d")
_NOTHING = "-"
UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))

Rows = Sequence[Mapping[str, object]]
Format = str | Callable[[object], str]  # a format specification such as ".2f", or a function such as format_count
Columns = Sequence[str] | Mapping[str, str | tuple[str, Format]]


def table(rows: Rows, columns: Columns) -> str:
    """Aligned text, a header and a rule above the rows; numbers to the right, words to the left.

    Args:
        rows: one mapping a row; what it lacks, None and NaN are shown as a dash.
        columns: keys in order, or key -> header, or key -> (header, format).
    """
    headers, cells, right = _cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([_line(headers, widths, right), rule, *(_line(row, widths, right) for row in cells)])


def markdown_table(rows: Rows, columns: Columns) -> str:
    """The same as a Markdown table with aligned columns."""
    headers, cells, right = _cells(rows, columns)
    headers, cells = _escaped(headers), [_escaped(row) for row in cells]
    widths = [max(3, *map(len, column)) for column in zip(headers, *cells, strict=True)]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    lines = [_line(values, widths, right, " | ") for values in (headers, rule, *cells)]
    return "\n".join(f"| {line} |" for line in lines)


def format_count(number: float, unit: str | None = None) -> str:
    """'2.79 M', '0.56 G', '26.9 k', '431'; `unit` ('G', 'M', 'k') fixes the unit.

    A unit is used from a tenth of it on (a thousand from one), so that networks of one table stay comparable.
    """
    units = dict(UNITS)
    if unit is None:
        unit = next((u for u, size in UNITS if abs(number) >= (size if u == "k" else size / 10)), None)
        if unit is None:
            return f"{number:g}"
    elif unit not in units:
        raise UseError(f"unknown unit '{unit}'; known: {', '.join(units)}")
    value = number / units[unit]
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """'42 s', '5 min 12 s', '34 min', '3 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 10:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def seconds_text(seconds: float) -> str:
    """'0.12 s', '3.4 s', '54 min'."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _line(values: Sequence[str], widths: Sequence[int], right: Sequence[bool], between: str = "  ") -> str:
    pairs = zip(values, widths, right, strict=True)
    line = between.join(v.rjust(w) if r else v.ljust(w) for v, w, r in pairs)
    return line if "|" in between else line.rstrip()


def _cells(rows: Rows, columns: Columns) -> tuple[list[str], list[list[str]], list[bool]]:
    by_key = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    headers, formats = [], []
    for value in by_key.values():
        header, form = value if isinstance(value, tuple) else (value, None)
        headers.append(header)
        formats.append(form)
    cells = [[_shown(row.get(key), form) for key, form in zip(by_key, formats, strict=True)] for row in rows]
    right = []
    for k in range(len(headers)):
        values = [row[k] for row in cells if row[k] != _NOTHING]
        right.append(bool(values) and all(map(_NUMBER.match, values)))
    return headers, cells, right


def _shown(value: object, form: Format | None) -> str:
    if value is None or value != value:  # NaN is the one value that differs from itself
        return _NOTHING
    if callable(form):
        return form(value)
    if isinstance(value, float) or form:
        return format(value, form or ".4g")
    return " ".join(str(value).split())


def _escaped(values: Sequence[str]) -> list[str]:
    return [value.replace("|", "\\|") for value in values]
