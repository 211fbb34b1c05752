"""One sparse mask convolution: the operator and the module equal the formula, by every backend."""

from __future__ import annotations

import itertools
import zlib
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from literal_sparse import SPLITS, Case, difference, one_thread, problem  # noqa: F401
from sparsemask.sparse import SparseMaskConv, available_backends, backend, set_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("reference", "dense", "gather", "native", "auto")
TOLERANCE = 1e-5


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """A backend that can compute here."""
    reason = available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@cache
def solved(case: Case):
    """A problem and its solution by the letter, shared by all backends."""
    given = problem(case, seed=zlib.crc32(repr(case).encode()))
    return given, given.literal()


def check(case: Case, name: str) -> None:
    given, expected = solved(case)
    y = given.run(name)
    assert difference(y, expected) < TOLERANCE, str(case)
    dropped = (~given.mask & ~given.out_dense.view(1, -1, *[1] * (y.ndim - 2))).expand_as(y)
    assert torch.count_nonzero(y[dropped]) == 0, str(case)  # not small: exactly zero


def rotating() -> list[Case]:
    """Every geometry, each with another density, split, bias and activation."""
    turn = zip(
        itertools.cycle((0.0, 0.1, 0.5, 1.0, 0.5, 0.1, 0.3)),
        itertools.cycle(itertools.product(SPLITS, SPLITS)),
        itertools.cycle((True, False, True)),
        itertools.cycle(("relu", "none", "leaky_relu:0.1", "leaky_relu")),
        strict=False,
    )
    sizes = {1: (13,), 2: (7, 6), 3: (5, 4, 5)}
    cases = []
    geometries = itertools.product((1, 2, 3), (1, 2, 3, 5), (1, 2), (1, 2), (False, True))
    for (dims, kernel, stride, dilation, transposed), more in zip(geometries, turn, strict=False):
        kept, (ins, outs), bias, activation = more
        if dims == 3 and kernel == 5 and (dilation == 2 or transposed):
            continue  # the letter takes its time
        form = dict(kernel=kernel, stride=stride, dilation=dilation)
        if transposed:
            form.update(transposed=True, output_padding=stride - 1)
        channels = (4, 3) if dims == 3 else (5, 6)
        n = 1 + (kernel + stride) % 2 if dims == 3 else 2
        cases.append(Case(n, *channels, sizes[dims], kept, ins, outs, bias, activation, tuple(form.items())))
    return cases


ROTATING = rotating()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_geometry_equals_the_formula(name, dims, transposed):
    chosen = [c for c in ROTATING if len(c.spatial) == dims and dict(c.form).get("transposed", False) == transposed]
    assert len(chosen) >= 12
    for case in chosen:
        check(case, name)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["plain", "stride 2", "1x1"])
def test_every_split_at_every_density_equals_the_formula(name, kept, kind):
    form = {"plain": {}, "stride 2": {"stride": 2}, "1x1": {"kernel": 1}}[kind]
    for ins, outs in itertools.product(SPLITS, SPLITS):
        check(Case(2, 5, 4, (5, 4), kept, ins, outs, form=tuple({"kernel": 3, **form}.items())), name)


