"""Networks between filter pruning and low-rank decomposition (Li et al., CVPR 2020)."""

from sparsemask.spaces.group_sparsity.compression.compress import compress
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.loaders import load
from sparsemask.spaces.group_sparsity.networks import available, create
from sparsemask.spaces.group_sparsity.pairs import DoubleReLU, Pair, factorise, hinge, merge
from sparsemask.spaces.group_sparsity.rules import Plan, plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace

__all__ = [
    "ChannelGraph",
    "DoubleReLU",
    "GroupSet",
    "Member",
    "Pair",
    "Plan",
    "available",
    "compress",
    "create",
    "factorise",
    "hinge",
    "load",
    "merge",
    "plan_for",
    "trace",
]
