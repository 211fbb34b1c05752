"""The space of networks whose convolutions are pruned or decomposed: masks select groups of weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemask import weights
from sparsemask.checkpoint_schema import is_plain
from sparsemask.config import RunConfig, flag
from sparsemask.containers import memory
from sparsemask.errors import UseError, choose
from sparsemask.flags import NetworkSection
from sparsemask.masks.groups import SPACE, GroupMask
from sparsemask.spaces import register
from sparsemask.spaces.described import describing, weightless
from sparsemask.spaces.group_sparsity import loaders, networks
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.border import fit_additions
from sparsemask.spaces.group_sparsity.compression.compress import Compressed, remove_groups
from sparsemask.spaces.group_sparsity.pairs import INITS, hinge, merge
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction, costs, example
from sparsemask.spaces.group_sparsity.rules import Plan, plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace
from sparsemask.spaces.protocols import Loaded, Space


@dataclass(frozen=True, kw_only=True, slots=True)
class HingeNetwork(NetworkSection):
    """Which plain network, and where its groups are."""

    arch: str = flag(
        "resnet56",
        help=lambda: f"{', '.join(networks.available())}, or package.module:callable for your own (default: resnet56)",
    )
    arch_options: Sequence[str] | None = flag(
        nargs="+",
        metavar="NAME=VALUE",
        help="of a named network, as shortcut=C (default: the paper's, or what --pretrained_model shows)",
    )
    variant: str | None = flag(
        help="where groups are: svd or columns; graph and channels are rules for any network; blocks: whole residual "
        "blocks, with a plus beside another's groups, as columns+blocks"
    )
    init: str = flag("svd2", choices=INITS, help="how pairs begin (default: svd2)")
    pretrained_model: str | None = flag(help="weights of the plain network to start from")


class HingeSpace(Space):
    """CNNs between filter pruning and low-rank decomposition (Li et al., CVPR 2020, arXiv 2003.08935)."""

    family = "group_sparsity"
    name = "hinge"
    task = "classification"
    section = HingeNetwork

    def settled(self, config: RunConfig, given: Mapping, state: Mapping[str, Tensor], what: object) -> dict[str, Any]:
        """Determine which named network weights belong to.

        Args:
            config: the configuration so far.
            given: the flags that the user named on the command line.
            state: the weights.
            what: where they come from, for errors.

        Returns:
            The flags `arch` and `arch_options`; empty for a user's own network.

        Raises:
            UseError: the command line contradicts the weights.
        """
        if ":" in config.network.arch:
            return {}
        layout = loaders.read(state, what)
        if "arch" in given and given["arch"] != layout.arch:
            raise UseError(f"--arch {given['arch']}: {what} is of {layout.arch}")
        options = dict(layout.options)
        for name, value in parsed(given.get("arch_options")).items():
            if name in options and options[name] != value:
                raise UseError(f"--arch_options {name}={value}: {what} has {options[name]}")
            options[name] = value
        entries = [f"{name}={value}" for name, value in options.items()]
        return {"arch": layout.arch, "arch_options": entries or None}

    def config(self, options, shape: Sequence[int] = networks.INPUT_SHAPE) -> dict:
        """Return the recipe of a network as plain values, as files store it.

        Args:
            options: by name; missing ones have their defaults.
            shape: (C, H, W) of an input, if `options` have none.

        Raises:
            UseError: an invalid value.
        """
        recipe = {
            "arch": options.get("arch", "resnet56"),
            "arch_options": parsed(options.get("arch_options")),
            "n_class": options.get("n_class") or 10,
            "variant": options.get("variant"),
            "init": options.get("init", "svd2"),
            "input_shape": list(options.get("input_shape") or shape),
            "fold": options.get("fold", "exact"),
        }
        for name, right in _RECIPE.items():
            if not right(recipe[name]):
                raise UseError(f"a network's recipe: {name} cannot be {recipe[name]!r:.80}")
        return recipe

    def plain(self, config) -> nn.Module:
        """Build the network without pairs, its weights drawn from torch's generator."""
        config = self.config(config)
        return networks.create(config["arch"], config["n_class"], **config["arch_options"])

    def plan(self, plain: nn.Module, config: Mapping, graph: ChannelGraph) -> Plan:
        """Return the plan of a plain network, whose channels are `graph`: its pairs and removable groups."""
        return plan_for(config["arch"], config["variant"], plain, graph)

    def hinged(self, plain: nn.Module, config, seed: int = 0, loaded: bool = False) -> Hinged:
        """Insert the pairs into a plain network, in place, and determine its group structure.

        Args:
            plain: the network; changed.
            config: its recipe.
            seed: of random initialisations.
            loaded: whether weights are loaded afterwards, so that a cheaper initialisation of equal shapes will do.
        """
        config = self.config(config)
        shape, init = config["input_shape"], config["init"]
        graph = trace(plain, example(shape, plain))
        plan = self.plan(plain, config, graph)
        baseline = costs(Accounting(plain, graph).count())
        if loaded and init == "svd2" and all(_tall(plain.get_submodule(name)) for name in plan.splits):
            init = "p-identity"
        network = hinge(plain, plan, init, torch.Generator().manual_seed(seed))
        return Hinged(network, Reduction(network, plan, shape, baseline))

    def supernet(self, config) -> nn.Module:
        """Build the network with its pairs, with random weights."""
        return self.hinged(self.plain(config), config).network

    def structure(self, config) -> Hinged:
        """Build the network with its pairs for weights to be loaded into.

        Raises:
            UseError: a network larger than this machine's memory.
        """
        config = self.config(config)
        _check_size(config)
        return self.hinged(self.plain(config), config, loaded=True)

    def load_weights_into(self, network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
        """Load a plain network's weights, in any known layout."""
        loaders.load_into(network, state, source)

    def compressed(self, hinged: Hinged, mask: GroupMask) -> Compressed:
        """Build a smaller network from a hinged one with its weights, without the dropped groups, and say what went."""
        reduction, fold = hinged.reduction, mask.config.get("fold", "exact")
        check_sets(reduction, mask)
        small = remove_groups(hinged.network, reduction.removal, mask.kept, fold)
        merge(small.network, mask.merged)
        return small

    def network(self, mask: GroupMask, config=None, state: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Build the small network of a mask.

        Args:
            mask: the kept groups.
            config: ignored; the mask holds the recipe.
            state: weights to load, strictly; None: they stay random.
        """
        hinged = self.structure(mask.config)
        network, reduction = hinged.network, hinged.reduction
        check_sets(reduction, mask)
        gone = reduction.removal.gone(mask.kept)
        gone[list(mask.config.get("stays", ()))] = False
        reduction.removal.remove(network, gone)
        merge(network, mask.merged)
        if state is not None:
            fit_additions(network, state)
            weights.load_strictly(network, state, "the network's weights")
        return network

    def transfer(self, checkpoint: Mapping[str, Tensor], mask: GroupMask, config=None) -> dict[str, Tensor]:
        """Compute the small network's weights from the hinged one's, constants of removed channels folded in."""
        hinged = self.structure(mask.config)
        weights.load_strictly(hinged.network, checkpoint, "checkpoint")
        return self.compressed(hinged, mask).network.state_dict()

    def save(self, path, network: nn.Module, mask: GroupMask) -> None:
        """Write a small network as a safetensors file that describes how it is built."""
        entries = {"space": SPACE, **mask.recipe()}
        weights.save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in entries.items()})

    def exportable(self, network: nn.Module, batch: Tensor, options, mask: GroupMask | None = None):
        """Describe the network for retrain/export.py; mask: None for a plain network."""
        from sparsemask.spaces.group_sparsity.export import exportable

        return exportable(network, batch, mask, self.save)

    def load(self, path: str | os.PathLike) -> Loaded:
        """Load the network of a file and its mask (None for plain and published files).

        Reads this toolkit's checkpoints and safetensors files, and public files, compressed ones included.
        """
        checkpoint = weights.read_checkpoint(path)
        recipe = checkpoint.get("mask")
        if Path(path).suffix == ".safetensors" and "kept" in (entries := weights.metadata(path)):
            recipe = entries
        state = weights.bare_state(checkpoint, path)
        with describing(path):
            if isinstance(recipe, Mapping):
                mask = GroupMask.from_recipe(recipe, path)
                return Loaded(self.network(mask, state=state).eval(), mask)
            if isinstance(checkpoint.get("network"), Mapping):  # a search's
                network = self.structure(checkpoint["network"]).network
                weights.load_strictly(network, state, path)
                return Loaded(network.eval())
            return Loaded(loaders.build(state, path))


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


# Checks of a recipe's entries, which may come from an untrusted file.
_RECIPE = {
    "arch": lambda v: isinstance(v, str),
    "arch_options": lambda v: all(isinstance(name, str) and is_plain(part) for name, part in v.items()),
    "n_class": lambda v: _whole(v, 1 << 20),
    "variant": lambda v: v is None or isinstance(v, str),
    "init": lambda v: v in INITS,
    "input_shape": lambda v: len(v) == 3 and all(_whole(n, 1 << 16) for n in v),
    "fold": lambda v: isinstance(v, str),
}


def _check_size(config: Mapping) -> None:
    """Raise UseError for a named network whose weights exceed this machine's memory."""
    if networks.architecture(config["arch"]) is not None:
        with weightless():
            network = networks.create(config["arch"], config["n_class"], **config["arch_options"])
        size = sum(4 * parameter.numel() for parameter in network.parameters())
        if size > memory():
            raise UseError(f"a network's recipe: {config['arch']} of {size >> 30} GiB is more than this machine has")


def _tall(conv: nn.Conv2d) -> bool:
    return conv.weight[0].numel() >= len(conv.weight)


def check_sets(reduction: Reduction, mask: GroupMask) -> None:
    """Check that a mask fits a network's group structure.

    Raises:
        UseError: it is a mask of another network.
    """
    known = {s.name: s.count for s in reduction.sets}
    for name, kept in mask.kept.items():
        if known.get(name) != len(kept):
            actual = f"{known[name]} groups" if name in known else "no such groups"
            raise UseError(f"the mask is of another network: {name} has {len(kept)} groups there, {actual} here")
    if missing := sorted(set(known) - set(mask.kept)):
        raise UseError(f"the mask is of another network: nothing is said of {', '.join(missing[:3])}")
    for name in mask.merged:
        choose(name, reduction.pairs, "pair")


def parsed(options: Sequence[str] | Mapping | None) -> dict:
    """Parse arguments of a network from `name=value` strings.

    Raises:
        UseError: a string without a name or an equals sign.
    """
    if isinstance(options, Mapping):
        return dict(options)
    arguments = {}
    for entry in options or ():
        name, equals, value = str(entry).partition("=")
        if not equals or not name:
            raise UseError(f"--arch_options {entry}: expected NAME=VALUE, as shortcut=C")
        arguments[name] = _value(value)
    return arguments


def _value(text: str):
    if text.lower() in ("true", "yes", "false", "no"):
        return text.lower() in ("true", "yes")
    try:
        return int(text)
    except ValueError:
        return text


register(HingeSpace.name, HingeSpace())
