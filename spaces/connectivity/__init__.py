"""The connectivity space (SparseMask: Wu, Zhang, Huang 2019, arXiv 1904.07642)."""

from sparsemask.spaces.connectivity.named_masks import available_masks, named_mask
from sparsemask.spaces.connectivity.pruned_network import FCN, PrunedNetwork
from sparsemask.spaces.connectivity.search_network import FullyDenseNetwork
from sparsemask.spaces.connectivity.space import ConnectivityConfig, ConnectivitySpace, load_network, save_network

__all__ = [
    "FCN",
    "ConnectivityConfig",
    "ConnectivitySpace",
    "FullyDenseNetwork",
    "PrunedNetwork",
    "available_masks",
    "load_network",
    "named_mask",
    "save_network",
]
