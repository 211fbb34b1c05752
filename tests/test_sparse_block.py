"""A whole module by every backend: the formula layer by layer, the fusion of all layers, channel attention."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import literal_sparse as literal
from literal_sparse import SPLITS, difference, one_thread, split  # noqa: F401
from sparsemask.sparse import SparseMaskBlock, available_backends, backend, kept_fraction, set_backend

NAMES = ("reference", "dense", "gather", "native", "auto")


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """A backend that can compute here."""
    reason = available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def block_problem(n=2, channels=6, spatial=(5, 6), kernel=3, dense=("random",) * 3, kept=0.4, bias=True, c_out=None,
                  seed=0):  # fmt: skip
    """Arguments of the operator up to the activation; dense: each layer's split, see `literal_sparse.split`."""
    g = torch.Generator().manual_seed(seed)
    dims, layers = len(spatial), len(dense)
    mask = torch.rand(n, 1, *spatial, generator=g) < kept
    weights = [torch.randn(channels, channels, *[kernel] * dims, generator=g) / (channels * kernel**dims) ** 0.5 * 1.4
               for _ in dense]  # fmt: skip
    flags = torch.stack([split(kind, channels, g) for kind in dense])
    c_out = c_out or channels
    collect = torch.randn(c_out, layers * channels, *[1] * dims, generator=g) / (layers * channels) ** 0.5
    x = torch.randn(n, channels, *spatial, generator=g)
    return x, mask, weights, flags, collect, torch.randn(c_out, generator=g) if bias else None


def run(given, name, activation="relu"):
    return torch.ops.sparsemask.block(*given, activation, name)


# name: how it differs
BLOCKS = {
    "plain": {},
    "falling to none": dict(dense=("random", "one", "none", "none")),
    "none at all": dict(dense=("none",) * 3),
    "all of them": dict(dense=("all",) * 3),
    "all, then none, then all": dict(dense=("all", "none", "all")),
    "one dense in total": dict(dense=("none", "one", "none")),
    "one sparse in total": dict(dense=("all", "one sparse", "all")),
    "one sparse in total, in the last": dict(dense=("all", "all", "one sparse")),
    "one sparse in total, in the first": dict(dense=("one sparse", "all", "all")),
    "one layer": dict(dense=("random",)),
    "one layer of one dense": dict(dense=("one",)),
    "six layers": dict(dense=("random",) * 6),
    "one channel": dict(channels=1, dense=("all", "none", "all")),
    "many channels": dict(n=1, channels=37, spatial=(4, 4)),
    "other width out": dict(c_out=19),
    "1x1 layers": dict(kernel=1),
    "5x5 layers": dict(kernel=5),
    "kernel wider than the picture": dict(kernel=5, spatial=(2, 3)),
    "height 1": dict(spatial=(1, 9)),
    "width 1": dict(spatial=(9, 1)),
    "one place": dict(spatial=(1, 1)),
    "odd": dict(n=1, spatial=(7, 5)),
    "three pictures": dict(n=3),
    "no bias": dict(bias=False),
    "points": dict(spatial=(11,), kernel=1),
    "line": dict(spatial=(11,), kernel=3),
    "volume": dict(channels=4, spatial=(3, 4, 5)),
    "volume of one slice": dict(channels=4, spatial=(1, 4, 5)),
}


@cache
def solved(what: str, kept: float):
    given = block_problem(**BLOCKS[what], kept=kept)
    return given, literal.block(*given)


@pytest.mark.parametrize("what", BLOCKS)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
def test_a_block_is_its_layers_by_the_formula(name, what, kept):
    given, expected = solved(what, kept)
    assert difference(run(given, name), expected) < 1e-5


@pytest.mark.parametrize("what", ["plain", "none at all", "one sparse in total", "volume"])
def test_triton_is_the_formula(what):
    # A handful: its kernels have a page of their own.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = available_backends(device)["triton"]
    if reason is not None:
        pytest.skip(f"triton: {reason}")
    given, expected = solved(what, 0.5)
    moved = [[t.to(device) for t in one] if isinstance(one, list) else one.to(device) for one in given]
    assert difference(run(moved, "triton"), expected) < 1e-5


