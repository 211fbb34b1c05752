"""Find and read the encoder's ImageNet weights for a command, and report them in one line."""

from __future__ import annotations

from typing import Any

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.backbones.weights import ImportedWeights, load_backbone_weights
from sparsemask.training_setup import Context


def encoder_weights(context: Context) -> tuple[ImportedWeights | None, dict[str, Any]]:
    """Load the encoder's weights for a new run.

    Args:
        context: of the command.

    Returns:
        The weights (None: start from random ones, or resume from a checkpoint), and the flags that they determine:
        ``pretrained_model``, the file's path, and the encoder's form where it was "auto"
        (:func:`sparsemask.spaces.backbones.forms.resolved`).
    """
    config = context.config
    if context.state is not None:
        return None, {}
    name = config.network.backbone_name
    path = datasets.backbone_weights(name, config.network.pretrained_model)
    if path is None:
        context.say(
            f"no ImageNet weights for {name} (--pretrained_model, $SPARSEMASK_WEIGHTS or "
            f"{datasets.cache() / 'weights'}): the encoder starts from random weights"
        )
        return None, forms.resolved(config, None)
    weights = load_backbone_weights(path, name)
    context.say(weights.message)
    return weights, {"pretrained_model": str(path), **forms.resolved(config, weights.form)}


def encoder_form(config: RunConfig) -> dict[str, str]:
    """The encoder's form where it is "auto", as :func:`encoder_weights` will find it, without a word.

    Args:
        config: of a run that begins.
    """
    name = config.network.backbone_name
    if not forms.resolved(config, None):
        return {}
    path = datasets.backbone_weights(name, config.network.pretrained_model)
    return forms.resolved(config, None if path is None else load_backbone_weights(path, name).form)
