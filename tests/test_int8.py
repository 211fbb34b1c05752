"""Layers and modules in int8: by emulated dot products everywhere, and by the processor's own, with the same bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from literal_sparse import Case, one_thread, problem  # noqa: F401
from small_pictures import scene
from sparsemask.backends import AttendedBlockCall, BlockCall, native
from sparsemask.backends.native import BACKEND, bfloat16, tiles
from sparsemask.backends.reference import BACKEND as REFERENCE
from sparsemask.cli import doctor, upscale
from sparsemask.devices import arithmetic
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.retrain import train
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.spaces.sparse_conv import save_smsr
from sparsemask.spaces.sparse_conv.plan import Machine
from sparsemask.sparse import backend

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(BACKEND.why_not(CPU, torch.float32) is not None, reason="no C++ compiler here")
KINDS = tiles.INT8_KINDS[1:]


@pytest.fixture(autouse=True, params=KINDS)
def kind(request):
    torch.manual_seed(0)
    # What is not a product is in bfloat16, which a processor may not have either.
    with (
        tiles.using(tiles.in_use() if tiles.in_use() != "none" else "emulated dot"),
        tiles.using(request.param) as kind,
    ):
        if kind != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield kind


def block(c: int = 24, layers: int = 3, size: tuple[int, int] = (9, 40), batch: int = 2, activation: str = "relu"):
    """A block's call in bfloat16."""
    mask = torch.rand(batch, 1, *size) < 0.4
    mask[..., 5:25] |= torch.rand(batch, 1, size[0], 1) < 0.5  # runs of neighbours, too
    weights = [(torch.randn(c, c, 3, 3) / 16).bfloat16() for _ in range(layers)]
    fusion = (torch.randn(c, layers * c, 1, 1) / 8).bfloat16(), torch.randn(c).bfloat16()
    x = torch.randn(batch, c, *size).bfloat16()
    return BlockCall(x, mask, weights, torch.rand(layers, c) < 0.4, *fusion, activation)


def attended(call: BlockCall) -> AttendedBlockCall:
    c = call.x.shape[1]
    attention = (torch.randn(one).bfloat16() for one in ((4, c), (4,), (c, 4), (c,)))
    return AttendedBlockCall(call, tuple(attention))


def in_float64(call: BlockCall) -> BlockCall:
    weights = [one.double() for one in call.weights]
    fusion = {"collect_weight": call.collect_weight.double(), "collect_bias": call.collect_bias.double()}
    return dataclasses.replace(call, x=call.x.double(), weights=weights, **fusion)


def off(y: Tensor, exact: Tensor) -> float:
    """The error's size over the values' size."""
    return float((y.double() - exact).norm() / exact.norm())


FORMS = {
    "same size": (("kernel", 3),),
    "stride 2": (("kernel", 3), ("stride", 2)),
    "dilated": (("kernel", 3), ("dilation", 2)),
    "transposed": (("kernel", 3), ("stride", 2), ("transposed", True)),
    "1x1": (("kernel", 1),),
}


@pytest.mark.parametrize("kept", [0.1, 0.9])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_of_numbers_that_int8_holds_is_rounded_once(form, kept, monkeypatch):
    # Zero is one of 256 numbers, not the first; outside of the picture it counts as well.
    monkeypatch.setattr(native, "_PAYING", 0)
    half, exact = (
        problem(Case(c_in=9, c_out=40, spatial=(7, 37), kept=kept, form=FORMS[form]), t)
        for t in (torch.bfloat16, torch.float64)
    )
    x, weight = torch.randint(-100, 156, half.x.shape), torch.randint(-127, 128, half.weight.shape)
    x[0, 0, 0, :2] = torch.tensor([-100, 155])
    inputs_first = weight if half.form.transposed else weight.transpose(0, 1)
    inputs_first[0] = 127  # of every output at every tap
    for one in (half, exact):
        one.x, one.weight, one.in_dense[0] = (x / 2**5).to(one.x.dtype), (weight / 2**9).to(one.x.dtype), True
    exact.bias = half.bias.double()
    with dispatch.int8():
        y = half.run("native")
    assert torch.equal(y, exact.run("reference").bfloat16())


