"""Make any network smaller in a few lines: :func:`shrink`, :func:`plan`, :func:`save` and :func:`load`."""

from sparsemask.spaces.group_sparsity.shrinking.channels import Channels
from sparsemask.spaces.group_sparsity.shrinking.files import is_shrunk, load, save
from sparsemask.spaces.group_sparsity.shrinking.functions import plan, shrink
from sparsemask.spaces.group_sparsity.shrinking.importance import IMPORTANCES, Importance, Subject
from sparsemask.spaces.group_sparsity.shrinking.planning import ShrinkPlan
from sparsemask.spaces.group_sparsity.shrinking.recipe import Recipe
from sparsemask.spaces.group_sparsity.shrinking.report import Costs, LayerChange, Locked, Report

__all__ = [
    "IMPORTANCES",
    "Channels",
    "Costs",
    "Importance",
    "LayerChange",
    "Locked",
    "Recipe",
    "Report",
    "ShrinkPlan",
    "Subject",
    "is_shrunk",
    "load",
    "plan",
    "save",
    "shrink",
]
