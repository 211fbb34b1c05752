"""Running many small jobs in several processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from sparsemask.errors import UseError
from sparsemask.processes import begin_helper, helper_context, kill_helpers, usable_cores

_FEW = 128  # jobs below which starting a process costs more than it saves


def run_jobs(
    function: Callable, jobs: Iterable[tuple], total: int, text: str, workers: int | None = None, few: int = _FEW
) -> Iterator:
    """Yield `function(*job)` for every job, in the order they end, with a progress bar on standard error.

    `jobs` may be a generator of large arguments: no more than four a worker are held at a time. The first
    exception stops everything; jobs that already ran keep their results.

    Args:
        function: importable by name (it runs in fresh processes).
        total: number of jobs.
        text: what the bar says.
        workers: processes; 1 runs everything in this one; all cores by default.
        few: jobs a further process must be worth.
    """
    if workers is not None and workers < 1:
        raise UseError(f"{workers} workers: give at least 1")
    workers = min(workers or usable_cores(), 1 + total // few)
    with tqdm(total=total, desc=text, unit="file", disable=None) as bar:
        for result in _results(function, jobs, workers):
            bar.update()
            yield result


def _results(function: Callable, jobs: Iterable[tuple], workers: int) -> Iterator:
    if workers == 1:
        for job in jobs:
            yield function(*job)
        return
    # "spawn": forking a process that has threads (torch, the bar's) may hang.
    pool = ProcessPoolExecutor(workers, helper_context("spawn"), begin_helper)
    pending: set[Future] = set()
    try:
        for job in jobs:
            pending.add(pool.submit(function, *job))
            if len(pending) >= 4 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise UseError("a worker process died (out of memory?); run the command again with --workers 1") from None
    finally:
        try:
            pool.shutdown(cancel_futures=True)  # jobs that have begun are finished
        except BaseException:  # told to stop once more while waiting for them
            kill_helpers()
            raise