# name: batch, channels in and out, size, then the form
SPECIAL = {
    "depth-wise": (2, 6, 6, (5, 6), dict(kernel=3, groups=6)),
    "depth-wise, wide": (1, 20, 20, (5, 3), dict(kernel=3, groups=20)),
    "depth-wise, stride 2": (2, 6, 6, (5, 6), dict(kernel=3, stride=2, groups=6)),
    "depth-wise, dilated": (1, 6, 6, (7, 6), dict(kernel=3, dilation=2, groups=6)),
    "depth-wise, multiplier": (1, 3, 6, (5, 6), dict(kernel=3, groups=3)),
    "depth-wise line": (1, 5, 5, (11,), dict(kernel=5, groups=5)),
    "depth-wise volume": (1, 4, 4, (3, 4, 3), dict(kernel=3, groups=4)),
    "depth-wise transposed": (2, 4, 4, (3, 4), dict(kernel=3, stride=2, output_padding=1, transposed=True, groups=4)),
    "two groups": (2, 6, 4, (5, 6), dict(kernel=3, groups=2)),
    "two groups, transposed": (2, 6, 4, (3, 4), dict(kernel=3, stride=2, padding=1, transposed=True, groups=2)),
    "height 1": (2, 5, 6, (1, 9), dict(kernel=3)),
    "width 1": (2, 5, 6, (9, 1), dict(kernel=3)),
    "one place": (2, 5, 6, (1, 1), dict(kernel=3)),
    "one place, points": (1, 5, 6, (1,), dict(kernel=1)),
    "one channel": (2, 1, 1, (5, 6), dict(kernel=3)),
    "one channel to many": (2, 1, 17, (5, 6), dict(kernel=3)),
    "many channels to one": (1, 17, 1, (5, 6), dict(kernel=3)),
    "no padding": (1, 5, 6, (5, 6), dict(kernel=3, padding=0)),
    "more padding than needed": (1, 5, 6, (4, 3), dict(kernel=3, padding=3)),
    "kernel wider than the picture": (1, 3, 4, (2, 3), dict(kernel=5)),
    "one-sided": (2, 5, 6, (7, 6), dict(kernel=(5, 1), stride=(1, 2), padding=(2, 0))),
    "stride beyond the kernel": (1, 5, 6, (8, 7), dict(kernel=1, stride=3)),
    "transposed with holes": (1, 5, 6, (3, 2), dict(kernel=2, stride=3, padding=0, transposed=True)),
    "transposed, holes and output padding": (2, 5, 6, (3, 2), dict(kernel=1, stride=3, output_padding=2,
                                                                   transposed=True)),
    "transposed, dilation 2 of stride 2": (1, 4, 3, (3, 4), dict(kernel=3, stride=2, dilation=2, padding=2,
                                                                 output_padding=1, transposed=True)),
    "transposed, cropped": (1, 4, 3, (4, 4), dict(kernel=3, stride=2, padding=2, transposed=True)),
    "transposed line": (2, 4, 3, (6,), dict(kernel=4, stride=2, padding=1, transposed=True)),
    "transposed volume": (1, 3, 2, (2, 1, 3), dict(kernel=3, stride=2, padding=1, output_padding=1, transposed=True)),
}  # fmt: skip


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_special_forms_equal_the_formula(name, what, kept):
    n, c_in, c_out, spatial, form = SPECIAL[what]
    for ins, outs in (("random", "random"), ("all", "none"), ("none", "all"), ("one", "one sparse")):
        check(Case(n, c_in, c_out, spatial, kept, ins, outs, form=tuple(form.items())), name)


@pytest.mark.parametrize("what", ["plain", "stride 2", "transposed", "volume", "points"])
def test_triton_equals_the_formula(what):
    # A handful: the interpreter is slow, and the kernels have a page of their own.
    reason = available_backends(DEVICE)["triton"]
    if reason is not None:
        pytest.skip(f"triton: {reason}")
    spatial, form = {
        "plain": ((4, 5), {}),
        "stride 2": ((5, 4), {"stride": 2}),
        "transposed": ((2, 3), {"stride": 2, "output_padding": 1, "transposed": True}),
        "volume": ((2, 3, 2), {}),
        "points": ((7,), {"kernel": 1}),
    }[what]
    given, expected = solved(Case(1, 17, 16, spatial, form=tuple({"kernel": 3, **form}.items())))
    moved = {k: v.to(DEVICE) for k, v in zip(("x", "weight", "bias", "mask", "in_dense", "out_dense"), given.tensors,
                                             strict=True)}  # fmt: skip
    assert difference(given.run("triton", **moved), expected) < TOLERANCE


