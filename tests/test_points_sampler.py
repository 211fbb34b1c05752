"""Sampling by possibility, and the crops it leads to: formula, coverage, exact resumption, workers, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small_clouds import cloud, clouds, settings
from sparsemask.engine.data import plainly, step_sampler, training_loader
from sparsemask.errors import UseError
from sparsemask.tasks.points.data import (
    Clouds,
    EvaluationCrops,
    PossibilityCrops,
    RandomCrops,
    augmentation,
    batch_of,
    collate,
    cut,
)
from sparsemask.tasks.points.sampling import Pick, Planner, Possibilities, nearest, raise_by, votes


def tables(seed=0, noise=0.35, count=64, **more) -> Possibilities:
    return Possibilities(clouds(**more), count, seed, noise)


def same(a, b) -> bool:
    return a.cloud == b.cloud and np.array_equal(a.indices, b.indices) and np.array_equal(a.centre, b.centre)


@pytest.mark.parametrize("noise", [0.0, 0.35])
def test_a_pick_raises_what_it_sees_by_the_formula(noise):
    made = tables(noise=noise)
    assert all(0 <= made.table(n).min() and made.table(n).max() < 1e-3 for n in range(3))
    lowest = int(np.argmin([made.table(n).min() for n in range(3)]))
    before = made.table(lowest).copy()
    pick, old = made.pick(0)
    assert pick.cloud == lowest
    xyz = made.clouds[lowest].xyz
    shift = np.linalg.norm(pick.centre - xyz[before.argmin()])
    assert (shift > 0.01) == (noise > 0)
    # The nearest points by brute force, distances to the noisy centre.
    squared = ((xyz.astype(np.float64) - pick.centre) ** 2).sum(1)
    assert set(pick.indices) == set(np.argsort(squared)[:64])
    expected = before.copy()
    inside = squared[pick.indices]
    expected[pick.indices] += (1 - inside / inside.max()) ** 2
    np.testing.assert_allclose(made.table(lowest), expected, atol=1e-5)
    assert np.array_equal(old, before[pick.indices])
    assert made.minima[lowest] == made.table(lowest).min()


def test_the_minimum_rises_and_every_point_is_seen():
    made, seen = tables(noise=0.0), [set(), set(), set()]
    lowest = made.minima.min()
    for draw in range(60):
        pick, _ = made.pick(draw)
        seen[pick.cloud] |= set(pick.indices.tolist())
        assert made.minima.min() > lowest  # strictly: the centre itself is raised by 1
        lowest = made.minima.min()
    assert [len(one) for one in seen] == made.clouds.sizes


def test_votes_are_the_crops_that_sampling_from_all_would_make():
    whole, each = tables(noise=0.0), tables(noise=0.0)
    expected = [[], [], []]
    while whole.minima.min() <= 0.5:
        pick, _ = whole.pick(0)
        expected[pick.cloud].append(pick)
    for number in range(3):
        found = list(votes(each, number))
        assert len(found) == len(expected[number])
        assert all(same(a, b) for a, b in zip(found, expected[number], strict=True))


def test_equal_points_and_small_clouds():
    assert np.array_equal(raise_by(np.zeros(3, np.float32)), np.ones(3))  # all points at the centre
    assert np.array_equal(nearest(np.array([3.0, 1, 2]), 5), [0, 1, 2])
    assert tables(count=1000).pick(0)[0].indices.size in (150, 200, 300)
    with pytest.raises(UseError, match="no clouds"):
        Possibilities(Clouds([]), 4, 0)


def planned(planner) -> list:
    return [key for batch in planner for key in batch]


def test_plans_repeat_and_differ_by_seed():
    a, b, other = (planned(Planner(tables(seed), 2, 0, 6)) for seed in (0, 0, 1))
    assert all(same(x, y) and n == m for (x, n), (y, m) in zip(a, b, strict=True))
    assert not all(same(x, y) for (x, _), (y, _) in zip(a, other, strict=True))


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_plan_goes_on_from_a_checkpoint_whatever_was_planned_ahead(ahead):
    whole = planned(Planner(tables(), 2, 0, 12))
    first = Planner(tables(), 2, 0, 12)
    keys = iter(first)
    for step in range(6):
        next(keys)
        first.consumed(step + 1 - ahead if step >= ahead else 0)
    state = first.state(6 - ahead)  # the run is `ahead` steps behind its plan
    rest = planned(Planner(tables(), 2, 6 - ahead, 12, state=state))
    assert all(same(a, b) for (a, _), (b, _) in zip(whole[2 * (6 - ahead) :], rest, strict=True))
    # The planner itself is not disturbed by saying its state.
    assert all(same(a, b) for (a, _), (b, _) in zip(whole[12:], [k for batch in keys for k in batch], strict=True))


def test_a_plan_without_tables_begins_at_the_beginning():
    whole = planned(Planner(tables(), 2, 0, 8))
    assert all(same(a, b) for (a, _), (b, _) in zip(whole[10:], planned(Planner(tables(), 2, 5, 8)), strict=True))


def test_processes_and_parts_share_one_plan():
    whole = [{n for _, n in batch} for batch in Planner(tables(), 4, 0, 3)]
    parts = [list(Planner(tables(), 4, 0, 3, rank, 2, 2)) for rank in range(2)]
    for step in range(3):
        assert {n for one in parts for part in one[2 * step : 2 * step + 2] for _, n in part} == whole[step]


def test_tables_of_other_clouds_are_refused():
    state = Planner(tables(), 2, 0, 2)
    planned(state)
    with pytest.raises(UseError, match="other clouds"):
        Planner(tables(sizes=(20, 15, 30), count=8), 2, 2, 4, state=state.state(2))
    with pytest.raises(UseError, match="of step 2"):
        Planner(tables(), 2, 1, 4, state=state.state(2))


def test_loading_does_not_depend_on_workers():
    found = []
    for workers in (0, 2):
        source = PossibilityCrops(clouds(), settings(), 8, 0.35)
        sampler = step_sampler(source, 2, 0, 4, seed=3)
        assert len(sampler) == 4
        found.append(list(plainly(training_loader(source, sampler, 3, workers))))
    for (a, x), (b, y) in zip(*found, strict=True):
        assert torch.equal(x, y) and torch.equal(a.features, b.features)
        assert all(torch.equal(p, q) for p, q in zip(a.neighbours + a.upsample, b.neighbours + b.upsample, strict=True))
    assert a.shape == (2, 6, 64) and a.sizes == [64, 16] and y.shape == (2, 64)
    # No two crops of a step are alike: every draw has randomness of its own.
    assert not torch.equal(a.features[0], a.features[1])


def test_random_crops_depend_on_seed_and_draw_alone():
    source = RandomCrops(clouds(colours=False), settings(colours=False, centred=False, tilt=5.0), 4)
    first, again, other = (
        next(iter(training_loader(source, step_sampler(source, 2, 0, 1, seed), seed, 0))) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0].features, again[0].features)
    assert not torch.equal(first[0].features, other[0].features)
    assert first[0].shape == (2, 3, 64)


@pytest.mark.parametrize("tilt", [0.0, 5.0])
def test_augmentation_turns_and_scales(tilt):
    made = [augmentation(np.random.default_rng(seed), tilt).astype(np.float64) for seed in range(200)]
    scales = np.array([np.cbrt(np.linalg.det(m)) for m in made])
    assert 0.8 <= scales.min() < 0.82 and 1.18 < scales.max() <= 1.2
    turned = [m / s for m, s in zip(made, scales, strict=True)]
    assert all(np.allclose(r @ r.T, np.eye(3), atol=1e-5) for r in turned)
    # How far the upright axis leans: not at all, or at most by both tilts together.
    lean = np.degrees(np.arccos(np.clip([r[2, 2] for r in turned], -1, 1)))
    assert lean.max() < (0.1 if not tilt else 7.1) and (lean.max() > 4) == bool(tilt)


def test_a_crop_is_what_its_pick_says():
    one, rng = cloud(0), np.random.default_rng(1)
    pick = Pick(0, np.arange(100, 164, dtype=np.int32), np.array([1, 2, 3], np.float32))
    made, labels, indices = cut(one, pick, settings(), rng, training=False)
    assert sorted(indices) == list(range(100, 164)) and not np.array_equal(indices, pick.indices)
    assert np.array_equal(labels, one.labels[indices])
    assert np.allclose(made.features[0, :3].T, one.xyz[indices] - pick.centre)
    assert np.allclose(made.features[0, 3:].T, one.colours[indices])
    assert all(torch.equal(n[0, :, 0], torch.arange(n.shape[1], dtype=torch.int32)) for n in made.neighbours)
    kept = cut(one, pick, settings(centred=False), rng, training=False)
    assert np.allclose(kept[0].features[0, :3].T, one.xyz[kept[2]])


def test_a_small_cloud_is_filled_up_with_its_own_points():
    one = cloud(0, points=20)
    pick = Pick(0, np.arange(20, dtype=np.int32), one.xyz[0])
    made, labels, indices = cut(one, pick, settings(), np.random.default_rng(0), training=True)
    assert made.shape == (1, 6, 64) and set(indices) == set(range(20)) and len(labels) == 64


def test_what_cannot_be_cut_is_said():
    one = cloud(0, colours=False)
    with pytest.raises(UseError, match="no colours"):
        cut(one, Pick(0, np.arange(64), one.xyz[0]), settings(), np.random.default_rng(0), training=False)
    with pytest.raises(UseError, match="--n_points 3"):
        settings(n_points=3)


def test_validation_crops_are_the_same_every_time():
    made = [EvaluationCrops(clouds(), settings(), 5, 0.35) for _ in range(2)]
    for _ in range(2):  # tables start anew
        assert all(same(a, b) for a, b in zip(made[0].picks(), made[1].picks(), strict=True))
    listed = [labels for _, labels, _, _ in plainly(made[0].loader(made[0].picks(), 2, 0))]
    assert [len(one) for one in listed] == [2, 2, 1]  # a last, smaller batch
    by_number = [made[1][n] for n in range(5)]
    assert torch.equal(torch.cat(listed), torch.stack([labels for _, labels in by_number]))
    assert made[0].name(0) == f"Area_{1 + next(made[0].picks()).cloud}_room"
    with pytest.raises(IndexError):
        made[0][5]


def test_crops_of_one_size_are_joined():
    parts = [batch_of(np.random.default_rng(n).random((64, 6)), settings()) for n in range(3)]
    whole, numbers = collate([(part, torch.tensor(n)) for n, part in enumerate(parts)])
    assert whole.shape == (3, 6, 64) and numbers.tolist() == [0, 1, 2]
    assert len(whole.neighbours) == 2 and len(whole.upsample) == 1
    assert torch.equal(whole.upsample[0][1], parts[1].upsample[0][0])


def test_few_clouds_are_held_where_not_all_fit():
    made = clouds(sizes=(10,) * 9)
    some = Clouds(made.files, hold=False)
    for number in [*range(9), 8, 7]:
        assert some[number].name == made.files[number].name
    assert len(some._held) == 4 and some.names[0] == "Area_1_room" and some.sizes == [10] * 9


def test_published_noise_is_of_the_centres_coordinates():
    made = tables(noise=0.35)
    xyz = [made.clouds[n].xyz for n in range(3)]
    shifts = []
    for draw in range(300):
        centre = [x[made.table(n).argmin()] for n, x in enumerate(xyz)]
        pick, _ = made.pick(draw)
        shifts.append(pick.centre - centre[pick.cloud])
    assert np.std(shifts, axis=0) == pytest.approx([0.35] * 3, rel=0.15)
