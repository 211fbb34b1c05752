"""Mistakes of use end in one line that says what is wrong; nothing reads beyond its tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from literal_sparse import Case, one_thread, problem  # noqa: F401
from sparsemask.backends.native import tiles
from sparsemask.errors import UseError
from sparsemask.ops import dispatch as registry
from sparsemask.sparse import (
    Backend,
    DataMask,
    Geometry,
    SparseMaskBlock,
    SparseMaskConv,
    available_backends,
    backend,
    register_backend,
    set_backend,
)
from test_sparse_block import attention, block_problem

NAMES = ("reference", "dense", "gather", "native", "auto")


def refused(match: str):
    """A UseError of one line."""

    class OneLine:
        def __enter__(self):
            self.inner = pytest.raises(UseError, match=match)
            self.found = self.inner.__enter__()

        def __exit__(self, *given):
            done = self.inner.__exit__(*given)
            text = str(self.found.value)
            assert "\n" not in text and 10 < len(text) < 300, text
            return done

    return OneLine()


@pytest.fixture(params=NAMES)
def name(request) -> str:
    if available_backends()[request.param] is not None:
        pytest.skip(f"{request.param}: {available_backends()[request.param]}")
    return request.param


good = problem(Case())
LAYER_MISTAKES = {
    "features of other channels": (dict(x=torch.randn(2, 4, 6, 7)), "4 channels"),
    "features of other dimensions": (dict(x=torch.randn(2, 5, 6)), "dimension"),
    "a soft mask": (dict(mask=torch.rand(2, 1, 6, 7)), "hard mask|bool"),
    "a mask of bytes": (dict(mask=torch.ones(2, 1, 6, 7, dtype=torch.uint8)), "bool"),
    "a mask of another size": (dict(mask=torch.ones(2, 1, 6, 6, dtype=torch.bool)), "6, 6"),
    "a mask of one picture": (dict(mask=torch.ones(1, 1, 6, 7, dtype=torch.bool)), "mask"),
    "a mask of many channels": (dict(mask=torch.ones(2, 6, 6, 7, dtype=torch.bool)), "mask"),
    "a mask without channels": (dict(mask=torch.ones(2, 6, 7, dtype=torch.bool)), "mask"),
    "input flags of another length": (dict(in_dense=torch.ones(4, dtype=torch.bool)), "input channel mask"),
    "output flags of another length": (dict(out_dense=torch.ones(5, dtype=torch.bool)), "output channel mask"),
    "soft flags": (dict(out_dense=torch.ones(6)), "output channel mask"),
    "a bias of another length": (dict(bias=torch.ones(5)), "bias"),
}


@pytest.mark.parametrize("what", LAYER_MISTAKES)
def test_the_layers_operator_refuses(name, what):
    changed, match = LAYER_MISTAKES[what]
    with refused(match):
        good.run(name, **changed)


@pytest.mark.parametrize("form, match", [
    (dict(stride=(0, 1)), "stride"), (dict(padding=(-1, 1)), "padding"), (dict(dilation=(1,)), "dilation"),
    (dict(output_padding=(1, 1)), "output padding"), (dict(groups=0), "groups"), (dict(groups=3), "channels|groups"),
])  # fmt: skip
def test_the_layers_operator_refuses_shapes_that_are_none(name, form, match):
    changed = dataclasses.replace(good, form=dataclasses.replace(good.form, **form))
    with refused(match):
        changed.run(name)


@pytest.mark.parametrize("activation", ["gelu", "relu:2", "leaky_relu:x", "leaky_relu:-1", "leaky_relu:nan", ""])
def test_activations_that_are_none(name, activation):
    with refused("activation"):
        dataclasses.replace(good, activation=activation).run(name)
    with refused("activation"):
        SparseMaskConv(3, 4, 3, activation=activation)
    with refused("activation"):
        torch.ops.sparsemask.block(*block_problem(), activation, name)


def test_a_kernel_wider_than_the_padded_picture(name):
    given = problem(Case(form=(("kernel", 3), ("padding", 0))))
    empty = torch.zeros(2, 1, 0, 5, dtype=torch.bool)
    with refused("too small"):
        given.run(name, x=given.x[:, :, :2], mask=empty)


def changed_block(number: int, value):
    given = list(block_problem())
    given[number] = value
    return given


BLOCK_MISTAKES = {
    "features of other channels": (0, torch.randn(2, 5, 5, 6), "channels"),
    "a soft mask": (1, torch.rand(2, 1, 5, 6), "hard mask|bool"),
    "a mask of another size": (1, torch.ones(2, 1, 6, 6, dtype=torch.bool), "mask"),
    "a mask of one picture": (1, torch.ones(1, 1, 5, 6, dtype=torch.bool), "mask"),
    "even kernels": (2, [torch.randn(6, 6, 2, 2)] * 3, "odd"),
    "kernels of other dimensions": (2, [torch.randn(6, 6, 3)] * 3, "weights"),
    "weights that do not follow each other": (2, [torch.randn(6, 6, 3, 3), torch.randn(6, 5, 3, 3),
                                                  torch.randn(6, 6, 3, 3)], "weights"),
    "no weights": (2, [], "layer|weights"),
    "too few weights": (2, [torch.randn(6, 6, 3, 3)] * 2, "channel masks"),
    "flags of another shape": (3, torch.ones(3, 5, dtype=torch.bool), "channel masks"),
    "soft flags": (3, torch.rand(3, 6), "channel masks"),
    "a fusion of other channels": (4, torch.randn(6, 17, 1, 1), "17"),
    "a fusion that is no 1x1": (4, torch.randn(6, 18, 3, 3), "1×1"),
    "a fusion of other dimensions": (4, torch.randn(6, 18), "1×1"),
    "a bias of another length": (5, torch.randn(5), "bias"),
}  # fmt: skip


@pytest.mark.parametrize("what", BLOCK_MISTAKES)
def test_the_blocks_operator_refuses(name, what):
    number, value, match = BLOCK_MISTAKES[what]
    with refused(match):
        torch.ops.sparsemask.block(*changed_block(number, value), "relu", name)
    with refused(match):
        torch.ops.sparsemask.attended_block(*changed_block(number, value), attention(6), "relu", name)


@pytest.mark.parametrize("what, weights", [
    ("of other channels", attention(5)), ("too few", attention(6)[:3]),
    ("that do not fit each other", [*attention(6)[:2], torch.randn(6, 2, 1, 1), torch.randn(6)]),
])  # fmt: skip
def test_attention_that_does_not_fit(name, what, weights):
    with refused("attention"):
        torch.ops.sparsemask.attended_block(*block_problem(), weights, "relu", name)


def test_attention_needs_as_many_channels_as_come_in(name):
    # The input is added.
    with refused("channels"):
        torch.ops.sparsemask.attended_block(*block_problem(c_out=7), attention(7), "relu", name)


def test_kernels_of_several_sizes_in_a_block_are_refused_or_right(name):
    x, mask, weights, *rest = block_problem()
    g = torch.Generator().manual_seed(5)
    weights[1] = torch.randn(6, 6, 1, 1, generator=g)
    given = (x, mask, weights, *rest, "relu")
    try:
        y = torch.ops.sparsemask.block(*given, name)
    except UseError:
        return
    assert torch.allclose(y, torch.ops.sparsemask.block(*given, "reference"), atol=1e-5)


def test_unknown_backends_are_told_the_right_names(name):
    block = SparseMaskBlock(4, 2)
    with refused("unknown backend 'cudnn'; known: .*auto.*gather.*native.*reference.*triton"):
        set_backend(block, "cudnn")
    with refused("unknown backend"):
        with backend("cudnn"):
            pass
    with refused("unknown backend"):
        good.run("cudnn")
    assert block.backend == "auto"  # nothing half done


def test_types_that_native_does_not_have():
    with tiles.using("none"):
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            assert available_backends("cpu", dtype)["native"] is not None
            with refused(f"native.*{str(dtype).removeprefix('torch.')}"):
                problem(Case(), dtype).run("native")


def test_devices_that_are_not_here():
    assert "CPU" in available_backends("cuda")["native"]
    assert available_backends("cuda")["reference"] is None


def test_the_choice_of_a_backend_ends_with_its_block_whatever_happens():
    with pytest.raises(ZeroDivisionError), backend("gather"):
        assert registry.current("auto") == "gather"
        with backend("reference"):
            assert registry.current("auto") == "reference"
        assert registry.current("native") == "gather"
        raise ZeroDivisionError
    assert registry.current("auto") == "auto"


def test_backends_of_ones_own():
    class Mine(Backend):
        name, calls = "mine", 0

        def why_not(self, device, dtype):
            return None if dtype == torch.float32 else "only float32"

        def conv(self, call):
            self.calls += 1
            return registry.find("reference").conv(call)

    mine = Mine()
    try:
        register_backend("mine", mine)
        assert available_backends()["mine"] is None
        block = set_backend(SparseMaskBlock(4, 2).eval(), "mine")
        x, mask = torch.randn(1, 4, 5, 5), torch.rand(1, 1, 5, 5) < 0.5
        with torch.no_grad():
            y, _ = block(x, mask)
            assert mine.calls == 3  # two layers and the fusion
            assert torch.allclose(y, set_backend(block, "reference")(x, mask)[0], atol=1e-6)
        with refused("only float32"):
            problem(Case(), torch.float64).run("mine")
    finally:
        registry.loaded.pop("mine", None)


# Modules


@pytest.mark.parametrize("given, match", [
    (dict(dims=4), "dimension"), (dict(dims=0), "dimension"), (dict(kernel_size=0), "kernel"),
    (dict(kernel_size=(3, 3, 3)), "entries"), (dict(kernel_size=2), "padding"), (dict(stride=0), "stride"),
    (dict(padding=-1), "padding"), (dict(output_padding=1), "output padding"),
    (dict(transposed=True, stride=2, output_padding=2), "output padding"), (dict(groups=0), "groups"),
    (dict(groups=2, in_channels=3), "groups"), (dict(groups=2, out_channels=3), "groups"),
    (dict(in_channels=0), "channels"), (dict(norm="layer"), "norm"), (dict(dilation=0), "dilation"),
])  # fmt: skip
def test_layers_that_cannot_be(given, match):
    given = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **given}
    with refused(match):
        SparseMaskConv(given.pop("in_channels"), given.pop("out_channels"), given.pop("kernel_size"), **given)


@pytest.mark.parametrize("given, match", [
    (dict(layers=0), "layer"), (dict(kernel_size=2), "odd|middle"), (dict(dims=4), "dimension"),
    (dict(channels=0), "channels"), (dict(activation="gelu"), "activation"),
])  # fmt: skip
def test_blocks_that_cannot_be(given, match):
    given = {"channels": 4, **given}
    with refused(match):
        SparseMaskBlock(given.pop("channels"), **given)


def test_data_masks_that_cannot_be():
    with refused("dimension"):
        DataMask(4, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_modules_refuse_masks_that_do_not_fit(training, hard):
    # A mask that broadcasts by accident would be a silent error.
    x = torch.randn(2, 4, 6, 7)
    mask = torch.rand(2, 1, 6, 7)
    mask = mask < 0.5 if hard else mask
    layer, block = SparseMaskConv(4, 6, 3).train(training), SparseMaskBlock(4, 2).train(training)
    ins, outs = torch.arange(4) < 2, torch.arange(6) < 3
    for wrong in (mask[:1], mask[..., :1], mask[:, :, :1], mask[:, 0], mask.expand(2, 4, 6, 7)):
        with refused("mask"):
            layer(x, wrong, ins, outs)
        with refused("mask"):
            block(x, wrong)
    with refused("channels"):
        layer(x[:, :3], mask, ins, outs)
    with refused("channel"):
        layer(x, mask, ins[:1], outs)
    with refused("channel"):
        layer(x, mask, ins, outs[:1])
    assert layer(x, mask, ins, outs).shape == (2, 6, 6, 7)


def test_geometry_is_a_key():
    a, b = Geometry.of(2, 3), Geometry.of(2, (3, 3), 1, (1, 1), 1)
    assert a == b and hash(a) == hash(b) and len({a, b, Geometry.of(2, 3, 2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.stride = (2, 2)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", [dict(kernel=3), dict(kernel=2, padding=0), dict(kernel=3, stride=2),
                                  dict(kernel=5, dilation=2, stride=3), dict(kernel=1, stride=2),
                                  dict(kernel=3, stride=2, transposed=True, output_padding=1),
                                  dict(kernel=4, stride=3, padding=1, transposed=True)], ids=str)  # fmt: skip
def test_output_sizes_are_torchs(dims, form):
    g = Geometry.of(dims, **form)
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kinds = kinds if g.transposed else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    more = {"output_padding": g.output_padding} if g.transposed else {}
    conv = kinds[dims - 1](1, 1, g.kernel, g.stride, g.padding, dilation=g.dilation, **more)
    for sizes in ((9, 8, 7), (6, 9, 5)):
        assert g.output_size(sizes[:dims]) == tuple(conv(torch.zeros(1, 1, *sizes[:dims])).shape[2:])
