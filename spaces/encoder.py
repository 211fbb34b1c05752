"""The encoder's ImageNet weights for a verb: found, read, and said in one line."""

from __future__ import annotations

from spaces.backbones import forms
from spaces.backbones.weights import ImportedWeights, load_backbone_weights
from sparsemask import datasets
from sparsemask.training_setup import Context


def encoder_weights(context: Context) -> ImportedWeights | None:
    """Weights for the encoder of the run's options, or None (random weights, or a checkpoint to go on from).

    Resolves the encoder's form where it is "auto" (:func:`spaces.backbones.forms.resolved`) and keeps the path that
    was found in ``options.pretrained_model``, so that the run's configuration repeats it.
    """
    options = context.options
    if context.state is not None:
        return None
    path = datasets.backbone_weights(options.backbone_name, options.pretrained_model)
    if path is None:
        vars(options).update(forms.resolved(vars(options), None))
        context.say(
            f"no ImageNet weights for {options.backbone_name} (--pretrained_model, $SPARSEMASK_WEIGHTS or "
            f"{datasets.cache() / 'weights'}): the encoder starts from random weights"
        )
        return None
    found = load_backbone_weights(path, options.backbone_name)
    options.pretrained_model = str(path)
    vars(options).update(forms.resolved(vars(options), found.form))
    context.say(found.message)
    return found
