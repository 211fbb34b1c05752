"""Initial network of a specialisation: a retrained run's, or weights with their connectivity mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sparsemask import models, runs, spaces
from sparsemask.config import RunConfig
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask
from sparsemask.options import adopted
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.encoding import mask_word, read_mask
from sparsemask.spaces.connectivity.mask_source import Mask
from sparsemask.spaces.connectivity_pruned_encoder.space import small_widths
from sparsemask.spaces.protocols import Distilled
from sparsemask.weights import load_weights

_NETWORK = ("backbone_name", "depth")


def check_start(given: Mapping) -> None:
    """Check flags that exclude each other.

    Raises:
        UseError: they contradict each other, or a threshold is out of range.
    """
    if given.get("thres", 0) >= 1:
        raise UseError(f"--thres {given['thres']:g}: a probability below 1")
    if given.get("ft_model") and given.get("run"):
        raise UseError(f"--run {given['run']} and --ft_model {given['ft_model']}: give the one or the other")


def newest_start(given: dict) -> dict:
    """Return the flag for the newest retrained network; empty if `given` names a network."""
    if given.get("space", "specialized") not in ("connectivity", "specialized"):
        return {}
    if any(given.get(name) for name in ("run", "ft_model")):
        return {}
    return {"run": str(runs.newest(given.get("exp_path") or "runs", "retrain", "connectivity").folder)}


def resolve_start(config: RunConfig, given: Mapping) -> RunConfig:
    """Complete the configuration by the initial network.

    Args:
        config: of the command.
        given: the flags that the user named on the command line.

    Returns:
        The configuration; `ft_model` is the weights file and, for networks of searched connectivity, `connectivity` the
        encoded mask.

    Raises:
        UseError: flags that do not fit, or no such network.
    """
    check_start({"thres": config.family.thres, **(config if "connectivity" in config else {})})
    if "connectivity" not in config:
        return _masked_space(config)
    if config.family.ft_model:
        config = _from_weights(config)
    else:
        config = _from_run(config, given, runs.find(config.family.run))
    state, network = load_weights(config.family.ft_model), config.network
    config = config.replace(**forms.of_weights(state, network.backbone_name))
    connections = _read(network.connectivity, config)
    widths = small_widths(connections, config, state)
    return config.replace(widths=widths, ft_model=str(Path(config.family.ft_model).resolve()))


def _masked_space(config: RunConfig) -> RunConfig:
    """Weights of a network whose own masks are to be learnt."""
    named = [config.family.ft_model, config.get("weights"), config.network.pretrained_model]
    weights = next(filter(None, named), None)
    if config.family.mask_path or config.family.run:
        raise UseError(
            f"--mask_path and --run are for connectivity networks, --space {config.network.space} takes --ft_model"
        )
    if not weights:
        raise UseError(f"--ft_model is missing: weights of the dense network of --space {config.network.space}")
    weights = str(Path(models.path_of(weights)).resolve())
    load_weights(weights)
    config = config.replace(ft_model=weights, pretrained_model=None)
    space = spaces.get(config.network.space)
    return config.replace(weights=None, **space.flags_of(weights)) if isinstance(space, Distilled) else config


def _from_weights(config: RunConfig) -> RunConfig:
    mask = config.family.mask_path or config.network.connectivity
    if not mask:
        raise UseError("--ft_model needs --mask_path: the connectivity mask of its network")
    load_weights(config.family.ft_model)
    return config.replace(connectivity=mask_word(_read(mask, config)))


def _read(text: str, config: RunConfig) -> np.ndarray | DecoderMask:
    """The mask of a word, a file or a name, for a configuration's encoder and depth."""
    strides = backbones.strides(config.network.backbone_name)
    return read_mask(text, len(strides), config.run.seed, strides, config.network.depth)


def _from_run(config: RunConfig, given: Mapping, run: runs.Run) -> RunConfig:
    state = checkpoint.load(run.last)
    if state.get("space") != "connectivity" or state.get("verb") != "retrain":
        raise UseError(f"{run.folder}: a run of '{state.get('verb')}' on space '{state.get('space')}', not a retrained "
                       "connectivity network")  # fmt: skip
    mask = state.get("mask")
    if mask is None or isinstance(mask, str):
        raise UseError(f"{run.folder}: the baseline '{mask}' has no decoder to specialise")
    if not isinstance(mask, torch.Tensor):
        raise UseError(f"{run.last}: no connections in it")
    mask, saved = Mask.of_checkpoint(mask).decoder, state["config"]
    for name in _NETWORK:
        if saved.get(name) is None:
            raise UseError(f"{run.last}: incomplete: it does not say {name}")
    config = adopted(config, given, {name: saved[name] for name in _NETWORK}, run.folder)
    if config.network.bn_momentum is None:
        config = config.replace(bn_momentum=saved.get("bn_momentum"))
    if config.family.mask_path:
        if mask_word(_read(config.family.mask_path, config)) != mask_word(mask):
            raise UseError(
                f"{config.family.mask_path}: not the connections of {run.folder}; retrain that mask, or leave it out"
            )
    # Weights and encoded mask replace the run, so that the configuration starts the same run again.
    return config.replace(connectivity=mask_word(mask), ft_model=str(run.last), run=None, mask_path=None)
