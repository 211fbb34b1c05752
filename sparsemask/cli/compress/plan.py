"""The stages of a recipe, one command each, and their state, kept in compress.json."""

from __future__ import annotations

import importlib
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsemask.cli.compress.recipe import KINDS, VERBS, Recipe, Step, parser
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json
from sparsemask.options import spelled
from sparsemask.runs import Run

FORMAT = 1
DENSE = "dense"
STATE = "compress.json"
MASK, GROUPS = "mask.npy", "groups.npz"


@dataclass(frozen=True)
class Stage:
    """One call of a verb. Runs bear the stage's name."""

    name: str
    verb: str
    space: str
    flags: dict
    step: Step | None
    last: bool = True
    """Whether the step ends with it."""

    @property
    def trains(self) -> bool:
        """Whether it makes a run, which can be gone on with."""
        return self.verb not in ("prune", "export")

    @property
    def makes_network(self) -> bool:
        """Whether its run holds a network of the table."""
        return self.trains and self.last and self.verb != "search"


def stages(recipe: Recipe) -> Iterator[Stage]:
    """The stages in their order. The fully dense network is retrained beside the one of the recipe, from the same."""
    for step in recipe.steps:
        calls = KINDS[step.kind].calls
        if step.kind == "retrain":
            yield Stage(DENSE, "retrain", "connectivity", {**recipe.baseline, "mask_path": "dense"}, None)
        for number, (verb, space) in enumerate(calls):
            last = number == len(calls) - 1
            name = step.kind if last else f"{step.kind}-{verb}"
            yield Stage(name, verb, space, step.flags[verb], step, last)


class Work:
    """A recipe's folder: the stages that are done, and the command lines of the others.

    Attributes: current: name of the stage whose run holds the network so far, None before there is one; lock: held
    while this process works in it.
    """

    lock: Run | None = None

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out = recipe, out
        self.state = {"format": FORMAT, "recipe": recipe.content, "stages": {}, "settled": {}}
        self.current: str | None = None

    file = property(lambda self: self.out / STATE)
    runs = property(lambda self: self.out / "runs")

    def open(self) -> None:
        """Continue from the state of an earlier process; UseError where that was of another recipe."""
        if not self.file.exists():
            return
        state = read_json(self.file)
        if state.get("format") != FORMAT:
            raise UseError(f"{self.file}: of another version of the toolkit; take another --out")
        if part := difference(state.get("recipe"), self.recipe.content):
            raise UseError(f"{self.out} was begun with another recipe: {part}; restore it, or take another --out")
        self.state = state

    def save(self) -> None:
        """Write compress.json, atomically."""
        write_json(self.file, self.state)

    def note(self, name: str) -> dict:
        """State of a stage."""
        return self.state["stages"].get(name, {})

    def done(self, name: str) -> bool:
        """Whether a stage needs no more work."""
        return self.note(name).get("state") in ("done", "skipped")

    def budget(self, stage: Stage) -> dict:
        """The flag that the target settled, where it has."""
        step = stage.step
        if step is None or not step.auto or (value := self.state["settled"].get(step.kind)) is None:
            return {}
        budget = KINDS[step.kind].budget
        return {budget: value} if budget in parser(stage.verb, stage.space).actions() else {}

    def argv(self, stage: Stage) -> list[str]:
        """The verb's command line: to go on with the run that it made, or from the start."""
        run = Run(self.runs / stage.name)
        return ["--resume", str(run.folder)] if stage.trains and run.config.exists() else self.fresh(stage)

    def fresh(self, stage: Stage) -> list[str]:
        """The verb's command line from the start."""
        flags = {**self._places(stage), **stage.flags, **self.budget(stage)}
        if stage.verb == "export":
            flags["out"] = [str(self.out / name) for name in flags["out"]]
        if stage.trains:
            flags |= {"exp_path": str(self.runs), "name": stage.name}
        return [*(["--search"] if stage.verb == "search" else []), *spelled(flags)]

    def _places(self, stage: Stage) -> dict:
        """Flags that name the files a verb starts from, by the order of the steps."""
        kinds = {step.kind for step in self.recipe.steps}
        if stage.step and stage.step.kind == "groups":
            return {
                "search": {"space": "slim", "pretrained_model": str(self.runs / self.current / "network.safetensors")},
                "prune": {"space": "slim", "run": str(self.runs / "groups-search"), "out": str(self.out / GROUPS)},
                "retrain": {"mask_path": str(self.out / GROUPS)},
            }[stage.verb]
        if stage.verb == "prune":
            return {"run": str(self.runs / "search"), "out": str(self.out / MASK)}
        if stage.verb == "retrain" and stage.step and "prune" in kinds:
            return {"mask_path": str(self.out / MASK)}
        if stage.verb == "retrain" and "search" in kinds:
            return {"search_checkpoint": str(Run(self.runs / "search").last)}
        return {"run": str(self.runs / self.current)} if stage.verb in ("specialize", "export") else {}

    def begin(self, stage: Stage) -> list[str]:
        """Remember that a stage was begun, and what an attempt before it took until it was killed; its command line."""
        note = self.note(stage.name)
        seconds = note.get("seconds", 0.0)
        if note.get("state") == "begun":
            seconds += _last_sign(self.runs / stage.name, note["began"]) - note["began"]
        run = Run(self.runs / stage.name)
        complete = run.config.exists() and run.info_file.exists()
        if stage.trains and run.folder.exists() and not complete:
            shutil.rmtree(run.folder)  # killed before the run was one
        kills = note.get("resumed", 0) + (note.get("state") == "begun")
        began = {"state": "begun", "began": time.time(), "seconds": seconds, "resumed": kills}
        self.state["stages"][stage.name] = {**began, "command": f"{stage.verb} {shlex.join(self.fresh(stage))}"}
        self.save()
        return self.argv(stage)

    def end(self, stage: Stage) -> None:
        """Remember that a stage is done."""
        note = self.state["stages"][stage.name]
        seconds = round(note["seconds"] + time.time() - note.pop("began"), 1)
        self.state["stages"][stage.name] = {**note, "state": "done", "seconds": seconds}
        self.save()

    def skip(self, stage: Stage, why: str) -> None:
        """Remember that a stage is not needed."""
        self.state["stages"][stage.name] = {"state": "skipped", "why": why, "seconds": 0.0}
        self.save()

    def follow(self, stage: Stage) -> None:
        """Move on to the network that a stage has made, or will."""
        if stage.step and stage.makes_network and self.note(stage.name).get("state") != "skipped":
            self.current = stage.name


