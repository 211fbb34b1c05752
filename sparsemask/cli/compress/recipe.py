"""Recipes of `sparsemask compress`, read and checked before anything is run.

A recipe is YAML: `flags` for every verb that has them, a `target`, `steps` in their order, perhaps `baseline`,
`rounds` and `compiled`. Flags are the verbs' own, checked by their parsers.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from sparsemask import spaces, tasks
from sparsemask.containers import read_yaml
from sparsemask.errors import UseError, meant
from sparsemask.options import Parser
from sparsemask.spaces.backbones import forms

VERBS = {
    "search": "sparsemask.search.run",
    "prune": "sparsemask.prune.prune",
    "retrain": "sparsemask.retrain.train",
    "specialize": "sparsemask.retrain.specialize",
    "export": "sparsemask.retrain.export",
}
AUTO = "auto"
"""In place of a step's budget: what the target leaves to it."""
COSTS = ("milliseconds", "multiply_adds")


@dataclass(frozen=True)
class Kind:
    """What a step does."""

    calls: tuple[tuple[str, str], ...]
    """(verb, space) in their order; a space of "" is that of the network at hand."""
    needs: str = ""
    """What a step before it must have given."""
    gives: str = ""
    budget: str = ""
    """The flag that the target may settle."""


KINDS = {
    "search": Kind((("search", "connectivity"),), gives="search"),
    "prune": Kind((("prune", "connectivity"),), "search", "mask"),
    "retrain": Kind((("retrain", "connectivity"),), "mask", "network"),
    "groups": Kind(
        (("search", "slim"), ("prune", "slim"), ("retrain", "connectivity")), "network", "slim network", "target"
    ),
    "specialize": Kind((("specialize", "specialized"),), "network", "specialised network", "keep"),
    "export": Kind((("export", ""),), "network"),
}
# What the recipe's order of steps says; never flags of a recipe. A retraining without a search names its own mask.
_OWN = {"exp_path", "name", "resume", "run", "checkpoint", "mask_path", "search_checkpoint", "ft_model", "space", "out"}
_ALLOWED = {("retrain", "mask_path"), ("export", "out"), ("export", "checkpoint")}
_ENCODER = ("pretrained_model", *forms.names())
_NETWORK = ("backbone_name", "depth")
_KEYS = ("flags", "target", "baseline", "rounds", "compiled", "steps")


@dataclass(frozen=True)
class Target:
    """What the last network may cost."""

    by: str
    value: float
    share: bool
    """Whether `value` is a share of the fully dense network's cost."""

    def __str__(self) -> str:
        if self.share:
            return f"{100 * self.value:g}% of the fully dense network's {self.by.replace('_', '-')}"
        return f"{self.value:g} {self.by.replace('_', '-')}"


@dataclass(frozen=True)
class Step:
    """One step, its flags by verb: checked, the recipe's common ones included."""

    kind: str
    flags: dict[str, dict]
    auto: bool = False


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    path: Path
    steps: tuple[Step, ...]
    target: Target | None = None
    baseline: dict = field(default_factory=dict)
    """Flags of the fully dense network's retraining: those of the step `retrain`, and the recipe's own on top."""
    rounds: int = 15
    compiled: bool = False
    """Whether networks without data masks are also compiled, and the faster form is taken."""
    content: dict = field(default_factory=dict)
    """As it was written."""


def packaged() -> dict[str, Path]:
    """The recipes that come with the toolkit, by name."""
    folder = resources.files("sparsemask.recipes")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}


def read(name: str) -> Recipe:
    """The recipe of a file or of a packaged name; UseError naming the key at fault."""
    path = packaged().get(name, Path(name))
    if not path.is_file():
        near = f"; {suggestion.strip()}" if (suggestion := meant(name, packaged())) else ""
        raise UseError(f"recipe not found: {name} (a file, or one of: {', '.join(sorted(packaged()))}){near}")
    content = read_yaml(path)
    content = _mapping(content, str(path), _KEYS)
    common = _mapping(content.get("flags"), f"{path}: flags")
    rounds = content.get("rounds", Recipe.rounds)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise UseError(f"{path}: rounds must be a whole number of at least 1, found {rounds!r}")
    compiled = content.get("compiled", Recipe.compiled)
    if not isinstance(compiled, bool):
        raise UseError(f"{path}: compiled must be true or false, found {compiled!r}")
    target = _target(content.get("target"), path)
    steps = _steps(content.get("steps"), common, target, path)
    baseline = dict(next((step.flags["retrain"] for step in steps if step.kind == "retrain"), {}))
    overrides = _mapping(content.get("baseline"), f"{path}: baseline")
    baseline |= _checked("retrain", "connectivity", common, {**overrides}, f"{path}: baseline", {})
    baseline.pop("mask_path", None)
    return Recipe(path, steps, target, baseline, rounds, compiled, content)


def _mapping(value, title: str, allowed: tuple[str, ...] | None = None) -> dict:
    if value is None and allowed is None:
        return {}
    if not isinstance(value, dict):
        raise UseError(f"{title}: expected a mapping, found {type(value).__name__}")
    for key in value:
        if allowed is not None and key not in allowed:
            raise UseError(f"{title}: unknown key '{key}'; {meant(key, allowed)}known: {', '.join(allowed)}")
    return {str(key): item for key, item in value.items()}


def _target(value, path: Path) -> Target | None:
    if value is None:
        return None
    title = f"{path}: target"
    mapping = _mapping(value, title, COSTS)
    if len(mapping) != 1:
        raise UseError(f"{title}: name one of {', '.join(COSTS)}, as in milliseconds: 25%")
    ((by, text),) = mapping.items()
    share = isinstance(text, str) and text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / 100 if share else float(text)
        if isinstance(text, bool) or not 0 < number < math.inf:
            raise ValueError
    except (TypeError, ValueError):
        raise UseError(f"{title}.{by}: a number above 0, or a share such as 25%, not {text!r}") from None
    return Target(by, number, share)


