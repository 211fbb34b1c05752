"""Networks between filter pruning and low-rank decomposition (Li et al., CVPR 2020)."""

from spaces.group_sparsity.channels import ChannelGraph, trace
from spaces.group_sparsity.compress import compress
from spaces.group_sparsity.groups import GroupSet, Member
from spaces.group_sparsity.hinged import DoubleReLU, hinge
from spaces.group_sparsity.loaders import load
from spaces.group_sparsity.matrices import Pair, factorise
from spaces.group_sparsity.merge import merge
from spaces.group_sparsity.networks import available, create
from spaces.group_sparsity.rules import Plan, plan_for

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