def test_pictures_of_a_batch_have_masks_of_their_own(name):
    # One empty, one full, one between: each as if it were alone.
    x, mask, *rest = block_problem(n=3)
    mask[0], mask[1] = False, True
    whole = run((x, mask, *rest), name)
    for i in range(3):
        alone = run((x[i : i + 1], mask[i : i + 1], *rest), name)
        assert torch.allclose(whole[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 5), (9,)])
def test_memory_order_goes_through(name, spatial):
    x, *rest = given = block_problem(spatial=spatial)
    expected = literal.block(*given)
    y = run(given, name)
    assert y.is_contiguous() and difference(y, expected) < 1e-5
    if len(spatial) > 1:
        last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
        y = run((x.contiguous(memory_format=last), *rest), name)
        assert y.is_contiguous(memory_format=last) and difference(y, expected) < 1e-5
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    assert difference(run((wide[..., ::2], *rest), name), expected) < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [0.1, 0.7])
def test_pictures_larger_than_any_piece(name, threads, kept):
    # Work is cut into pieces, strips and shares of threads; small problems see only one of each.
    given = block_problem(n=2, channels=24, spatial=(97, 90), dense=("random", "one", "none"), kept=kept)
    x, mask, weights, dense, collect, bias = given
    before, features, outputs = torch.ones(24, dtype=torch.bool), x.double(), []
    for weight, mine in zip(weights, dense, strict=True):
        part = torch.conv2d(features * before.view(1, -1, 1, 1), weight.double(), padding=1)
        whole = torch.conv2d(features, weight.double(), padding=1)
        features = torch.relu(torch.where(mask, whole, part * mine.view(1, -1, 1, 1)))
        outputs.append(features)
        before = mine
    expected = torch.conv2d(torch.cat(outputs, 1), collect.double(), bias.double())
    torch.set_num_threads(threads)
    for features in (x, x.contiguous(memory_format=torch.channels_last)):
        y = run((features, *given[1:]), name)
        assert torch.allclose(y.double(), expected, atol=1e-5)
    gates = attention(24)
    y = torch.ops.sparsemask.attended_block(*given, gates, "relu", name)
    a = torch.relu(expected.mean((2, 3)) @ gates[0].double().flatten(1).T + gates[1])
    a = torch.sigmoid(a @ gates[2].double().flatten(1).T + gates[3])[..., None, None]
    assert torch.allclose(y.double(), x + a * expected, atol=1e-5)


def attention(channels: int, narrow: int = 3, seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(narrow, channels, 1, 1), (narrow,), (channels, narrow, 1, 1), (channels,)]
    return [torch.randn(shape, generator=g) for shape in shapes]


def attended(given, weights, dims: int) -> np.ndarray:
    """x + a·y with a = sigmoid(excite(relu(squeeze(mean y))))."""
    y = literal.block(*given)
    squeeze, squeeze_bias, excite, excite_bias = map(literal.numbers, weights)
    mean = y.mean(tuple(range(2, 2 + dims)))
    narrow = np.maximum(mean @ squeeze.reshape(len(squeeze), -1).T + squeeze_bias, 0)
    a = 1 / (1 + np.exp(-(narrow @ excite.reshape(len(excite), -1).T + excite_bias)))
    return literal.numbers(given[0]) + a.reshape(*a.shape, *[1] * dims) * y


@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("what", ["plain", "none at all", "all of them", "one layer", "no bias", "height 1",
                                  "many channels", "volume", "one sparse in total"])  # fmt: skip
