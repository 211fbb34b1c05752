"""Notes of a run when it begins; drawings and printed lines when it is finished; for every family."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsemask import report as page
from sparsemask import training_setup
from sparsemask.engine.records import read_rows
from sparsemask.pictures import draw_curves
from sparsemask.training_setup import Context


def note_start(context: Context, **entries) -> None:
    """Write the resolved configuration, and what the run is and where it is computed to run.json.

    Args:
        entries: of run.json, by name.
    """
    if context.main:
        context.run.note(environment=page.environment(context.arithmetic.device), **entries)
        if context.state is None:
            training_setup.rewrite_config(context)


def draw_training(context: Context, model: nn.Module) -> None:
    """Curves of the run's metrics and predictions on validation samples."""
    run, task = context.run, context.task
    draw_curves(read_rows(run.metrics), run.pictures / "curves.png")
    task.draw(task.samples(model, context.arithmetic), run.pictures / "samples.png")


def metric_text(context: Context, result: dict) -> str:
    """The task's primary metric of the last validation, by name."""
    name = context.task.primary
    return f"{name} {result.get(name, float('nan')):.4f}"


def announce(context: Context, lines: Sequence[str | None], files: Sequence[str] = ()) -> None:
    """Print the results and their folder, and write the report.

    Args:
        lines: what came out; None is passed over.
        files: of the run's folder that are named beside its pictures.
    """
    run = context.run
    for line in filter(None, lines):
        context.say(line)
    context.say(f"run: {run.folder} ({', '.join([*files, f'pictures in {run.pictures}'])})")
    context.say(f"report: {page.write_report(run)}")


def announce_next(context: Context, verb: str) -> None:
    """Print the command line that goes on from the run."""
    context.say(f"next: {page.next_command(context.run, verb)}")
