"""Any network of convolutions with masks over locations."""

from __future__ import annotations

from sparsemask.spaces.sparsified.network import RegionMasks, SparsifiedNetwork, begin, sparsify
from sparsemask.spaces.sparsified.regions import Region, find_regions, traced

__all__ = [
    "Region",
    "RegionMasks",
    "SparsifiedNetwork",
    "begin",
    "find_regions",
    "sparsify",
    "traced",
]