def test_attention_is_the_formula(name, what, kept):
    given = block_problem(**BLOCKS[what], kept=kept)
    x, dims = given[0], given[0].ndim - 2
    weights = attention(x.shape[1])
    expected = attended(given, weights, dims)
    y = torch.ops.sparsemask.attended_block(*given, weights, "relu", name)
    assert y.is_contiguous() and difference(y, expected) < 1e-5
    if dims == 2:
        last = x.contiguous(memory_format=torch.channels_last)
        y = torch.ops.sparsemask.attended_block(last, *given[1:], weights, "relu", name)
        assert difference(y, expected) < 1e-5


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_module_is_the_operator(name, dims):
    torch.manual_seed(0)
    block = SparseMaskBlock(6, 3, dims=dims, activation="leaky_relu:0.1").eval()
    x = torch.randn(2, 6, *(5, 4, 3)[:dims])
    mask = torch.rand(2, 1, *x.shape[2:]) < 0.4
    weights = [layer.weight for layer in block.body]
    dense = block.channels()
    expected = literal.block(x, mask, weights, dense, block.collect.weight, block.collect.bias, "leaky_relu:0.1")
    with torch.inference_mode():
        y, kept = set_backend(block, name)(x, mask)
    assert difference(y, expected) < 1e-5
    assert torch.allclose(kept, kept_fraction(mask, dense))
    with torch.no_grad(), backend(name):  # the innermost choice counts
        assert difference(set_backend(block, "reference")(x, mask)[0], expected) < 1e-5


def test_the_modules_attended_form_is_the_operator(name):
    torch.manual_seed(0)
    block = set_backend(SparseMaskBlock(6, 2).eval(), name)
    x, mask, weights = torch.randn(1, 6, 5, 4), torch.rand(1, 1, 5, 4) < 0.5, attention(6)
    with torch.no_grad():
        assert block.skips(x, mask) and not block.skips(x, mask.float())
        y, kept = block.attended(x, mask, weights)
        given = (x, mask, [one.weight for one in block.body], block.channels(), block.collect.weight,
                 block.collect.bias)  # fmt: skip
        assert difference(y, attended(given, weights, 2)) < 1e-5
        assert torch.allclose(kept, block(x, mask)[1])
    assert not block.skips(x, mask)  # someone may want gradients


def test_evaluation_without_no_grad_has_gradients_too():
    torch.manual_seed(0)
    block = SparseMaskBlock(6, 2).eval()
    x, mask = torch.randn(1, 6, 5, 4, requires_grad=True), torch.rand(1, 1, 5, 4) < 0.5
    found = []
    for training in (False, True):
        block.train(training).zero_grad()
        x.grad = None
        block.mask_mode = "hard"
        block(x, mask)[0].square().sum().backward()
        found.append([x.grad.clone(), *(p.grad.clone() for n, p in block.named_parameters() if n != "ch_mask")])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("other", ["reference", "gather", "auto"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 5e-2)])
def test_other_types(other, dtype, tolerance):
    x, mask, weights, dense, collect, bias = block_problem()
    cast = (x.to(dtype), mask, [w.to(dtype) for w in weights], dense, collect.to(dtype), bias.to(dtype))
    y = run(cast, other)
    assert y.dtype == dtype and difference(y, literal.block(*cast)) < tolerance


def test_tied_channels_are_dense():
    # The published code puts them into neither set.
    block = SparseMaskBlock(4, 2).eval()
    with torch.no_grad():
        block.ch_mask.zero_()
        x, mask = torch.randn(1, 4, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool)
        y, kept = block(x, mask)
        everything = block(x, ~mask)[0]
    assert torch.allclose(y, everything, atol=1e-6) and torch.equal(kept, torch.ones(2))


def test_keys_of_the_public_checkpoint():
    block = SparseMaskBlock(64)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == {
        "ch_mask": (1, 64, 4, 2),
        **{f"body.{i}.weight": (64, 64, 3, 3) for i in range(4)},
        "collect.weight": (64, 256, 1, 1),
        "collect.bias": (64,),
    }


def test_threads_of_python_do_not_disturb_each_other(name):
    # The native kernels have work space and tables of their own.
    from concurrent.futures import ThreadPoolExecutor

    problems = [block_problem(seed=i, spatial=(4 + i % 3, 6), kept=0.1 + 0.1 * i) for i in range(6)]
    expected = [literal.block(*given) for given in problems]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: run(problems[i % 6], name), range(24)))
    assert max(difference(y, expected[i % 6]) for i, y in enumerate(found)) < 1e-5


def test_kinds_of_splits_are_what_they_say():
    # The tables above rest on it.
    g = torch.Generator().manual_seed(0)
    assert [int(split(kind, 8, g).sum()) for kind in SPLITS[:4]] == [0, 8, 1, 7]
