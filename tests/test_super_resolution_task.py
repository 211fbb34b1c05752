"""The task super_resolution: its loss, what it makes of a network's pictures, its report, and a training on it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from small_pictures import make_folder, make_pairs, options, scene, write
from sparsemask import UseError, tasks
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, distributed, fit
from sparsemask.engine.records import read_rows
from sparsemask.pictures.super_resolution import draw_psnr, draw_super_resolution
from sparsemask.resize import imresize
from sparsemask.runs import Run
from sparsemask.tasks.protocol import EvaluationContext
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise, ssim
from sparsemask.tasks.super_resolution.options import parse_loss
from sparsemask.tasks.super_resolution.task import SuperResolutionTask

CPU = Arithmetic(torch.device("cpu"))
HERE = EvaluationContext(arithmetic=CPU)


def nearest(images):
    """A network that repeats pixels."""
    assert images.dtype == torch.float32 and images.max() > 1  # values of 0 to 255
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def bicubic(images):
    return torch.from_numpy(imresize(images[0].permute(1, 2, 0).numpy(), 2)).permute(2, 0, 1)[None]


def task_on(folder, **given) -> SuperResolutionTask:
    return SuperResolutionTask(options(hr_path=folder, data_test=folder, **given))


def test_the_task_is_known_by_name(tmp_path):
    make_folder(tmp_path, 2)
    o = options(hr_path=tmp_path)
    task = tasks.get("super_resolution", o)
    assert isinstance(task, SuperResolutionTask) and task.n_output == 3 and not tasks.find(o.data.task).reads_voc
    # Its flags are its own: command lines of label tasks neither offer it nor it them.
    assert tasks.siblings("super_resolution") == ["super_resolution"]
    assert "super_resolution" not in tasks.siblings("segmentation")


def half_spectrum(d: np.ndarray) -> float:
    """|re| + |im| of the discrete Fourier transform, frequencies of a row up to the Nyquist one, as the mean over them
    times the number of pixels."""
    *_, h, w = d.shape
    dft = [np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n) for n in (h, w)]
    spectrum = np.einsum("ij,ncjk,kl->ncil", dft[0], d, dft[1])[..., : w // 2 + 1]
    return np.abs([spectrum.real, spectrum.imag]).mean() * d.size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1*L1", lambda d: np.abs(d).sum()),
        ("1*MSE", lambda d: (d**2).sum()),
        ("0.5*L1 + 2*MSE", lambda d: 0.5 * np.abs(d).sum() + 2 * (d**2).sum()),
        ("l1+0.1*l2", lambda d: np.abs(d).sum() + 0.1 * (d**2).sum()),
        ("0.5*fft", lambda d: 0.5 * half_spectrum(d)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss(tmp_path, text, expected, dtype):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (2, 3, 6, 8)).astype(np.float32)
    output = torch.from_numpy(target + rng.normal(0, 9, target.shape)).to(dtype).requires_grad_()
    task = SuperResolutionTask(options(hr_path=tmp_path, loss=text))
    loss = task.loss(output, torch.from_numpy(target))
    difference = output.detach().double().numpy() - target
    assert loss.item() == pytest.approx(expected(difference), rel=1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert torch.isfinite(output.grad).all() and output.grad.abs().sum() > 0
    assert task.count(torch.from_numpy(target)) == target.size  # so that the mean is over all values


def test_loss_of_another_scale(tmp_path):
    task = SuperResolutionTask(options(hr_path=tmp_path))
    with pytest.raises(UseError, match=r"\(1, 3, 9, 9\) .* \(1, 3, 6, 6\).*--scale 2"):
        task.loss(torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 6, 6))


@pytest.mark.parametrize("text", ["", "1*L3", "1*L1+", "-1*L1", "1*L1*2", "L1:0.5", "FFT*2"])
def test_losses_that_are_none(text):
    with pytest.raises(UseError, match="--loss"):
        parse_loss(text)


# Pictures of different sizes, odd ones too, each scored as the formulas say.
def test_scores(tmp_path):
    sizes = {"a": (48, 64), "b": (50, 46), "c": (58, 53)}
    for k, (name, size) in enumerate(sizes.items()):
        write(tmp_path / f"{name}.png", scene(k, size))
    task, seen = task_on(tmp_path), {}
    scores = task.evaluate(nearest, HERE, on_prediction=lambda i, p: seen.update({i: p.clone()}))
    assert scores.names == list(sizes) and scores.sizes == [(48, 64), (50, 46), (58, 52)]
    for k, (h, w) in enumerate(scores.sizes):
        truth = torch.from_numpy(scene(k, sizes[scores.names[k]])[:h, :w]).permute(2, 0, 1)
        low = imresize(truth.permute(1, 2, 0).numpy(), 0.5)
        made = torch.from_numpy(low.repeat(2, 0).repeat(2, 1)).permute(2, 0, 1)
        assert torch.equal(seen[k], made.float())
        assert scores.psnrs[k] == psnr(made, truth, 2)
        # Sums of floats depend on how the processor groups them: on where an array lies, with AVX-512.
        assert scores.ssims[k] == pytest.approx(ssim(made, truth, 2), abs=1e-12)
        beside = torch.from_numpy(imresize(low, 2)).permute(2, 0, 1)
        assert scores.bicubic_psnrs[k] == psnr(beside, truth, 2)
    assert task.metrics(scores) == {"psnr": scores.psnrs.mean(), "ssim": scores.ssims.mean()}
    assert task.evaluate(nearest, HERE, quick=True).metrics == task.metrics(scores)
    few = task.evaluate(nearest, HERE, limit=2)
    assert few.names == ["a", "b"] and np.array_equal(few.psnrs, scores.psnrs[:2])


# Outputs are clamped and rounded before they are scored, as a picture file would have them.
def test_outputs_are_quantised(tmp_path):
    make_folder(tmp_path, 1)
    task, seen = task_on(tmp_path), []
    wild = lambda images: nearest(images) * 1.7 - 60.3
    task.evaluate(wild, HERE, on_prediction=lambda i, p: seen.append(p))
    assert torch.equal(seen[0], quantise(seen[0])) and (seen[0].min(), seen[0].max()) == (0, 255)


# Odd low-resolution sides: the whole picture counts, or what the public evaluation leaves of it.
@pytest.mark.parametrize(("crop", "expected"), [(False, (194, 226)), (True, (192, 224))])
def test_odd_sides_scored_both_ways(tmp_path, crop, expected):
    write(tmp_path / "a.png", scene(0, (194, 226)))
    task, shapes = task_on(tmp_path, crop_even=crop), []

    def network(images):
        shapes.append(tuple(images.shape[-2:]))
        return nearest(images)

    scores = task.evaluate(network, HERE)
    assert scores.sizes == [expected] and shapes == [(expected[0] // 2, expected[1] // 2)]
    assert ("even sides" in task.report(scores)) is crop


# DIV2K's validation pictures are scored on RGB within a rim of scale + 6, all else on luma.
def test_protocols(tmp_path):
    root = tmp_path / "DIV2K"
    make_pairs(root / "HR", root / "LR_bicubic/X2", 3)
    o = {"dir_data": tmp_path, "data_range": "1-2/3-3"}
    as_div2k = SuperResolutionTask(options(**o))
    as_folder = SuperResolutionTask(options(**o, data_test=root, ssim_divisor=256))
    truth, made = (as_div2k.eval_data[0][1], nearest(as_div2k.eval_data[0][0][None])[0])
    found = as_div2k.evaluate(nearest, HERE)
    assert (found.psnr, found.ssim) == (psnr(made, truth, 2, False), ssim(made, truth, 2, False))
    assert "RGB, rim of 8" in as_div2k.report(found)
    luma = as_folder.evaluate(nearest, HERE)
    assert (luma.psnrs[2], luma.ssims[2]) == (psnr(made, truth, 2), ssim(made, truth, 2, divisor=256))


def test_a_perfect_network(tmp_path):
    write(tmp_path / "a.png", scene(0))
    flat = np.full((48, 64, 3), 90, np.uint8)
    write(tmp_path / "flat.png", flat)
    task = task_on(tmp_path)
    scores = task.evaluate(nearest, HERE)
    # A flat picture is always right; it must not make the mean infinite.
    assert scores.equal == 1 and math.isinf(scores.psnrs[1]) and scores.psnr == scores.psnrs[0]
    assert "1 equal to the truth" in task.report(scores)
    assert json.loads(json.dumps(task.record(scores), allow_nan=False))["each"][1]["psnr"] is None
    (tmp_path / "a.png").unlink()
    alone = task_on(tmp_path)
    assert alone.evaluate(nearest, HERE).metrics["psnr"] == math.inf


def test_report_and_record(tmp_path):
    make_folder(tmp_path, 3)
    task = task_on(tmp_path)
    scores = task.evaluate(nearest, HERE)
    lines = task.report(scores).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["0001", "0002", "0003", "mean"]
    assert f"{scores.psnr:.3f}" in lines[5] and f"{scores.bicubic_psnr:.3f}" in lines[5]
    assert f"{scores.psnr - scores.bicubic_psnr:+.3f} dB to bicubic" in lines[-1] and "3 pictures" in lines[-1]
    record = json.loads(json.dumps(task.record(scores), allow_nan=False))
    assert record["psnr"] == scores.psnr and record["bicubic_ssim"] == scores.bicubic_ssim
    assert [one["picture"] for one in record["each"]] == ["0001", "0002", "0003"]


# A bicubic network gains nothing over bicubic: both columns are scored on the same ground.
def test_bicubic_beside_bicubic(tmp_path):
    write(tmp_path / "a.png", scene(0, (50, 54)))
    task = task_on(tmp_path, crop_even=True)
    scores = task.evaluate(bicubic, HERE)
    assert scores.psnr == pytest.approx(scores.bicubic_psnr, abs=0.02)


# Two processes take turns; their sums must be the whole.
def test_processes_share_the_pictures(tmp_path, monkeypatch):
    make_folder(tmp_path, 3)
    task = task_on(tmp_path)
    whole = task.evaluate(nearest, HERE)
    totals = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda value: totals.append(value.clone()) or value)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        task.evaluate(nearest, HERE)
    assert [(total[:, 0] > 0).tolist() for total in totals] == [[True, False, True], [False, True, False]]
    assert np.array_equal(sum(totals)[:, 2].numpy(), whole.psnrs)


def test_a_network_of_another_scale(tmp_path):
    make_folder(tmp_path, 1)
    task = task_on(tmp_path)
    thrice = lambda images: images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    for call in (lambda: task.evaluate(thrice, HERE), lambda: task.samples(thrice, CPU)):
        with pytest.raises(UseError, match="96x72 of a picture to become 64x48.*--scale"):
            call()


def test_saved_prediction(tmp_path):
    make_folder(tmp_path, 1)
    task = task_on(tmp_path)
    task.evaluate(nearest, HERE, on_prediction=lambda i, p: task.save(tmp_path / "out/a.png", p))
    low = imresize(scene(1), 0.5)
    assert np.array_equal(np.array(Image.open(tmp_path / "out/a.png")), low.repeat(2, 0).repeat(2, 1))
    with pytest.raises(UseError, match=".png"):
        task.save(tmp_path / "a.jpg", torch.zeros(3, 4, 4))


def test_drawn_samples(tmp_path):
    make_folder(tmp_path / "hr", 9)
    task = task_on(tmp_path / "hr")
    samples = task.samples(nearest, CPU, 3)
    assert [sample[0] for sample in samples] == ["0001", "0005", "0009"]
    scores = task.evaluate(nearest, HERE)
    assert [sample[5] for sample in samples] == scores.psnrs[[0, 4, 8]].tolist()
    assert [sample[4] for sample in samples] == scores.bicubic_psnrs[[0, 4, 8]].tolist()
    task.draw(samples, tmp_path / "samples.png")
    task.draw_scores(scores, tmp_path)
    for name in ("samples.png", "psnr.png"):
        drawn = np.array(Image.open(tmp_path / name).convert("L"))
        assert min(drawn.shape) > 100 and drawn.std() > 5
    with pytest.raises(UseError, match="no samples"):
        draw_super_resolution([], tmp_path / "x.png")
    with pytest.raises(UseError, match="a: .*shapes"):
        spoilt = ("a", samples[0][1][:-1], *samples[0][2:])
        draw_super_resolution([spoilt], tmp_path / "x.png")
    # Very many pictures, very long names and infinite figures must still make a picture.
    draw_psnr([f"{'long' * 9}{k}" for k in range(100)], np.r_[30:40:99j, np.inf], np.r_[31:42:100j], tmp_path / "m.png")


class Residual(nn.Module):
    """Repeated pixels, and a layer that mends them; it begins as no more than these."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 12, 5, padding=2)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images):
        return nearest(images) + F.pixel_shuffle(self.layer(images - F.avg_pool2d(images, 5, 1, 2)), 2)


