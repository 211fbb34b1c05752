"""Pictures: what they show, that nothing is cut off, and that the user's matplotlib stays as it was."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sparsemask
from sparsemask import UseError, pictures
from sparsemask.pictures import architecture, comparison, curves, predictions, style, weights

STRIDES = [32, 32, 32, 16, 16, 8, 4, 2, 2]
CHANNELS = [1280, 320, 160, 96, 64, 32, 24, 16, 32]
PALETTE = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
UNEQUAL = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int), np.zeros((4, 5), int)


def empty(depth: int) -> np.ndarray:
    return np.zeros((depth, depth, 2), bool)


def dense(depth: int) -> np.ndarray:
    mask = empty(depth)
    for stage in range(depth):
        mask[stage, : stage + 1] = True
    return mask


def published() -> np.ndarray:
    """The mask of the paper: 1 <- E0, G; 2 <- E2, G; 3 <- E3, G; 8 <- E0 E1 E2 E3 E8, G, D1, D2, D3."""
    mask = empty(9)
    for stage, features, ups in (
        (1, [0], [0]),
        (2, [2], [0]),
        (3, [3], [0]),
        (8, [0, 1, 2, 3, 8], [0, 2, 3, 4]),
    ):
        mask[stage, features, 0] = True
        mask[stage, ups, 1] = True
    return mask


def some_weights(mask: np.ndarray) -> list[np.ndarray]:
    return [np.where(mask[i, : i + 1], 1.5, 1e-4) for i in range(len(mask))]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved during a test."""
    figures, write = [], style.save
    monkeypatch.setattr(style, "save", lambda fig, path: (figures.append(fig), write(fig, path))[1])
    return figures


def texts(fig) -> list[str]:
    return [t.get_text() for axes in fig.axes for t in axes.texts if t.get_text()]


def assert_whole(fig) -> None:
    """Everything drawn lies on the sheet."""
    for axes in fig.axes:
        for artist in () if axes.axison else axes.get_children():
            artist.set_clip_on(False)  # else what is cut off counts as not there
    with style.drawing():
        fig.canvas.draw()
        box = fig.get_tightbbox()
    wide, high = fig.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= wide + 0.01 and box.y1 <= high + 0.01, box


def test_connections_of_the_published_mask():
    found = architecture.connections(published())
    assert len(found) == 15
    # Stage 8 takes up-inputs 2, 3, 4: those are the stages 1, 2, 3.
    assert [(source, stage) for kind, source, stage in found if kind == "decoder"] == [(1, 8), (2, 8), (3, 8)]
    assert sorted(stage for kind, _, stage in found if kind == "global") == [1, 2, 3, 8]
    assert sorted(source for kind, source, stage in found if kind == "encoder" and stage == 8) == [
        0,
        1,
        2,
        3,
        8,
    ]


@pytest.mark.parametrize("depth", [1, 3, 5, 9, 12])
@pytest.mark.parametrize("fill", [empty, dense])
def test_architecture_fits_its_sheet(tmp_path, drawn, depth, fill):
    path = pictures.draw_architecture(fill(depth), tmp_path / "a.png")
    assert Image.open(path).width > 600
    assert_whole(drawn[0])


def test_architecture_draws_one_arrow_a_connection(tmp_path, drawn):
    from matplotlib.patches import FancyArrowPatch

    path = pictures.draw_architecture(published(), tmp_path / "a.png", STRIDES, CHANNELS, "Published")
    arrows = [patch for patch in drawn[0].axes[0].patches if isinstance(patch, FancyArrowPatch)]
    # 15 connections; picture -> E8 -> ... -> E0 -> G is ten; stage 8 -> head is one.
    assert len(arrows) == 15 + 10 + 1
    shown = texts(drawn[0])
    assert "Published" in shown and "15 of 90 connections, 4 of 9 stages" in shown
    assert shown.count("empty") == 5 and "9 inputs" in shown and "1280 ch" in shown
    assert path == tmp_path / "a.png" and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats_by_suffix_and_repeatable(tmp_path, suffix, start):
    one = pictures.draw_architecture(published(), tmp_path / f"one.{suffix}").read_bytes()
    two = pictures.draw_architecture(published(), tmp_path / f"two.{suffix}").read_bytes()
    assert one.startswith(start) and one == two


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: pictures.draw_architecture(np.ones((3, 3, 2)), p), "bool array"),
        (lambda p: pictures.draw_architecture(np.ones((3, 4, 2), bool), p), "bool array"),
        (lambda p: pictures.draw_architecture(np.ones((3, 3, 2), bool), p), "j > i"),
        (lambda p: pictures.draw_architecture(dense(3), p, [8, 4]), "2 strides given for a mask of 3"),
        (lambda p: pictures.draw_architecture(dense(3), p, [2, 4, 8]), "deepest feature to the shallowest"),
        (lambda p: pictures.draw_architecture(dense(3), p.with_suffix(".bmp")), "png, svg"),
        (lambda p: pictures.draw_architecture(dense(3), p.with_suffix("")), "must end in"),
        (lambda p: pictures.draw_weights([], p), "no weights"),
        (lambda p: pictures.draw_weights([np.ones((2, 2))], p), r"stage 0 have shape \(2, 2\)"),
        (lambda p: pictures.draw_weight_history(([0, 1], np.ones((2, 7))), p), "7 weights"),
        (lambda p: pictures.draw_weight_history(([0], np.ones((2, 6))), p), "history needs"),
        (lambda p: pictures.draw_curves([], p), "no curves"),
        (lambda p: pictures.draw_curves([{"step": 1, "loss": float("nan"), "name": "x"}], p), "no curves"),
        (lambda p: pictures.draw_predictions([], p, ["a"], PALETTE), "no samples"),
        (lambda p: pictures.draw_predictions([UNEQUAL], p, ["a"], PALETTE), "sample 0"),
        (lambda p: pictures.save_prediction(p, np.full((2, 2), 3), PALETTE), "label 3 has no colour"),
        (lambda p: pictures.save_prediction(p, np.full((2, 2), -1), PALETTE), "label -1 has no colour"),
        (lambda p: pictures.save_prediction(p, np.zeros((2, 2)), PALETTE), "whole-number"),
        (
            lambda p: pictures.save_prediction(p.with_suffix(".jpg"), np.zeros((2, 2), int), PALETTE),
            "as .png",
        ),
        (lambda p: pictures.draw_confusion(np.ones((2, 3)), ["a", "b"], p), "does not fit 2"),
        (lambda p: pictures.draw_comparison([{"name": "a", "miou": 1.0}], p), "nothing to compare"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tmp_path, call, message):
    path = tmp_path / "p.png"
    path.write_bytes(b"before")
    with pytest.raises(sparsemask.UseError, match=message):
        call(path)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("thres", [None, 0.001])
