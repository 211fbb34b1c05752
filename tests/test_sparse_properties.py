"""Laws of sparse mask convolution that hold for any masks, by every backend that can compute here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from literal_sparse import difference, one_thread  # noqa: F401
from sparsemask.sparse import available_backends, kept_fraction
from test_sparse_block import block_problem

NAMES = ("reference", "dense", "gather", "native")
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(params=NAMES, scope="module")
def name(request) -> str:
    if available_backends()[request.param] is not None:
        pytest.skip(f"{request.param}: {available_backends()[request.param]}")
    return request.param


seeds = st.integers(0, 10**6)
shares = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
channels = st.integers(1, 20)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(name, x, weight, mask, ins, outs, activation="relu", bias=None):
    one = [weight.shape[-1] // 2] * 2
    return torch.ops.sparsemask.conv(
        x, weight, bias, mask, ins, outs, [1, 1], one, [1, 1], [0, 0], False, 1, activation, name
    )


def made(seed, size, c_in, c_out, kept, dense, n=1):
    g = generator(seed)
    x = torch.randn(n, c_in, *size, generator=g)
    weight = torch.randn(c_out, c_in, 3, 3, generator=g) / (c_in * 9) ** 0.5
    mask = torch.rand(n, 1, *size, generator=g) < kept
    return g, x, weight, mask, torch.rand(c_in, generator=g) < dense, torch.rand(c_out, generator=g) < dense


@few
@given(seeds, sizes, channels, channels, shares, shares)
def test_sparse_is_dense_times_mask(name, seed, size, c_in, c_out, kept, dense):
    # With inputs that are all dense: the ordinary convolution, zero where a sparse channel is dropped.
    _, x, weight, mask, _, outs = made(seed, size, c_in, c_out, kept, dense, n=2)
    y = layer(name, x, weight, mask, torch.ones(c_in, dtype=torch.bool), outs)
    whole = torch.relu(torch.conv2d(x, weight, padding=1)) * (mask | outs.view(1, -1, 1, 1))
    assert torch.allclose(y, whole, atol=1e-5)


@few
@given(seeds, sizes, channels, channels, shares, shares)
def test_growing_the_mask_changes_nothing_where_it_kept_already(name, seed, size, c_in, c_out, kept, dense):
    g, x, weight, mask, ins, outs = made(seed, size, c_in, c_out, kept, dense)
    more = mask | (torch.rand(mask.shape, generator=g) < 0.3)
    before, after = (layer(name, x, weight, m, ins, outs) for m in (mask, more))
    assert torch.allclose(before[mask.expand_as(before)], after[mask.expand_as(after)], atol=1e-5)
    unchanged = ~more.expand_as(before)
    assert torch.allclose(before[unchanged], after[unchanged], atol=1e-5)


@few
@given(seeds, sizes, channels, channels, shares, shares)
def test_the_order_of_channels_is_of_no_account(name, seed, size, c_in, c_out, kept, dense):
    g, x, weight, mask, ins, outs = made(seed, size, c_in, c_out, kept, dense)
    a, b = torch.randperm(c_in, generator=g), torch.randperm(c_out, generator=g)
    y = layer(name, x, weight, mask, ins, outs)
    turned = layer(name, x[:, a], weight[b][:, a], mask, ins[a], outs[b])
    assert torch.allclose(turned, y[:, b], atol=1e-5)


@few
@given(seeds, sizes, channels, shares, shares)
def test_the_order_of_sparse_channels_between_layers_is_of_no_account(name, seed, size, c, kept, dense):
    x, mask, weights, flags, collect, bias = block_problem(1, c, size, dense=("random", "random"), kept=kept, seed=seed)
    g = generator(seed)
    flags = torch.rand(2, c, generator=g) < dense
    sparse = (~flags[0]).nonzero().flatten()
    order = torch.arange(c)
    order[sparse] = sparse[torch.randperm(len(sparse), generator=g)]
    y = torch.ops.sparsemask.block(x, mask, weights, flags, collect, bias, "relu", name)
    turned = [weights[0][order], weights[1][:, order]]
    fused = torch.cat([collect[:, order], collect[:, c:]], 1)
    z = torch.ops.sparsemask.block(x, mask, turned, flags, fused, bias, "relu", name)
    assert torch.allclose(z, y, atol=1e-5)


@few
@given(seeds, sizes, channels, shares, shares, st.floats(0.1, 10))
def test_without_bias_it_is_homogeneous(name, seed, size, c, kept, dense, factor):
    # ReLU lets positive factors through, the masks do not look at the features.
    x, mask, weights, flags, collect, _ = block_problem(1, c, size, dense=("random", "one"), kept=kept, bias=False,
                                                        seed=seed)  # fmt: skip
    run = lambda v: torch.ops.sparsemask.block(v, mask, weights, flags, collect, None, "relu", name)
    assert torch.allclose(run(x * factor), run(x) * factor, atol=1e-4 * max(1, factor))


@few
@given(seeds, sizes, channels, channels, shares, shares)
def test_without_activation_it_is_linear(name, seed, size, c_in, c_out, kept, dense):
    g, x, weight, mask, ins, outs = made(seed, size, c_in, c_out, kept, dense)
    z = torch.randn(x.shape, generator=g)
    run = lambda v: layer(name, v, weight, mask, ins, outs, "none")
    assert torch.allclose(run(x + 2 * z), run(x) + 2 * run(z), atol=5e-5)


@few
@given(seeds, st.integers(1, 4), sizes, channels, shares, shares)
def test_a_batch_is_its_pictures(name, seed, n, size, c, kept, dense):
    x, mask, *rest = block_problem(n, c, size, dense=("random", "random"), kept=kept, seed=seed)
    rest[1] = torch.rand(2, c, generator=generator(seed)) < dense
    whole = torch.ops.sparsemask.block(x, mask, *rest, "relu", name)
    each = [torch.ops.sparsemask.block(x[i : i + 1], mask[i : i + 1], *rest, "relu", name) for i in range(n)]
    assert torch.allclose(whole, torch.cat(each), atol=1e-5)


@few
@given(seeds, sizes, channels, shares, shares)
def test_what_is_far_away_is_of_no_account(name, seed, size, c, kept, dense):
    # A place's features reach as far as the layers' kernels do and no further: a gather gone wrong shows here.
    x, mask, *rest = block_problem(1, c, size, dense=("random", "random"), kept=kept, seed=seed)
    rest[1] = torch.rand(2, c, generator=generator(seed)) < dense
    run = lambda v: torch.ops.sparsemask.block(v, mask, *rest, "relu", name)
    changed = x.clone()
    changed[..., 0, 0] += 5
    apart = (run(changed) - run(x)).abs().amax((0, 1)) > 1e-4
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    assert not apart[(rows > 2) | (columns > 2)].any()


@few
@given(seeds, sizes, channels, shares, shares)
def test_transposing_the_picture_transposes_the_result(name, seed, size, c, kept, dense):
    x, mask, weights, flags, *rest = block_problem(1, c, size, dense=("random", "random"), kept=kept, seed=seed)
    flags = torch.rand(2, c, generator=generator(seed)) < dense
    y = torch.ops.sparsemask.block(x, mask, weights, flags, *rest, "relu", name)
    turned = [w.transpose(2, 3) for w in weights]
    z = torch.ops.sparsemask.block(x.transpose(2, 3), mask.transpose(2, 3), turned, flags, *rest, "relu", name)
    assert torch.allclose(z.transpose(2, 3), y, atol=1e-5)


@few
@given(seeds, st.integers(1, 12), st.integers(1, 4), shares, shares)
def test_kept_fractions_lie_between_their_parts(seed, c, layers, kept, dense):
    g = generator(seed)
    mask, flags = torch.rand(1, 1, 5, 6, generator=g) < kept, torch.rand(layers, c, generator=g) < dense
    found, share = kept_fraction(mask, flags), mask.float().mean()
    assert (found >= torch.maximum(flags.float().mean(1), share) - 1e-6).all() and (found <= 1 + 1e-6).all()
    assert (kept_fraction(mask | True, flags) == 1).all()
    grown = flags.clone()
    grown[:, 0] = True
    assert (kept_fraction(mask, grown) >= found - 1e-6).all()


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_depth_wise_is_dense_with_zeros(name, kept):
    g = generator(3)
    x, mask = torch.randn(1, 6, 5, 6, generator=g), torch.rand(1, 1, 5, 6, generator=g) < kept
    weight = torch.randn(6, 1, 3, 3, generator=g)
    whole = torch.zeros(6, 6, 3, 3)
    whole[torch.arange(6), torch.arange(6)] = weight[:, 0]
    ins, outs = torch.rand(6, generator=g) < 0.5, torch.rand(6, generator=g) < 0.5
    grouped = torch.ops.sparsemask.conv(
        x, weight, None, mask, ins, outs, [1, 1], [1, 1], [1, 1], [0, 0], False, 6, "relu", name
    )
    assert difference(grouped, layer(name, x, whole, mask, ins, outs).double().numpy()) < 1e-5


def test_a_transposed_kernel_of_stride_one_is_the_mirrored_one(name):
    g = generator(4)
    x, mask = torch.randn(1, 5, 5, 6, generator=g), torch.rand(1, 1, 5, 6, generator=g) < 0.4
    weight = torch.randn(5, 4, 3, 3, generator=g)
    ins, outs = torch.rand(5, generator=g) < 0.5, torch.rand(4, generator=g) < 0.5
    y = torch.ops.sparsemask.conv(
        x, weight, None, mask, ins, outs, [1, 1], [1, 1], [1, 1], [0, 0], True, 1, "relu", name
    )
    mirrored = weight.flip(2, 3).transpose(0, 1)
    assert torch.allclose(y, layer(name, x, mirrored, mask, ins, outs), atol=1e-5)