def check(recipe: Recipe, out: Path) -> None:
    """Let the verbs' own parsers read every stage's whole command line; UseError naming the step and the command."""
    work = Work(recipe, out)
    for stage in stages(recipe):
        argv = work.fresh(stage)
        space = stage.space or ("specialized" if work.current == "specialize" else "connectivity")
        try:
            importlib.import_module(VERBS[stage.verb]).read(argv, space)
        except UseError as error:
            raise UseError(f"step {stage.name}: {error} (in: sparsemask {stage.verb} {shlex.join(argv)})") from None
        work.follow(stage)


def call(stage: Stage, argv: list[str]) -> int:
    """A verb in this process, so that a kill leaves none behind; errors of use come out as exceptions."""
    main: Callable = importlib.import_module(VERBS[stage.verb]).main.__wrapped__
    return main(argv) or 0


def difference(earlier, current, name: str = "") -> str:
    """The first difference between two recipes as text; empty where they are equal."""
    if earlier == current:
        return ""
    if isinstance(earlier, dict) and isinstance(current, dict):
        keys = [*current, *(key for key in earlier if key not in current)]
        return next(difference(earlier.get(k), current.get(k), f"{name}.{k}".strip(".")) for k in keys
                    if earlier.get(k) != current.get(k))  # fmt: skip
    if isinstance(earlier, list) and isinstance(current, list) and len(earlier) == len(current):
        pairs = enumerate(zip(earlier, current, strict=True), 1)
        return next(difference(a, b, f"{name}.{n}") for n, (a, b) in pairs if a != b)
    return f"{name} is {_short(earlier)} there and {_short(current)} here"


def _short(value) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "absent" if value is None else "a mapping" if isinstance(value, dict) else repr(value)


def _last_sign(folder: Path, began: float) -> float:
    """When a killed attempt last wrote something into its run's folder."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return max([began, *times])