@pytest.mark.parametrize("depth", [1, 3, 12])
def test_weights_fit_their_sheet(tmp_path, drawn, depth, thres):
    pictures.draw_weights(some_weights(dense(depth)), tmp_path / "w.png", thres)
    assert_whole(drawn[0])


def test_weights_are_halved_and_the_dropped_crossed_out(tmp_path, drawn):
    pictures.draw_weights(some_weights(published()), tmp_path / "w.png", 0.001)
    shown = texts(drawn[0])
    assert shown.count("0.75") == 15 and shown.count("×") == 75
    # Exactly the threshold is dropped, as in pruning: kept means above.
    pictures.draw_weights([np.array([[0.002, 0.0021]])], tmp_path / "w.png", 0.001)
    assert texts(drawn[1]).count("×") == 1


def test_connection_names_follow_the_flattened_stages():
    names = weights.connection_names(6)
    kinds = ["encoder", "global", "encoder", "global", "encoder", "decoder"]
    assert [kind for kind, _ in names] == kinds
    assert names[-1][1] == "$D_{0}→D_{1}$" and names[2][1] == "$E_{0}→D_{1}$"


@pytest.mark.parametrize("log", [False, True])
def test_weight_history_counts_and_names_the_survivors(tmp_path, drawn, log):
    last = np.concatenate([w.ravel() for w in some_weights(published())])
    history = np.linspace(np.ones(90), last, 7)
    pictures.draw_weight_history((range(7), history), tmp_path / "h.png", 0.001, log=log)
    pictures.draw_weight_history(([5], np.ones((1, 2))), tmp_path / "one_step.png", log=log)
    assert_whole(drawn[0])
    assert_whole(drawn[1])
    assert len(texts(drawn[0])) == 15
    assert "15 of 90 at the end" in drawn[0].axes[1].get_title(loc="left")


def test_curves_share_panels_and_take_a_repeated_step_as_given_last():
    rows = [{"step": s, "loss": float(s), "lr": 0.1, "note": "x", "flag": True} for s in range(8)]
    rows += [{"step": 3, "loss": 99.0}, {"step": 7, "val_loss": 1.0, "miou": 0.5}, {"loss": 5.0}]
    panels = curves._panels(rows)
    assert list(panels) == ["loss", "miou", "lr"]
    (steps, values), validation = panels["loss"]
    assert steps.tolist() == list(range(8)) and values[3] == 99.0
    assert validation[1].tolist() == [1.0]
    # Seldom measured, so it is a validation's although its name does not say so.
    assert panels["miou"][0] is None and panels["miou"][1][1].tolist() == [0.5]


def test_curves_fit_their_sheet_with_gaps_and_tiny_numbers(tmp_path, drawn):
    rows = [{"step": s, "loss": float("nan") if s == 40 else 1 / (s + 1), "lr": 1e-6} for s in range(100)]
    rows += [{"step": s, "val_loss": 0.5, "val_psnr": 30.0 + s, "big": 1e9} for s in (50, 99)]
    pictures.draw_curves(rows, tmp_path / "c.png", "a run")
    assert_whole(drawn[0])
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["loss", "learning rate (×1e-6)", "big (×1e9)", "PSNR (dB)"]


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    values = np.full(50, 3.0)
    values[10:12] = np.nan
    assert np.allclose(curves.smooth(values, 2.0), 3.0)
    # A straight line keeps its place: a lagging average would lie above it.
    line = np.linspace(1, 0, 200)
    assert np.allclose(curves.smooth(line, 3.0)[50:150], line[50:150])


