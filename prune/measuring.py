"""The data and the network of a search, on which masks are measured when they are made hard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from sparsemask import datasets, tasks, training_setup
from sparsemask.config import RunConfig, Section, flag
from sparsemask.errors import say
from sparsemask.options import natural, positive
from sparsemask.spaces import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSection(Section):
    """Flags of the search with which a mask is measured."""

    batch_size: int | None = flag(None, positive, help="pictures a step")
    seed: int = flag(0, natural, help="seed of everything random")


def with_search(config: RunConfig, given: Mapping, saved: Mapping, known: Mapping, space: Space) -> RunConfig:
    """Complete a pruning's configuration by its search's network, and by its data unless the command line names others.

    Args:
        config: the command's.
        given: the flags that the user named on the command line.
        saved: the flags of the search.
        known: the network's hyperparameters and other values for the measurement, by flag; unknown ones are ignored.
        space: of the network.
    """
    sections = {"network": space.section(space=space.name), "training": SearchSection()}
    config = dataclasses.replace(config, **sections)
    config = config.replace(**{name: value for name, value in known.items() if name in config})
    if saved.get("task") in tasks.siblings(config.data.task) and "task" not in given:
        config = config.replace(task=saved["task"])
    kind = tasks.find(config.data.task)
    selected = {name: config[name] for name in (*kind.data_flags, "sample") if config.get(name)}
    selected["task"] = config.data.task
    names = {*kind.data_flags, *kind.score_flags, "sample"} & set(config)
    inherited = datasets.data_of(saved, selected, names, config.run.run or config.run.checkpoint or "the search")
    config = config.replace(**{name: value for name, value in inherited.items() if name in names and name not in given})
    chosen, _, line = datasets.choose_data({name: value for name, value in config.items() if value}, training=False)
    if line:
        say(line)
    config = config.replace(**chosen)
    training_setup.prepare(config)
    return config
