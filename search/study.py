"""Study: search, prune and retrain many times, varying λ, learning rates, depth and threshold, and keep the best.

    python search/study.py --study first                      12 trials by two workers, mean IoU against multiply-adds
    python search/study.py --study first --trials 40          go on with it: trials that are done count
    python search/study.py --study first --objectives miou,milliseconds --grid ranges.yaml --max_iter 300
    python search/study.py --study big --storage postgresql://user:password@host/database
    optuna-dashboard runs/first/study.journal                 watch it in a browser (pip install optuna-dashboard);
                                                              or optuna-dashboard URL, the one given as --storage

Writes runs/<study>/: a folder a trial with its search, mask and retraining, and the Pareto front as front.md,
front.png, front.json and masks/, ready for `python retrain/train.py --mask_path`.

What is varied: a flag named in --grid, else `sparse`, `lr`, `mask_lr_mult`, `depth`, `thres` and the budget around the
preset's or the configuration's values; a flag on the command line is fixed. --grid is a YAML file, for instance

    sparse: {low: 0.003, high: 0.1, log: true}
    search.mask_lr_mult: {low: 100, high: 10000, log: true}
    depth: [32, 64]

The same command again goes on with a study, after Ctrl-C or a crash too; on another machine with the same --storage it
joins (both need the same pictures, labels and initial weights, which is checked, and clocks that agree to within some
seconds). Trials of workers that died are taken up again from their last checkpoint, twice at most. A server that is
started again is waited for (--storage_wait). Hopeless trials are given up: see search/studies/worker.py.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemask import families, flags, locks, plugins, spaces, training_setup
from sparsemask.config import Section, flag
from sparsemask.datasets import ROOT
from sparsemask.engine import distributed
from sparsemask.errors import Terminated, UseError, command, one_line
from sparsemask.files import read_json
from sparsemask.options import Parser, natural, positive, rate
from sparsemask.processes import usable_cores
from sparsemask.runs import Run
from sparsemask.search.studies import plan as study_plan
from sparsemask.search.studies.backend import StorageError, check_url, is_database, shown_url
from sparsemask.search.studies.plan import Plan

_WORKER = "--as-worker"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySection(Section):
    """Options of a study."""

    title = "study"
    study: str | None = flag(help="the study's name, and its folder in --exp_path")
    exp_path: str = flag("runs", help="folder that holds the studies (default: runs)")
    config: str | None = flag(help="YAML file of flags, or a preset: published, short, sample", transient=True)
    trials: int = flag(12, positive, help="finished trials wanted in all (default: 12)")
    workers: int = flag(2, positive, help="processes on this machine (default: 2)")
    storage: str | None = flag(help="an Optuna storage URL, or a journal file (default: study.journal in the folder)")
    objectives: str | None = flag(
        help=f"the task's figure, up, and one of {', '.join(study_plan.COSTS)}, down (default: miou,multiply_adds)"
    )
    grid: str | None = flag(help="YAML file of the flags to vary and their ranges")
    retrain_iter: int | None = flag(None, positive, help="steps of every retraining (default: preset)")
    max_connections: int = flag(0, natural, help="give up masks with more, 0: no bound (default: 0)")
    hopeless: float = flag(
        0.5, rate, help="give up below this fraction of the median after the search, 0: never (default: 0.5)"
    )
    heartbeat: int = flag(20, positive, help="database: seconds between signs of life (default: 20)")
    storage_wait: int = flag(
        300, natural, help="database: seconds that workers wait for a server that went away (default: 300)"
    )
    seed: int = flag(0, natural, help="seed of the study and of every trial (default: 0)")


def parser(space: str = "connectivity") -> Parser:
    """The command's flags, those of the family's search included."""
    command_parser = Parser("study", prog="search/study.py", description=__doc__)
    command_parser.add_section("run", StudySection)
    for add in (flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(command_parser, spaces.get(space))
    families.find("search", spaces.get(space)).add_options(command_parser)
    return command_parser


def settle(argv: Sequence[str] | None) -> tuple[Plan, StudySection]:
    """Resolve a command line into the study's plan and its own options, before anything is written.

    Raises:
        UseError: an invalid command line.
    """
    space = flags.space_of(argv)
    if spaces.get(space).family != "connectivity":
        raise UseError(f"--space {space}: a study is about connectivity masks; search, prune and retrain it one by one")
    command_parser = parser(space)
    given = command_parser.given(argv)
    options = command_parser.resolve(
        command_parser.from_file(given["config"]) if given.get("config") else {}, given
    ).run
    if not options.study:
        raise UseError("--study is missing: the study's name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", options.study):
        raise UseError(f"--study '{options.study}': letters, digits and . _ + - only, not beginning with a sign")
    folder = Path(options.exp_path) / options.study
    if Run(folder).config.exists():
        raise UseError(f"--study {options.study}: {folder} is a run; take another name")
    if is_database(options.storage):
        check_url(options.storage)
    fixed = {verb: study_plan.verb_flags(verb, space, given, given.get("config")) for verb in study_plan.VERBS}
    if options.retrain_iter:
        fixed["retrain"]["max_iter"] = options.retrain_iter
    config, line, _ = training_setup.resolve_config(study_plan.verb_parser("search", space), fixed["search"])
    if line:
        print(line, flush=True)
    task = training_setup.open_task(config)
    config = task.config
    plan = Plan(
        study=options.study,
        folder=str(folder),
        storage=options.storage,
        objectives=study_plan.objectives(options.objectives, task.primary),
        ranges=study_plan.read_ranges(options.grid, space, given)
        if options.grid
        else study_plan.default_ranges(config, given),
        flags=fixed,
        trials=options.trials,
        seed=options.seed,
        hopeless=options.hopeless,
        max_connections=options.max_connections,
        heartbeat=options.heartbeat,
        storage_wait=options.storage_wait,
    )
    plan.identity = study_plan.identity(plan, config, task)
    return plan, options


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [_WORKER]:
        from sparsemask.search.studies import worker as study_worker

        try:
            return study_worker.work(study_worker.read_plan())
        except StorageError as lost:  # the study's command says it, once for all of them
            os.write(int(argv[1]), f"{one_line(lost)}\n".encode())
            return 2
    plan, options = settle(argv)
    from sparsemask.search.studies.front import report
    from sparsemask.search.studies.storage import DONE, Store

    store = Store(plan)
    _own_folder(Path(plan.folder), store.id)
    done = sum(store.counts()[state] for state in DONE)
    location = shown_url(store.place) if store.database else store.place
    watch = f"optuna-dashboard {location} --artifact-dir {store.artifacts}"
    print(f"study {plan.study}: {done} of {plan.trials} trials done; watch it: {watch}", flush=True)
    statuses, stopped, lost = [], None, []
    if done < plan.trials:
        workers = min(options.workers, plan.trials - done)
        if workers > 1 and plan.objectives[1] == "milliseconds":
            distributed.warn("note: times are measured while other workers compute; --workers 1 measures undisturbed")
        statuses, stopped, lost = _work(plan, workers)
    if lost:
        store.wait = 0  # the workers have waited for it
    # One at a time, where several commands of a study end at once: the last one writes what all have done.
    with locks.acquire(store.locks / f"{plan.study}.report.lock"):
        print(report(plan, store.trials()), flush=True)
    done = sum(store.counts()[state] for state in DONE)
    for line in lost:  # it has come back: else the lines above had said the same
        distributed.warn(f"workers ended: {line}")
    if isinstance(stopped, Terminated):
        distributed.warn("every trial is saved; go on with the same command")
        raise stopped
    if stopped:
        raise KeyboardInterrupt("every trial is saved; go on with the same command")
    if done >= plan.trials:
        return 0
    raise UseError(
        f"{done} of {plan.trials} trials are done and no worker is left (exit statuses {one_line(statuses)}, their own "
        "lines are above); go on with the same command"
    )


def _own_folder(folder: Path, study: str) -> None:
    """Raise UseError if trials in the folder belong to another study of the same name, which would be resumed."""
    for file in folder.glob("trial-*/trial.json"):
        if read_json(file).get("id") != study:
            raise UseError(f"{file.parent} is of another study named {folder.name}; remove it, or take another --study")


def _work(plan: Plan, count: int) -> tuple[list[int], KeyboardInterrupt | Terminated | None, list[str]]:
    """Start the workers and wait for them.

    Returns:
        Their exit statuses, the Ctrl-C or SIGTERM that stopped them, and the lines of those that lost the storage.
    """
    if sys.platform == "win32":
        raise UseError("studies start workers in process groups of their own, which Windows lacks: run them in WSL")
    read_end, write_end = os.pipe()
    threads = max(1, usable_cores() // count)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # this very toolkit
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
    # In process groups of their own: a terminal's Ctrl-C reaches only this process, which stops each worker once. They
    # read the plan from a pipe, since a URL may hold a password, and stop when it is closed.
    workers = [
        subprocess.Popen(
            # Names of code that this command line said may be imported there too.
            [sys.executable, "-P", "-m", "sparsemask.search.study", _WORKER, str(write_end), *plugins.trusted()],
            pass_fds=(write_end,),
            stdin=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        for _ in range(count)
    ]
    for worker in workers:
        with contextlib.suppress(BrokenPipeError):  # dead already: its exit status tells
            worker.stdin.write((plan.to_json() + "\n").encode())
            worker.stdin.flush()
    os.close(write_end)
    stop: KeyboardInterrupt | Terminated | None = None
    interrupts, running = 0, list(workers)
    while running:
        try:
            time.sleep(0.2)
            for worker in [process for process in running if process.poll() is not None]:
                running.remove(worker)
                if worker.returncode < 0:
                    distributed.warn(f"worker {worker.pid} was killed by signal {-worker.returncode}")
        except (KeyboardInterrupt, Terminated) as signalled:
            interrupts += 1
            stop = stop or signalled
            if interrupts == 1:
                print("\nstopping after the running steps (again: at once) ...", file=sys.stderr, flush=True)
            for worker in running:
                if interrupts == 1:
                    worker.stdin.close()
                else:
                    worker.send_signal(signal.SIGINT if interrupts == 2 else signal.SIGKILL)
    os.set_blocking(read_end, False)  # a helper of a worker may still have the other end open
    with open(read_end, "rb") as file:
        lines = (file.read() or b"").decode().splitlines()
    return [worker.returncode for worker in workers], stop, list(dict.fromkeys(lines))


if __name__ == "__main__":
    sys.exit(main())