def test_saved_prediction_holds_indices_and_shows_colours(tmp_path):
    labels = np.array([[0, 1, 2], [255, 255, 1]])
    picture = Image.open(pictures.save_prediction(tmp_path / "sub" / "l.png", labels, PALETTE))
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), labels)
    shown = np.asarray(picture.convert("RGB"))
    assert shown[0].tolist() == PALETTE.tolist() and shown[1, 0].tolist() == [224, 224, 192]
    striped = predictions.colourise(np.full((20, 20), 255), PALETTE)
    assert (striped[..., 0] == striped[..., 1]).all() and len(np.unique(striped)) == 2


def test_predictions_name_the_classes_that_occur(tmp_path, drawn):
    picture = np.zeros((30, 40, 3), np.uint8)
    truth, guess = np.zeros((30, 40), np.uint8), np.full((30, 40), 2)
    truth[:5] = 255
    pictures.draw_predictions([(picture, truth, guess)] * 2, tmp_path / "p.png", ["sky", "cat", "dog"], PALETTE)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["sky", "dog", "void"]
    assert len(drawn[0].axes) == 6
    assert_whole(drawn[0])


@pytest.mark.parametrize("count", [2, 21, 40])
def test_confusion_scales_rows_and_greys_absent_classes(tmp_path, drawn, count):
    matrix = np.eye(count) * 3 + np.eye(count, k=1)
    matrix[1] = 0
    pictures.draw_confusion(matrix, [f"a longer class {k}" for k in range(count)], tmp_path / "c.png")
    shown = drawn[0].axes[0].images[0].get_array()
    assert shown.mask[1].all() and np.allclose(shown[0, :2], [0.75, 0.25])
    assert_whole(drawn[0])


def test_comparison_labels_stay_apart(tmp_path, drawn):
    random = np.random.default_rng(0)
    rows = [
        {
            "name": f"network {k}",
            "connections": k,
            "parameters": 10.0**k,
            "milliseconds": 50 + t,
            "miou": 60 + m,
        }
        for k, (t, m) in enumerate(random.normal(size=(9, 2)))
    ]
    pictures.draw_comparison([*rows, {"name": "untimed", "miou": 1.0}], tmp_path / "c.png")
    assert_whole(drawn[0])
    boxes = [t.get_window_extent() for t in drawn[0].axes[0].texts if t.get_text().startswith("network")]
    assert len(boxes) == 9
    clashes = [comparison._overlap(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
    assert max(clashes) < 0.02


def test_user_settings_are_neither_used_nor_changed(tmp_path):
    plain = pictures.draw_weights(some_weights(dense(3)), tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        odd = pictures.draw_weights(some_weights(dense(3)), tmp_path / "b.png").read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert plain == odd


def test_matplotlib_comes_late_and_pyplot_never(tmp_path):
    code = (
        "import sys, numpy as np; from sparsemask import pictures; assert 'matplotlib' not in sys.modules;"
        f"pictures.draw_weights([np.ones((1, 2))], r'{tmp_path / 'w.png'}');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 3), min_size=1, max_size=12))
def test_spread_keeps_order_and_distance(wanted):
    placed = style.spread(wanted, 0.05, 0.0, 1.0)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gaps = np.diff([placed[k] for k in order])
    assert (gaps >= 0.05 - 1e-9).all()
    assert min(placed) >= -1e-9 and max(placed) <= 1 + 1e-9


def test_maps_in_grey(tmp_path):
    values = np.array([[0.0, 0.5, 1.0]])
    picture = Image.open(pictures.save_map(tmp_path / "m.png", values))
    assert picture.mode == "L" and np.array(picture).tolist() == [[0, 128, 255]]
    rgb, truth = np.zeros((1, 3, 3), np.uint8), np.array([[0, 255, 1]])
    assert Image.open(pictures.draw_maps([(rgb, truth, values)] * 2, tmp_path / "g.png")).size[0] > 500
    for bad in (values * 2, values - 1, values[0], values * np.nan):
        with pytest.raises(UseError, match="a map is an array"):
            pictures.save_map(tmp_path / "bad.png", bad)
    with pytest.raises(UseError, match="no samples"):
        pictures.draw_maps([], tmp_path / "none.png")


def test_precision_over_recall_draws_even_when_nothing_was_found(tmp_path):
    f = lambda p, r: 2 * p * r / np.maximum(p + r, 1e-9)
    for scale in (1.0, 0.0):
        curve = np.linspace(0, 1, 5) * scale
        path = pictures.draw_precision_recall(1 - curve if scale else curve, curve, tmp_path / "c.png", f, (0, 0, "F"))
        assert Image.open(path).size == (540, 525)