@pytest.mark.parametrize("other", ["reference", "gather"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_other_types(other, dtype, tolerance):
    for case in (Case(), Case(form=(("kernel", 3), ("stride", 2))), Case(1, 5, 6, (11,), form=(("kernel", 1),))):
        given = problem(case, dtype)
        y = given.run(other)
        assert y.dtype == dtype
        assert difference(y, given.literal()) < tolerance


@pytest.mark.parametrize("spatial", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_memory_order_goes_through(name, spatial, kept):
    last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    for ins, outs in (("random", "random"), ("all", "all"), ("all", "none")):
        given, expected = solved(Case(2, 5, 6, spatial, kept, ins, outs))
        plain, turned = given.run(name), given.run(name, x=given.x.contiguous(memory_format=last))
        assert plain.is_contiguous() and turned.is_contiguous(memory_format=last)
        assert difference(turned, expected) < TOLERANCE


def test_views_are_read_where_they_are(name):
    # Every second row and channel of something larger, weights and masks that are views too.
    given, expected = solved(Case())
    wide = torch.full((2, 10, 12, 7), torch.nan)
    wide[:, ::2, ::2] = given.x
    weight = given.weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    mask = given.mask.transpose(2, 3).contiguous().transpose(2, 3)
    ins = torch.stack([given.in_dense, ~given.in_dense], 1)[:, 0]
    y = given.run(name, x=wide[:, ::2, ::2], weight=weight, mask=mask, in_dense=ins)
    assert difference(y, expected) < TOLERANCE


def test_inference_mode_and_parameters(name):
    # Tensors of inference mode have no version counter; parameters want gradients that nobody may ask of them here.
    given, expected = solved(Case())
    with torch.inference_mode():
        y = given.run(name, x=given.x.clone(), weight=torch.nn.Parameter(given.weight))
    assert difference(y, expected) < TOLERANCE
    assert difference(given.run(name), expected) < TOLERANCE  # and again outside, with what was kept inside


def test_the_result_is_nobody_elses_memory(name):
    # A backend that hands out its work space, or its input, would change a result already given.
    given, expected = solved(Case(activation="none", kept=1.0, form=(("kernel", 1),)))
    first = given.run(name)
    given.run(name, x=given.x * 3)
    assert difference(first, expected) < TOLERANCE
    first.zero_()
    assert difference(given.run(name), expected) < TOLERANCE


def test_an_empty_batch(name):
    given = problem(Case())
    y = given.run(name, x=given.x[:0], mask=given.mask[:0])
    assert y.shape == (0, 6, 6, 7)


def test_broken_numbers_reach_only_who_reads_them(name):
    # An overflow in a sparse channel must not get out where that channel is not read; zero is not infinity times zero.
    given, _ = solved(Case(1, 5, 6, (5, 5), outs="random"))
    x, ins, mask = given.x.clone(), torch.arange(5) > 0, torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    x[:, 0] = torch.inf
    mask[..., 0, 0] = True
    y = given.run(name, x=x, in_dense=ins, mask=mask)
    assert y[~mask.expand_as(y)].isfinite().all()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_module_is_the_operator(name, dims, transposed):
    spatial = {1: (9,), 2: (5, 6), 3: (3, 4, 3)}[dims]
    form = {"kernel": 3, "stride": 2, "transposed": transposed, "output_padding": int(transposed)}
    given, expected = solved(Case(1, 4, 6, spatial, form=tuple(form.items())))
    layer = SparseMaskConv(
        4, 6, 3, dims=dims, stride=2, transposed=transposed, output_padding=int(transposed), bias=True
    ).eval()
    assert layer.weight.shape == given.weight.shape  # laid out as torch's
    layer.load_state_dict({"weight": given.weight, "bias": given.bias})
    with torch.no_grad():
        chosen = set_backend(layer, name)(given.x, given.mask, given.in_dense, given.out_dense)
        with backend(name):
            forced = set_backend(layer, "reference")(given.x, given.mask, given.in_dense, given.out_dense)
    assert difference(chosen, expected) < TOLERANCE and difference(forced, expected) < TOLERANCE


@st.composite
def layers(draw) -> Case:
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    sizes = st.integers(1, {1: 12, 2: 6, 3: 4}[dims])
    groups = draw(st.sampled_from([1, 1, 2]))
    transposed = draw(st.booleans())
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = tuple(draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True))
    form = dict(kernel=kernel, stride=stride, dilation=dilation, padding=padding, groups=groups)
    spatial = tuple(draw(sizes) for _ in range(dims))
    if transposed:
        more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        form.update(transposed=True, output_padding=more)
        spatial = tuple(max(n, 1 + -(-2 * p // s)) for n, p, s in zip(spatial, padding, stride, strict=True))
    else:
        reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
        spatial = tuple(max(n, r) for n, r in zip(spatial, reach, strict=True))
    channels = st.integers(1, 5).map(lambda c: c * groups)
    return Case(
        draw(st.integers(1, 2)), draw(channels), draw(channels), spatial, draw(st.sampled_from([0, 0.2, 0.6, 1])),
        draw(st.sampled_from(SPLITS)), draw(st.sampled_from(SPLITS)), draw(st.booleans()),
        draw(st.sampled_from(["none", "relu", "leaky_relu:0.1"])), tuple(form.items()),
    )  # fmt: skip


@settings(max_examples=120, deadline=None, derandomize=True)
@given(layers())
def test_whatever_the_layer_sparse_is_dense_times_mask(case):
    given, expected = problem(case), None
    for one, reason in available_backends().items():
        if reason is None and one not in ("triton", "auto"):
            expected = given.literal() if expected is None else expected
            assert difference(given.run(one), expected) < TOLERANCE
