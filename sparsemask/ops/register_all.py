"""Importing this registers every operator of the toolkit: before a program that was exported elsewhere is loaded."""

from sparsemask.ops import (  # noqa: F401
    block,
    block_with_channel_attention,
    concat_conv,
    conv,
    cost_volume,
    inverted_residual,
    kept_conv,
    masked_network,
    merge_kept,
    multiscale_sum,
    packed_point_network,
    point_block,
    point_conv,
    point_network,
    predict_mask,
)
