"""Networks of several inputs, of named ones, and of integers are made smaller by the same call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map_only

import sparsemask
from hinge import one_thread  # noqa: F401
from sparsemask import UseError, costs
from sparsemask.spaces.group_sparsity.inputs import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class TwoImages(nn.Module):
    """Features of two images, compared."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.join, self.last = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, image, depth, scale=1.0):
        x = torch.cat([F.relu(self.left(image)), F.relu(self.right(depth * scale))], 1)
        return {"scores": self.last(F.relu(self.join(x)))}


class Words(nn.Module):
    """Integers, embedded and convolved."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.first, self.second = nn.Conv1d(12, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 4)

    def forward(self, words):
        x = self.embed(words).transpose(1, 2)
        return self.last(F.relu(self.second(F.relu(self.first(x)))).mean(2))


IMAGE, DEPTH = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
CASES = {
    "tuple": (TwoImages, (IMAGE, DEPTH)),
    "tuple with a number": (TwoImages, (IMAGE, DEPTH, 0.5)),
    "dict": (TwoImages, {"depth": DEPTH, "image": IMAGE}),
    "integers": (Words, torch.randint(20, (2, 9))),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_every_kind(name, tmp_path):
    make, example = CASES[name]
    torch.manual_seed(0)
    network = make().double().eval()
    example = tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, example)
    plan = sparsemask.plan(network, example)
    small = plan.shrink(0.5, timed=False)
    run = Inputs.of(example).run
    first = lambda out: out["scores"] if isinstance(out, dict) else out
    with torch.no_grad():
        wanted, found = first(run(plan.zeroed(small))), first(run(small))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)
    count = lambda net: costs.multiply_adds(lambda: run(net), ())
    with torch.no_grad():
        assert count(small) / count(network) == pytest.approx(0.5, abs=0.04)
    sparsemask.save(small, tmp_path / "small.safetensors")
    again = sparsemask.load(tmp_path / "small.safetensors", make().double()).eval()
    with torch.no_grad():
        assert torch.equal(first(run(again)), found)


def test_inputs_are_described_and_drawn():
    given = {"image": IMAGE, "more": [DEPTH, (torch.zeros(3, dtype=torch.int64), None, 2.5)]}
    inputs = Inputs.of(given)
    again = Inputs.drawn(inputs.describe())
    assert str(again) == str(inputs) == "2x3x8x8, 2x1x8x8, 3"
    assert again.given["more"][1][1:] == (None, 2.5) and again.given["more"][1][0].dtype == torch.int64
    assert isinstance(again.given["more"], list)
    for wrong in ({}, {"shape": [-1], "type": "float32"}, {"shape": [1 << 20, 1 << 20], "type": "float32"}, 3,
                  {"shape": [2], "type": "no"}, {"value": {}}, {"tuple": 3}, {"named": []}):  # fmt: skip
        with pytest.raises(UseError, match="inputs"):
            Inputs.drawn(wrong)
    with pytest.raises(UseError, match="Module"):
        Inputs.of((IMAGE, nn.Module())).describe()
