"""Compress: a recipe from a fully dense network to a small one, step by step, with what each gained and cost.

    sparsemask compress voc_sample                         the sample set, a recipe that comes with the toolkit
    sparsemask compress recipe.yaml --out compressed       one's own; the same command goes on after a kill
    sparsemask compress recipe.yaml --plan                 the commands that would be run

A recipe is a YAML file: flags of all verbs, a target, and the steps (search, prune, retrain, groups, specialize,
export) with flags of their own; docs/compress.md describes it. Writes into --out: runs/, the masks, compress.json
(what is done, the table) and report.md.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sparsemask.cli.compress.plan import DENSE, STATE, Stage, Work, call, check, stages
from sparsemask.cli.compress.recipe import KINDS, Recipe, packaged, read
from sparsemask.errors import UseError, command, one_line, say
from sparsemask.files import write_text
from sparsemask.options import Parser
from sparsemask.runs import Run

REPORT = "report.md"
_LEAST, _MOST = 0.05, 0.95  # of a budget that the target settles


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("compress", prog="sparsemask compress", description=__doc__)
    parser.add_argument("recipe", help=f"a YAML file, or one of: {', '.join(sorted(packaged()))}")
    parser.add_argument("--out", default=None, help="folder for runs, masks and table (default: compress-RECIPE)")
    parser.add_argument("--plan", action="store_true", help="print what would be run, and run nothing")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    recipe = read(options.recipe)
    work = Work(recipe, Path(options.out or f"compress-{recipe.path.stem}"))
    check(recipe, work.out)
    if options.plan:
        work.open()
        _show(recipe, work)
        return 0
    if work.out.exists() and not (work.out / STATE).exists() and any(_strange(work.out)):
        raise UseError(f"{work.out} is not empty and was not made by compress: take another --out")
    work.lock = Run(work.out).hold()
    work.open()
    work.save()
    try:
        _run(recipe, work)
        if "table" not in work.state:
            work.state |= _measured(recipe, work)
            work.save()
    except Exception as error:
        _report_partly(recipe, work, one_line(error))
        raise
    _report(recipe, work, work.state)
    return 0


def _strange(folder: Path):
    return (path for path in folder.iterdir() if path.name != ".lock" and not path.name.endswith(".part"))


def _show(recipe: Recipe, work: Work) -> None:
    """The commands, as they will be run if no step is skipped."""
    for stage in stages(recipe):
        note = work.note(stage.name)
        remarks = [note["state"]] if note else []
        if stage.step and stage.step.auto and not work.budget(stage):
            remarks.append(f"--{KINDS[stage.step.kind].budget}: what the target leaves")
        comment = f"  # {', '.join(remarks)}" if remarks else ""
        print(f"sparsemask {stage.verb} {shlex.join(work.argv(stage))}{comment}")
        work.follow(stage)
    print(f"then the table of all networks{f'; target: {recipe.target}' if recipe.target else ''}")


def _run(recipe: Recipe, work: Work) -> None:
    """Every stage that is not done."""
    for stage in stages(recipe):
        if not work.done(stage.name):
            if why := _needless(recipe, work, stage):
                if stage.last:
                    say(f"\n{stage.step.kind}: skipped, {why}")
                work.skip(stage, why)
                continue
            argv = work.begin(stage)
            say(f"\n$ sparsemask {stage.verb} {shlex.join(argv)}")
            try:
                status = call(stage, argv)
            except UseError as error:
                raise UseError(f"step {stage.name}: {error}") from None
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"in step {stage.name}; the same command goes on") from None
            if status:
                raise UseError(f"step {stage.name} ended with status {status} (its own lines are above)")
            work.end(stage)
        work.follow(stage)


def _needless(recipe: Recipe, work: Work, stage: Stage) -> str:
    """Why a stage is not needed; empty where it is. Resolves its budget, once."""
    step, target = stage.step, recipe.target
    if step is None or not step.auto or target is None:
        return ""
    settled = work.state["settled"]
    if step.kind not in settled:
        from sparsemask.cli.compress.table import costs, opened

        names = (DENSE, work.current)
        measured = costs({name: opened(work.runs / name, recipe.compiled) for name in names}, recipe.rounds)
        cost, dense = measured[work.current][target.by], measured[DENSE][target.by]
        remaining = (target.value * dense if target.share else target.value) / cost
        after = [s for s in recipe.steps[recipe.steps.index(step) :] if s.auto]
        share = remaining ** (1 / len(after))  # each of those to come takes its part
        settled[step.kind] = None if remaining >= 1 else round(min(_MOST, max(_LEAST, share)), 4)
        work.save()
        say(f"\ntarget {target}: {remaining:.1%} of the {target.by.replace('_', '-')} of '{work.current}'")
    return "" if settled[step.kind] is not None else "the target is met without it"


def _measured(recipe: Recipe, work: Work) -> dict:
    """The table of all trained networks, how it was measured, and whether the target was met."""
    from sparsemask.cli.compress.table import costs, opened, quality, with_gains

    done_stages = [s for s in stages(recipe) if work.note(s.name).get("state") == "done" and s.makes_network]
    networks = {stage.name: opened(work.runs / stage.name, recipe.compiled) for stage in done_stages}
    first = networks[DENSE]
    network_costs = costs(networks, recipe.rounds)
    limit = int(recipe.baseline.get("eval_limit") or 0)
    rows = []
    for name, seconds in _taken(recipe, work):
        row = {"step": name, "seconds": seconds}
        if name in networks:
            row |= {"quality": quality(networks[name], limit), **network_costs[name]}
        elif name == "search":
            row["quality"] = Run(work.runs / name).info().get("result", {}).get(first.task.primary)
        rows.append(row)
    machine = f"{first.where.device}, {torch.get_num_threads()} thread(s), batch 1, medians of {recipe.rounds} in turn"
    measured = {
        "primary": first.task.primary,
        "on": first.task.measured_on(),
        "where": machine,
        "compiled": [name for name, network in networks.items() if network.compiled],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    target = _met(recipe, network_costs[work.current or DENSE], network_costs[DENSE])
    return {"table": with_gains(rows, network_costs[DENSE]), "measured": measured, "target": target}


def _taken(recipe: Recipe, work: Work) -> list[tuple[str, float]]:
    """(step, seconds), those of a step's several verbs together; steps that were skipped are left out."""
    sums: dict[str, float] = {}
    for stage in stages(recipe):
        note = work.note(stage.name)
        if note.get("state") == "done":
            name = stage.step.kind if stage.step else stage.name
            sums[name] = sums.get(name, 0.0) + note["seconds"]
    return list(sums.items())


