"""The report in a real browser: no request, nothing on the console, light and dark, wide and narrow."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recorded_run import make_retrain, make_search
from sparsemask.report import record_confusion, write_report
from sparsemask.VOC12.palette import VOC_CLASSES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
]  # fmt: skip


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """browse(page, *flags) -> the finished process of a browser that opened a file."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def call(page: Path, *more: str) -> subprocess.CompletedProcess:
        profile = tmp_path_factory.mktemp("profile")
        argv = [program, *QUIET, f"--user-data-dir={profile}", *more, page.resolve().as_uri()]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)

    return call


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"search": write_report(make_search(folder / "s")), "retrain": write_report(make_retrain(folder / "r"))}


def requests(netlog: Path) -> list[str]:
    """What the page itself asked for; the browser's own calls home come from no origin."""
    text = netlog.read_text()
    log = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    begun = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == begun and "url" in event.get("params", {})]
    return [p["url"] for p in asked if p.get("initiator") != "not an origin"]


KINDS = ["search", pytest.param("retrain", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_and_a_silent_console(kind, pages, browse, tmp_path):
    done = browse(pages[kind], "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert 'id="reproduce"' in done.stdout
    # Without the policy that forbids them there are no requests either; and one that is put in is seen.
    text = re.sub(r"<meta http-equiv[^>]*>", "", pages[kind].read_text())
    free, spoilt, log = tmp_path / "free.html", tmp_path / "spoilt.html", tmp_path / "net.json"
    free.write_text(text)
    spoilt.write_text(text.replace("</body>", '<img src="http://elsewhere.invalid/x.png" alt=""></body>'))
    browse(free, "--dump-dom", f"--log-net-log={log}")
    assert requests(log) == []
    browse(spoilt, "--dump-dom", f"--log-net-log={log}")
    assert requests(log) == ["http://elsewhere.invalid/x.png"]


@pytest.mark.parametrize(("scheme", "setting"), [("light", "1"), ("dark", "0")])
def test_light_and_dark(scheme, setting, pages, browse, tmp_path):
    shot = tmp_path / "shot.png"
    more = [f"--blink-settings=preferredColorScheme={setting}", "--window-size=1600,3200", f"--screenshot={shot}"]
    browse(pages["search"], *more)
    picture = np.asarray(Image.open(shot).convert("L"), dtype=float)
    # Most of a page is its ground: near white, or near black.
    share = (picture > 235).mean() if scheme == "light" else (picture < 45).mean()
    assert share > 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [390, 1600])
def test_no_page_is_wider_than_its_window(kind, width, pages, browse, tmp_path):
    measure = tmp_path / "measure.html"
    inside = html.escape(pages[kind].read_text())
    measure.write_text(
        f'<!DOCTYPE html><iframe srcdoc="{inside}" style="width:{width}px;height:900px;border:0" '
        "onload=\"document.title = 'W' + this.contentDocument.documentElement.scrollWidth\"></iframe>"
    )
    done = browse(measure, "--dump-dom", "--window-size=1700,1000", "--virtual-time-budget=3000")
    assert re.search(r"<title>W(\d+)", done.stdout)[1] == str(width)


def classes_of_voc(folder: Path):
    """An evaluated retraining with the names and as many classes as VOC."""
    run = make_retrain(folder)
    matrix = np.random.default_rng(0).integers(1, 1000, (21, 21)) + np.diag(np.full(21, 20_000))
    record_confusion(run, VOC_CLASSES, matrix)
    return run


@pytest.mark.parametrize("kind", ["search", "retrain"])
@pytest.mark.parametrize("width", [390, 1200, 1366])
def test_nothing_is_cut_off(kind, width, pages, browse, tmp_path):
    """No table scrolls and no key figure leaves its card: on ordinary screens, and with few classes on a phone."""
    page = pages[kind] if kind == "search" or width < 1000 else write_report(classes_of_voc(tmp_path / "r"))
    measure, inside = tmp_path / "measure.html", html.escape(page.read_text())
    wider = (
        "[...this.contentDocument.querySelectorAll('.scroll, .tiles li, .drawing')].filter("
        "e =&gt; e.scrollWidth &gt; e.clientWidth).map(e =&gt; e.closest('section').id + ' ' + e.className)"
    )
    measure.write_text(
        f'<!DOCTYPE html><iframe srcdoc="{inside}" style="width:{width}px;height:900px;border:0" '
        f"onload=\"document.title = 'wider: ' + {wider}.join()\"></iframe>"
    )
    done = browse(measure, "--dump-dom", "--window-size=1700,1000", "--virtual-time-budget=3000")
    assert re.search(r"<title>(.*?)</title>", done.stdout)[1].strip() == "wider:"
