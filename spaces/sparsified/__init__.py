"""Any network of convolutions with masks over locations."""

from __future__ import annotations

from sparsemask.spaces.sparsified.network import RegionMasks, SparsifiedNetwork, fit_branches, meet, sparsify
from sparsemask.spaces.sparsified.regions import Region, find_regions, traced

__all__ = [
    "Region",
    "RegionMasks",
    "SparsifiedNetwork",
    "find_regions",
    "fit_branches",
    "meet",
    "sparsify",
    "traced",
]
