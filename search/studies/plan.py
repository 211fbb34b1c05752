"""What a study does: which flags it varies and over which ranges, and what every verb of a trial is called with."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sparsemask.config import RunConfig
from sparsemask.containers import read_yaml
from sparsemask.errors import UseError, choose
from sparsemask.options import Parser, natural, plain, positive
from sparsemask.search.studies.data import fingerprint

# The stages of a trial, and the commands that do them.
VERBS = {"search": "sparsemask.search.run", "prune": "sparsemask.prune.prune", "retrain": "sparsemask.retrain.train"}
COSTS = ("multiply_adds", "milliseconds", "parameters")
# Ranges without --grid: this factor down and up from the value of the preset or configuration, on a log scale.
AROUND = {"sparse": 4.0, "lr": 3.0, "mask_lr_mult": 4.0, "thres": 10.0}
# Where and how it is computed, not what: may differ between the machines of one study.
_LOCAL = {"gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "voc_root", "class_names"}
_LOCAL |= {"data_root", "pretrained_model"}
_OWN = {
    "exp_path",
    "name",
    "config",
    "resume",
    "out",
    "run",
    "checkpoint",
    "mask_path",
    "search_checkpoint",
    "ft_model",
}


ADDED = ("data", "settled flags")


@dataclass
class Plan:
    """A settled study, as it is handed to the workers."""

    study: str
    folder: str
    storage: str | None
    objectives: list[str]  # quality (up), cost (down)
    ranges: dict[str, dict]  # name -> {"low", "high", "log"} or {"choices"}
    flags: dict[str, dict]  # verb -> fixed flags
    trials: int
    seed: int = 0
    hopeless: float = 0.5
    max_connections: int = 0
    heartbeat: int = 20
    identity: dict = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """What `to_json` wrote."""
        return cls(**json.loads(line))

    def suggest(self, trial) -> dict:
        """Draw every varied flag's value for an Optuna trial."""
        drawn = {}
        for name, span in self.ranges.items():
            if "choices" in span:
                drawn[name] = trial.suggest_categorical(name, span["choices"])
            elif isinstance(span["low"], int):
                drawn[name] = trial.suggest_int(name, span["low"], span["high"], log=span["log"])
            else:
                drawn[name] = trial.suggest_float(name, span["low"], span["high"], log=span["log"])
        return drawn

    def call(self, verb: str, drawn: dict) -> dict:
        """A verb's flags in a trial; a name with the verb before it (search.lr) wins over the bare one."""
        known = actions(verb, self.flags["search"]["space"])
        varied = {name: value for name, value in drawn.items() if name in known}
        varied |= {n.removeprefix(f"{verb}."): v for n, v in drawn.items() if n.startswith(f"{verb}.")}
        return {**self.flags[verb], **varied}


def verb_parser(verb: str, space: str) -> Parser:
    """The parser of a verb; like the command line's front, a study stands above the commands."""
    return importlib.import_module(VERBS[verb]).parser(space)


def actions(verb: str, space: str) -> dict[str, argparse.Action]:
    """The flags of a verb that a study may set."""
    return {name: action for name, action in verb_parser(verb, space).actions().items() if name not in _OWN}


def verb_flags(verb: str, space: str, given: dict, config: str | None) -> dict:
    """A verb's fixed flags: the configuration's (prune takes its own only), then the study's command line."""
    filed = verb_parser(verb, space).from_file(config) if config and verb != "prune" else {}
    known = actions(verb, space)
    return {**plain({n: v for n, v in {**filed, **given}.items() if n in known}), "space": space}


def objectives(text: str | None, primary: str) -> list[str]:
    """The two objectives: what the task calls its primary figure, up, and a cost, down."""
    names = [part.strip() for part in (text or f"{primary},multiply_adds").split(",")]
    if len(names) != 2 or names[0] != primary or names[1] not in COSTS:
        raise UseError(f"--objectives {text}: '{primary},' and one of {', '.join(COSTS)}, as in {primary},{COSTS[0]}")
    return names


