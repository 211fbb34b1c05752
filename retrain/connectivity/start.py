"""Where a connectivity network starts from: a search's weights, a mask of groups and its weights, a file's own form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.masks import npz
from sparsemask.options import adopted
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.mask_source import Mask
from sparsemask.spaces.connectivity_pruned_encoder.space import small_widths
from sparsemask.training_setup import Context

SLIM = "slim"


def grouped(config: RunConfig) -> bool:
    """Whether the mask is one of groups of weights, which says the connections too, and holds weights."""
    # Evaluation and export have no --ft_model.
    return not config.get("ft_model") and npz.file_space(config.family.mask_path or "") == SLIM


def resolve_grouped(config: RunConfig, given: Mapping) -> tuple[Mask, RunConfig]:
    """The connections that a mask of groups says, and the configuration with its network's numbers."""
    connections, groups = spaces.get(SLIM).read(config.family.mask_path)
    said = groups.config["arch_options"]
    source = config.family.mask_path
    config = adopted(config, given, {name: said[name] for name in ("backbone_name", "depth", *forms.names())}, source)
    if given.get("inherit", "none") != "none":
        raise UseError(f"--inherit {given['inherit']}: {source} has weights of its own; leave it out")
    mask = Mask(connections, {"backbone_name": config.network.backbone_name})
    return mask, config.replace(inherit="none") if "inherit" in config else config


def inherited_state(context: Context, mask: Mask) -> dict | None:
    """Weights out of the search, if they are wanted and there; one line either way."""
    config = context.config
    if config.family.inherit == "none" or config.family.ft_model or config.network.pretrained_model:
        return None
    path = config.family.search_checkpoint or mask.note.get("checkpoint")
    if path is None:
        context.say("nothing to inherit: the mask does not say which search it comes from")
        return None
    if not Path(path).exists():
        raise UseError(f"the search to inherit from is gone: {path}; give --search_checkpoint, or --inherit none")
    if not config.family.search_checkpoint and sha256(path) != mask.note.get("sha256"):
        raise UseError(
            f"{path} is not as it was when the mask was pruned from it: prune again, or give --search_checkpoint {path}"
        )
    state = checkpoint.load(path, config.network.space)
    what = "the encoder" if config.family.inherit == "encoder" else "all that is kept"
    context.say(f"inherited from the search: {what} ({path})")
    return spaces.get(config.network.space).transfer(state["model"], mask.argument, config, config.family.inherit)


def form_of(config: RunConfig, mask: Mask, state: dict) -> dict[str, Any]:
    """Flags that weights decide, by name: the form of the encoder, and the widths of its layers."""
    name = config.network.backbone_name
    found = forms.of_weights(state, name) if forms.has_forms(name) else {}
    if mask.decoder is None:
        return {**found, "widths": None}
    return {**found, "widths": small_widths(mask.decoder, config.replace(**found), state)}
