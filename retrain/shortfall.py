"""Compare a retrained network's metric with that of the search its mask comes from."""

from __future__ import annotations

import math

from sparsemask import inherit, tasks
from sparsemask.training_setup import Context

_NOTICED = 0.0005  # of a metric; smaller differences are not shown


def shortfall(context: Context, result: dict) -> str | None:
    """Return a line with advice if the run's metric is below its search's on the same data; None otherwise.

    Args:
        context: of the finished run; higher values of its task's `primary` metric are better.
        result: the metrics of the run's last validation.
    """
    task, config = context.task, context.config
    search = inherit.search_of(config.family.mask_path)
    if search is None or search.folder.resolve() == context.run.folder.resolve():
        return None
    before = search.info().get("result")
    before = before.get(task.primary) if isinstance(before, dict) else None
    metric = result.get(task.primary)
    if not (isinstance(before, float) and isinstance(metric, float)) or not _same_data(context, search):
        return None
    if not metric < before - _NOTICED or math.isnan(before):
        return None
    advice = ""
    if config.get("inherit", "all") != "all" and not config.get("ft_model"):
        advice = ", or --inherit all, which starts from the search's weights"
    steps = config.training.max_iter
    longer = f"a longer run ({f'--max_iter {2 * steps}' if steps else '--max_epoch'})"
    where = inherit.shown_path(search.folder)
    return f"note: {task.primary} {metric:.4f} is below its search's {before:.4f} ({where}): {longer} may help{advice}"


def _same_data(context: Context, search) -> bool:
    """Whether both were scored on the same data, as far as flags say."""
    saved, config = inherit.read_flags(search), context.config
    kind = tasks.find(config["task"])
    names = ("task", "sample", *kind.data_flags, *kind.score_flags, "n_class", "eval_limit")
    return all((saved.get(name) or None) == (config.get(name) or None) for name in names)
