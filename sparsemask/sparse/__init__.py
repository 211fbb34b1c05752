"""Fine-grained sparse mask convolution: for pictures, volumes and points (SMSR, Wang et al. 2021, arXiv 2006.09603).

Two masks say where a layer computes: a data mask over locations and a channel mask that splits its channels into dense
ones (computed everywhere) and sparse ones (computed at kept locations). Both are relaxed while they are learnt and hard
afterwards, when :class:`SparseMaskConv` and :class:`SparseMaskBlock` skip what they drop, by the fastest of several
backends.
"""

from sparsemask.sparse.backends import available_backends, backend, register_backend, set_backend
from sparsemask.sparse.block import SparseMaskBlock
from sparsemask.sparse.budget import budget_loss, kept_fraction
from sparsemask.sparse.derived import Derived
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.layer import SparseMaskConv
from sparsemask.sparse.masks import DataMask, channel_logits, gumbel_mask, hard_dense, soft_dense
from sparsemask.sparse.modes import set_mask_mode

__all__ = [
    "DataMask",
    "Derived",
    "Geometry",
    "SparseMaskBlock",
    "SparseMaskConv",
    "available_backends",
    "backend",
    "budget_loss",
    "channel_logits",
    "gumbel_mask",
    "hard_dense",
    "kept_fraction",
    "register_backend",
    "set_backend",
    "set_mask_mode",
    "soft_dense",
]
