"""The report of spoilt, missing and hostile files: it trusts none and stands without any."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from parsed_page import Page, page_of
from recorded_run import make_retrain, make_search
from sparsemask.cli.main import main
from sparsemask.report import build_page, names_of, write_report
from sparsemask.report.page import _SECTIONS
from sparsemask.report.run_data import _from_names, read_run
from sparsemask.spaces.connectivity import named_mask

HOSTILE = ["</td><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a&amp;b'c", "nul\x00bell\x07"]


def test_names_from_files_stay_text(tmp_path):
    bad = '"><script>alert(3)</script>'
    run = make_retrain(tmp_path / "<script>alert(4)<'\"", classes=HOSTILE, data_root=bad, **{bad: bad})
    run.note(started=bad, space=bad, state=bad, result={bad: 0.5})
    run.note(
        eval={bad: 0.5, "iou": {bad: 0.1}}, environment={"python": bad, "processor": bad, "device": bad, "cores": bad}
    )
    run.note(timed={"device": bad, "threads": bad}, **{"strides": [bad] * 9})
    run.metrics.write_text('{"step": 1, "</svg><script>alert(5)</script>": 1, "loss": "<script>"}\n')
    (run.folder / "mask.json").write_text('{"checkpoint": "<script>", "sha256": "<script>", "mask_path": "<script>"}')
    (run.pictures / "<img src=x onerror=alert(6)>.png").write_bytes((run.pictures / "samples.png").read_bytes())
    text = build_page(read_run(run))
    page = Page(text)
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert all(a["src"].startswith("data:image/png") for a in page.all("img"))
    # They are shown, as the words they are; what HTML cannot hold is replaced.
    assert HOSTILE[0] in page.texts and HOSTILE[1] in page.texts and HOSTILE[2] in page.texts
    assert "nul\ufffdbell\ufffd" in page.texts and "\x00" not in text
    assert run.folder.name in page.texts


@pytest.mark.slow
def test_pictures_are_written_anew_and_bounded(tmp_path):
    run = make_retrain(tmp_path / "r")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1200, 3), dtype=np.uint8)
    for name in ("samples", "confusion", "one", "two", "three", "four", "five", "six"):
        Image.fromarray(noise).save(run.pictures / f"{name}.png", pnginfo=None)
    assert write_report(run).stat().st_size < 3_200_000  # noise does not compress: the worst that can come
    (run.pictures / "samples.png").write_text("<svg onload='alert(1)'/>")
    page = page_of(run)
    assert "samples.png is not readable as a picture" in page.text


@pytest.mark.parametrize("make", [make_search, make_retrain])
def test_ordinary_pages_are_small(make, tmp_path):
    assert write_report(make(tmp_path / "r")).stat().st_size < 300_000


MISSING = {
    "run.json": "run.json is missing",
    "metrics.jsonl": "No curves",
    "history.jsonl": "No history of the weights",
    "pictures/samples.png": "No sample predictions",
    "mask.npy": "No mask to draw yet",
    "confusion.json": "",
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("spoil", ["gone", "empty", "torn", "folder", "odd"])
def test_a_missing_or_torn_part_is_named_and_the_rest_stands(name, spoil, tmp_path):
    make = make_search if name.startswith("history") else make_retrain
    run = make(tmp_path / "r")
    path = run.folder / name
    path.unlink()
    if spoil == "folder":
        path.mkdir()
    elif spoil != "gone":
        odd = b'{"step": [], "weights": {}, "matrix": [[1]], "classes": 3, "eval": 7, "result": []}\n{}\n[1]\nnull\n'
        path.write_bytes({"empty": b"", "torn": b'{"step": 1, "we\xff', "odd": odd}[spoil])
    page = page_of(run)
    if spoil == "gone":
        assert MISSING[name] in page.text
    for key in {key for key, _, _ in _SECTIONS} - {"connections", "classes", "confusion"}:
        assert page.all("section", id=key)


def test_a_configuration_alone_makes_a_page(tmp_path):
    run = make_search(tmp_path / "r")
    for path in [*run.pictures.iterdir(), run.metrics, run.history, run.info_file]:
        path.unlink()
    text = page_of(run).text
    assert "metrics.jsonl is missing" in text and "run.json is missing" in text


def test_no_run_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("- a\n- list\n")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.yaml").write_bytes(b"a: [\xff")
    for name in ("absent", "empty", "odd", "torn"):
        before = sorted(tmp_path.rglob("*"))
        assert main(["report", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and name in said and said.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
    assert main(["report"]) == 2


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_search(tmp_path / "r")
    assert main(["report", str(run.folder)]) == 0
    before = (run.folder / "report.html").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert main(["report", str(run.folder)]) == 2
    assert (run.folder / "report.html").read_bytes() == before
    assert not list(run.folder.glob(".report.html.*"))


@pytest.mark.parametrize("name", ["unet", "dense", "sparseacn", "sparsemask-voc", "random-12"])
def test_masks_in_words_and_back(name):
    mask = named_mask(name, 9)
    assert np.array_equal(_from_names(names_of(mask)), mask)


@pytest.mark.parametrize("text", ["E9>D2", "X>D1", "E1>", "D3>D3", "E1>D999999999", "E0>D0 nonsense"])
def test_masks_in_wrong_words(text):
    assert _from_names(text) is None
