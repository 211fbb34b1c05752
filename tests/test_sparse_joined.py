"""The convolution over several features at once: as if they were concatenated, whoever computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from literal_sparse import one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.ops.concat_conv import joined_conv
from sparsemask.sparse import available_backends

NAMES = ("auto", "reference", "gather", "native")


@pytest.fixture(params=NAMES)
def name(request) -> str:
    if available_backends()[request.param] is not None:
        pytest.skip(f"{request.param}: {available_backends()[request.param]}")
    return request.param


def given(channels=(5, 3, 8), c_out=6, spatial=(5, 6), kernel=3, n=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    xs = [torch.randn(n, c, *spatial, generator=g) for c in channels]
    weight = torch.randn(c_out, sum(channels), *[kernel] * len(spatial), generator=g) / (sum(channels) * 9) ** 0.5
    return xs, weight, torch.randn(c_out, generator=g), torch.randn(n, c_out, *spatial, generator=g)


def expected(xs, weight, bias, add, act=lambda y: y):
    conv = (F.conv1d, F.conv2d, F.conv3d)[xs[0].ndim - 3]
    whole = [None if one is None else one.double() for one in (torch.cat(xs, 1), weight, bias)]
    y = conv(*whole, padding="same")
    return act(y if add is None else y + add.double())


@pytest.mark.parametrize("spatial, kernel", [((5, 6), 3), ((5, 6), 1), ((7, 5), 5), ((9,), 3), ((3, 4, 2), 3),
                                             ((1, 1), 3)])  # fmt: skip
@pytest.mark.parametrize("more", [(True, True), (True, False), (False, True), (False, False)])
def test_it_is_the_convolution_of_the_concatenation(name, spatial, kernel, more):
    xs, weight, bias, add = given(spatial=spatial, kernel=kernel)
    bias, add = bias if more[0] else None, add if more[1] else None
    y = joined_conv(xs, weight, bias, add, "relu", name)
    assert torch.allclose(y.double(), expected(xs, weight, bias, add, torch.relu), atol=1e-5)


@pytest.mark.parametrize("channels", [(1,), (64,), (1, 1, 1), (17, 30), (64,) * 5])
def test_any_number_of_features(name, channels):
    xs, weight, bias, add = given(channels)
    y = joined_conv(xs, weight, bias, add, "leaky_relu:0.1", name)
    want = expected(xs, weight, bias, add, lambda y: F.leaky_relu(y, 0.1))
    assert torch.allclose(y.double(), want, atol=1e-5)


def test_memory_order_goes_through(name):
    xs, weight, bias, add = given()
    want = expected(xs, weight, bias, add)
    last = [x.contiguous(memory_format=torch.channels_last) for x in xs]
    for features, order in ((xs, torch.contiguous_format), (last, torch.channels_last), ([last[0], *xs[1:]], None)):
        y = joined_conv(features, weight, bias, add, backend=name)
        assert order is None or y.is_contiguous(memory_format=order)
        assert torch.allclose(y.double(), want, atol=1e-5)
    assert torch.equal(add, given()[3]) and torch.equal(xs[0], given()[0][0])  # inputs stay as they were


def test_it_follows_its_weights(name):
    xs, weight, bias, add = given()
    for _ in range(3):
        weight += 0.1
        bias += 1
        y = joined_conv(xs, weight, bias, add, backend=name)
        assert torch.allclose(y.double(), expected(xs, weight, bias, add), atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-2), (torch.float64, 1e-6)])
def test_features_of_another_type_than_the_weights(dtype, tolerance):
    # As under autocast.
    xs, weight, bias, add = given()
    y = joined_conv([x.to(dtype) for x in xs], weight, bias, add.to(dtype))
    assert y.dtype == dtype
    assert torch.allclose(y.double(), expected(xs, weight, bias, add), atol=tolerance, rtol=tolerance)
    y = joined_conv(xs, weight.double(), bias.double(), add)
    assert y.dtype == torch.float32 and torch.allclose(y.double(), expected(xs, weight, bias, add), atol=1e-5)


def test_its_cost_is_counted():
    xs, weight, bias, add = given()
    with FlopCounterMode(display=False) as counter:
        joined_conv(xs, weight, bias, add)
    with FlopCounterMode(display=False) as plain:
        F.conv2d(torch.cat(xs, 1), weight, padding=1)
    assert counter.get_total_flops() == plain.get_total_flops() > 0


MISTAKES = {
    "no features": lambda xs, w, b, a: ([], w, b, a),
    "other channels": lambda xs, w, b, a: (xs[:2], w, b, a),
    "features of several sizes": lambda xs, w, b, a: ([xs[0], xs[1][..., :3], xs[2]], w, b, a),
    "features of several batches": lambda xs, w, b, a: ([xs[0], xs[1][:1], xs[2]], w, b, a),
    "an even kernel": lambda xs, w, b, a: (xs, w[..., :2], b, a),
    "a kernel of other dimensions": lambda xs, w, b, a: (xs, w[..., 0], b, a),
    "a bias of another length": lambda xs, w, b, a: (xs, w, b[:4], a),
    "an addend of another size": lambda xs, w, b, a: (xs, w, b, a[..., :3]),
    "an addend of one picture": lambda xs, w, b, a: (xs, w, b, a[:1]),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_does_not_fit_is_refused(name, what):
    with pytest.raises(UseError) as found:
        joined_conv(*MISTAKES[what](*given()), backend=name)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("activation, backend", [("gelu", "auto"), ("relu", "nonesuch")])
def test_unknown_names(activation, backend):
    with pytest.raises(UseError, match="unknown"):
        joined_conv(*given(), activation, backend)


@pytest.mark.parametrize("last", [False, True])
def test_torchs_own_checks(name, last):
    xs, weight, bias, add = given()
    xs = [x.contiguous(memory_format=torch.channels_last) for x in xs] if last else xs
    torch.library.opcheck(torch.ops.sparsemask.joined_conv.default, (xs, weight, bias, add, "relu", name),
                          test_utils=("test_schema", "test_faketensor"))  # fmt: skip
