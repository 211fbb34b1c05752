"""Names of torch's operators by their effect on channels; in-place forms have the same name."""

ELEMENTWISE = """add sub rsub mul div maximum minimum where addcmul addcdiv lerp pow clamp clamp_min clamp_max
    eq ne lt le gt ge logical_and logical_or logical_not masked_fill copy relu relu6 hardtanh sigmoid silu gelu tanh
    leaky_relu elu celu hardswish hardsigmoid softplus mish neg abs exp log sqrt rsqrt square reciprocal erf sign sin
    cos threshold _prelu_kernel log_sigmoid_forward native_dropout dropout clone detach alias lift_fresh _to_copy
    contiguous to round floor ceil nan_to_num isfinite zeros_like ones_like full_like empty_like fill zero
    log1p expm1 atan bernoulli rrelu_with_noise""".split()
# Operators on positions, channel by channel.
SPATIAL = """max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    grid_sampler_2d im2col""".split()
REDUCE = "mean sum amax amin var std prod linalg_vector_norm max min".split()
MOVES = """view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand slice select split
    split_with_sizes chunk unbind narrow index_select flip roll repeat pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle unfold view_as unsafe_split""".split()
CUTS = {"split", "split_with_sizes", "chunk", "unbind", "unsafe_split"}
RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
# Functions in whose call the caller writes the sizes; the others (flatten, linear ...) take them from the tensor.
SIZED = {"view", "reshape", "unflatten"}
