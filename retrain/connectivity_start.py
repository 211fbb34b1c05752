"""Where a connectivity network starts from: a search's weights, a mask of groups and its weights, a file's own form."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import spaces
from spaces.backbones import forms
from spaces.slim.space import small_widths
from sparsemask import fine_masks
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.options import adopt, given_flags
from sparsemask.training_setup import Context

SLIM = "slim"


def grouped(options: argparse.Namespace) -> bool:
    """Whether the mask is one of groups of weights, which says the connections too, and holds weights."""
    # Evaluation and export have no --ft_model.
    return not vars(options).get("ft_model") and fine_masks.file_space(options.mask_path or "") == SLIM


def resolve_grouped(options: argparse.Namespace) -> np.ndarray:
    """The connections that a mask of groups says; its network's numbers become the options'."""
    mask, groups = spaces.get(SLIM).read(options.mask_path)
    said = groups.config["arch_options"]
    adopt(options, {name: said[name] for name in ("backbone_name", "depth", *forms.names())}, options.mask_path)
    if given_flags(options).get("inherit", "none") != "none":
        raise UseError(f"--inherit {options.inherit}: {options.mask_path} has weights of its own; leave it out")
    options.inherit = "none"
    return mask


def inherited_state(context: Context, mask, note: dict) -> dict | None:
    """Weights out of the search, if they are wanted and there; one line either way."""
    options = context.options
    if options.inherit == "none" or options.ft_model or options.pretrained_model:
        return None
    path = options.search_checkpoint or note.get("checkpoint")
    if path is None:
        context.say("nothing to inherit: the mask does not say which search it comes from")
        return None
    if not Path(path).exists():
        raise UseError(f"the search to inherit from is gone: {path}; give --search_checkpoint, or --inherit none")
    if not options.search_checkpoint and sha256(path) != note.get("sha256"):
        raise UseError(
            f"{path} is not as it was when the mask was pruned from it: prune again, or give --search_checkpoint {path}"
        )
    state = checkpoint.load(path, options.space)
    context.say(
        f"inherited from the search: {'the encoder' if options.inherit == 'encoder' else 'all that is kept'} ({path})"
    )
    return spaces.get(options.space).transfer(state["model"], mask, options, options.inherit)


def resolve_form(options: argparse.Namespace, mask, state: dict) -> None:
    """Weights decide the form of the encoder, and the widths of its layers."""
    if forms.has_forms(options.backbone_name):
        vars(options).update(forms.of_weights(state, options.backbone_name))
    options.widths = None if isinstance(mask, str) else small_widths(mask, options, state)
