"""The page as text: everything in one file, in the style of the reports, nothing loaded but what it carries."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from sparsemask._version import __version__
from sparsemask.report.html import escape


def build_page(networks: Sequence[str], largest: int) -> tuple[bytes, str]:
    """The page, and the policy that the browser enforces on it.

    Args:
        networks: their names, in order.
        largest: bytes of a picture's file.

    Returns:
        HTML in UTF-8, and the value of Content-Security-Policy: its own style and script, pictures that the script
        makes, requests to this server, and nothing else.
    """
    style = _text("sparsemask.report", "style.css") + _text(__package__, "page.css")
    script = _text(__package__, "page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    options = "".join(f'<option value="{number}">{escape(name)}</option>' for number, name in enumerate(networks))
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>A picture through a network · sparsemask</title>
<style>{style}</style>
</head>
<body data-largest="{largest}">
<header>
<p class="kicker">sparsemask serve</p>
<h1>A picture through a network</h1>
</header>
<main>
<section id="choose" aria-label="Choose">
<noscript><p class="error">This page needs scripts: its own, which are in it.</p></noscript>
<p class="which"><label for="network">Network</label> <select id="network">{options}</select></p>
<label class="drop" for="file"><b>Drop a picture here</b> <span>or choose, or paste one</span>
<input id="file" type="file" accept="image/*"></label>
<p id="state" role="status"></p>
</section>
<section id="figures" aria-label="Key figures" hidden><ul class="tiles"></ul></section>
<section id="result" aria-labelledby="result-title" hidden>
<h2 id="result-title">Result</h2>
<div class="view"><div class="pair"><img class="after" alt=""><img class="before" alt="">
<span class="divider"></span>
<input id="divide" type="range" min="0" max="100" step="0.1" value="50" aria-label="How much of the first is shown">
</div></div>
<p class="under"><span class="left"></span><span class="right"></span></p>
<p class="tools"><label><input id="whole" type="checkbox"> pixel by pixel</label> <a id="save">Save the result</a></p>
<div class="notes"></div>
</section>
<section id="shares" aria-labelledby="shares-title" hidden><h2 id="shares-title">Classes</h2>
<div class="scroll"><table class="classes"><thead><tr><th scope="col">class</th>
<th scope="col" colspan="2">share of the picture</th></tr></thead><tbody></tbody></table></div></section>
<section id="places" aria-labelledby="places-title" hidden><h2 id="places-title">Where it was computed</h2>
<div class="gallery"></div></section>
</main>
<footer><p>sparsemask {escape(__version__)}. Pictures go to the process that serves this page, are computed in its
memory, and are not kept.</p></footer>
<script>{script}</script>
</body>
</html>
"""
    return html.encode(), policy


def _text(package: str, name: str) -> str:
    """A file of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a policy calls an element's text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
