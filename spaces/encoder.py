"""The encoder's ImageNet weights for a verb: found, read, and said in one line."""

from __future__ import annotations

from spaces.backbones.weights import ImportedWeights, load_backbone_weights
from sparsemask import datasets
from sparsemask.training_setup import Context


def encoder_weights(context: Context) -> ImportedWeights | None:
    """Weights for the encoder of the run's options, or None (random weights, or a checkpoint to go on from).

    Settles ``options.first_expansion`` ("auto" becomes what the weights have, "no" without any) and keeps the path
    that was found in ``options.pretrained_model``, so that the run's configuration repeats it.
    """
    options = context.options
    if context.state is not None:
        return None
    path = datasets.backbone_weights(options.backbone_name, options.pretrained_model)
    if path is None:
        if options.first_expansion == "auto":
            options.first_expansion = "no"
        context.say(
            f"no ImageNet weights for {options.backbone_name} (--pretrained_model, $SPARSEMASK_WEIGHTS or "
            f"{datasets.cache() / 'weights'}): the encoder starts from random weights"
        )
        return None
    found = load_backbone_weights(path, options.backbone_name)
    options.pretrained_model = str(path)
    if options.first_expansion == "auto":
        options.first_expansion = "yes" if found.first_expansion else "no"
    context.say(found.message)
    return found
