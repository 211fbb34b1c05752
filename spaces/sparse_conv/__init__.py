"""Networks made of sparse mask convolutions."""

from spaces.sparse_conv.dense import DenseForm
from spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks
from spaces.sparse_conv.shared import load_smsr, save_smsr
from spaces.sparse_conv.smsr import SMSR
from spaces.sparse_conv.space import SMSRSpace
from spaces.sparse_conv.tiles import upscale

__all__ = [
    "SMSR",
    "DenseForm",
    "SMSRSpace",
    "apply_masks",
    "fix_masks",
    "hard_masks",
    "load_smsr",
    "save_smsr",
    "upscale",
]
