"""Networks made of sparse mask convolutions."""

from sparsemask.spaces.sparse_conv.dense import DenseForm
from sparsemask.spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks
from sparsemask.spaces.sparse_conv.point_block import Reading
from sparsemask.spaces.sparse_conv.points_shared import load_smpointseg, save_smpointseg
from sparsemask.spaces.sparse_conv.shared import load_smsr, save_smsr
from sparsemask.spaces.sparse_conv.smpointseg import SMPointSeg
from sparsemask.spaces.sparse_conv.smsr import SMSR
from sparsemask.spaces.sparse_conv.space import SMSRSpace
from sparsemask.spaces.sparse_conv.tiles import upscale

__all__ = [
    "SMSR",
    "DenseForm",
    "Reading",
    "SMPointSeg",
    "SMSRSpace",
    "apply_masks",
    "fix_masks",
    "hard_masks",
    "load_smpointseg",
    "load_smsr",
    "save_smpointseg",
    "save_smsr",
    "upscale",
]
