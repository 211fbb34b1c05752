"""Connectivity networks: built from a mask, started from an encoder, evaluated, shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsemask import masks, runs, spaces, tasks, training_setup
from sparsemask import report as page
from sparsemask.config import RunConfig, Section, flag
from sparsemask.costs import format_count, measure
from sparsemask.engine import Method, checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, say
from sparsemask.families import Built, Restored, RetrainingFamily
from sparsemask.files import sha256
from sparsemask.masks import npz
from sparsemask.masks.decoder import save_decoder
from sparsemask.options import Parser, adopted
from sparsemask.pictures import draw_architecture
from sparsemask.retrain.trained import prediction_writer, read_source, ready, record_evaluation, shortfall
from sparsemask.spaces.backbones import as_saved, forms
from sparsemask.spaces.connectivity.mask_source import BASELINE, Mask, resolve_mask
from sparsemask.spaces.connectivity.named_masks import available_masks
from sparsemask.spaces.connectivity.space import save_network
from sparsemask.spaces.connectivity_pruned_encoder.space import small_widths
from sparsemask.spaces.pretrained import distill_flag, encoder_weights, open_teacher, teacher_flag, temperature_flag
from sparsemask.training_setup import Context
from sparsemask.weights import file_space, load_strictly, load_weights, metadata

SLIM = "slim"
_DESCRIBED = ("backbone_name", "depth", "n_class")  # what a network's file says beside its mask


def mask_of(config: RunConfig, given: Mapping) -> tuple[Mask, RunConfig]:
    """The mask that a configuration names, and the configuration with the numbers that a mask of groups decides.

    given: the flags that the user named on the command line.

    Raises UseError when mask and backbone do not fit.
    """
    if grouped(config):
        return resolve_grouped(config, given)
    network = config.network
    return resolve_mask(config.family.mask_path, network.backbone_name, config.run.seed, network.depth), config


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivityMaskSection(Section):
    """Which mask."""

    title = "connectivity network"
    mask_path: str | None = flag(
        help=f"mask file, or a named mask: {', '.join(available_masks())}, or the baseline {BASELINE}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivityRetrainingSection(ConnectivityMaskSection):
    """Which mask, and where the weights start."""

    ft_model: str | None = flag(help="fine-tune: weights of the whole network", group="where the weights start")
    inherit: str = flag(
        "none",
        choices=("none", "encoder", "all"),
        help="take the encoder, or all kept connections too, from the search (default: none, the pretrained encoder)",
        group="where the weights start",
    )
    search_checkpoint: str | None = flag(
        help="checkpoint to inherit from (default: the mask's own)", group="where the weights start"
    )
    teacher: str = teacher_flag()
    distill: float = distill_flag()
    temperature: float = temperature_flag()


class ConnectivityRetraining(RetrainingFamily[Built, Restored]):
    """Small networks of searched, named and foreign masks."""

    verb = "retrain"
    section, eval_section = ConnectivityRetrainingSection, ConnectivityMaskSection

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Refuse an unusable mask or missing weights; a mask of groups decides the network's numbers."""
        mask, config = mask_of(config, given)
        if mask.lines and config.family.inherit != "none":
            raise UseError(f"--inherit {config.family.inherit}: the mask's search had another encoder; leave it out")
        if config.family.ft_model:
            load_weights(config.family.ft_model)
        return config

    def build(self, context: Context) -> Built:
        """The small network; its checkpoints carry its mask."""
        config, run = context.config, context.run
        space = spaces.get(config.network.space)
        if context.state is not None:
            mask = Mask.of_checkpoint(context.state["mask"])
            model = as_saved(lambda options: space.network(mask.argument, options), config, context.state["model"])
            teacher, entries = open_teacher(context)
            return Built(model, {"mask": mask.entry, **entries}, teacher=teacher)
        mask, _ = mask_of(config, context.given)
        for line in mask.lines:
            context.say(line)
        seed_all(config.run.seed)  # what is not inherited is drawn
        start = config.family.ft_model or (config.family.mask_path if grouped(config) else None)
        state = None
        if start:
            state = load_weights(start) if config.family.ft_model else spaces.get(SLIM).start(start)
        inherited = inherited_state(context, mask) if state is None else None
        weights, changes = encoder_weights(context) if inherited is None and state is None else (None, {})
        seed_all(config.run.seed)
        if mask.decoder is not None:
            if context.main:
                note = {**mask.note, "mask_path": str(config.family.mask_path)}
                save_decoder(run.folder / "mask.npy", mask.decoder, note)
            changes["mask_path"] = str(run.folder / "mask.npy")
        named = state if state is not None else inherited
        if named is not None:
            changes |= form_of(config, mask, named)
        model = space.network(mask.argument, config.replace(**changes))
        if state is not None:
            load_strictly(model, state, start)
            context.say(f"fine-tuning {start}")
        elif inherited is not None:
            model.load_state_dict({**model.state_dict(), **inherited})
        elif weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
        teacher, entries = open_teacher(context)
        return Built(model, {"mask": mask.entry, **entries}, changes, teacher=teacher)

    def method(self, context: Context, built: Built) -> Method:
        """A plain network is trained."""
        return Method()

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """The network to share, its costs and pictures."""
        config, run, model = context.config, context.run, built.model
        mask = Mask.of_checkpoint(built.extra["mask"])
        count = None if mask.connections is None else masks.count_connections(mask.connections)
        cost = measure(model, (1, 3, config.data.crop_size, config.data.crop_size))
        save_network(run.folder / "network.safetensors", model, config, config["n_class"])
        context.describe(run.folder / "network.safetensors")
        run.note(
            network="network.safetensors",
            connections=count,
            strides=[int(s) for s in model.backbone.strides],
            channels=[int(c) for c in model.backbone.channels],
            **page.cost_entries(cost, config.data.crop_size),
        )
        context.draw_training(model)
        if mask.decoder is not None:
            drawing = run.pictures / "architecture.png"
            draw_architecture(mask.decoder, drawing, model.backbone.strides, model.backbone.channels)
        kept = BASELINE if count is None else f"{count} connections"
        line = (
            f"retrained: {context.metric_text(result)}; {kept}, "
            f"{format_count(cost.parameters)} parameters, {format_count(cost.multiply_adds)} multiply-adds, "
            f"{cost.milliseconds:.1f} ms at {config.data.crop_size}x{config.data.crop_size}"
        )
        context.announce([line, shortfall(context, result)], ["network.safetensors"], then="eval")
        return 0

    def restore(self, parser: Parser, given: dict, run: runs.Run | None) -> Restored:
        """Of a run, of a network's own file, or of any weights file with --mask_path."""
        # The run's limit was for validation while training; here it is for the asking.
        source = read_source(parser, given, run, ("eval_limit",))
        config, saved = source.config, source.saved
        if source.state is not None:
            for name in ("task", "backbone_name", "depth"):
                if config[name] != saved.get(name):
                    raise UseError(f"--{name} {config[name]}: the run has {saved.get(name)}")
            config = config.replace(**{name: saved.get(name) for name in (*forms.names(), "widths")})
            mask, weights = Mask.of_checkpoint(source.state["mask"]), source.state["model"]
        else:
            weights = load_weights(source.path)
            mask, config = described(config, given, source.path) or mask_of(config, source.given)
            config = config.replace(**form_of(config, mask, weights))
        where = training_setup.device(config)
        training_setup.prepare(config)
        config = tasks.get(config.data.task, config).config
        if source.state is not None and config.data.n_class != saved.get("n_class"):
            raise UseError(f"--n_class {config.data.n_class}: the run has {saved.get('n_class')}")
        model = spaces.get(config.network.space).network(mask.argument, config)
        load_strictly(model, weights, source.path)
        return Restored(config, ready(model, where), where, run, mask.argument)

    def evaluate(self, restored: Restored) -> int:
        """Print the task's report; write predictions and the picture of the scores where asked for."""
        config, model, where = restored.config, restored.model, restored.arithmetic
        task = tasks.get(config.data.task, config)
        views = {"flips": config.evaluation.flips, "scales": tuple(config.evaluation.eval_scales)}
        write = prediction_writer(task, config.evaluation.out)
        context = tasks.EvaluationContext.from_config(where, config)
        scores = task.evaluate(model, context, limit=config.evaluation.eval_limit, **views, on_prediction=write)
        if distributed.rank():
            return 0
        say(task.report(scores))
        if config.evaluation.out:
            say(f"predictions in {config.evaluation.out}")
        record_evaluation(restored, task, scores, {"eval": {**task.record(scores), "pictures": scores.count}})
        return 0

    def load_run(self, run: runs.Run) -> torch.nn.Module:
        """From the run's last checkpoint."""
        return spaces.get(checkpoint.load(run.last)["space"]).load(run.last).network


def described(config: RunConfig, given: Mapping, path: Path) -> tuple[Mask, RunConfig] | None:
    """The mask that a network's file says, and the configuration with its network's numbers.

    Args:
        config: of the command.
        given: the flags that the user named.
        path: the file.

    Returns:
        None where the configuration names a mask, or the file is not one of :func:`save_network`.

    Raises:
        UseError: a damaged file, or flags that contradict it.
    """
    if config.family.mask_path or path.suffix != ".safetensors" or file_space(path) != config.network.space:
        return None
    mask, entries = spaces.get(config.network.space).load(path).mask, metadata(path)
    return Mask(mask), adopted(config, given, {name: entries[name] for name in _DESCRIBED}, path)


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


FAMILY = ConnectivityRetraining()
