"""Training of every family, from the command line to the exit status: open, build, fit, note, finish, stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsemask import flags, run_summary, training_setup
from sparsemask.engine import distributed, fit
from sparsemask.families import TrainingFamily
from sparsemask.options import Parser


def training_parser(
    family: TrainingFamily[Any],
    space: Any,
    prog: str,
    description: str | None,
    ignored: Mapping[str, str] | None = None,
) -> Parser:
    """The flags of a training command for a space, the family's own included.

    Args:
        space: what the flags of data and network depend on.
        prog: the command's file, as `search/run.py`.
        description: the command's help text.
        ignored: texts of --help of switches that change nothing.
    """
    parser = Parser(family.verb, prog=prog, description=description)
    for name, text in (ignored or {}).items():
        parser.add_argument(f"--{name}", dest=f"_{name}", action="store_true", help=text)
    for add in (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(parser, space)
    family.add_options(parser)
    return parser


def train(family: TrainingFamily[Any], parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Begin or resume a run and train it to its end.

    Args:
        family: whose networks and method are trained.
        parser: of the command, see :func:`training_parser`.
        argv: the command line; None: the process's own.

    Returns:
        The command's exit status.

    Raises:
        UseError: nothing can be trained from this configuration. A folder that this call made is then removed.
    """
    context = training_setup.open_training(parser, argv, family.resolve, family.default_flags)
    run = context.run
    with context.clean():
        built = family.build(context)
        context = context.with_config(context.config.replace(**built.changes))
        run_summary.note_start(context, **built.notes)
        config = context.config
        extra = {"verb": family.verb, "space": config.network.space, "config": config.flat(), **built.extra}
        method = family.method(context, built)
        result = fit(
            built.model, method, built.task or context.task, config, run, context.arithmetic, extra, context.state
        )
    status = 0
    if context.main:
        run.note(state="finished", result=result)
        status = family.finish(context, built, result)
    distributed.stop()
    return status
