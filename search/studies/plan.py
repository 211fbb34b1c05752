"""Plan of a study: which flags it varies over which ranges, and the flags of every command of a trial."""

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
# Flags about where and how to compute, which may differ between the machines of one study.
_LOCAL = {"gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "voc_root", "class_names"}
_LOCAL |= {"label_map"}
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
    """A resolved study, as it is passed to the workers."""

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
    storage_wait: int = 300  # seconds
    identity: dict = field(default_factory=dict)

    def to_json(self) -> str:
        """Serialise to one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """Parse the output of :meth:`to_json`."""
        return cls(**json.loads(line))

    def suggest(self, trial) -> dict:
        """Sample every varied flag's value for an Optuna trial."""
        values = {}
        for name, span in self.ranges.items():
            if "choices" in span:
                values[name] = trial.suggest_categorical(name, span["choices"])
            elif isinstance(span["low"], int):
                values[name] = trial.suggest_int(name, span["low"], span["high"], log=span["log"])
            else:
                values[name] = trial.suggest_float(name, span["low"], span["high"], log=span["log"])
        return values

    def call(self, verb: str, values: dict) -> dict:
        """Return a command's flags in a trial; a name with the command as prefix (search.lr) overrides the bare one."""
        known = actions(verb, self.flags["search"]["space"])
        varied = {name: value for name, value in values.items() if name in known}
        varied |= {n.removeprefix(f"{verb}."): v for n, v in values.items() if n.startswith(f"{verb}.")}
        return {**self.flags[verb], **varied}


def verb_parser(verb: str, space: str) -> Parser:
    """Return the parser of a command, imported lazily: a study stands above the commands."""
    return importlib.import_module(VERBS[verb]).parser(space)


def actions(verb: str, space: str) -> dict[str, argparse.Action]:
    """Return the flags of a command that a study may set."""
    return {name: action for name, action in verb_parser(verb, space).actions().items() if name not in _OWN}


def verb_flags(verb: str, space: str, given: dict, config: str | None) -> dict:
    """Return a command's fixed flags: the configuration's (not for prune), overridden by the study's command line."""
    filed = verb_parser(verb, space).from_file(config) if config and verb != "prune" else {}
    known = actions(verb, space)
    return {**plain({n: v for n, v in {**filed, **given}.items() if n in known}), "space": space}


def objectives(text: str | None, primary: str) -> list[str]:
    """Parse the two objectives: the task's primary metric (maximised) and a cost (minimised).

    Raises:
        UseError: other than these two.
    """
    names = [part.strip() for part in (text or f"{primary},multiply_adds").split(",")]
    if len(names) != 2 or names[0] != primary or names[1] not in COSTS:
        raise UseError(f"--objectives {text}: '{primary},' and one of {', '.join(COSTS)}, as in {primary},{COSTS[0]}")
    return names


def default_ranges(config: RunConfig, fixed: dict) -> dict[str, dict]:
    """Return ranges around the configuration's values, for flags that the command line does not fix.

    Raises:
        UseError: the command line fixes every flag.
    """
    ranges = {}
    for name, factor in AROUND.items():
        value = config.get(name)
        if value and name not in fixed:
            high = min(value * factor, 0.5) if name == "thres" else value * factor
            ranges[name] = {"low": _rounded(value / factor), "high": _rounded(high), "log": True}
    budget = config.get("budget_macs")
    if budget and not {"method", "budget_ms", "budget_macs"} & set(fixed):
        # What the networks found cost follows their budget.
        value, unit = (float(budget[:-1]), "%") if isinstance(budget, str) else (float(budget), "")
        shares = [value / 2, value, value * 2 if not unit else min(100.0, value * 2)]
        ranges["budget_macs"] = {"choices": [f"{share:g}{unit}" for share in dict.fromkeys(shares)]}
    if "depth" not in fixed:
        depth = config.network.depth
        ranges["depth"] = {"choices": [max(1, depth // 2), depth, depth * 2]}
    if not ranges:
        raise UseError("nothing is left to vary: the command line fixes every flag of the study; give --grid")
    return ranges


def read_ranges(path: str, space: str, fixed: dict) -> dict[str, dict]:
    """Ranges from a YAML file: ``flag: {low: 0.001, high: 0.1, log: true}`` or ``flag: [32, 64, 128]``.

    A flag applies to every command that has it; ``search.lr`` and ``retrain.lr`` apply to one.

    Args:
        path: the file.
        space: name of the searched space.
        fixed: flags that the command line fixes.

    Raises:
        UseError: a missing or invalid file, an unknown flag, or one that the command line fixes.
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
    for candidate in [verb] if verb else VERBS:
        choose(candidate, VERBS, f"verb in {path}, '{name}'")
        known = {**actions(candidate, space), **known}
    choose(flag, known, f"flag in {path}")
    if flag in fixed:
        raise UseError(f"{path}: '{name}' is fixed by the command line (--{flag}); leave out one of the two")
    convert = known[flag].type or str
    integral = convert in (int, natural, positive)
    try:
        if isinstance(span, list) and span:
            return {"choices": [convert(str(value)) for value in span]}
        if isinstance(span, dict) and {"low", "high"} <= set(span) <= {"low", "high", "log"}:
            low, high = convert(str(span["low"])), convert(str(span["high"]))
            log = span.get("log", False)
            if (
                isinstance(low, int if integral else float)
                and isinstance(log, bool)
                and low <= high
                and (low > 0 or not log)
            ):
                return {"low": low, "high": high, "log": log}
    except (ValueError, argparse.ArgumentTypeError):
        pass
    raise UseError(f"{path}: '{name}' needs {{low: .., high: .., log: true or false}} or a list, found {span!r}")


def identity(plan: Plan, config: RunConfig, task) -> dict:
    """Return what all processes of a study must agree on: space, data, objectives, ranges and fixed flags.

    Args:
        plan: the study.
        config: the search's resolved configuration.
        task: its data.
    """
    flags = {verb: {n: v for n, v in options.items() if n not in _LOCAL} for verb, options in plan.flags.items()}
    common = {"objectives": plan.objectives, "ranges": plan.ranges, "seed": plan.seed}
    common["training pictures"] = len(task.train_data)
    varied = {name.rpartition(".")[2] for name in plan.ranges}
    space = config.network.space
    values = {n: config[n] for n in actions("search", space) if n not in _LOCAL | varied}
    common["data"] = fingerprint(task, config)
    entries = {"space": space, "task": config.data.task, **common, **flags, "settled flags": plain(values)}
    return json.loads(json.dumps(entries))


def difference(current: dict, stored: dict) -> str:
    """Describe the first difference of two identities; empty if they are equal.

    Args:
        current: of this process.
        stored: of the study in the storage, perhaps without the entries `ADDED` by later versions.
    """
    for name in sorted(current.keys() | stored.keys(), key=list({**current, **stored}).index):
        if name in ADDED and name not in stored:
            continue
        a, b = current.get(name), stored.get(name)
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
