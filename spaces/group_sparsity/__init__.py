"""Networks between filter pruning and low-rank decomposition (Li et al., CVPR 2020)."""

from sparsemask.spaces.group_sparsity.channels import ChannelGraph, trace
from sparsemask.spaces.group_sparsity.compress import compress
from sparsemask.spaces.group_sparsity.factorize import DoubleReLU, hinge
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.loaders import load
from sparsemask.spaces.group_sparsity.matrices import Pair, factorise
from sparsemask.spaces.group_sparsity.merge import merge
from sparsemask.spaces.group_sparsity.networks import available, create
from sparsemask.spaces.group_sparsity.rules import Plan, plan_for

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
