"""Networks made of sparse mask convolutions."""

from spaces.sparse_conv.dense import DenseForm
from spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks
from spaces.sparse_conv.point_block import Reading
from spaces.sparse_conv.points_shared import load_smpointseg, save_smpointseg
from spaces.sparse_conv.shared import load_smsr, save_smsr
from spaces.sparse_conv.smpointseg import SMPointSeg
from spaces.sparse_conv.smsr import SMSR
from spaces.sparse_conv.space import SMSRSpace
from spaces.sparse_conv.tiles import upscale

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
