"""Multiply-adds of a network with everything kept, by its configuration and the picture's size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from spaces.connectivity.pruned_network import PrunedNetwork


@lru_cache(maxsize=64)
def dense_multiply_adds(mask: bytes, shape: tuple[int, ...], config: tuple, size: tuple[int, int]) -> int:
    """Of one picture (height, width) on the network of a connectivity mask, counted on a twin without memory.

    config: backbone (its name, or the module), depth, input channels, classes, options of the backbone.
    """
    backbone, depth, channels, classes, options = config
    connections = np.frombuffer(mask, dtype=bool).reshape(shape)
    with torch.device("meta"):
        twin = PrunedNetwork(connections, backbone, depth, channels, classes, **dict(options)).eval()
        picture = torch.empty(1, channels, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(picture)
    return counter.get_total_flops() // 2