def _met(recipe: Recipe, last: dict, dense: dict) -> dict | None:
    """The target, and whether the last network meets it."""
    target = recipe.target
    if target is None:
        return None
    bound = target.value * dense[target.by] if target.share else target.value
    return {"by": target.by, "wanted": bound, "reached": last[target.by], "met": last[target.by] <= bound}


def _report_partly(recipe: Recipe, work: Work, why: str) -> None:
    """Report on the steps before the one that failed; measuring may fail too, then without costs."""
    results = {"table": [{"step": name, "seconds": seconds} for name, seconds in _taken(recipe, work)]}
    if work.note(DENSE).get("state") == "done":
        with contextlib.suppress(Exception):  # the step's own error is what counts
            results = {**_measured(recipe, work), "target": None}
    if results["table"]:
        _report(recipe, work, {"measured": {"primary": "quality"}, "target": None, **results}, why)


def _report(recipe: Recipe, work: Work, results: dict, failed: str = "") -> None:
    """Print the table and write report.md. results: what :func:`_measured` gives; failed: why a step failed, or ""."""
    from sparsemask.cli.compress.table import slower, text

    rows, measured = results["table"], results["measured"]
    compiled = f", compiled where that is faster: {', '.join(measured.get('compiled', ())) or 'nowhere'}"
    lines = [f"not finished: {failed}; the same command goes on"] if failed else []
    if "on" in measured:
        lines.append(
            f"{measured['on']}; {measured['where']}; times fewer and faster than '{DENSE}', the network with all "
            "connections, in its own optimised form (batch norms folded, the faster memory format"
            f"{compiled if recipe.compiled else ''})"
        )
    skipped = {name: note["why"] for name, note in work.state["stages"].items() if "why" in note and name in KINDS}
    lines += [f"{name} skipped: {why}" for name, why in skipped.items()]
    lines += slower(rows)
    if target := results["target"]:
        verdict = "met" if target["met"] else "missed"
        by = target["by"].replace("_", "-")
        lines.append(f"target {verdict}: {target['reached']:.4g} {by}, wanted {target['wanted']:.4g} ({recipe.target})")
    say(f"\n{text(rows, measured['primary'])}\n")
    for line in lines:
        say(line)
    commands = [f"    sparsemask {note['command']}" for note in work.state["stages"].values() if "command" in note]
    parts = [f"# {recipe.path.stem}", text(rows, measured["primary"], markdown=True), *lines, "Commands:"]
    write_text(work.out / REPORT, "\n\n".join([*parts, "\n".join(commands)]) + "\n")
    say(f"folder: {work.out} (runs, masks, {STATE}, {REPORT})")