@pytest.mark.parametrize("activation", ["relu", "leaky_relu:0.2", "none"])
def test_a_block_is_near_the_exact_one(activation):
    call = block(activation=activation)
    assert off(bfloat16.block(call, tiles.INT8), REFERENCE.block(in_float64(call))) < 0.03


def test_attention_and_the_input_that_is_added():
    call = attended(block(c=32))
    exact = AttendedBlockCall(in_float64(call.block), tuple(one.double() for one in call.attention))
    assert off(bfloat16.attended_block(call, tiles.INT8), REFERENCE.attended_block(exact)) < 0.03


@pytest.mark.parametrize("dense", [0, 1])
def test_channels_that_are_all_sparse_or_all_dense(dense):
    call = block()
    call.dense[:] = bool(dense)
    assert off(bfloat16.block(call, tiles.INT8), REFERENCE.block(in_float64(call))) < 0.03


def test_emulated_products_have_the_same_bits(kind):
    call, results = attended(block(c=40, size=(40, 64))), []
    for one in KINDS:
        with tiles.using(one) as used:
            if used == one:
                results.append(bfloat16.attended_block(call, tiles.INT8))
    assert all(torch.equal(one, results[0]) for one in results)


def test_one_thread_and_two_give_the_same_bits():
    call = block(size=(40, 64))
    one = bfloat16.block(call, tiles.INT8)
    torch.set_num_threads(2)
    assert torch.equal(bfloat16.block(call, tiles.INT8), one)


def test_a_sample_does_not_depend_on_the_others():
    call = block(batch=2)
    call.x[1] *= 100
    alone = dataclasses.replace(call, x=call.x[:1], mask=call.mask[:1])
    assert torch.equal(bfloat16.block(call, tiles.INT8)[:1], bfloat16.block(alone, tiles.INT8))


def test_a_value_beyond_what_was_sampled_is_cut_and_harms_no_other():
    call = block(c=8, layers=1, size=(64, 64), batch=1)
    call.mask[:] = True
    plain = bfloat16.block(call, tiles.INT8)
    call.x[0, :, 33, 33] = 3 * call.x.abs().max()  # at no place of the sample
    y = bfloat16.block(call, tiles.INT8)
    far = torch.ones(64, 64, dtype=torch.bool)
    far[32:35, 32:35] = False
    assert off(y[..., far], plain[..., far].double()) < 0.1 and bool(y.isfinite().all())


def test_zeros_and_what_is_not_finite():
    call = attended(block(c=16, batch=1))
    call.block.x[:] = 0
    assert bool(bfloat16.attended_block(call, tiles.INT8).isfinite().all())
    call.block.x[0, 3, 4, 5] = float("nan")
    assert bool(bfloat16.attended_block(call, tiles.INT8).isnan().any())
    call.block.x[0, 3, 4, 5] = float("inf")
    assert not bool(bfloat16.attended_block(call, tiles.INT8).isfinite().all())


def test_ranges_know_signs_and_what_is_not_a_number():
    rows = tiles.empty(3, 32).zero_()
    assert tiles.range_of(rows) == (0, 0) and tiles.Quantum.of(0, 0) == (1, 0)
    rows[1, 3], rows[2, 31] = -2, 1.5
    assert tiles.range_of(rows) == (-2, 1.5)
    assert tiles.Quantum.of(0, 255) == (1, 0) and tiles.Quantum.of(-255, 0) == (1, 255)
    for value in (float("nan"), -float("nan")):
        rows[0, 0] = value
        assert any(one != one for one in tiles.range_of(rows))


def small() -> SMSR:
    """A network with random weights."""
    return SMSR(n_feats=16, n_modules=2, n_layers=2).eval().requires_grad_(False)


def products_in_int8(monkeypatch) -> list[bool]:
    """Of every product from now on, whether it reads numbers in int8."""
    run, found = tiles.product, []
    monkeypatch.setattr(
        tiles, "product", lambda *given, **more: (found.append(more.get("read") is not None), run(*given, **more))
    )
    return found


