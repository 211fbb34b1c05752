"""Networks whose connectivity was searched, with fine-grained masks on what remains."""

from sparsemask.spaces.specialized.network import WHERE, DenseNetwork, SpecializedNetwork

__all__ = ["WHERE", "DenseNetwork", "SpecializedNetwork"]
