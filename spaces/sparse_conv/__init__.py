"""Networks made of sparse mask convolutions: what SMSR, SMPointSeg and SMStereo share, and their public names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsemask.spaces.smpointseg.block import Reading
    from sparsemask.spaces.smpointseg.checkpoints import load_smpointseg, save_smpointseg
    from sparsemask.spaces.smpointseg.network import SMPointSeg
    from sparsemask.spaces.smsr.checkpoints import load_smsr, save_smsr
    from sparsemask.spaces.smsr.dense import DenseForm
    from sparsemask.spaces.smsr.network import SMSR
    from sparsemask.spaces.smsr.space import SMSRSpace
    from sparsemask.spaces.smsr.tiles import upscale
    from sparsemask.spaces.smstereo.checkpoints import load_smstereo, save_smstereo
    from sparsemask.spaces.smstereo.network import SMStereo
    from sparsemask.spaces.sparse_conv.masking import apply_masks, fix_masks, hard_masks

# Loaded on first use: the networks import modules of this package.
_MODULES = {
    "SMSR": "smsr.network",
    "DenseForm": "smsr.dense",
    "Reading": "smpointseg.block",
    "SMPointSeg": "smpointseg.network",
    "SMSRSpace": "smsr.space",
    "SMStereo": "smstereo.network",
    "apply_masks": "sparse_conv.masking",
    "fix_masks": "sparse_conv.masking",
    "hard_masks": "sparse_conv.masking",
    "load_smpointseg": "smpointseg.checkpoints",
    "load_smsr": "smsr.checkpoints",
    "load_smstereo": "smstereo.checkpoints",
    "save_smpointseg": "smpointseg.checkpoints",
    "save_smsr": "smsr.checkpoints",
    "save_smstereo": "smstereo.checkpoints",
    "upscale": "smsr.tiles",
}

__all__ = [
    "SMSR",
    "DenseForm",
    "Reading",
    "SMPointSeg",
    "SMSRSpace",
    "SMStereo",
    "apply_masks",
    "fix_masks",
    "hard_masks",
    "load_smpointseg",
    "load_smsr",
    "load_smstereo",
    "save_smpointseg",
    "save_smsr",
    "save_smstereo",
    "upscale",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found = globals()[name] = getattr(importlib.import_module(f"sparsemask.spaces.{_MODULES[name]}"), name)
    return found
