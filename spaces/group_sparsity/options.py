"""Flags for the target cost of a pruned network and how it is counted, shared by search and pruning."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemask.config import Section, flag
from sparsemask.options import factor, fraction, rate

BY = ("multiply-adds", "params", "milliseconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class CountingSection(Section):
    """How much may remain."""

    target: float = flag(0.5, factor, help="share of the plain network's cost to remain (default: 0.5)")
    by: str = flag("multiply-adds", choices=BY, help="which cost; milliseconds are measured on this device")
    thres: float = flag(5e-3, rate, help="groups of smaller norm count as gone while training (default: 5e-3)")
    remain: float = flag(0.2, fraction, help="share of each set's groups that always stays (default: 0.2)")
    same_ratio: bool = flag(False, help="a block's second matrix keeps as many groups as its first")
    merge: str = flag(
        "auto",
        choices=("auto", "plan", "none"),
        help="pairs that become one convolution: those that cost less so, the published rule's, or none",
    )


def memory_flag():
    """The field `channels_last`: the memory format while training."""
    return flag(False, help="train with channels last in memory; which is faster is the CPU's")
