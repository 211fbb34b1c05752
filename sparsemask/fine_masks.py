"""Earlier name of :mod:`sparsemask.masks.spatial`, for code of users."""

from sparsemask.masks.npz import file_space, is_fine, read_arrays
from sparsemask.masks.spatial import FineMasks, load_masks, save_masks

__all__ = ["FineMasks", "file_space", "is_fine", "load_masks", "read_arrays", "save_masks"]