def test_a_network_in_the_arithmetic_int8(monkeypatch):
    net = small()
    x = 255 * torch.rand(1, 3, 20, 24)
    exact = net(x)
    found = products_in_int8(monkeypatch)
    with backend("native"):
        half = arithmetic(-1, "bfloat16").run(net, x)
        assert found and not any(found)  # never by itself
        y = arithmetic(-1, "int8").run(net, x)
        assert any(found)
        assert torch.equal(arithmetic(-1, "bfloat16").run(net, x), half)
    assert float((y - exact).abs().mean()) < 2 and not torch.equal(y, half)


def test_layers_of_few_channels_and_of_too_many_stay_in_bfloat16(monkeypatch):
    found, used = products_in_int8(monkeypatch), []
    with dispatch.int8():
        for channels in (63, 64, 7424):
            case = Case(c_in=channels, c_out=4, spatial=(2, 2), kept=1.0, form=(("kernel", 3),))
            problem(case, torch.bfloat16).run("native")
            used.append(any(found))
            found.clear()
    assert used == [False, True, False]


def test_where_no_kernels_have_it_it_is_refused():
    with tiles.using("none", tiles.INT8):
        with pytest.raises(UseError, match="--type int8: .*AVX512-VNNI"):
            arithmetic(-1, "int8")
        with dispatch.int8():  # and what is underway goes on in bfloat16
            call = block()
            assert torch.equal(BACKEND.block(call), bfloat16.block(call))
    with tiles.using("none"), pytest.raises(UseError, match="--type int8: .*AVX512-BF16"):
        arithmetic(-1, "int8")


def test_nothing_is_trained_in_int8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--space", "smsr", "--type", "int8"]) == 2
    assert "--type int8 computes trained networks" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_command_computes_in_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_smsr("smsr_x2.safetensors", small())
    Image.fromarray(scene(1, (20, 31))).save("in.png")
    found, pixels = products_in_int8(monkeypatch), []
    for kind, expected in (("float32", False), ("bfloat16", False), ("int8", True)):
        argv = ["in.png", f"{kind}.png", "--weights", "smsr_x2.safetensors", "--gpu", "-1", "--type", kind]
        assert upscale.main(argv) == 0, capsys.readouterr().err
        assert any(found) == expected
        pixels.append(np.array(Image.open(f"{kind}.png")).astype(int))
    assert np.abs(pixels[2] - pixels[0]).mean() < 2


def test_the_doctor_names_the_processors_own(kind, capsys):
    doctor.main([])
    assert ("int8 by dot products (AVX512-VNNI)" in capsys.readouterr().out) == (kind == "vnni")


def test_a_plan_in_bfloat16_is_not_followed_in_int8(kind):
    with arithmetic(-1, "int8").context():
        here = Machine.here(CPU)
    assert here.arithmetic.endswith(f", int8 by {kind}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Machine.here(CPU) != here


def test_values_are_rounded_to_the_nearest_ties_to_even():
    rows = tiles.empty(1, 32).zero_()
    values = torch.tensor([0.5, 1.5, 2.5, 2.51, -1.0, 254.5, 255.0, 400.0])
    rows[0, :8] = values
    assert tiles.in_int8(rows, tiles.Quantum(1.0, 0))[0, :8].tolist() == [0, 2, 2, 3, 0, 254, 255, 255]


def test_a_linear_product_against_torchs_integers(kind):
    # All columns and depths at which the kernels change their way; sums of whole numbers, which are exact.
    for depth, columns in ((1, 1), (3, 16), (4, 17), (64, 33), (65, 50), (130, 97)):
        x = torch.randint(256, (70, tiles.up_to(depth, tiles.INT8)), dtype=torch.uint8)
        rows = tiles.empty(*x.shape, kind=tiles.INT8)
        rows[:] = x
        weights = torch.randint(-127, 128, (1, depth, columns)).float()
        weights[0, 0] = 127
        out = tiles.empty(70, tiles.up_to(columns))
        tiles.product(
            torch.arange(70, dtype=torch.int32), [tiles.Segment(rows, None, 0, depth)],
            tiles.pack(weights, tiles.INT8), columns, out, read=tiles.Quantum(1.0, 77),
        )  # fmt: skip
        wanted = F.linear(x[:, :depth].double() - 77, weights[0].T.double())
        assert torch.equal(out[:, :columns], wanted.bfloat16())
