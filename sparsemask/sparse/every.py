"""Importing this registers every operator of the toolkit: before a program that was exported elsewhere is loaded."""

from sparsemask.sparse import (  # noqa: F401
    attended,
    cost_volume,
    inverted_residual,
    joined,
    locate,
    operators,
    point_block,
    point_conv,
    scales,
)
