"""The page of a cloud: what is in the file, and in a real browser that it turns, switches and asks for nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys

import numpy as np
import pytest

from devtools import Page
from sparsemask.errors import UseError
from sparsemask.pictures.point_clouds.layers import S3DIS_COLOURS, error_layer

pytest.importorskip("trimesh", reason="trimesh absent: pip install -e .[viewer]")
from sparsemask.pictures.point_clouds.viewer import _library, check_viewer, write_viewer  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NAMES = list(S3DIS_COLOURS)
EVIL = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"
SIDE = 248  # pixels of the panel beside the canvas


def block(points: int = 1500) -> tuple[np.ndarray, dict]:
    """A slab of two classes far from the origin, and its layers."""
    rng = np.random.default_rng(0)
    xyz = (rng.random((points, 3)) * [4, 3, 1] + [100, -50, 7]).astype(np.float32)
    labels = (xyz[:, 0] > 102).astype(int) + 1
    colours = rng.integers(0, 255, (points, 3), dtype=np.uint8)
    layers = {
        "prediction": labels,
        "errors": error_layer(labels, labels * 0 + 1),
        "kept": labels > 1,
        "colours": colours,
    }
    return xyz, layers


def cloud_in(path) -> dict:
    """What the page's script reads."""
    return json.loads(re.search(r'id="cloud">(.*?)</script>', path.read_text(), re.S)[1])


def test_the_page_holds_the_cloud(tmp_path):
    xyz, layers = block()
    cloud = cloud_in(write_viewer(tmp_path / "v.html", xyz, layers, NAMES))
    steps = np.frombuffer(base64.b64decode(cloud["points"]), "<u2").reshape(-1, 3)
    where = (steps - 32767.5) * cloud["step"]
    # Around the camera's centre, and to a ten-thousandth of the size.
    assert np.abs(where - where.mean(0) - (xyz - xyz.mean(0, dtype=float))).max() < 4e-4
    assert np.abs(where.mean(0)).max() < 0.2
    first, errors, _, colours = cloud["layers"]
    assert np.array_equal(np.frombuffer(base64.b64decode(first["data"]), np.uint8), layers["prediction"])
    # The legend names what occurs only.
    assert [name for _, name, _ in first["legend"]] == ["floor", "wall"]
    assert [name for _, name, _ in errors["legend"]] == ["right", "wrong"]
    assert base64.b64decode(colours["data"]) == layers["colours"].tobytes() and "legend" not in colours


def test_names_from_strangers_are_text(tmp_path):
    xyz, layers = block(50)
    path = write_viewer(tmp_path / "v.html", xyz, {EVIL: layers["prediction"]}, [EVIL, EVIL, EVIL], title=EVIL)
    text = path.read_text()
    assert EVIL not in text and "<img" not in text
    # The page ends its scripts itself, and nobody else: the cloud, three.js, ours.
    assert text.count("</script>") == 3
    assert cloud_in(path)["layers"][0]["name"] == EVIL


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("v.png", {}, "written as .html"),
        ("v.html", {"layers": {}}, "no layers"),
        ("v.html", {"layers": {"a": np.zeros(3, int)}}, "a: 3 values for a cloud of 50"),
        ("v.html", {"xyz": np.full((50, 3), np.inf)}, "50 of 50 points"),
    ],
)
def test_what_does_not_fit(name, change, said, tmp_path):
    xyz, layers = block(50)
    with pytest.raises(UseError, match=said):
        write_viewer(tmp_path / name, **{"xyz": xyz, "layers": layers, **change})
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    _library.cache_clear()
    with pytest.raises(UseError, match="pip install trimesh"):
        write_viewer(tmp_path / "v.html", *block(50))
    assert not list(tmp_path.iterdir())
    # A command asks before its work.
    with pytest.raises(UseError, match="pip install trimesh"):
        check_viewer(tmp_path / "v.html")


