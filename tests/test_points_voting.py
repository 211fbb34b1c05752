"""Votes: the running mean, every point of every cloud, the way back to all points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small_clouds import clouds, settings
from sparsemask.devices import arithmetic
from sparsemask.tasks.points.data import EvaluationCrops
from sparsemask.tasks.points.voting import Votes, crops_of, probabilities_of, vote

ALL = [0, 1, 2]


class Answers:
    """Logits from the points' own coordinates in the cloud: which of 3 classes the height says."""

    def __init__(self, bias: float = 0.0):
        self.calls, self.bias = 0, bias

    def __call__(self, batch):
        self.calls += 1
        z = batch.features[:, 2]
        return torch.stack([-z, z * 0 + self.bias, z - 1], 1) * 10


def source(**more) -> EvaluationCrops:
    return EvaluationCrops(clouds(), settings(centred=False, **more), 4, 0.0)


def truth(cloud) -> np.ndarray:
    z = cloud.xyz[:, 2]
    return np.stack([-z, z * 0, z - 1], 1).argmax(1)


@pytest.mark.parametrize("smooth", [0.95, 0.98])
def test_after_k_equal_votes_p_is_one_minus_smooth_to_the_k(smooth):
    table, softmax = Votes(5, 3, smooth), np.array([[0.2, 0.5, 0.3]], np.float32)
    for k in range(1, 6):
        table.add(np.array([1, 3]), np.repeat(softmax, 2, 0))
        assert np.allclose(table.table[3], (1 - smooth**k) * softmax, atol=1e-6)
    assert not table.table[[0, 2, 4]].any()
    assert table.decide(None).tolist() == [0, 1, 0, 1, 0]
    assert table.decide(np.array([1, 1, 4, 3, 0, 2])).tolist() == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 0), (3, 2)])
def test_every_point_is_labelled_whatever_the_batch(batch, workers):
    made = source()
    found = list(vote(Answers(), made, ALL, arithmetic(-1), 3, 0.95, 0.5, batch, workers))
    assert [number for number, _, _ in found] == ALL
    for number, cloud, classes in found:
        assert len(classes) == made.clouds.sizes[number]
        assert np.array_equal(classes, truth(cloud))


def test_predictions_are_carried_to_all_original_points():
    made = source()
    projection = np.random.default_rng(0).integers(0, 200, 999).astype(np.int32)
    made.clouds[0].projection = projection
    [(_, cloud, classes)] = vote(Answers(), made, [0], arithmetic(-1), 3, 0.95)
    assert np.array_equal(classes, truth(cloud)[projection])


def test_votes_end_when_the_least_possibility_is_above_the_bound():
    made = source()
    counts = [len(list(crops_of(made, [0], until))) for until in (0.0005, 0.5, 0.9)]
    assert counts[0] < counts[1] < counts[2]
    seen = set(np.concatenate([pick.indices for pick in crops_of(made, [0], 0.5)]).tolist())
    assert seen == set(range(200))


def test_small_clouds_vote_too():
    made = source(n_points=512)  # each cloud has fewer
    found = list(vote(Answers(), made, ALL, arithmetic(-1), 3, 0.95))
    assert all(np.array_equal(classes, truth(cloud)) for _, cloud, classes in found)


def test_probabilities_are_by_point():
    crops, _ = source()[0]
    found = probabilities_of(Answers(), crops, arithmetic(-1))
    assert found.shape == (1, 64, 3) and found.sum(2).numpy() == pytest.approx(np.ones((1, 64)), abs=1e-5)
