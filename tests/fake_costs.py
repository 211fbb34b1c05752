"""Costs of decoders made up for tests: sums over what a mask uses, by formulas that a test can follow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from sparsemask.devices import processor
from sparsemask.masks.decoder import as_decoder, deepest_end_point

ENCODER, CONNECTION, STAGE, HEAD = 3.0, 0.5, 0.25, 0.1
OPERATIONS = (0.0, 0.3, 0.9)


class FakeCosts:
    """An encoder's segment costs 3 each, a connection 0.5 and more where it is shallow, a stage 0.25, the head 0.1."""

    def __init__(self, length: int = 9, depth: int = 8):
        self.length, self.depth = length, depth
        self.key = SimpleNamespace(processor=processor())
        ranks = np.arange(1, length + 1, dtype=float)
        self.connection = CONNECTION * np.broadcast_to(ranks[:, None, None], (length, length, 2)).copy()

    def predict(self, mask) -> float:
        """Milliseconds."""
        return sum(ms for _, ms, _ in self.explain(mask))

    def multiply_adds(self, mask) -> float:
        """A million to the millisecond."""
        return 1e6 * self.predict(mask)

    def explain(self, mask):
        """Encoder, decoder and head."""
        decoder = as_decoder(mask, self.depth)
        wide = decoder.widths[:, None, None] / self.depth
        parts = [
            ("encoder", ENCODER * (self.length - deepest_end_point(decoder.connections))),
            ("decoder", float((self.connection * wide * decoder.connections).sum()) + STAGE * len(decoder.stages)),
            ("operations", float(sum(OPERATIONS[o] for o in decoder.operations)) + decoder.context),
            ("head", HEAD),
        ]
        total = sum(ms for _, ms in parts)
        return [(name, ms, ms / total) for name, ms in parts if ms]

    @property
    def encoder_multiply_adds(self) -> tuple[int, ...]:
        """Down to each end point, deepest first."""
        return tuple(int(1e6 * ENCODER * (self.length - j)) for j in range(self.length))

    def expected(self, v, currency: str = "ms"):
        """The same for connections that are there with probability v."""
        total = torch.tensor(HEAD, dtype=v[0].dtype)
        absent = torch.ones((), dtype=v[0].dtype)
        for j in range(self.length):  # a segment is built where anything at or behind it is read
            for i in range(j, self.length):
                absent = absent * (1 - v[i][j, 0]) * ((1 - v[i][0, 1]) if j == 0 else 1)
            total = total + ENCODER * (1 - absent)
        for i, w in enumerate(v):
            total = total + (torch.from_numpy(self.connection[i, : i + 1]).to(w) * w).sum()
            total = total + STAGE * (1 - (1 - w).prod())
        return total * (1e6 if currency == "multiply-adds" else 1.0)

    def save(self, path) -> None:
        """A file that says what it stands for."""
        Path(path).write_text("{}\n")


def use_fake_costs(patch, length: int = 9) -> FakeCosts:
    """Let searches and prunings reckon with made-up costs."""
    costs = FakeCosts(length)
    for name in ("cost_table", "count_costs"):
        patch.setattr(f"sparsemask.spaces.connectivity.budget.{name}", lambda *_, **__: costs)
    patch.setattr("sparsemask.spaces.connectivity.budget.CostTable.load", lambda _: costs)
    return costs
