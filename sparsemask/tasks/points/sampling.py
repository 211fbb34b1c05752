"""Possibility sampling of crops, planned by the main process so that runs resume exactly.

Every point has a possibility, at first drawn from U(0, 1)/1000. The next crop is of the cloud with the lowest one,
around that point (shifted by noise), and holds the nearest points; each is then raised by (1 - d²/max d²)², d its
distance to the centre: what was seen is seen again later (Hu et al., RandLA-Net, CVPR 2020, arXiv 1911.11236).

Tables depend on all crops before. The main process plans, workers only fetch what a :class:`Pick` names; loaders plan
ahead of the run, so that a planner can undo what was planned but not yet used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sparsemask.engine.data import shares
from sparsemask.engine.randomness import draw_generator
from sparsemask.errors import UseError

TABLE, NOISE = 11, 12  # streams of randomness


class Pick(NamedTuple):
    """A crop: of cloud number `cloud`, the points `indices` (n,) int32, nearest to `centre` (3,) float32 in metres.

    Attributes:
        draw: its number among all picks, by which further randomness is drawn.
    """

    cloud: int
    indices: np.ndarray
    centre: np.ndarray
    draw: int = 0


def squared_distances(xyz: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(N,) float32 of points (N, 3) to a centre (3,)."""
    shifted = xyz - centre.astype(np.float32)
    return np.einsum("nc,nc->n", shifted, shifted)


def nearest(squared: np.ndarray, count: int) -> np.ndarray:
    """int32 indices, rising, of the `count` smallest of (N,) values; all of them where there are no more.

    A crop is a large share of its cloud, for which one partition is faster than any tree.
    """
    if count >= len(squared):
        return np.arange(len(squared), dtype=np.int32)
    return np.sort(np.argpartition(squared, count - 1)[:count]).astype(np.int32)


def raise_by(squared: np.ndarray) -> np.ndarray:
    """Increase of the possibilities of a crop's points: (1 - d²/max d²)², of squared distances (n,)."""
    largest = squared.max()
    return np.square(1 - squared / largest) if largest > 0 else np.ones_like(squared)


class Possibilities:
    """The possibility tables of some clouds; every pick moves them.

    Args:
        clouds: a sequence whose items have ``xyz`` (N, 3) float32; `clouds.sizes` gives every N without reading them.
        count: points of a crop.
        seed: of the tables' start and of the noise.
        noise: standard deviation in metres of what is added to each coordinate of a centre.
    """

    def __init__(self, clouds: Sequence, count: int, seed: int, noise: float = 0.0):
        if not len(clouds):
            raise UseError("no clouds to sample from")
        self.clouds, self.count, self.seed, self.noise = clouds, count, seed, noise
        self.tables: dict[int, np.ndarray] = {}
        """Of the clouds that were picked from; another's is still what the seed says."""
        self.minima = np.array([self._start(cloud).min() for cloud in range(len(clouds))])

    def _start(self, cloud: int) -> np.ndarray:
        size = self.clouds.sizes[cloud]
        return draw_generator(self.seed, TABLE, cloud).random(size, dtype=np.float32) * np.float32(1e-3)

    def table(self, cloud: int) -> np.ndarray:
        """(N,) float32, the possibilities of a cloud's points."""
        if cloud not in self.tables:
            self.tables[cloud] = self._start(cloud)
        return self.tables[cloud]

    def pick(self, draw: int, cloud: int | None = None) -> tuple[Pick, np.ndarray]:
        """Crop number `draw`, of one cloud or of the one with the lowest possibility; and its points' old values."""
        cloud = int(self.minima.argmin()) if cloud is None else cloud
        table, xyz = self.table(cloud), self.clouds[cloud].xyz
        centre = xyz[table.argmin()]
        if self.noise:
            centre = centre + draw_generator(self.seed, NOISE, draw).normal(0, self.noise, 3)
        centre = centre.astype(np.float32)
        squared = squared_distances(xyz, centre)
        indices = nearest(squared, self.count)
        old = table[indices]
        table[indices] = old + raise_by(squared[indices])
        self.minima[cloud] = table.min()
        return Pick(cloud, indices, centre, draw), old

    def undone(self, undo: Sequence[tuple[Pick, np.ndarray]]) -> dict[int, np.ndarray]:
        """A copy of the tables as they were before the given picks, the last ones made, in their order."""
        tables = {cloud: table.copy() for cloud, table in self.tables.items()}
        for pick, old in reversed(undo):
            tables[pick.cloud][pick.indices] = old
        return tables

    def restore(self, tables: dict[int, np.ndarray]) -> None:
        """Restore the tables of :meth:`undone`; UseError where the clouds differ."""
        for cloud, table in tables.items():
            if not 0 <= cloud < len(self.clouds) or len(table) != self.clouds.sizes[cloud]:
                raise UseError("the checkpoint's possibility tables are of other clouds: was the data prepared anew?")
            self.tables[cloud] = np.ascontiguousarray(table, dtype=np.float32)
            self.minima[cloud] = table.min()


class Planner:
    """Batches of (Pick, draw number) for the steps `start` to `stop`; a :class:`sparsemask.engine.data.BatchSampler`.

    Every process plans all crops and takes its share, in `parts`.
    """

    def __init__(
        self, tables: Possibilities, batch: int, start: int, stop: int,
        rank: int = 0, world: int = 1, parts: int = 1, state: dict | None = None,
    ):  # fmt: skip
        self.tables, self.batch, self.stop = tables, batch, stop
        self.rank, self.world, self.parts = rank, world, parts
        self.step = self.start = start
        self._undo: deque[tuple[int, Pick, np.ndarray]] = deque()
        if state is not None:
            if state["step"] != start:
                raise UseError(f"possibility tables of step {state['step']} where the run is at {start}")
            tables.restore({int(cloud): table.numpy() for cloud, table in state["tables"].items()})
        else:
            for step in range(start):  # from the beginning, a run that has no tables of its own
                self._plan(step)
            self._undo.clear()

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def __iter__(self) -> Iterator[list[tuple[Pick, int]]]:
        while self.step < self.stop:
            keys = self._plan(self.step)
            self.step += 1
            yield from shares(keys, self.rank, self.world, self.parts)

    def _plan(self, step: int) -> list[tuple[Pick, int]]:
        keys = []
        for draw in range(step * self.batch, (step + 1) * self.batch):
            pick, old = self.tables.pick(draw)
            self._undo.append((step, pick, old))
            keys.append((pick, draw))
        return keys

    def consumed(self, step: int) -> None:
        """Called when `step` steps are done; their crops need not be undone any more."""
        while self._undo and self._undo[0][0] < step:
            self._undo.popleft()

    def state(self, step: int) -> dict:
        """The tables after `step` steps, without what was planned since; for a checkpoint."""
        undo = [(pick, old) for planned_step, pick, old in self._undo if planned_step >= step]
        tables = self.tables.undone(undo)
        return {"step": step, "tables": {str(cloud): torch.from_numpy(table) for cloud, table in tables.items()}}


def votes(tables: Possibilities, cloud: int, until: float = 0.5) -> Iterator[Pick]:
    """Crops of one cloud until its lowest possibility is above `until`.

    Cloud by cloud these are the crops that sampling from all of them would make: one that is done is never lowest
    before all are.
    """
    draw = cloud << 32  # every cloud has noise of its own
    while tables.minima[cloud] <= until:
        yield tables.pick(draw, cloud)[0]
        draw += 1
