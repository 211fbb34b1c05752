"""Preparing point clouds: `sparsemask prepare-points`."""
