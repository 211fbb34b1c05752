"""Mask files: of connections (`connectivity`), locations and channels (`spatial`), and groups of weights (`groups`).

The names here are of connectivity masks, which other code of the toolkit uses most.
"""

from sparsemask.masks.decoder import (
    DOWN,
    UP,
    check_mask,
    count_connections,
    load_mask,
    mask_note,
    save_mask,
    why_unusable,
)

__all__ = ["DOWN", "UP", "check_mask", "count_connections", "load_mask", "mask_note", "save_mask", "why_unusable"]
