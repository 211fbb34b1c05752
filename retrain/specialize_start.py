"""What a specialisation starts from: a retrained run's network, or weights and the mask of their connections."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from spaces import backbones
from spaces.backbones import forms
from spaces.slim.space import small_widths
from spaces.specialized.words import mask_word, read_mask
from sparsemask import runs
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError
from sparsemask.options import adopt
from sparsemask.weights import load_weights

_NETWORK = ("backbone_name", "depth")


def check_start(given: Mapping) -> None:
    """Raise UseError for flags that cannot stand together."""
    if given.get("thres", 0) >= 1:
        raise UseError(f"--thres {given['thres']:g}: a probability below 1")
    if given.get("ft_model") and given.get("run"):
        raise UseError(f"--run {given['run']} and --ft_model {given['ft_model']}: give the one or the other")


def newest_start(asked: dict) -> dict:
    """The flag that names the newest retrained network, where `asked` names none."""
    if asked.get("space", "specialized") not in ("connectivity", "specialized"):
        return {}
    if any(asked.get(name) for name in ("run", "ft_model")):
        return {}
    return {"run": str(runs.newest(asked.get("exp_path") or "runs", "retrain", "connectivity").folder)}


def resolve_start(options: argparse.Namespace) -> None:
    """Resolve the options that say what the network is; UseError before a run folder is made where they do not fit.

    Afterwards `ft_model` is the weights' file and, of a network of searched connectivity, `connectivity` its mask as a
    word.
    """
    check_start({"thres": options.thres, **(vars(options) if "connectivity" in vars(options) else {})})
    if "connectivity" not in vars(options):
        _masked_space(options)
        return
    if options.ft_model:
        _from_weights(options)
    else:
        _from_run(options, runs.find(options.run))
    state = load_weights(options.ft_model)
    vars(options).update(forms.of_weights(state, options.backbone_name))
    connections = read_mask(options.connectivity, len(backbones.strides(options.backbone_name)), options.seed)
    options.widths = small_widths(connections, options, state)
    options.ft_model = str(Path(options.ft_model).resolve())


def _masked_space(options: argparse.Namespace) -> None:
    """Weights of a network whose own masks are to be learnt."""
    options.ft_model = options.ft_model or options.pretrained_model
    if options.mask_path or options.run:
        raise UseError(f"--mask_path and --run are for connectivity networks, --space {options.space} takes --ft_model")
    if not options.ft_model:
        raise UseError(f"--ft_model is missing: weights of the dense network of --space {options.space}")
    options.ft_model = str(Path(options.ft_model).resolve())
    options.pretrained_model = None
    load_weights(options.ft_model)


def _from_weights(options: argparse.Namespace) -> None:
    if not options.mask_path and not options.connectivity:
        raise UseError("--ft_model needs --mask_path: the connectivity mask of its network")
    load_weights(options.ft_model)
    features = len(backbones.strides(options.backbone_name))
    options.connectivity = mask_word(read_mask(options.mask_path or options.connectivity, features, options.seed))


def _from_run(options: argparse.Namespace, run: runs.Run) -> None:
    state = checkpoint.load(run.last)
    if state.get("space") != "connectivity" or state.get("verb") != "retrain":
        raise UseError(f"{run.folder}: a run of '{state.get('verb')}' on space '{state.get('space')}', not a retrained "
                       "connectivity network")  # fmt: skip
    mask = state.get("mask")
    if mask is None or isinstance(mask, str):
        raise UseError(f"{run.folder}: the baseline '{mask}' has no decoder to specialise")
    if not isinstance(mask, torch.Tensor):
        raise UseError(f"{run.last}: no connections in it")
    mask = mask.numpy()
    for name in _NETWORK:
        if state["config"].get(name) is None:
            raise UseError(f"{run.last}: incomplete: it does not say {name}")
    adopt(options, {name: state["config"][name] for name in _NETWORK}, run.folder)
    if options.bn_momentum is None:
        options.bn_momentum = state["config"].get("bn_momentum")
    if options.mask_path:
        other = read_mask(options.mask_path, len(mask), options.seed)
        if not np.array_equal(mask, other):
            raise UseError(
                f"{options.mask_path}: not the connections of {run.folder}; retrain that mask, or leave it out"
            )
    options.connectivity, options.ft_model = mask_word(mask), str(run.last)
    options.run = options.mask_path = None  # said by these from now on: the run's configuration starts it again