def _steps(value, common: dict, target: Target | None, path: Path) -> tuple[Step, ...]:
    if not isinstance(value, list) or not value:
        raise UseError(f"{path}: steps: expected a list of {', '.join(KINDS)}")
    available, steps, unknown = {""}, [], set(common)
    for number, entry in enumerate(value, 1):
        entry = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UseError(f"{path}: steps: step {number}: expected one of {', '.join(KINDS)}, with its flags")
        ((kind, flags),) = entry.items()
        title = f"{path}: step {number} ({kind})"
        if kind not in KINDS:
            near = meant(kind, KINDS)
            raise UseError(f"{path}: steps: step {number}: unknown step '{kind}'; {near}known: {', '.join(KINDS)}")
        if any(step.kind == kind for step in steps):
            raise UseError(f"{title}: stands twice")
        flags = _mapping(flags, title)
        _in_order(kind, flags, available, steps, title)
        available.add(KINDS[kind].gives)
        steps.append(_step(kind, flags, common, target, title))
        if kind == "retrain":  # what comes after starts from its network
            common = {**common, **{n: v for n, v in steps[-1].flags["retrain"].items() if n in _NETWORK}}
        for verb, space in KINDS[kind].calls:
            unknown -= parser(verb, space, common.get("task")).actions().keys()
    if unknown:
        raise UseError(f"{path}: flags: no step has a flag '{sorted(unknown)[0]}'")
    if not any(step.kind == "retrain" for step in steps):
        raise UseError(f"{path}: steps: a step 'retrain' is missing: it makes the network")
    return tuple(steps)


def _in_order(kind: str, flags: dict, available: set[str], steps: list[Step], title: str) -> None:
    """Raise UseError where the order of the steps is wrong."""
    needs = KINDS[kind].needs
    mask_given = kind == "retrain" and "mask_path" in flags
    if mask_given and "mask" in available:
        raise UseError(f"{title}: mask_path: the step 'prune' makes the mask; leave out one of the two")
    if needs not in available and not mask_given:
        maker = next(name for name, step_kind in KINDS.items() if step_kind.gives == needs)
        also = ", or give it mask_path" if kind == "retrain" else ""
        raise UseError(f"{title}: stands before the step '{maker}', which it needs{also}")
    before = [step.kind for step in steps]
    if kind != "export" and "export" in before:
        raise UseError(f"{title}: stands after 'export', which writes the finished network")
    if kind != "export" and "specialize" in before:
        raise UseError(f"{title}: stands after 'specialize', whose masks belong to its weights")


def _step(kind: str, step_flags: dict, common: dict, target: Target | None, title: str) -> Step:
    """A step with the flags of each of its verbs: common ones < the step's < those of a section named as the verb."""
    calls, budget = KINDS[kind].calls, KINDS[kind].budget
    many = len(calls) > 1
    sections = {verb: _mapping(step_flags.pop(verb, None), f"{title}: {verb}") for verb, _ in calls} if many else {}
    auto = bool(budget) and step_flags.get(budget) == AUTO
    if auto:
        step_flags.pop(budget)
        if target is None:
            raise UseError(f"{title}: {budget}: auto needs a target, and the recipe has none")
    flags, unknown = {}, set(step_flags)
    for verb, space in calls:
        section = sections.get(verb, {})
        flat = step_flags if not many else {k: v for k, v in step_flags.items() if k in parser(verb, space).actions()}
        unknown -= flat.keys()
        flags[verb] = _checked(verb, space, common, {**flat, **section}, title, section)
    if unknown:
        wrong = sorted(unknown)[0]
        near = meant(wrong, {name for verb, space in calls for name in parser(verb, space).actions()}).strip()
        raise UseError(f"{title}: unknown flag '{wrong}'{f'; {near}' if near else ''}")
    if kind == "export":
        _check_out(flags["export"], title)
    return Step(kind, flags, auto)


def _check_out(flags: dict, title: str) -> None:
    names = flags.get("out")
    if not names:
        raise UseError(f"{title}: out: files to write, such as [network.onnx]")
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise UseError(f"{title}: out: '{name}': a file name alone; it is written into the recipe's folder")


def _checked(verb: str, space: str, common: dict, step_flags: dict, title: str, section: dict) -> dict:
    verb_parser = parser(verb, space, common.get("task"))
    if space == "slim" or verb in ("specialize", "export"):  # start from the network at hand, not from an encoder
        common = {name: value for name, value in common.items() if name not in _ENCODER}
    for name in {**common, **step_flags}:
        if name in _OWN and (verb, name) not in _ALLOWED:
            raise UseError(f"{title}: '{name}' is the recipe's own business; leave it out")
        if name == "task" and name in step_flags:
            raise UseError(f"{title}: 'task' belongs to the recipe's flags: all steps have one task")
    section_title = f"{title}: {verb}" if section else title
    return {**verb_parser.checked(common, title, foreign=True), **verb_parser.checked(step_flags, section_title)}


@functools.lru_cache(maxsize=32)
def parser(verb: str, space: str, task: str | None = None) -> Parser:
    """A verb's parser for a space's networks. Like the command line's front, compress stands above the verbs."""
    module = importlib.import_module(VERBS[verb])
    if task is not None and task not in tasks.siblings(tasks.DEFAULT):
        raise UseError(f"--task {task}: recipes are for {', '.join(tasks.siblings(tasks.DEFAULT))}")
    if verb == "specialize":
        return module.parser(spaces.get(space))
    return module.parser(space or "connectivity")
