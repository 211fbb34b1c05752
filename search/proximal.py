"""Proximal operators that shrink groups of weights by their norms, and the schedules around them.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.3. A proximal step replaces a group with norm n by the group
with norm x and the same direction, x being the minimiser of an objective; ρ is the step's λ times its learning rate.

| name | x minimises, or where it does not, what it is |
|---|---|
| l1 | ½(x - n)² + ρ·x |
| l1-2 | ½‖x - n‖² + ρ·(‖x‖₁ - ‖x‖₂), over the vector of a matrix's norms |
| l1/2 | (x - n)² + ρ·√x: without the ½, as published, so half the pull of the others at the same ρ |
| logsum | the larger stationary point of ½(x - n)² + ρ·log(x + ε), 0 where there is none; not always the minimiser |
| l0 | ½(x - n)² + ρ·[x > 0] |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsemask.errors import choose

EPSILON = 1e-8  # ε of the log-sum


def _divide(x: Tensor, norms: Tensor) -> Tensor:
    return torch.where(x > 0, x / norms.clamp_min(torch.finfo(norms.dtype).tiny), torch.zeros_like(x))


def _l1(n: Tensor, rho: Tensor, sets: Tensor, count: int) -> Tensor:
    return _divide((n - rho).clamp_min(0), n)


def _l1_2(n: Tensor, rho: Tensor, sets: Tensor, count: int) -> Tensor:
    shrunk = (n - rho).clamp_min(0)
    length = n.new_zeros(count).index_add_(0, sets, shrunk.square()).sqrt()[sets]
    x = torch.where(length > 0, shrunk * (1 + rho / length.clamp_min(torch.finfo(n.dtype).tiny)), shrunk)
    # Where no norm is above ρ the minimiser is the largest group alone, as it is; of equal ones the first.
    highest = n.new_zeros(count).scatter_reduce_(0, sets, n, "amax")[sets]
    index = torch.arange(len(n), device=n.device)
    first = torch.full((count,), len(n), device=n.device)
    first = first.scatter_reduce_(0, sets, torch.where(n == highest, index, len(n)), "amin")[sets]
    return torch.where(length > 0, _divide(x, n), (index == first).to(n.dtype))


def _l1_half(n: Tensor, rho: Tensor, sets: Tensor, count: int) -> Tensor:
    kept = n > 54 ** (1 / 3) / 4 * rho ** (2 / 3)
    safe = torch.where(kept, n, torch.ones_like(n))
    # A power of the smallest numbers is infinite, which times a ρ of 0 is no number.
    power = ((safe / 3) ** -1.5).clamp(max=torch.finfo(n.dtype).max)
    angle = torch.arccos((rho / 8 * power).clamp(max=1))
    return torch.where(kept, 2 / 3 * (1 + torch.cos(2 / 3 * (math.pi - angle))), torch.zeros_like(n))


def _logsum(n: Tensor, rho: Tensor, sets: Tensor, count: int) -> Tensor:
    inside = (n - EPSILON).square() - 4 * (rho - n * EPSILON)
    x = (n - EPSILON + inside.clamp_min(0).sqrt()) / 2
    return torch.where((inside > 0) & (x > 0), _divide(x, n), torch.zeros_like(n))


def _l0(n: Tensor, rho: Tensor, sets: Tensor, count: int) -> Tensor:
    return (n > (2 * rho).sqrt()).to(n.dtype)


_OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "l1": _l1, "l1-2": _l1_2, "l1/2": _l1_half, "logsum": _logsum, "l0": _l0,
}  # fmt: skip
_ALIASES = {"l1d2": "l1/2", "l1_2": "l1-2", "l1-l2": "l1-2", "log-sum": "logsum"}


def operators() -> list[str]:
    """Return the names of the operators."""
    return list(_OPERATORS)


def operator_name(name: str) -> str:
    """Return an operator's canonical name for any of its spellings (`l1d2` is `l1/2`).

    Raises:
        UseError: unknown operator; the message lists the known ones.
    """
    name = _ALIASES.get(name, name)
    choose(name, _OPERATORS, "regularizer")
    return name


def factors(name: str, norms: Tensor, rho: Tensor | float, sets: Tensor | None = None) -> Tensor:
    """Compute the factor by which a proximal step scales each group.

    Args:
        name: an operator, see :func:`operators`.
        norms: (G,) norms of the groups, at least 0, finite, floating point.
        rho: λ times the learning rate, at least 0: a number, or (G,) one for each group.
        sets: (G,) integers, which matrix each group belongs to; without it all belong to one.

    Returns:
        (G,) factors in [0, ∞); above 1 only for l1-2, which compensates for the shrunk length.

    Raises:
        UseError: unknown operator.
    """
    if not len(norms):
        return norms.clone()
    rho = torch.as_tensor(rho, dtype=norms.dtype, device=norms.device).expand_as(norms)
    if sets is None:
        sets = torch.zeros(len(norms), dtype=torch.long, device=norms.device)
    return _OPERATORS[operator_name(name)](norms, rho, sets, int(sets.max()) + 1)


def annealed(strength: float, factor: float, thresholds: tuple[float, float], monitored: float) -> float:
    """Anneal λ as sparsity grows: λ above t1, λ/a between t2 and t1, λ/a² below t2.

    Args:
        strength: λ.
        factor: a; 0: λ is not annealed.
        thresholds: (t1, t2), t1 > t2.
        monitored: the loss of the first projection (see :func:`group_loss`).
    """
    high, low = thresholds
    if not factor or monitored > high:
        return strength
    return strength / factor if monitored > low else strength / factor**2


def group_loss(norms: list[Tensor], reduction: str, q: float = 1.0) -> Tensor:
    """Penalty of a projection's groups: (Σ n^q)^(1/q) of each matrix, reduced over matrices.

    Args:
        norms: (G,) of each matrix.
        reduction: "mean" or "sum".
        q: above 0; 1 is the l2,1 norm.
    """
    if q == 1:
        per_matrix = torch.stack([n.sum() for n in norms])
    else:  # a norm of exactly 0 has no gradient for q < 1
        per_matrix = torch.stack([n.clamp_min(EPSILON).pow(q).sum().pow(1 / q) for n in norms])
    return per_matrix.mean() if reduction == "mean" else per_matrix.sum()


CLAMP, POWER, NEWEST = (5 / 9, 9 / 5), 1.35, 0.9


def running_ratio(before: float | None, now: float) -> float:
    """Running mean of the projections' gradient ratio: the first value, then 0.1·before + 0.9·now clamped to CLAMP."""
    if before is None:
        return now
    return min(max((1 - NEWEST) * before + NEWEST * now, CLAMP[0]), CLAMP[1])


def adjusted_rates(rates: list[float], ratio: float, method: str = "p1") -> list[float]:
    """Adjust learning rates to the ratio of the projections' gradients.

    Args:
        rates: of [other parameters, P1, P2].
        ratio: |∇P1| / |∇P2|, above 0.
        method: "p1": all but the last are divided by ratio^1.35; "p2": the last is multiplied by it; "none": unchanged.
    """
    power = ratio**POWER
    if method == "p1":
        return [*(rate / power for rate in rates[:-1]), rates[-1]]
    return [*rates[:-1], rates[-1] * power] if method == "p2" else list(rates)
