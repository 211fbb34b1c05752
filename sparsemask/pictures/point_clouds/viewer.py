"""A web page in one file in which a cloud is turned by mouse and its layers are switched.

Drawn by three.js (WebGL) as the package trimesh carries it for its own viewer, copied into the page: nothing is loaded
from anywhere, which a content policy in the page enforces, together with the scripts being ours to the letter.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import write_text
from sparsemask.pictures.overlay import percent
from sparsemask.pictures.point_clouds.figures import panel_layers
from sparsemask.pictures.point_clouds.layers import Layer
from sparsemask.pictures.point_clouds.render import checked, roof, spacing, whole_box
from sparsemask.report.html import escape

_SUFFIXES = (".html", ".htm")
_NEEDED = "THREE.TrackballControls="  # what the library's text must hold
_FIRST = "var camera,controls,scene"  # where trimesh's own viewer begins, after three.js
_STEPS = 65535  # that a coordinate has: a millimetre or two of a scan


def write_viewer(
    path: str | os.PathLike,
    xyz: np.ndarray,
    layers: Mapping[str, Layer | np.ndarray],
    names: Sequence[str] | None = None,
    colours: np.ndarray | None = None,
    title: str = "Point cloud",
) -> Path:
    """Write a page that shows a cloud, opened by its first layer; return the path.

    Left button or finger turns, right moves, wheel or two fingers come nearer; the digits switch layers.

    Args:
        path: the file to write (.html).
        xyz: float32 (N, 3), metres, z up; kept to 1/65535 of the cloud's size.
        layers: what points are painted with, by name, as the panels of
            :func:`~sparsemask.pictures.point_clouds.figures.draw_clouds`.
        names: of the classes; None: their numbers.
        colours: uint8 (K, 3) of the classes; None: :func:`~sparsemask.pictures.point_clouds.layers.class_colours`.
        title: plain text.

    Raises:
        UseError: the package trimesh is absent, there are no layers, or one is of another number of points.
    """
    path, xyz, library = check_viewer(path), checked(xyz), _library()
    if not layers:
        raise UseError(f"{path}: no layers to show")
    painted = panel_layers(layers, len(xyz), names, colours)
    script = resources.files("sparsemask.pictures").joinpath("points_viewer.js").read_text(encoding="utf-8")
    style = resources.files("sparsemask.pictures").joinpath("points_viewer.css").read_text(encoding="utf-8")
    write_text(path, _page(title, len(xyz), _cloud(xyz, painted), (library, script), style))
    return path


def check_viewer(path: str | os.PathLike) -> Path:
    """Return the path if a page can be written there; UseError before any work otherwise."""
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise UseError(f"{path}: a viewer's page is written as .html")
    _library()
    return path


@functools.cache
def _library() -> str:
    """The text of three.js and its controls."""
    try:
        from trimesh import PointCloud, Scene
        from trimesh.viewer.notebook import scene_to_html
    except ImportError:
        raise UseError("the web viewer needs the package trimesh (three.js in it): pip install trimesh") from None
    page = scene_to_html(Scene(PointCloud(np.eye(3))))
    text = page.partition("<script>")[2].partition(_FIRST)[0]
    if _NEEDED not in text or "</script" in text.lower():
        raise UseError("the installed trimesh brings another viewer than this one knows: pip install 'trimesh>=4,<6'")
    return text


def _cloud(xyz: np.ndarray, layers: Mapping[str, Layer | np.ndarray]) -> dict:
    """What the page's script reads; arrays as base64 of their bytes."""
    bounds, near = np.stack([xyz.min(0), xyz.max(0)]).astype(np.float64), whole_box(xyz)
    # Coordinates are whole steps around the middle of what matters, where the camera turns.
    middle = near.mean(0)
    step = np.maximum(2 * np.abs(bounds - middle).max(0) / _STEPS, 1e-9)
    steps = np.clip(np.rint((xyz - middle) / step + _STEPS / 2), 0, _STEPS).astype("<u2")
    entries = []
    for name, layer in layers.items():
        entry = {"name": str(name), "data": _base64(layer.index if isinstance(layer, Layer) else layer)}
        if isinstance(layer, Layer):
            entry["colours"] = layer.colours.tolist()
            entry["legend"] = [[k, str(layer.names[k]), percent(n / len(xyz))] for k, n in layer.occurring()]
        entries.append(entry)
    height = roof(xyz)
    reach = float(np.linalg.norm(near[1] - near[0])) / 2
    return {
        "points": _base64(steps),
        "step": step.tolist(),
        "heights": [*(bounds[:, 2] - middle[2]).tolist(), None if height is None else height - float(middle[2])],
        "reach": max(reach, 1e-3),
        "spacing": max(spacing(xyz), 1e-4),
        "layers": entries,
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _page(title: str, count: int, cloud: dict, scripts: Sequence[str], style: str) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}"
    # Inside a script element only '<' could end it; as \u003c it cannot.
    data = json.dumps(cloud, separators=(",", ":")).replace("<", "\\u003c")
    script_elements = "\n".join(f"<script>{text}</script>" for text in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main id="view"><p id="problem" hidden>This browser does not draw in 3-D: WebGL is off or missing.</p></main>
<aside>
<h1>{escape(title)}</h1>
<p>{count} points. Drag to turn, right button to move, wheel to come nearer.</p>
<h2>Layer</h2>
<div id="layers"></div>
<h2>View</h2>
<button type="button" id="beside">from beside</button> <button type="button" id="bird">from above</button>
<label>Size of points<input type="range" id="size" min="-2.5" max="2.5" step="0.1" value="0"></label>
<label>Shown up to this height<input type="range" id="height" min="0" max="1" step="0.01" value="1"></label>
<label><input type="checkbox" id="light"> light ground</label>
<ul id="legend"></ul>
</aside>
<script type="application/json" id="cloud">{data}</script>
{script_elements}
</body>
</html>
"""
