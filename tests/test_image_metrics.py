"""PSNR and SSIM: closed forms, a literal SSIM, and the published figures of bicubic on real pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.signal import convolve2d

from sparsemask import UseError
from sparsemask.resize import imresize
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise, ssim

WEIGHTS = np.array([65.738, 129.057, 25.064])


def picture(seed=0, size=(40, 52), channels=3):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (channels, *size))).float()


# The same error e everywhere has the PSNR 20 log10(255 / e).
@pytest.mark.parametrize(
    ("error", "benchmark", "luma_error"),
    [((3, 3, 3), True, 3 * WEIGHTS.sum() / 256), ((0, 5, 0), True, 5 * 129.057 / 256), ((4, -4, 4), False, 4.0)],
)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_psnr_of_a_constant_error(error, benchmark, luma_error, scale):
    truth = picture()
    made = truth + torch.tensor(error).float()[:, None, None]
    assert psnr(made, truth, scale, benchmark) == pytest.approx(20 * math.log10(255 / luma_error), abs=1e-9)


def test_psnr_of_luma_itself_has_no_weights():
    truth = picture(channels=1)
    assert psnr(truth + 2, truth, 2) == pytest.approx(20 * math.log10(255 / 2))


# A wrong pixel at the very edge of what is scored counts, the one beside it does not.
@pytest.mark.parametrize(
    ("scale", "benchmark", "rim"), [(2, True, 2), (3, True, 3), (1.5, True, 2), (2, False, 8), (4, False, 10)]
)
def test_rim_is_left_out(scale, benchmark, rim):
    truth = picture()
    for at, counts in ((rim - 1, False), (rim, True)):
        for place in ((at, 20), (-at - 1, 20), (20, at), (20, -at - 1)):
            made = truth.clone()
            made[:, place[0], place[1]] += 30
            assert math.isfinite(psnr(made, truth, scale, benchmark)) is counts
            assert (ssim(made, truth, scale, benchmark) < 1) is counts


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_equal_pictures(value, benchmark):
    flat = torch.full((3, 40, 40), float(value))
    assert psnr(flat, flat, 2, benchmark) == math.inf
    assert ssim(flat, flat, 2, benchmark) == pytest.approx(1, abs=1e-12)


def literal_ssim(one, other, rim, divisor):
    """Wang et al. 2004, formula 13, with the window spelled out."""
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    y = [
        np.tensordot(WEIGHTS, p.numpy().astype(np.float64), 1)[rim:-rim, rim:-rim] / divisor + 16 for p in (one, other)
    ]
    mean = lambda image: convolve2d(image, window, mode="valid")
    m1, m2 = map(mean, y)
    v1, v2, v12 = mean(y[0] ** 2) - m1**2, mean(y[1] ** 2) - m2**2, mean(y[0] * y[1]) - m1 * m2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * m1 * m2 + c1) * (2 * v12 + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean()


@pytest.mark.parametrize("divisor", [255, 256])
@pytest.mark.parametrize(("scale", "benchmark", "rim"), [(2, True, 2), (4, True, 4), (2, False, 8)])
def test_ssim_is_the_formula(divisor, scale, benchmark, rim):
    truth = picture(1)
    made = quantise(truth + 25 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)))
    expected = literal_ssim(made, truth, rim, divisor)
    assert ssim(made, truth, scale, benchmark, divisor) == pytest.approx(expected, abs=1e-10)
    assert abs(literal_ssim(made, truth, rim, 511 - divisor) - expected) > 1e-6  # the divisor does matter


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_quantise(values):
    once = quantise(torch.tensor(values))
    assert torch.equal(quantise(once), once)
    assert torch.equal(once, once.to(torch.uint8).float())
    assert torch.equal(quantise(once.to(torch.uint8)).float(), once)


def test_arguments_of_any_kind_agree():
    truth, made = picture(), quantise(picture() * 0.9)
    for wrap in (torch.Tensor.double, lambda p: p[None], lambda p: p.to(torch.uint8), torch.Tensor.numpy):
        assert psnr(wrap(made), wrap(truth), 2) == psnr(made, truth, 2)
        assert ssim(wrap(made), wrap(truth), 2) == ssim(made, truth, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: psnr(picture(), picture(size=(40, 50)), 2), "one shape"),
        (lambda: psnr(picture(channels=2), picture(channels=2), 2), "one shape"),
        (lambda: psnr(picture(size=(4, 40)), picture(size=(4, 40)), 2), "rim of 2"),
        (lambda: psnr(picture(size=(16, 40)), picture(size=(16, 40)), 2, False), "rim of 8"),
        (lambda: ssim(picture(size=(14, 40)), picture(size=(14, 40)), 2), "at least 11x11"),
        (lambda: ssim(picture(), picture(), 2, divisor=254), "254"),
    ],
)
def test_what_cannot_be_scored(call, words):
    with pytest.raises(UseError, match=words):
        call()


# 33.66 dB is what every paper gives for bicubic on Set5 x2: on luma of 8 bits, reduced and enlarged as luma. Scored
# as networks are, on RGB reduced and enlarged, it is 33.673 dB and 0.9301.
@pytest.mark.real
def test_published_figures_of_bicubic(shared_data):
    as_luma, as_rgb, similar = [], [], []
    for path in sorted((shared_data / "set5/HR").iterdir()):
        truth = np.array(Image.open(path))
        luma = np.floor(truth @ np.array([65.481, 128.553, 24.966]) / 255 + 16.5)
        made = quantise(torch.from_numpy(imresize(imresize(luma, 0.5), 2)))
        as_luma.append(psnr(made[None], torch.from_numpy(luma)[None], 2))
        rgb = [torch.from_numpy(p).permute(2, 0, 1) for p in (imresize(imresize(truth, 0.5), 2), truth)]
        as_rgb.append(psnr(*rgb, 2))
        similar.append(ssim(*rgb, 2))
    assert len(as_luma) == 5
    assert np.mean(as_luma) == pytest.approx(33.66, abs=0.005)
    assert np.mean(as_rgb) == pytest.approx(33.673, abs=0.001)
    assert np.mean(similar) == pytest.approx(0.9301, abs=0.0001)
