"""Scores of disparities against sums by hand and against loops over pixels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from sparsemask.tasks.stereo.scores import METRICS, REGIONS, StereoMeter, count_errors, valid


def truth_of(disparity, seen=-1.0, front=-1.0) -> torch.Tensor:
    disparity = torch.as_tensor(disparity, dtype=torch.float32)
    maps = [torch.as_tensor(one, dtype=torch.float32).expand(disparity.shape) for one in (seen, front)]
    return torch.stack([disparity, *maps])


def metrics(disparity, truth, maxdisp=192) -> dict[str, float]:
    meter = StereoMeter(["a"], maxdisp)
    meter.add(0, torch.as_tensor(disparity, dtype=torch.float32), truth)
    return meter.scores().metrics


# Error and truth of one pixel, and whether it is bad by D1: both more than 3 px and more than 5 % of the truth.
@pytest.mark.parametrize(
    ("error", "right", "bad"),
    [(2.9, 10, 0), (3.1, 10, 1), (3.1, 61, 1), (3.1, 63, 0), (3, 10, 0), (-4, 79, 1), (-4, 81, 0)],
)
def test_d1_asks_for_both(error, right, bad):
    found = metrics([[right + error]], truth_of([[float(right)]]))
    assert (
        found["d1"] == bad and found["bad3"] == (abs(error) > 3) and found["epe"] == pytest.approx(abs(error), abs=1e-5)
    )


def test_thresholds():
    right = torch.full((1, 5), 20.0)
    found = metrics(right + torch.tensor([[0.5, 1.5, 2.5, 3.5, -1.0]]), truth_of(right))
    assert [found[name] for name in ("bad1", "bad2", "bad3", "d1")] == [0.6, 0.4, 0.2, 0.2]
    assert found["epe"] == pytest.approx(1.8)


def test_pixels_that_do_not_count():
    right = torch.tensor([[0.0, 48.0, 47.0, 1e-3, 60.0]])
    assert valid(right, 48).tolist() == [[False, False, True, True, False]]
    meter = StereoMeter(["a"], 48)
    meter.add(0, torch.tensor([[99.0, 99.0, 47.5, 0.001, 99.0]]), truth_of(right))
    scores = meter.scores()
    assert scores.metrics["epe"] == pytest.approx(0.25) and scores.beyond.tolist() == [2]
    assert "0 < truth < 48" in scores.protocol and "50.0% of the truth is not below that" in scores.protocol


def test_regions_against_a_loop():
    rng = np.random.default_rng(0)
    right = rng.uniform(0, 90, (20, 30)).astype(np.float32) * (rng.random((20, 30)) > 0.3)
    guess = (right + rng.normal(0, 4, right.shape)).astype(np.float32)
    seen, front = rng.integers(0, 2, (2, 20, 30))
    found = count_errors(torch.from_numpy(guess), truth_of(right, seen, front), 80).numpy()
    expected = np.zeros((6, 6))
    for at in np.ndindex(*right.shape):
        if not 0 < right[at] < 80:
            continue
        error = abs(float(guess[at]) - float(right[at]))
        row = [1, error, error > 1, error > 2, error > 3, error > 3 and error > 0.05 * right[at]]
        inside = [1, not front[at], front[at], seen[at], seen[at] and not front[at], seen[at] and front[at]]
        expected += np.outer(np.array(inside, float), np.array(row, float))
    assert np.allclose(found, expected)


def test_means_are_over_pictures_and_regions_over_pixels():
    meter = StereoMeter(["a", "b"], 192)
    meter.add(0, torch.full((2, 2), 12.0), truth_of(torch.full((2, 2), 10.0), 1.0, 0.0))
    meter.add(1, torch.full((4, 4), 20.0), truth_of(torch.full((4, 4), 10.0), 1.0, torch.eye(4)))
    scores = meter.scores()
    assert scores.sizes == [(2, 2), (4, 4)] and scores.metrics["epe"] == pytest.approx((2 + 10) / 2)
    assert scores.regions["all"]["epe"] == pytest.approx((4 * 2 + 16 * 10) / 20)
    assert scores.regions["foreground"] == {"pixels": 4, "epe": 10, "bad1": 1, "bad2": 1, "bad3": 1, "d1": 1}
    assert set(scores.regions) == set(REGIONS)
    lines = scores.text().splitlines()
    assert lines[2].split()[:2] == ["a", "2x2"] and lines[4].startswith("mean") and "foreground" in scores.text()
    assert "background 75.00%" in scores.summary() and "EPE 6.000 px" in scores.summary()
    assert [row["picture"] for row in scores.rows()] == ["a", "b", "mean"] and set(METRICS) <= scores.rows()[0].keys()


# A picture without any valid truth has no figures, and takes no part in the means.
def test_all_invalid_truth():
    meter = StereoMeter(["a", "b"], 192)
    meter.add(0, torch.zeros(3, 3), truth_of(torch.zeros(3, 3)))
    assert math.isnan(meter.scores().metrics["epe"]) and meter.scores().regions == {}
    meter.add(1, torch.full((3, 3), 5.0), truth_of(torch.full((3, 3), 4.0)))
    scores = meter.scores()
    assert scores.metrics["epe"] == 1 and math.isnan(scores.rows()[0]["epe"]) and scores.untold == 1
    assert "1 without such pixels" in scores.protocol and scores.text().splitlines()[2].split()[2:] == ["-"] * 5
    json.dumps(scores.metrics, allow_nan=False)
