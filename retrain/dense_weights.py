"""Dense networks that a command on trained networks takes beside the family's own, by their weights or their run."""

from __future__ import annotations

from sparsemask import models, runs, spaces, training_setup
from sparsemask.errors import UseError
from sparsemask.families import Restored
from sparsemask.options import Parser, adopted
from sparsemask.retrain.masked_network import NETWORK
from sparsemask.spaces.protocols import Distilled
from sparsemask.spaces.sr_networks.space import has_masks
from sparsemask.weights import load_weights

_VERB = "super-resolution"  # as runs of retrain/super_resolution.py say it


def dense_weights(given: dict) -> str | None:
    """Return the file of a dense network's weights that flags name; None where they name none.

    Args:
        given: the flags that the user named. --weights of a network with masks, which is opened as one of the family,
            becomes --pretrained_model here.

    Raises:
        UseError: they name two networks.
    """
    if given.get("weights"):
        for name in ("run", "pretrained_model"):
            if given.get(name):
                raise UseError(f"--weights {given['weights']} and --{name} {given[name]}: give the one or the other")
        path = models.path_of(given["weights"])
        if not has_masks(load_weights(path)):
            return path
        del given["weights"]
        given["pretrained_model"] = path
    if given.get("run"):
        run = runs.find(given["run"])
        if run.info().get("verb") == _VERB:
            return str(run.folder / NETWORK)
    return None


def open_dense(parser: Parser, given: dict, path: str) -> Restored:
    """Load a dense network.

    Args:
        parser: of the command.
        given: the flags that the user named.
        path: of its weights.

    Raises:
        UseError: weights of no network that is known, or flags that do not fit it.
    """
    space = spaces.get(given["space"])
    assert isinstance(space, Distilled)  # which has the flag --weights
    found = space.flags_of(path)
    config, line, _ = training_setup.resolve_config(parser, {**found, **given, "weights": path}, training=False)
    config = adopted(config, given, found, path)
    where = training_setup.device(config)
    training_setup.prepare(config)
    return Restored(config, space.teacher(path).to(where.device, where.parameters).eval(), where)
