"""HTML elements. Every text must pass through :func:`escape`."""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_LARGEST = 30_000_000  # pixels of a picture that is still opened


def escape(text: object) -> str:
    """Any text for the inside of an element or a quoted attribute; what HTML forbids becomes a replacement mark."""
    return html.escape(_CONTROL.sub("\ufffd", str(text)))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def absent(text: str) -> str:
    """Placeholder for a missing part of the run."""
    return paragraph(text, "absent")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; `rows` hold markup, the first cell of each names the row. `head` is plain text, or empty."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table{_class(kind)}>{top}<tbody>{body}</tbody></table></div>'


def command(line: str) -> str:
    """A command line to copy."""
    return f"<pre><code>{escape(line)}</code></pre>"


def figure(body: str, caption: str, kind: str = "") -> str:
    """A figure with its caption (plain text)."""
    return f"<figure{_class(kind)}>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(path: Path, alt: str, width: int = 820, limit: int = 800_000) -> str:
    """An <img> element with the image embedded.

    The file is decoded and encoded again, so that only its pixels reach the page.

    Args:
        path: the image file.
        alt: text in place of the image.
        width: largest width in pixels.
        limit: largest size in bytes, approximately.

    Raises:
        OSError, ValueError: the file is no image, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(path)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError(f"{path.name} is too large") from None
    with opened:
        if opened.width * opened.height > _LARGEST:
            raise ValueError(f"{path.name} is too large")
        image = opened.convert("RGB")
    while True:
        if image.width > width:
            image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        if data.tell() <= limit or width < 200:
            break
        width = int(width * 0.85)
    code = base64.b64encode(data.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{code}" {size} alt="{escape(alt)}">'