# The engine takes the task as it is: it learns to beat what it began with, and repeats itself.
@pytest.mark.parametrize("arithmetic", [CPU, Arithmetic(torch.device("cpu"), autocast=torch.bfloat16)])
def test_training(tmp_path, arithmetic):
    given = {"max_iter": 40, "optimizer": "adamw", "lr": 1e-2, "last_layer_lr_mult": 1.0, "eval_interval": 20}
    o = options(hr_path=make_folder(tmp_path / "hr", 11), log_interval=1, batch_size=4, **given)
    task, losses = tasks.get(o.data.task, o), []
    before = task.evaluate(Residual(), EvaluationContext(arithmetic=arithmetic)).metrics
    for name in ("a", "b"):
        run = Run(tmp_path / name).hold()
        run.config.write_text("")
        extra = {"verb": "search", "space": "smsr", "config": {}}
        result = fit(Residual(), Method(), task, o, run, arithmetic, extra)
        losses.append([row["loss"] for row in read_rows(run.metrics)])
    assert losses[0] == losses[1] and len(losses[0]) == 40
    rows = [row for row in read_rows(run.metrics) if "val_psnr" in row]
    assert [row["step"] for row in rows] == [20, 40] and result["psnr"] == rows[-1]["val_psnr"]
    assert result["psnr"] > before["psnr"] + 0.3 and result["ssim"] > before["ssim"]


