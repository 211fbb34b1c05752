"""A study's page: what it shows, what it makes of a damaged file, and that `sparsemask report` writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sparsemask.cli import report
from sparsemask.report import write_study_report
from tiny import fails


def trial(number: int, quality: float | None, macs: float, pruned: str | None = None, **more) -> dict:
    row = {"trial": number, "connections": 5, "parameters": 67_900, "multiply_adds": macs, "milliseconds": 6.9}
    row |= {"miou": quality, "lr": 0.003, "depth": 64, "folder": f"trial-{number:04d}", "mask": None, "seconds": 1620}
    return {**row, "pruned": pruned, **more}


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study's folder as its command leaves it: three trials, of one of them the retraining's page."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/first")
    (folder / "trial-0001/retrain").mkdir(parents=True)
    (folder / "trial-0001/retrain/report.html").write_text("")
    front = trial(1, 0.6451, 44.4e6, mask="masks/trial-0001.npy")
    every = [trial(0, 0.5, 71.4e6), front, trial(2, None, 0, "the search found <nothing>")]
    content = {"study": "first", "objectives": ["miou", "multiply_adds"], "summary": "trials: 2 complete"}
    (folder / "front.json").write_text(json.dumps({**content, "front": [front], "trials": every}))
    Image.new("RGB", (60, 40)).save(folder / "front.png")
    return folder


def test_the_page_shows_the_study(study, capfd):
    assert report.main([str(study)]) == 0
    assert "report: runs/first/report.html" in capfd.readouterr().out
    page = (study / "report.html").read_text()
    assert "Missing or not readable" not in page and "<script" not in page and "data:image/png" in page
    for words in ("trials: 2 complete", ">0.6451<", ">44.4 M<", "1 h 21 min", "the search found &lt;nothing&gt;"):
        assert words in page, words
    assert page.count('href="trial-0001/retrain/report.html"') == 2 and "trial-0000/retrain" not in page
    assert "--mask_path runs/first/masks/trial-0001.npy" in page


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"trials": "none", "front": [3, {"trial": "x"}]}, "Nothing to show yet"),
        ({"summary": "<b>", "front": []}, "&lt;b&gt;"),
        ({"trials": [trial(4, float("nan"), 1, folder="../elsewhere", mask="/etc/passwd", other={"a": 1})]}, ">–<"),
    ],
)
def test_files_of_strangers_do_no_harm(study, change, shown):
    content = {**json.loads((study / "front.json").read_text()), **change}
    (study / "front.json").write_text(json.dumps(content).replace("NaN", "null"))
    page = write_study_report(study).read_text()
    assert shown in page and "elsewhere" not in page and "passwd" not in page


def test_what_is_no_study_is_one_line(study, capfd):
    (study / "front.json").write_text("{}")
    fails(capfd, report.main, [str(study)], ["front.json", "no front of a study"])
    (study / "front.png").write_text("no picture")
    content = {"objectives": ["miou", "milliseconds"]}
    (study / "front.json").write_text(json.dumps(content))
    assert report.main([str(study)]) == 0
    assert "front.png: " in (study / "report.html").read_text()
