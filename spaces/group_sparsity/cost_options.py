"""The flags that say how much of a network may remain, and how that is counted; the search watches by them too."""

from __future__ import annotations

from sparsemask.options import factor, fraction, rate

BY = ("multiply-adds", "params", "milliseconds")


def add_counting(group) -> None:
    """Flags of the target."""
    group.add_argument(
        "--target", type=factor, default=0.5, help="share of the plain network's cost to remain (default: 0.5)"
    )
    group.add_argument(
        "--by", choices=BY, default="multiply-adds", help="which cost; milliseconds are measured on this device"
    )
    group.add_argument(
        "--thres", type=rate, default=5e-3, help="groups of smaller norm count as gone while training (default: 5e-3)"
    )
    group.add_argument(
        "--remain", type=fraction, default=0.2, help="share of each set's groups that always stays (default: 0.2)"
    )
    group.add_argument(
        "--same_ratio", action="store_true", help="a block's second matrix keeps as many groups as its first"
    )
    group.add_argument(
        "--merge",
        choices=("auto", "plan", "none"),
        default="auto",
        help="pairs that become one convolution: those that cost less so, the published rule's, or none",
    )


def add_memory(group) -> None:
    """The flag of the memory format while training."""
    group.add_argument(
        "--channels_last", action="store_true", help="train with channels last in memory; which is faster is the CPU's"
    )
