"""Initial weights of a connectivity network: of a search, of a mask of groups, and the form that weights determine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsemask import fine_masks, spaces
from sparsemask.config import RunConfig
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.options import adopted
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.slim.space import small_widths
from sparsemask.training_setup import Context

SLIM = "slim"


def grouped(config: RunConfig) -> bool:
    """Whether --mask_path is a mask of groups of weights, which includes connections and refers to weights."""
    # Evaluation and export have no --ft_model.
    return not config.get("ft_model") and fine_masks.file_space(config.family.mask_path or "") == SLIM


def resolve_grouped(config: RunConfig, given: Mapping) -> tuple[np.ndarray, RunConfig]:
    """Return the connections of a mask of groups, and the configuration with its network's hyperparameters.

    Raises:
        UseError: the command line contradicts the mask.
    """
    mask, groups = spaces.get(SLIM).read(config.family.mask_path)
    network_options = groups.config["arch_options"]
    source = config.family.mask_path
    config = adopted(
        config, given, {name: network_options[name] for name in ("backbone_name", "depth", *forms.names())}, source
    )
    if given.get("inherit", "none") != "none":
        raise UseError(f"--inherit {given['inherit']}: {source} has weights of its own; leave it out")
    return mask, config.replace(inherit="none") if "inherit" in config else config


def inherited_state(context: Context, mask, note: dict) -> dict | None:
    """Load the weights inherited from the search, reported in one line; None if there is nothing to inherit.

    Args:
        context: of the run.
        mask: of the small network.
        note: of the mask; names the search's checkpoint.

    Raises:
        UseError: the search's checkpoint is missing or has changed.
    """
    config = context.config
    if config.family.inherit == "none" or config.family.ft_model or config.network.pretrained_model:
        return None
    path = config.family.search_checkpoint or note.get("checkpoint")
    if path is None:
        context.say("nothing to inherit: the mask does not say which search it comes from")
        return None
    if not Path(path).exists():
        raise UseError(f"the search to inherit from is gone: {path}; give --search_checkpoint, or --inherit none")
    if not config.family.search_checkpoint and sha256(path) != note.get("sha256"):
        raise UseError(
            f"{path} is not as it was when the mask was pruned from it: prune again, or give --search_checkpoint {path}"
        )
    state = checkpoint.load(path, config.network.space)
    what = "the encoder" if config.family.inherit == "encoder" else "all that is kept"
    context.say(f"inherited from the search: {what} ({path})")
    return spaces.get(config.network.space).transfer(state["model"], mask, config, config.family.inherit)


def form_of(config: RunConfig, mask, state: dict) -> dict[str, Any]:
    """Return the flags that weights determine, by name: the encoder's form and the widths of its layers."""
    name = config.network.backbone_name
    form = forms.of_weights(state, name) if forms.has_forms(name) else {}
    return {**form, "widths": None if isinstance(mask, str) else small_widths(mask, config.replace(**form), state)}
