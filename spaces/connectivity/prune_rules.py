"""From connection weights to a connectivity mask (Wu, Zhang, Huang 2019, arXiv 1904.07642, section 3.3).

Threshold; drop stages that the output does not depend on; merge stages with the same inputs; remove stages whose
inputs and uses are subsets of another stage's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sparsemask.errors import UseError
from sparsemask.masks import UP, count_connections, why_unusable


@dataclass
class PruneReport:
    """A pruned mask and how it was obtained. Weights are halved to [0, 1], as the threshold is."""

    mask: np.ndarray
    thres: float
    above_thres: int  # connections whose weight is above the threshold
    connections: int  # connections in the mask
    removed: list[tuple[int, str]] = field(default_factory=list)  # stage, why
    smallest_kept: float | None = None
    largest_dropped: float | None = None

    @property
    def margin(self) -> float | None:
        """Smallest kept weight over the largest dropped one; None if none was kept or none dropped."""
        if self.smallest_kept is None or self.largest_dropped is None:
            return None
        return self.smallest_kept / self.largest_dropped if self.largest_dropped else float("inf")

    @property
    def problem(self) -> str:
        """Reason why no network can be built from the mask; empty if one can."""
        return why_unusable(self.mask)

    def lines(self) -> list[str]:
        """The report, for printing."""
        total = len(self.mask) * (len(self.mask) + 1)
        lines = [
            f"{self.above_thres} of {total} connections above the threshold {self.thres:g}, "
            f"{self.connections} left after cleaning"
        ]
        lines += [f"stage {stage} removed: {why}" for stage, why in self.removed]
        kept = "none" if self.smallest_kept is None else f"{self.smallest_kept:.2g}"
        dropped = "none" if self.largest_dropped is None else f"{self.largest_dropped:.2g}"
        margin = "" if self.margin is None else f", margin {self.margin:.3g} times"
        lines.append(f"smallest kept weight {kept}, largest dropped weight {dropped}{margin}")
        if self.problem:
            lines.append(f"unusable mask: {self.problem}")
        return lines


def prune_connectivity(
    weights: Sequence[np.ndarray | torch.Tensor] | np.ndarray,
    thres: float,
    rm_duplicate: bool = True,
    rm_subset: bool = True,
    repeat: bool = False,
) -> np.ndarray:
    """Turn connection weights into a connectivity mask (arXiv 1904.07642, section 3.3).

    Args:
        weights: L arrays or tensors, of shape (i+1, 2) for stage i, or one zero-padded (L, L, 2) array.
        thres: connections with |w| clipped to [0, 2] and halved above it are kept; in [0, 1).
        rm_duplicate: merge stages with the same inputs.
        rm_subset: remove stages whose inputs and uses are subsets of another stage's.
        repeat: repeat both clean-up rules until nothing changes; published is one pass of each.

    Returns:
        Bool (L, L, 2). It may be unusable (an output stage without inputs), see
        :func:`sparsemask.masks.why_unusable`.

    Raises:
        UseError: threshold out of range, weights of a wrong shape or not finite.
    """
    return prune_report(weights, thres, rm_duplicate, rm_subset, repeat).mask


def prune_report(
    weights: Sequence[np.ndarray | torch.Tensor] | np.ndarray,
    thres: float,
    rm_duplicate: bool = True,
    rm_subset: bool = True,
    repeat: bool = False,
) -> PruneReport:
    """Prune as :func:`prune_connectivity`, arguments as there, and report which stages were removed and why."""
    if not 0 <= thres < 1:
        raise UseError(f"the threshold must be in [0, 1), got {thres:g}")
    values, exists = halved(weights)
    kept = (values > thres) & exists
    mask = kept.copy()
    why: dict[int, str] = {}
    clean(mask, why, rm_duplicate, rm_subset, repeat)
    dropped = exists & ~kept
    gone = [stage for stage in range(len(mask)) if not mask[stage].any()]
    return PruneReport(
        mask=mask,
        thres=float(thres),
        above_thres=count_connections(kept),
        connections=count_connections(mask),
        removed=[(stage, why.get(stage, "no inputs")) for stage in gone],
        smallest_kept=float(values[kept].min()) if kept.any() else None,
        largest_dropped=float(values[dropped].max()) if dropped.any() else None,
    )


def clean(mask: np.ndarray, why: dict[int, str], rm_duplicate: bool, rm_subset: bool, repeat: bool) -> None:
    """Apply the rules for whole stages to a mask, in place; `why` gets the reason by stage."""
    _drop_unreached(mask, why)
    while True:
        before = mask.copy()
        if rm_duplicate:
            _merge_duplicates(mask, why)
        if rm_subset:
            _drop_subsets(mask, why)
        if not repeat or (mask == before).all():
            break


def halved(weights: Sequence[np.ndarray | torch.Tensor] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|w| clipped to [0, 2] and halved, zero-padded to (L, L, 2); and where a connection exists."""
    stages = [np.asarray(w.detach().cpu() if isinstance(w, torch.Tensor) else w) for w in weights]
    length = len(stages)
    if not length:
        raise UseError("no connection weights to prune")
    values = np.zeros((length, length, 2), dtype=np.result_type(*stages, np.float32))
    for i, stage in enumerate(stages):
        if stage.shape not in ((i + 1, 2), (length, 2)):
            raise UseError(f"weights of stage {i} have shape {stage.shape}, expected ({i + 1}, 2)")
        values[i, : i + 1] = stage[: i + 1]
    if not np.isfinite(values).all():
        raise UseError("connection weights are not finite: the search diverged; take an earlier checkpoint")
    exists = np.broadcast_to(np.tri(length, dtype=bool)[..., None], values.shape)
    return np.clip(np.abs(values), 0, 2) / 2, exists


def _drop_unreached(mask: np.ndarray, why: dict[int, str]) -> None:
    """Empty every stage that no surviving later stage uses, from the output downwards."""
    for stage in range(len(mask) - 2, -1, -1):
        if not mask[:, stage + 1, UP].any():
            if mask[stage].any():
                why[stage] = "unreachable"
            mask[stage] = False


def _merge_duplicates(mask: np.ndarray, why: dict[int, str]) -> None:
    """From the deepest stage up: of stages with the same inputs the deepest takes all uses, the others go.

    An emptied stage's own uses go when the loop comes to it.
    """
    last = len(mask) - 1
    for stage in range(last):
        if not mask[stage].any():
            mask[:, stage + 1, UP] = False
            continue
        for later in range(stage + 1, last):
            if (mask[later] == mask[stage]).all():
                mask[later] = False
                mask[:, stage + 1, UP] |= mask[:, later + 1, UP]
                why[later] = f"same inputs as stage {stage}: duplicate"


def _drop_subsets(mask: np.ndarray, why: dict[int, str]) -> None:
    """From the shallowest stage down: deeper stages with subsets of its inputs and uses are removed."""
    for stage in range(len(mask) - 2, 0, -1):
        if not mask[stage].any():
            continue
        for deeper in range(stage - 1, -1, -1):
            inputs = mask[deeper] <= mask[stage]
            uses = mask[:, deeper + 1, UP] <= mask[:, stage + 1, UP]
            if inputs.all() and uses.all():
                if mask[deeper].any():
                    why[deeper] = f"subset of stage {stage}"
                mask[deeper] = False
                mask[:, deeper + 1, UP] = False
