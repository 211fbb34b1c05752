"""Sparse mask convolution: learnt masks over locations and channels, and convolutions that skip what they drop."""

from __future__ import annotations

from sparsemask.backends import Backend, BlockCall, ConvCall, register_backend
from sparsemask.ops.concat_conv import joined_conv
from sparsemask.ops.dispatch import available_backends, backend, repeatable, set_backend
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.weight_cache import Derived
from sparsemask.sparse.block import SparseMaskBlock
from sparsemask.sparse.budget import budget_loss, harden_channels, kept_fraction
from sparsemask.sparse.channel_mask import ChannelMask
from sparsemask.sparse.data_mask import DataMask
from sparsemask.sparse.gumbel import gumbel_mask
from sparsemask.sparse.layer import SparseMaskConv
from sparsemask.sparse.modes import set_mask_mode

__all__ = [
    "Backend",
    "BlockCall",
    "ChannelMask",
    "ConvCall",
    "DataMask",
    "Derived",
    "Geometry",
    "SparseMaskBlock",
    "SparseMaskConv",
    "available_backends",
    "backend",
    "budget_loss",
    "gumbel_mask",
    "harden_channels",
    "joined_conv",
    "kept_fraction",
    "register_backend",
    "repeatable",
    "set_backend",
    "set_mask_mode",
]