def default_ranges(settled: RunConfig, fixed: dict) -> dict[str, dict]:
    """Ranges around the settled values, of the flags that the command line does not fix."""
    ranges = {}
    for name, factor in AROUND.items():
        value = settled.get(name)
        if value and name not in fixed:
            high = min(value * factor, 0.5) if name == "thres" else value * factor
            ranges[name] = {"low": _rounded(value / factor), "high": _rounded(high), "log": True}
    if "depth" not in fixed:
        depth = settled.network.depth
        ranges["depth"] = {"choices": [max(1, depth // 2), depth, depth * 2]}
    if not ranges:
        raise UseError("nothing is left to vary: the command line fixes every flag of the study; give --grid")
    return ranges


def read_ranges(path: str, space: str, fixed: dict) -> dict[str, dict]:
    """Ranges from a YAML file: ``flag: {low: 0.001, high: 0.1, log: true}`` or ``flag: [32, 64, 128]``.

    A flag goes to every verb that has it; ``search.lr`` and ``retrain.lr`` name one verb's.
    """
    if not Path(path).is_file():
        raise UseError(f"--grid {path}: no such file")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UseError(f"{path}: expected a mapping of flags to ranges, such as sparse: {{low: 0.003, high: 0.1}}")
    return {str(name): _range(str(name), span, path, space, fixed) for name, span in content.items()}


def _range(name: str, span, path: str, space: str, fixed: dict) -> dict:
    verb, _, flag = name.rpartition(".")
    known: dict[str, argparse.Action] = {}
    for one in [verb] if verb else VERBS:
        choose(one, VERBS, f"verb in {path}, '{name}'")
        known = {**actions(one, space), **known}
    choose(flag, known, f"flag in {path}")
    if flag in fixed:
        raise UseError(f"{path}: '{name}' is fixed by the command line (--{flag}); leave out one of the two")
    convert = known[flag].type or str
    whole = convert in (int, natural, positive)
    try:
        if isinstance(span, list) and span:
            return {"choices": [convert(str(value)) for value in span]}
        if isinstance(span, dict) and {"low", "high"} <= set(span) <= {"low", "high", "log"}:
            low, high = convert(str(span["low"])), convert(str(span["high"]))
            log = span.get("log", False)
            if (
                isinstance(low, int if whole else float)
                and isinstance(log, bool)
                and low <= high
                and (low > 0 or not log)
            ):
                return {"low": low, "high": high, "log": log}
    except (ValueError, argparse.ArgumentTypeError):
        pass
    raise UseError(f"{path}: '{name}' needs {{low: .., high: .., log: true or false}} or a list, found {span!r}")


def identity(plan: Plan, settled: RunConfig, task) -> dict:
    """What every process on one study must have in common: what is searched on which data, and by which fixed flags.

    settled: the search's flags with what presets and defaults give them.
    """
    flags = {verb: {n: v for n, v in own.items() if n not in _LOCAL} for verb, own in plan.flags.items()}
    common = {"objectives": plan.objectives, "ranges": plan.ranges, "seed": plan.seed}
    common["training pictures"] = len(task.train_data)
    varied = {name.rpartition(".")[2] for name in plan.ranges}
    space = settled.network.space
    values = {n: settled[n] for n in actions("search", space) if n not in _LOCAL | varied}
    common["data"] = fingerprint(task, settled)
    found = {"space": space, "task": settled.data.task, **common, **flags, "settled flags": plain(values)}
    return json.loads(json.dumps(found))


def difference(mine: dict, other: dict) -> str:
    """Where two identities part, in a few words; empty when they are the same.

    other: of the study as it was begun, perhaps by a version that did not note what is `ADDED`.
    """
    for name in sorted(mine.keys() | other.keys(), key=list({**mine, **other}).index):
        if name in ADDED and name not in other:
            continue
        a, b = mine.get(name), other.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            inner = min(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
            name, a, b = f"{name}: {inner}", a.get(inner), b.get(inner)
        return f"{name} is {_short(b)} there and {_short(a)} here"
    return ""


def _short(value) -> str:
    return "absent" if value is None else json.dumps(value)


def _rounded(value: float) -> float:
    return round(value, 3 - math.floor(math.log10(value)))
