"""The front of a one-shot search in its report, and its picture."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from parsed_page import page_of
from recorded_run import make_search
from sparsemask.masks.decoder import FULL, as_decoder, decoder_mask, save_decoder
from sparsemask.pictures import draw_front, style
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
    after = re.search(r"prun\S* (.*--run)", text[text.index("And on from here") :])  # a front has no weights to cut
    assert after is not None and after[1] == "--budget_ms 9 --run"


def test_the_report_says_which_masks_were_trained_whole(tmp_path):
    run = made(tmp_path / "s")
    file = run.folder / "front" / "front.json"
    content = json.loads(file.read_text())
    assert "trained whole, in each" not in build_page(read_run(run))
    content["points"][1]["steps"], content["halving"] = 200, [[[9.0, 0.4, 17]] * 4, [[9.0, 0.5, 17]] * 2]
    file.write_text(json.dumps(content))
    page = build_page(read_run(run))
    assert "4, 2 candidates were trained whole, in each" in page and ">200<" in page
    assert "taken from the front" in page and "at threshold" not in page
    file.write_text(json.dumps({**content, "halving": content["halving"][:1]}))
    assert " 4 candidates were trained whole; their" in build_page(read_run(run))
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


@pytest.mark.parametrize("rest", ["all candidates", "others that were trained whole, most of them for fewer steps"])
def test_words_of_the_picture_stay_inside_and_labels_at_their_points(tmp_path, monkeypatch, rest):
    """Without a budget, too, whose line made matplotlib find its limits before labels were placed."""
    figures = []
    monkeypatch.setattr(style, "save", lambda fig, path: figures.append(fig) or path)
    draw_front(
        [(4.1, 0.057), (5, 0.06)], [(4.2, 0.042)], tmp_path / "f.png", "ms", "mean IoU", ["00", "01"], 0, None, rest
    )
    (fig,) = figures
    fig.canvas.draw()
    (axes,) = fig.axes
    for text in (*axes.texts, axes.title):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1, text.get_text()
    (cost, score), (label,) = (4.1, 0.057), [text for text in axes.texts if text.get_text() == "00"]
    x, y = axes.transData.transform((cost, score))
    box = label.get_window_extent()
    assert abs((box.y0 + box.y1) / 2 - y) < 0.25 * fig.dpi and abs((box.x0 + box.x1) / 2 - x) < 0.25 * fig.dpi
