"""The report of a run: what stands in it, and that it loads nothing."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from parsed_page import Page, page_of
from recorded_run import CLASSES, MATRIX, STEPS, make_retrain, make_search
from sparsemask import locks
from sparsemask.masks import save_mask
from sparsemask.report import build_page, charts, drawings
from sparsemask.report.page import _SECTIONS
from sparsemask.report.run_data import read_run
from sparsemask.report.sections import duration
from sparsemask.spaces.connectivity import named_mask
from tiny import SMALL, data_flags, make_data, verb

PAPER = "https://arxiv.org/abs/1904.07642"


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return make_search(tmp_path_factory.mktemp("runs") / "s")


@pytest.fixture(scope="module")
def retrain(tmp_path_factory):
    return make_retrain(tmp_path_factory.mktemp("runs") / "r")


# What runs of a kind never have: no card is empty.
LACKING = {"search": {"classes", "confusion"}, "retrain": {"connections"}}


@pytest.mark.parametrize("kind", LACKING)
def test_structure(kind, request):
    page = page_of(request.getfixturevalue(kind))
    assert len(page.all("h1")) == 1
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for key, title, _ in _SECTIONS:
        there = key not in LACKING[kind]
        assert bool(page.all("section", id=key)) == bool(page.all("a", href=f"#{key}")) == there, key
        assert not there or title in page.text
    # Every picture and drawing says in words what it shows.
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") for a in page.all("svg"))
    # What the drawings refer to by name stands in the page.
    for _, attrs in page.elements:
        for name in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attrs.values())):
            assert name in ids
    assert all(a["href"][1:] in ids for a in page.all("use"))
    assert page.all("html", lang="en") and page.all("meta", charset="utf-8")


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_nothing_is_loaded_from_anywhere(kind, request):
    text = build_page(read_run(request.getfixturevalue(kind)))
    page = Page(text)
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
            value = attrs.get(name) or ""
            assert value == PAPER or not value or value.startswith(("#", "data:image/png;base64,", "data:,")), (
                tag,
                name,
            )
    assert not re.findall(r"url\((?!#)", text) and "@import" not in text
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    policy = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy[0]["content"]


def test_key_figures_of_a_retraining(retrain):
    text = page_of(retrain).text
    count = int(named_mask("unet", 9).sum())
    # Of the evaluation on all pictures, not of the last validation (0.25).
    assert "mean IoU 0.432 evaluated on 241 pictures" in text
    assert f"connections {count} of 90" in text
    assert "parameters 2.97 M" in text and "multiply-adds 0.51 G at 225×225" in text
    assert "milliseconds 44.4 one picture at 225×225" in text and "time spent 5 min 25 s 400 steps" in text
    assert "finished · started 2026-11-20 06:17" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (325, "5 min 25 s"), (3599, "60 min"), (11100, "3 h 5 min")],
)
def test_durations(seconds, said):
    assert duration(seconds).replace("1 h 0 min", "60 min") == said


def test_class_table_and_confusion_matrix(retrain):
    page = page_of(retrain)
    # IoU by hand: hits over union; "dog" never occurs but is predicted, and scores 0 as published.
    for name, hit in zip(CLASSES, range(4), strict=True):
        union = MATRIX[hit].sum() + MATRIX[:, hit].sum() - MATRIX[hit, hit]
        assert f"{name} {MATRIX[hit, hit] / union:.3f}" in page.text
    shares = [a for a in page.all("td") if "--v" in (a.get("style") or "")]
    wanted = [v / row.sum() for row in MATRIX if row.sum() for v in row if v / row.sum() >= 0.005]
    assert [float(a["style"].split(":")[1]) for a in shares] == pytest.approx(wanted, abs=0.006)
    assert page.text.count("does not occur") == 1


def test_history_names_every_connection(search):
    page = page_of(search)
    lines = [a for a in page.all("g") if (a.get("class") or "").startswith("w ")]
    kept = int(named_mask("unet", 9).sum())
    assert len(lines) == 90
    assert sum("gone" in a["class"] for a in lines) == 90 - kept
    names = [t for t in page.texts if re.fullmatch(r"(E\d|D\d|G)→D\d: .*", t)]
    assert len(set(names)) == 90
    # The end of a kept connection's line: its weight, halved.
    assert "E8→D8: 1.000" in names and "G→D8: 0, dropped" in names
    assert f"{kept} of 90 above 0.001" in page.text


def test_curves_show_all_numbers_of_the_metrics(search):
    panels = dict(charts.curves(read_run(search).rows))
    assert list(panels) == ["loss", "mean IoU", "learning rate"]
    assert "from 2.9 at step 20 to 1 at step 400" in panels["loss"]
    assert panels["mean IoU"].count("<circle") == len(STEPS[9::10])


def test_few_validations_are_values_and_no_curve():
    rows = [{"step": step, "loss": 2.0 - step / 100} for step in range(10, 101, 10)]
    for step, miou in ((50, 0.125), (100, 0.25)):
        rows[step // 10 - 1]["val_miou"] = miou
    panels = dict(charts.curves(rows))
    assert ">0.125</text>" in panels["mean IoU"] and ">0.25</text>" in panels["mean IoU"]
    assert 'class="line valid few"' in panels["mean IoU"]
    # The axis begins where the run does: step 50 of 10 to 100 lies at 52 + 256 * 40 / 90.
    assert 'class="valid" cx="165.8"' in panels["mean IoU"]
    many = [{"step": step, "val_miou": 0.5} for step in range(10, 101, 10)]
    assert "few" not in dict(charts.curves(many))["mean IoU"]


def test_curves_of_odd_numbers():
    rows = [
        {"step": 1, "loss": 1.0, "flat": 2},
        {"step": 2, "loss": None, "flat": 2, "text": "<b>"},
        {"step": 3, "flat": 2},
    ]
    panels = dict(charts.curves(rows))
    # A single point, a constant and words must not divide by zero or stop the others.
    assert list(panels) == ["loss", "flat"] and "nan" not in "".join(panels.values())


@pytest.mark.parametrize("low, high", [(0, 1), (0.8102, 0.8351), (-3, 1e6), (1e-9, 2e-9), (5, 5.001)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 6
    room = (high - low) * 1e-6
    assert all(low - room <= t <= high + room for t in ticks)
    assert len(set(charts._labels(ticks))) == len(ticks)  # numbers that look alike would mislead


def test_large_numbers_of_an_axis_are_short():
    rows = [{"step": n, "expected_macs": 5e7 * n} for n in range(1, 5)]
    ((title, drawing),) = charts.curves(rows)
    assert title == "expected multiply-adds" and ">100 M<" in drawing and not re.search(r">[^<]*e\+", drawing)


def test_long_runs_stay_small(search, tmp_path):
    steps = np.arange(0, 50_000, 10)
    halves = np.random.default_rng(0).random((len(steps), 90))
    svg = charts.weight_history(steps, halves, 0.001)
    assert len(svg) < 500_000


def test_killed_running_and_finished(tmp_path):
    run = make_search(tmp_path / "r")
    run.note(state="running")
    text = page_of(run).text
    assert "stopped before its end" in text and f"--resume {run.folder}" in text
    with locks.acquire(run.folder / ".lock"):
        assert "running · started" in page_of(run).text


def test_how_to_repeat_it(search, retrain, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["retrain/eval.py"])  # advice is given as the user types
    text = page_of(search).text
    assert f"python search/run.py --search --config {search.config} --name again" in text
    assert f"python prune/prune.py --thres 0.001 --run {search.folder}" in text
    assert "seed 7" in text and "sparsemask 9.9, python 3.11.1" in text and "A Processor" in text
    text = page_of(retrain).text
    assert f"python retrain/train.py --config {retrain.config} --name again" in text
    assert "ab" * 32 in text  # the search checkpoint's hash


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({}, ("encoder weights", "none: from random weights")),
        ({"pretrained_model": "net.pth", "inherit": "encoder"}, ("encoder weights", "net.pth")),
        ({"inherit": "encoder"}, ("encoder weights", "runs/s/last.pt")),
        ({"inherit": "all"}, ("weights", "runs/s/last.pt")),
        ({"inherit": "all", "search_checkpoint": "other.pt"}, ("weights", "other.pt")),
        ({"ft_model": "runs/a/last.pt", "pretrained_model": None}, ("weights", "runs/a/last.pt")),
    ],
)
def test_what_the_weights_began_as(tmp_path, config, row):
    page = build_page(read_run(make_retrain(tmp_path / "r", **config)))
    heading, value = row
    assert re.search(rf'<th scope="row">{heading}</th><td>{value}</td>', page)


def test_flags_that_differ_from_the_preset_are_marked(search):
    page = Page(build_page(read_run(search)))
    # lr and scales differ from the sample preset, --sparse does not, --seed is not in it.
    assert "2 differ from the preset “sample”" in page.text
    assert len(page.all("mark")) == 2


def test_the_newest_mask_of_a_search_is_drawn(tmp_path):
    run = make_search(tmp_path / "r")
    assert "the end of the search, cleaned at threshold 0.001" in page_of(run).text
    save_mask(run.folder / "mask_thres_0.1.npy", named_mask("sparseacn", 9))
    save_mask(run.folder / "mask_thres_0.5.npy", named_mask("dense", 9))
    os.utime(run.folder / "mask_thres_0.1.npy", (1, 1))
    assert "The network of mask_thres_0.5.npy: 90 connections, 9 of 9 stages" in page_of(run).text


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_light_and_dark():
    style = resources.files("sparsemask.report").joinpath("style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    for scheme in (light, dark):
        for back in ("page", "card"):
            for ink in ("ink", "soft", "link", "encoder", "global", "decoder", "good"):
                assert contrast(scheme[ink], scheme[back]) >= 4.5, (ink, back)  # WCAG AA for text
        assert contrast(scheme["warn"], scheme["warn-card"]) >= 4.5
        assert contrast(scheme["ink"], scheme["mark"]) >= 4.5


@pytest.mark.parametrize("colour", ["#222222", "#6e6e6e", "#0072b2", "#d55e00", "#009e73"])
def test_drawings_on_dark_pages_stay_legible(colour):
    assert contrast(drawings.dark(colour), "#181c22") >= 4


@pytest.mark.slow
def test_every_verb_leaves_a_report(tmp_path):
    """A search and a retraining write theirs; an evaluation adds the confusion matrix."""
    make_data(tmp_path / "data")
    flags = [*data_flags(Path("data")), *SMALL, "--max_iter", "3", "--eval_interval", "3"]

    def said(script: str, *argv: str) -> str:
        done = verb(script, list(argv), tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "report: runs/s/report.html" in said("search/run.py", "--search", "--name", "s", *flags)
    page = Page((tmp_path / "runs/s/report.html").read_text())
    assert "connections 90 of 90" in page.text and "the end of the search" in page.text
    assert "not measured" not in page.text and "not recorded" not in page.text
    said("retrain/train.py", "--mask_path", "unet", "--name", "r", *flags)
    page = Page((tmp_path / "runs/r/report.html").read_text())
    assert "Not evaluated yet" in page.text and "not measured" not in page.text
    assert "report: runs/r/report.html" in said("retrain/eval.py", "--run", "runs/r", "--n_worker", "0")
    page = Page((tmp_path / "runs/r/report.html").read_text())
    assert "Not evaluated yet" not in page.text and "On 3 validation pictures" in page.text
    assert "recall precision" in page.text
