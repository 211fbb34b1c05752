"""The grid side of convolutions: sizes are torch's, and what is no convolution is refused by name."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.sparse import Geometry

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_sizes_are_torch_s(dims):
    for kernel, stride, padding, dilation, size in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (1, 6, 7)
    ):
        form = dict(stride=stride, padding=padding, dilation=dilation)
        sizes = (size, 9, 11)[:dims]
        geometry = Geometry.of(dims, kernel, **form)
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            with pytest.raises(UseError, match=f"an input of {' x '.join(map(str, sizes))} is too small"):
                geometry.output_size(sizes)
        else:
            conv = CONVS[dims](1, 1, kernel, **form, device="meta")
            assert geometry.output_size(sizes) == tuple(conv(torch.empty(1, 1, *sizes, device="meta")).shape[2:])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_sizes_of_transposed_ones_are_torch_s(dims):
    sizes = (4, 3, 5)[:dims]
    for kernel, stride, padding, dilation, more in itertools.product((1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (0, 1, 2)):
        form = dict(stride=stride, padding=padding, dilation=dilation, output_padding=more)
        if more >= max(stride, dilation):
            with pytest.raises(UseError, match="is not less than the stride"):
                Geometry.of(dims, kernel, transposed=True, **form)
            continue
        conv = TRANSPOSED[dims](1, 1, kernel, **form, device="meta")
        found = Geometry.of(dims, kernel, transposed=True, **form)
        assert found.output_size(sizes) == tuple(conv(torch.empty(1, 1, *sizes, device="meta")).shape[2:])


def test_a_grid_of_one_and_of_none():
    assert Geometry.of(2, 3, padding=0).output_size((3, 4)) == (1, 2)
    with pytest.raises(UseError, match="an input of 2 x 4 is too small for a kernel of"):
        Geometry.of(2, 3, padding=0).output_size((2, 4))


def test_numbers_and_sequences_and_defaults():
    found = Geometry.of(2, 3)
    assert found == Geometry((3, 3), (1, 1), (1, 1), (1, 1), (0, 0), False, 1)
    assert found == Geometry.of(2, [3, 3], (1, 1), torch.tensor([1, 1]).tolist(), 1, (0, 0))
    assert hash(found) == hash(Geometry.of(2, (3, 3))) and found != Geometry.of(2, 3, 2)
    # Half the reach, where none is said; every axis for itself.
    assert Geometry.of(2, (5, 3), dilation=(1, 2)).padding == (2, 2)
    assert Geometry.of(3, (1, 3, 7)).padding == (0, 1, 3)
    assert Geometry.of(1, 4, padding=2).kernel == (4,)
    assert [Geometry.of(dims, 3).dims for dims in (1, 2, 3)] == [1, 2, 3]
    assert Geometry.of(2, 3, groups=4).groups == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.groups = 2


@pytest.mark.parametrize(
    ("form", "pointwise"),
    [
        (dict(kernel=1), True),
        (dict(kernel=(1, 3)), False),
        (dict(kernel=(3, 1)), False),
        (dict(kernel=1, stride=(1, 2)), False),
        (dict(kernel=1, padding=(0, 1)), False),
        (dict(kernel=1, dilation=3), True),  # of one tap nothing is spread
        (dict(kernel=1, stride=1, dilation=2, output_padding=(1, 0), transposed=True), False),
        (dict(kernel=3), False),
    ],
)
def test_pointwise(form, pointwise):
    assert Geometry.of(2, **form).pointwise is pointwise


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (dict(dims=0, kernel=1), "1, 2 or 3 dimensions, not 0"),
        (dict(dims=4, kernel=1), "1, 2 or 3 dimensions, not 4"),
        (dict(dims=2, kernel=0, padding=0), r"kernel size must be at least 1, got \(0, 0\)"),
        (dict(dims=2, kernel=(3, 3, 3)), "kernel size .* has 3 entries for 2 dimensions"),
        (dict(dims=2, kernel=4), "a kernel of 4 x 4 has no middle: give its padding"),
        (dict(dims=2, kernel=(3, 2)), "a kernel of 3 x 2 has no middle"),
        (dict(dims=2, kernel=3, stride=(1, 0)), "stride must be at least 1"),
        (dict(dims=2, kernel=3, padding=(-1, 0)), "padding must be at least 0"),
        (dict(dims=2, kernel=3, dilation=0), "dilation must be at least 1"),
        (dict(dims=2, kernel=3, dilation=(1,)), "dilation .* has 1 entries for 2 dimensions"),
        (dict(dims=2, kernel=3, stride=2, output_padding=1), "is for transposed convolutions"),
        (dict(dims=2, kernel=3, stride=2, output_padding=-1, transposed=True), "output padding must be at least 0"),
        (dict(dims=2, kernel=3, stride=(3, 2), output_padding=(2, 2), transposed=True), "is not less than the stride"),
        (dict(dims=2, kernel=3, groups=0), "groups must be at least 1, got 0"),
    ],
)
def test_what_is_no_convolution(form, words):
    with pytest.raises(UseError, match=words):
        Geometry.of(**form)


@pytest.mark.parametrize(
    "form",
    [
        dict(kernel=1, padding=0),
        dict(kernel=3, stride=2, output_padding=1, transposed=True),
        dict(kernel=3, dilation=2, output_padding=1, transposed=True),
    ],
)
def test_the_least_of_everything_is_allowed(form):
    assert Geometry.of(2, **form)
