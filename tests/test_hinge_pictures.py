"""Pictures and report of group sparsity: what they are made of, what they refuse, what stands in the page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parsed_page import Page
from sparsemask import UseError
from sparsemask.options import write_config
from sparsemask.pictures.hinge import Tried, draw_kept, draw_spectra, draw_tradeoff
from sparsemask.report import build_page, record_confusion
from sparsemask.report.run_data import read_run
from sparsemask.runs import Run

CLASSES = ["cat", "dog", "<frog>"]
MATRIX = np.array([[40, 9, 1], [5, 45, 0], [0, 0, 0]])
GROUPS = {"features.1.0.body.0.rows": {"kept": 4, "total": 16}, "features.1.0.body.3.rows": {"kept": 15, "total": 16}}


def ink(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of nearly that colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(-1) < 12).sum())


BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def test_bars_are_as_long_as_the_shares_and_coloured_by_kind(tmp_path):
    few = draw_kept({"a.rows": (1, 10), "b.columns": (10, 10)}, tmp_path / "few.png")
    many = draw_kept({"a.rows": (10, 10), "b.columns": (1, 10)}, tmp_path / "many.png")
    # The legend has both colours, so that the areas compare only roughly.
    assert ink(few, ORANGE) < 0.35 * ink(many, ORANGE) and ink(many, BLUE) < 0.35 * ink(few, BLUE)


def test_many_sets_are_drawn_without_names(tmp_path):
    path = draw_kept({f"layer{k}.rows": (k, 200) for k in range(200)}, tmp_path / "kept.png")
    assert Image.open(path).height < 2000


def test_spectra_fall_and_zero_lies_on_the_floor(tmp_path):
    before = {"a.rows": [1.0, 0.5, 0.25], "b.rows": [3.0, 2.0]}
    full = draw_spectra(before, before, tmp_path / "full.png", 0.005)
    gone = draw_spectra(before, {"a.rows": [1, 0, 0], "b.rows": [0.0, 0.0]}, tmp_path / "gone.png", 0.005)
    light = (217, 234, 243)  # the area under the curve
    assert ink(gone, light) < 0.5 * ink(full, light)


def test_spectra_are_thinned_and_may_lack_the_past(tmp_path):
    after = {f"layer{k}.rows": np.linspace(1, 0, 8) for k in range(120)}
    assert Image.open(draw_spectra({}, after, tmp_path / "s.png")).height < 2500  # all 120 would be twice as high


def test_tradeoff_has_a_line_for_each_kind(tmp_path):
    points = [Tried(0.5, 0.93, "half"), Tried(0.25, 0.91), Tried(1.0, 0.935, "ResNet-56", "baseline")]
    alone = draw_tradeoff(points, tmp_path / "a.png")
    both = draw_tradeoff([*points, Tried(0.3, 0.90, kind="other"), Tried(0.6, 0.91, kind="other")], tmp_path / "b.png")
    assert ink(alone, BLUE) and not ink(alone, ORANGE) and ink(both, ORANGE)


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda p: draw_kept({}, p), "no sets"),
        (lambda p: draw_kept({"a": (5, 4)}, p), "a: 5 groups of 4"),
        (lambda p: draw_kept({"a": (0, 0)}, p), "a: 0 groups of 0"),
        (lambda p: draw_spectra({}, {}, p), "no sets"),
        (lambda p: draw_spectra({}, {"a": [1.0, math.nan]}, p), "a: norms"),
        (lambda p: draw_spectra({"a": [-1.0]}, {"a": [1.0]}, p), "a: norms"),
        (lambda p: draw_tradeoff([], p), "nothing to draw"),
        (lambda p: draw_tradeoff([Tried(math.inf, 0.9, "x")], p), "x: cost"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, draw, match):
    with pytest.raises(UseError, match=match):
        draw(tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def make_run(folder: Path, verb: str = "retrain", **noted) -> Run:
    """A finished run of the family, as its verbs leave it."""
    run = Run(folder)
    folder.mkdir(parents=True)
    write_config(run.config, {"space": "hinge", "seed": 1, "lr": 0.1, "data_root": "cifar10"})
    run.note(verb=verb, space="hinge", family="group_sparsity", state="finished", seconds=61)
    rows = [{"step": s, "loss": 2 - s / 100, "lr": 0.1, "val_top1": s / 100} for s in range(10, 100, 10)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.pictures.mkdir()
    run.note(**noted)
    return run


def test_a_report_says_what_was_kept_and_what_it_costs(tmp_path):
    costs = {"parameters": 400_000, "multiply_adds": 60e6, "milliseconds": 2.0}
    dense = {"parameters_dense": 800_000, "multiply_adds_dense": 120e6, "milliseconds_dense": 5.0}
    target = {"by": "multiply-adds", "wanted": 0.5, "reached": 0.4998}
    run = make_run(tmp_path / "r", groups=GROUPS, threshold=0.005, target=target, merged=["features.1.0.body.0"],
                   timed={"device": "cpu", "threads": 2, "batch": 128}, **costs, **dense)  # fmt: skip
    draw_kept({k: (v["kept"], v["total"]) for k, v in GROUPS.items()}, run.pictures / "kept.png")
    record_confusion(run, CLASSES, MATRIX)
    run.note(
        eval={"top1": 0.85, "loss": 0.5, "pictures": 100, "accuracy": dict(zip(CLASSES, (0.8, 0.9, None), strict=True))}
    )
    found = read_run(run)
    page = Page(build_page(found))
    assert not found.problems
    for said in ("top-1 accuracy 85.00%", "evaluated on 100 pictures", "groups kept 19 of 32, pairs merged: 1",
                 "50.0% of 120 M", "Wanted: 50.0% of the multiply-adds; reached: 50.0%", "gain in time 2.50",
                 "threads: 2", "dog 0.900", "cat (5)", "below 0.005", "2003.08935"):  # fmt: skip
        assert said in page.text, said
    assert "IoU" not in page.text and "connections" not in page.text
    assert "<frog>" in page.text, "names pass through escaping"
    assert len(page.all("img")) == 1, "the picture of kept shares stands once"


def test_a_bare_search_names_the_next_step(tmp_path):
    page = Page(build_page(read_run(make_run(tmp_path / "s", "search"))))
    assert "--run" in page.text and "--thres" not in page.text and "mask.npz" in page.text
    assert "top-1 accuracy 90.00%" in page.text, "of the last validation"


@pytest.mark.parametrize("groups", [5, {"a": 3}, {"a": {"kept": 5, "total": 4}}, {"a": {"kept": "x", "total": 4}}])
def test_spoilt_entries_are_named(tmp_path, groups):
    found = read_run(make_run(tmp_path / "r", groups=groups))
    assert "No groups counted yet" in Page(build_page(found)).text
    assert isinstance(groups, int) or "the groups of a are not readable" in found.problems[0]


def test_the_scale_ends_below_what_is_drawn(tmp_path):
    flat = {"a.rows": np.linspace(1, 0.5, 20)}
    light = (217, 234, 243)
    near = ink(draw_spectra(flat, flat, tmp_path / "near.png", 0.3), light)
    far = ink(draw_spectra(flat, {"a.rows": [*np.linspace(1, 0.5, 19), 0]}, tmp_path / "far.png", 0.3), light)
    assert near < 0.95 * far, "on a scale of one power of ten a fall by half is seen"
