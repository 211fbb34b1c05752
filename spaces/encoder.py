"""The encoder's ImageNet weights for a verb: found, read, and said in one line."""

from __future__ import annotations

from typing import Any

from sparsemask import datasets
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.backbones.weights import ImportedWeights, load_backbone_weights
from sparsemask.training_setup import Context


def encoder_weights(context: Context) -> tuple[ImportedWeights | None, dict[str, Any]]:
    """Weights for a new run's encoder, and the flags that they settle.

    Returns:
        The weights, None for random ones or a checkpoint to go on from; and by name the encoder's form where it was
        "auto" (:func:`sparsemask.spaces.backbones.forms.resolved`) and ``pretrained_model``, the path that was found,
        so that the run's configuration repeats it.
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
    found = load_backbone_weights(path, name)
    context.say(found.message)
    return found, {"pretrained_model": str(path), **forms.resolved(config, found.form)}
