"""Point convolution: the fast form against the formula, in values and gradients, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernel_sweeps import FORMS
from sparsemask.backends.native import library
from sparsemask.ops.point_conv import Level, cells, mixed_point_conv, point_conv
from sparsemask.spaces.smpointseg.layers import PointConv
from sparsemask.sparse import backend
from sparsemask.tasks.points.clouds.graph import build_graph, shell_order

BACKENDS = ("native", "gather")
RADIUS = 0.15


def level_of(count: int = 120, k: int = 7, seed: int = 0, dtype=torch.float32, rule: str = "trunc") -> Level:
    """A random cloud's points."""
    xyz = torch.from_numpy(np.random.default_rng(seed).random((count, 3), np.float32)).to(dtype)
    near = torch.from_numpy(build_graph(xyz.numpy(), k, 4, 1)[0][0])
    return Level(xyz, near, cells(xyz, near, RADIUS, rule))


def by_formula(features: Tensor, weight: Tensor, table: Tensor, level: Level) -> Tensor:
    """Concatenate the residual gather and the relative coordinates, convolve, multiply, sum."""
    near = level.neighbours.long()
    residual = torch.cat([features[:, None], features[near[:, 1:]] - features[:, None]], 1)
    rel = level.xyz[near] - level.xyz[:, None]
    return (torch.cat([residual, rel], -1) @ weight.T * table[level.cells.long()]).sum(1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("outputs", [1, 2, 5, 8, 9, 36, 64])
def test_values_and_gradients_are_the_formula_s(name, outputs):
    torch.manual_seed(outputs)
    level = level_of()
    given = [torch.randn(120, 6), torch.randn(outputs, 9), torch.randn(125, outputs)]
    exact = [one.double().requires_grad_() for one in given]
    given = [one.requires_grad_() for one in given]
    grad = torch.randn(120, outputs)
    right = by_formula(*exact, Level(level.xyz.double(), level.neighbours, level.cells))
    right.backward(grad.double())
    with backend(name):
        found = point_conv(*given, level)
        found.backward(grad)
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
    for mine, wanted in zip(given, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


def test_gradcheck_in_float64():
    level = level_of(12, 4, dtype=torch.float64)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((12, 2), (3, 5), (125, 3))]
    assert torch.autograd.gradcheck(lambda *three: point_conv(*three, level), given)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_vector_width_gives_the_same_numbers(form):
    level, rows, weight, table = level_of(), torch.randn(120, 6), torch.randn(37, 9), torch.randn(125, 37)
    with library.using(form), backend("native"):
        found = point_conv(rows, weight, table, level)
    torch.testing.assert_close(found, by_formula(rows, weight, table, level), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_repeat_bit_for_bit(threads):
    level = level_of(500)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            weights = [torch.randn(500, 6).requires_grad_(), torch.randn(9, 9).requires_grad_()]
            table = torch.randn(125, 9, requires_grad=True)
            with backend("native"):
                point_conv(*weights, table, level).square().sum().backward()
            found.append([one.grad for one in (*weights, table)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", ["trunc", "round"])
def test_cells_follow_the_axes_and_the_rule(name, rule):
    # One neighbour a row, moved along one axis by a share of the radius.
    shares = torch.tensor([-2.0, -0.9, -0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 0.9, 2.0])
    wanted = {
        "trunc": [0, 0, 1, 2, 2, 2, 2, 2, 3, 4, 4],  # towards zero: the middle cell is twice as wide
        "round": [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4],  # -1.25 and 1.25 go to the nearest
    }[rule]
    for axis, step in ((0, 1), (1, 5), (2, 25)):  # axes z, y, x: x runs fastest
        xyz = torch.zeros(len(shares) + 1, 3)
        xyz[1:, axis] = shares * RADIUS
        near = torch.arange(len(shares) + 1, dtype=torch.int32)[None].repeat(len(shares) + 1, 1)
        with backend(name):
            found = cells(xyz, near, RADIUS, rule)[0]
        assert found.tolist() == [62, *(62 + (cell - 2) * step for cell in wanted)]


def test_a_one_hot_table_picks_the_neighbour_in_its_cell():
    # The second point lies beyond the first along z alone: cell (4, 2, 2).
    xyz = torch.tensor([[0.0, 0, 0], [0, 0, RADIUS]])
    near = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    level = Level(xyz, near, cells(xyz, near, RADIUS))
    table = torch.zeros(5, 5, 5)
    table[4, 2, 2] = 1
    weight = torch.tensor([[1.0, 0, 0, 0]])
    found = point_conv(torch.tensor([[3.0], [5.0]]), weight, table.reshape(125, 1), level)
    assert found.flatten().tolist() == [2.0, 0.0]  # 5 - 3 seen from the first; the first lies below the second


def test_three_points_by_hand():
    xyz = torch.tensor([[0.0, 0, 0], [0.02, 0, 0], [0, -0.1, 0]])
    near = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]], dtype=torch.int32)
    level = Level(xyz, near, cells(xyz, near, RADIUS))
    table = torch.zeros(125, 1)
    table[62], table[62 - 5], table[62 + 5] = 2.0, 10.0, 100.0  # middle; one cell down along y; one up
    found = point_conv(torch.tensor([[1.0], [4.0], [9.0]]), torch.tensor([[1.0, 0.5, 0, 0]]), table, level)
    # Point 0: 2·1 + 2·(3 + .5·.02) + 10·(8 + 0); point 1: 2·4 + 2·(-3 - .01) + 10·(5 - .01);
    # point 2: 2·9 + 100·(-8) + 100·(-5 + .01)
    torch.testing.assert_close(found.flatten(), torch.tensor([88.02, 51.88, -1281.0]))


def test_the_public_code_s_mistake_about_batches():
    batch, count, outputs = 2, 40, 4
    parts = [level_of(count, 5, seed) for seed in range(batch)]
    near = torch.cat([one.neighbours + b * count for b, one in enumerate(parts)])
    level = Level(torch.cat([one.xyz for one in parts]), near, torch.cat([one.cells for one in parts]))
    rows, weight, table = torch.randn(batch * count, 3), torch.randn(outputs, 6), torch.randn(125, outputs)
    found = mixed_point_conv(rows, weight, table, level, batch)
    for b in range(batch):
        for c in range(outputs):
            q = b * outputs + c
            other = Level(parts[b].xyz, parts[b].neighbours, parts[q % batch].cells)
            mine = rows[b * count : (b + 1) * count]
            wanted = by_formula(mine, weight[c : c + 1], table[:, q // batch : q // batch + 1], other)
            torch.testing.assert_close(found[b * count : (b + 1) * count, c : c + 1], wanted, rtol=1e-4, atol=1e-4)
    one = parts[0]  # in a batch of one there is nothing to mix
    same = mixed_point_conv(rows[:count], weight, table, one, 1)
    torch.testing.assert_close(same, by_formula(rows[:count], weight, table, one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "ratio", "levels"), [(64, 4, 3), (101, 4, 3), (30, 2, 1), (5, 4, 2)])
def test_sorting_by_place_changes_no_level(count, ratio, levels):
    xyz = np.random.default_rng(0).random((count, 3), np.float32)
    order = shell_order(xyz, ratio, levels)
    assert sorted(order) == list(range(count))
    for level in range(levels):
        size = count // ratio**level
        assert set(order[:size]) == set(range(size))  # the same points, in another order


def test_sorting_by_place_takes_points_of_one_place_and_of_one_line():
    assert sorted(shell_order(np.zeros((9, 3), np.float32), 4, 2)) == list(range(9))
    line = np.zeros((9, 3), np.float32)
    line[:, 2] = np.arange(9)[::-1] * 1e-3
    assert shell_order(line, 4, 1).tolist() == list(range(8, -1, -1))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_batch_is_its_samples_one_by_one(name):
    count, parts = 60, [level_of(60, 7, seed) for seed in range(3)]
    near = torch.cat([one.neighbours + b * count for b, one in enumerate(parts)])
    whole = Level(torch.cat([one.xyz for one in parts]), near, torch.cat([one.cells for one in parts]))
    rows, weight, table = torch.randn(3 * count, 5), torch.randn(11, 8), torch.randn(125, 11)
    with backend(name):
        found = point_conv(rows, weight, table, whole)
        alone = torch.cat([point_conv(r, weight, table, one) for r, one in zip(rows.split(count), parts, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_without_neighbours_it_is_a_1x1_convolution(bias):
    layer, rows = PointConv(5, 7, neighbours=1, bias=bias), torch.randn(20, 5)
    torch.testing.assert_close(layer(rows), layer.conv_1x1(rows.t()[None])[0].t(), rtol=1e-6, atol=1e-6)
