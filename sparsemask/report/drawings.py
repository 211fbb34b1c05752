"""The toolkit's own drawings inside the page, in the page's light or dark colours."""

from __future__ import annotations

import colorsys
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.masks.decoder import DecoderMask, connections_of
from sparsemask.pictures import draw_architecture
from sparsemask.report.html import escape

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def architecture(mask: np.ndarray | DecoderMask, strides: Sequence[int] | None, channels: Sequence[int] | None) -> str:
    """The network a mask describes as inline SVG. At most one to a page: its parts are named inside it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "architecture.svg"
        svg = draw_architecture(mask, file, strides, channels, "Encoder and decoder").read_text(encoding="utf-8")
    count = int(connections_of(mask).sum())
    return inline(svg, "architecture", f"The network: {count} connections between encoder and decoder stages")


def inline(svg: str, kind: str, label: str) -> str:
    """An SVG drawing of this toolkit for the inside of a page, with colours for light and dark pages.

    Every colour becomes a variable with the colour itself as fallback; a dark page redefines the variables.
    """
    box = re.search(r'viewBox="([\d. ]+)"', svg)[1]
    body = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would hold for all of the page
    body = re.sub(r"<defs>\s*</defs>", "", body).replace("xlink:href", "href")
    body = re.sub(r"\s*\n\s*", " ", body)
    used = sorted({colour.lower() for colour in _COLOUR.findall(body)})
    body = _COLOUR.sub(lambda m: f"var(--{kind}-{m[0][1:].lower()},{m[0].lower()})", body)
    turned = "".join(f"--{kind}-{colour[1:]}:{dark(colour)};" for colour in used)
    style = f"<style>@media (prefers-color-scheme:dark){{.{kind}{{{turned}}}}}</style>"
    head = f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{escape(label)}" stroke-linejoin="round">'
    return f"{head}{style}{body}</svg>"


def dark(colour: str) -> str:
    """A colour of a drawing on white for the dark page: the same hue, its lightness turned over."""
    if colour == "#ffffff":
        return "var(--card)"
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    hue, light, full = colorsys.rgb_to_hls(red, green, blue)
    turned = colorsys.hls_to_rgb(hue, 0.14 + 0.8 * (1 - light), full * 0.85)
    return "#" + "".join(f"{round(255 * part):02x}" for part in turned)
