"""The front of a one-shot search in its report, and its picture."""

from __future__ import annotations

import json

from PIL import Image

from parsed_page import page_of
from recorded_run import make_search
from sparsemask.masks.decoder import FULL, as_decoder, decoder_mask, save_decoder
from sparsemask.pictures import draw_front
from sparsemask.report import build_page, write_report
from sparsemask.report.run_data import read_run
from sparsemask.spaces.connectivity import named_mask
from sparsemask.spaces.connectivity.front_files import Point, write_front


def made(folder):
    """A finished one-shot search with a front of two masks."""
    run = make_search(folder, method="one-shot", budget_ms=9.0)
    unet = named_mask("unet", 9)
    points = [
        Point(decoder_mask(unet, [FULL] * 9, [16] * 9), 0.25, 3.5, 30_000_000),
        Point(as_decoder(unet, 64), 0.5, 8.25, 90_000_000),
    ]
    write_front(folder, points, {"score": "miou", "unit": "ms", "candidates": []}, {"space": "connectivity"})
    save_decoder(folder / "mask_front.npy", points[1].mask, {"connections": 17})
    run.note(front={"points": 2, "candidates": 12, "chosen": "01.npy"})
    run.note(budget={"unit": "ms", "most": 9.0, "predicted": 8.25, "measured_ms": 8.5})
    draw_front([(3.5, 0.25), (8.25, 0.5)], [(9, 0.4)], run.pictures / "front.png", "ms", "miou", ["00", "01"], 1, 9.0)
    return run


def test_the_report_shows_front_budget_and_times(tmp_path):
    run = made(tmp_path / "s")
    assert Image.open(run.pictures / "front.png").size[0] > 400
    text = write_report(run).read_text()
    page_of(run)
    section = text[text.index('<section id="front"') : text.index('<section id="architecture"')]
    for words in ("0.2500", "3.50", "30.0 M", "<mark>01.npy</mark>", "kept back", "data:image/"):
        assert words in section, words
    costs = text[text.index('<section id="costs"') : text.index('<section id="reproduce"')]
    for words in ("budget", "9.0 ms", "predicted", "8.2 ms", "measured", "8.5 ms"):
        assert words in costs, words
    assert '<section id="connections"' not in text
    assert "--thres 0.001 --budget_ms 9 --run" in text


def test_the_report_says_which_masks_were_trained_whole(tmp_path):
    run = made(tmp_path / "s")
    file = run.folder / "front" / "front.json"
    content = json.loads(file.read_text())
    assert "trained whole, in each" not in build_page(read_run(run))
    content["points"][1]["steps"], content["halving"] = 200, [[[9.0, 0.4, 17]] * 4, [[9.0, 0.5, 17]] * 2]
    file.write_text(json.dumps(content))
    page = build_page(read_run(run))
    assert "4, 2 candidates were trained whole" in page and ">200<" in page
    for damaged in (3, [3], [[1]], "<b>5"):
        file.write_text(json.dumps({**content, "halving": damaged}))
        assert "<b>5" not in build_page(read_run(run))


def test_damaged_fronts_are_said_in_the_report(tmp_path):
    run = made(tmp_path / "s")
    file = run.folder / "front" / "front.json"
    file.write_text(json.dumps({"points": [{"file": "<script>", "score": "x"}, 3, {"score": 1.0, "file": "<b>"}]}))
    page = build_page(read_run(run))
    assert "<script>" not in page and "&lt;b&gt;" in page
    file.write_text("{")
    assert "front.json is missing or not readable" in build_page(read_run(run))