# What --sample stands for: nine photographs to learn from, three to validate, one of them of odd size.
def test_sample(tmp_path):
    task = tasks.get("super_resolution", options(sample=True, patch_size=96))
    task.check()
    assert len(task.train_data.store) == 9 and task.train_data.left_out == 0
    assert [task.eval_data.name(k) for k in range(3)] == ["camera", "chelsea", "coffee"]
    assert [list(task.eval_data[k][0].shape) for k in (0, 1)] == [[3, 256, 256], [3, 150, 225]]
    low, high = task.train_data.sample(3, np.random.default_rng(0))
    assert low.shape == (3, 96, 96) and high.shape == (3, 192, 192)


@pytest.mark.real
def test_bicubic_on_set5(shared_data, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_DATA", str(shared_data))
    task = SuperResolutionTask(options(hr_path="t91", data_test="set5"))
    task.check()
    assert len(task.train_data.store) == 91 and [pair.lr is None for pair in task.eval_data.pairs] == [False] * 5
    scores = task.evaluate(nearest, HERE)
    assert scores.names == ["baby", "bird", "butterfly", "head", "woman"]
    assert scores.bicubic_psnrs == pytest.approx([37.078, 36.821, 27.437, 34.882, 32.150], abs=0.001)
    assert (scores.bicubic_psnr, scores.bicubic_ssim) == pytest.approx((33.673, 0.9301), abs=0.001)