def test_another_viewer_in_the_package(tmp_path, monkeypatch):
    _library.cache_clear()
    monkeypatch.setattr("trimesh.viewer.notebook.scene_to_html", lambda scene: "<script>something else</script>")
    with pytest.raises(UseError, match="another viewer"):
        write_viewer(tmp_path / "v.html", *block(50))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with Page(program, tmp_path_factory.mktemp("profile"), (680, 340)) as page:
        yield page


def canvas(browser) -> np.ndarray:
    """The window without the panel, once the movement has come to rest."""
    shown = browser.shot()
    for _ in range(60):
        before, shown = shown, browser.shot()
        if np.array_equal(before, shown):
            break
    return shown[:, :-SIDE].astype(int)


def changed(one: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels that differ."""
    return float((np.abs(one - other).max(-1) > 20).mean())


def press(browser, name: str) -> None:
    browser.run(f"[...document.querySelectorAll('button')].find(one => one.textContent === '{name}').click()")


@pytest.mark.slow
def test_it_turns_and_switches(browser, tmp_path):
    browser.open(write_viewer(tmp_path / "v.html", *block(), NAMES, title="A slab"))
    first = canvas(browser)
    ground = first[0, 0]
    # Not blank: points of both classes on the ground.
    painted = (np.abs(first - ground).max(-1) > 20).mean()
    assert 0.02 < painted < 0.9
    for name in ("floor", "wall"):
        assert (np.abs(first - S3DIS_COLOURS[name]).max(-1) < 40).any()
    browser.drag((120, 170), (260, 190))
    turned = canvas(browser)
    assert changed(first, turned) > 0.02
    press(browser, "errors")
    errors = canvas(browser)
    assert changed(turned, errors) > 0.02
    assert browser.run("document.querySelector('#legend').textContent").startswith("right")
    # The layer changes the paint, not the place.
    press(browser, "prediction")
    assert changed(turned, canvas(browser)) < 0.002
    press(browser, "from above")
    above = canvas(browser)
    assert changed(turned, above) > 0.02
    press(browser, "from beside")
    assert changed(first, canvas(browser)) < 0.002
    browser.wheel((200, 200), 300)
    nearer = canvas(browser)
    assert changed(first, nearer) > 0.01
    assert browser.complaints() == []
    # Nothing but the page itself was asked for.
    assert [url.rpartition("/")[2] for url in browser.requests()] == ["v.html"]


def test_points_grow_and_the_top_comes_off(browser, tmp_path):
    browser.open(write_viewer(tmp_path / "v.html", *block(), NAMES))
    painted = lambda: (np.abs((now := canvas(browser)) - now[0, 0]).max(-1) > 20).mean()
    move = "(e => {{ e.value = {}; e.dispatchEvent(new Event('input')); }})(document.getElementById('{}'))"
    browser.run(move.format(-2.5, "size"))
    small = painted()
    browser.run(move.format(1, "size"))
    larger = painted()
    assert larger > 1.5 * small
    browser.run(move.format(0, "height"))
    assert painted() < 0.1 * larger
    browser.run("document.getElementById('light').click()")
    assert canvas(browser)[0, 0].min() == 255


def test_no_script_of_strangers_runs(browser, tmp_path):
    xyz, layers = block(50)
    path = write_viewer(tmp_path / "v.html", xyz, {EVIL: layers["prediction"]}, [EVIL, EVIL, EVIL], title=EVIL)
    browser.open(path)
    assert browser.run("document.title") == EVIL
    assert browser.run("document.querySelector('#layers button').textContent") == EVIL
    assert browser.complaints() == []
    # Even one that got into the file would be held back by the page's policy.
    path.write_text(path.read_text().replace("<aside>", "<aside><script>document.title = 'caught'</script>"))
    browser.open(path)
    assert browser.run("document.title") == EVIL
    assert any("Content Security Policy" in line for line in browser.complaints())


def test_a_browser_without_webgl_says_so(browser, tmp_path):
    path = write_viewer(tmp_path / "v.html", *block(50))
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text())
    path.write_text(text.replace("<main", "<script>HTMLCanvasElement.prototype.getContext = () => null</script><main"))
    browser.open(path)
    assert browser.run("document.getElementById('problem').hidden") is False
