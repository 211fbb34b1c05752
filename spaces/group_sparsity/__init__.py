"""Networks between filter pruning and low-rank decomposition (Li et al., CVPR 2020)."""
