"""A study on PostgreSQL under load: workers killed, the server killed, and every trial accounted for afterwards.

    python bench/study_load.py                           1 000 trials, 8 workers, 22 kills; a quarter of an hour
    python bench/study_load.py --trials 60 --kills 4     a short one
    python bench/study_load.py --real --trials 16 --kills 3     searches, prunes and retrains in truth, on tiny pictures

A server of its own is started on a loopback port. Workers of one machine share a folder, those of another have their
own, as where the storage is all that they have in common. Each is started again when it is killed. Moments are drawn
from --seed. Without --real the three verbs of a trial are stand-ins that sleep for seconds and write what the
real ones write; all around them is the study's: claims, heartbeats, folders, locks, retries, masks, the front. With
--real each worker is the command `search/study.py --workers 1`.

Prints what was done and what was checked as a table; exit status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from optuna.trial import FrozenTrial, TrialState  # noqa: E402

from postgres import Server, programs  # noqa: E402
from sparsemask.containers import read_yaml  # noqa: E402
from sparsemask.errors import UseError, command  # noqa: E402
from sparsemask.files import read_json  # noqa: E402
from sparsemask.masks import save_mask  # noqa: E402
from sparsemask.runs import Run  # noqa: E402
from sparsemask.search import study  # noqa: E402
from sparsemask.search.studies import plan as study_plan  # noqa: E402
from sparsemask.search.studies.backend import driver_url  # noqa: E402
from sparsemask.search.studies.front import report  # noqa: E402
from sparsemask.search.studies.storage import DONE, RETRIES  # noqa: E402
from sparsemask.tables import duration, markdown_table  # noqa: E402
from tiny import SMALL, data_flags, environment, make_data  # noqa: E402

_WORKER = "--as-worker"
NAME = "load"
FEATURES = 9  # of the stand-in's mask


# The stand-ins of a trial's verbs


def drawn(values: dict) -> np.random.Generator:
    """A generator that depends on a trial's values alone."""
    text = json.dumps({name: values[name] for name in sorted(values)})
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def objective(values: dict) -> tuple[float, float, np.ndarray]:
    """Quality, cost and mask of the stand-in for a trial's values; every call gives the same."""
    rng = drawn(values)
    sparsity = (math.log10(values["sparse"]) + 3) / 2  # about 0 to 1 in the ranges of a study
    keep = float(np.clip(0.9 - 0.6 * sparsity + 0.1 * rng.standard_normal(), 0.05, 1))
    quality = 0.2 + 0.6 * keep**0.5 - 0.02 * abs(math.log10(values["thres"]) + 2) + 0.05 * float(rng.random())
    mask = np.zeros((FEATURES, FEATURES, 2), bool)
    rows, columns = np.tril_indices(FEATURES)
    mask[rows, columns] = rng.random((len(rows), 2)) < keep
    mask[range(FEATURES), range(FEATURES), 0] = True  # so that no stage is without an input
    return quality, float(mask.sum()) * 1e6, mask


def _train(verb: str, argv: list[str]) -> None:
    """As search and retrain do: goes on with a run, ends at once where it is complete, writes its result at the end."""
    flags = dict(zip(argv[::2], argv[1::2], strict=False))
    run = Run(Path(flags["--exp_path"]) / verb)
    values = _values(run.folder.parent)
    if "result" in run.info():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    read_yaml(flags["--config"])
    # Longer than a claim, so that most workers are within a trial when one of them is killed.
    time.sleep(0.2 + 2 * float(drawn({**values, "verb": verb}).random()))
    quality, cost, mask = objective(values)
    run.note(result={"miou": quality}, multiply_adds=cost, connections=int(mask.sum()), state="finished")


def _prune(argv: list[str]) -> None:
    out = Path(argv[argv.index("--out") + 1])
    mask = objective(_values(out.parent))[2]
    save_mask(out, mask, {"connections": int(mask.sum())})


def _values(folder: Path) -> dict:
    return read_json(folder / "trial.json")["params"]


def stand_in(verb: str, work) -> None:
    """Let trials do `work` in place of a verb, whose parser stays the real one."""
    module = types.ModuleType(f"stand_in_{verb}")
    real = study_plan.VERBS[verb]
    module.parser = lambda space: __import__(real, fromlist=["parser"]).parser(space)
    module.main = command(work)
    sys.modules[module.__name__] = module
    study_plan.VERBS[verb] = module.__name__


def as_worker() -> int:
    """What a worker of a study does, with the stand-ins."""
    from sparsemask.search.studies import worker

    stand_in("search", lambda argv: _train("search", argv))
    stand_in("prune", _prune)
    stand_in("retrain", lambda argv: _train("retrain", argv))
    return worker.work(worker.read_plan())


# The load


class Worker:
    """One place for a worker, which is filled again when its process is killed."""

    def __init__(self, number: int, machine: Path, real: list[str] | None, plan: study_plan.Plan, home: Path):
        self.log, self.machine = home / f"worker-{number}.log", machine
        self.real, self.plan = real, dataclasses.replace(plan, folder=str(machine / NAME))
        self.environment = environment(home / "home", PYTHONPATH=str(ROOT))
        self.process: subprocess.Popen | None = None
        self.killed: list[int] = []

    def start(self) -> None:
        with open(self.log, "ab") as log:
            argv = [sys.executable, str(ROOT / "search/study.py"), *self.real] if self.real else None
            self.process = subprocess.Popen(
                argv or [sys.executable, __file__, _WORKER],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=self.environment, cwd=self.machine,
            )  # fmt: skip
        if not self.real:
            self.process.stdin.write((self.plan.to_json() + "\n").encode())
            self.process.stdin.flush()

    def victim(self) -> int | None:
        """The process that trains: with --real the command's child."""
        if self.process.poll() is not None:
            return None
        if not self.real:
            return self.process.pid
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def kill(self) -> bool:
        pid = self.victim()
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)
        self.process.wait(timeout=120)
        return True


def finished(server: Server) -> int | None:
    """Number of trials that are done; None while the server does not answer."""
    import psycopg

    try:
        with psycopg.connect(server.url(), connect_timeout=2) as connection:
            row = connection.execute("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchone()
    except psycopg.Error:
        return None
    return row[0]


def load(server: Server, workers: list[Worker], options: argparse.Namespace) -> dict:
    """Start the workers, kill what is to be killed, wait for the end; returns what happened."""
    rng = random.Random(options.seed)
    # Each kill is due when so many trials are done, and some more moments have gone by.
    due = [(rng.randrange(options.trials), "worker") for _ in range(options.kills)]
    due += [(round(options.trials * (i + 1) / (options.outages + 1)), "server") for i in range(options.outages)]
    due.sort()
    outages, end = [], time.monotonic() + options.limit
    for worker in workers:
        worker.start()
    while any(worker.process.poll() is None for worker in workers) and time.monotonic() < end:
        for worker in workers:
            if worker.process.poll() not in (None, 0):
                raise UseError(f"a worker ended with status {worker.process.returncode}, see {worker.log}")
        time.sleep(0.1)
        done = finished(server)
        if not due or done is None or done < due[0][0]:
            continue
        time.sleep(rng.random() * 0.5)
        if due[0][1] == "server":
            server.kill()
            time.sleep(options.down)
            server.start()
            outages.append(options.down)
            due.pop(0)
            continue
        running = [worker for worker in workers if worker.victim() is not None]
        if running and (victim := rng.choice(running)).kill():  # else: at the next look
            victim.start()
            due.pop(0)
    hung = [worker for worker in workers if worker.process.poll() is None]
    for worker in hung:
        worker.process.kill()
    return {"hung": len(hung), "outages": len(outages), "left": len(due)}


def check(trials: list[FrozenTrial], workers: list[Worker], happened: dict, options: argparse.Namespace) -> list[dict]:
    """What must hold at the end: a row each, with what was found."""
    done = [trial for trial in trials if trial.state in DONE]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    killed = {pid for worker in workers for pid in worker.killed}
    owners = {trial.number: trial.user_attrs.get("owner") for trial in failed}
    robbed = [n for n, owner in owners.items() if owner and int(owner.split("-")[-2]) not in killed]
    again = Counter(history[-1] for t in trials if (history := t.system_attrs.get("retry_history")))
    begun = [t for t in failed if set(t.params) == set(workers[0].plan.ranges) and "duplicate" not in t.user_attrs]
    lost = [t.number for t in begun if not again[t.number] and t.user_attrs.get("deaths", 0) < RETRIES]
    changed = [
        t.number for t in trials if (h := t.system_attrs.get("retry_history")) and t.params != trials[h[-1]].params
    ]
    configurations = Counter(trial.user_attrs.get("first", trial.number) for trial in done)
    text = "".join(worker.log.read_text() for worker in workers)
    rows = [
        ("trial numbers 0 to n-1, each once", [t.number for t in trials] == list(range(len(trials))), len(trials)),
        ("trials done: as many as wanted", len(done) == options.trials, len(done)),
        ("running or waiting at the end: none", len(done) + len(failed) == len(trials), len(trials) - len(done)),
        ("trials taken from a living worker: none", not robbed, len(robbed)),
        ("broken off and not taken up again: none", not lost and not changed, len(lost) + len(changed)),
        ("taken up again twice: none", max(again.values(), default=1) == 1, max(again.values(), default=0)),
        ("configurations that ended twice: none", max(configurations.values()) == 1, max(configurations.values())),
        ("results that are another's: none", *wrong_values(done, options)),
        ("front and its masks are what the trials say, on each machine", *fronts(done, workers, options)),
        ("workers that hang: none", not happened["hung"], happened["hung"]),
        ("workers that ended with an error or a traceback: none", *errors(workers, text)),
        ("all kills happened", not happened["left"], options.kills + options.outages - happened["left"]),
    ]  # fmt: skip
    return [{"check": name, "found": found, "holds": "yes" if holds else "**no**"} for name, holds, found in rows]


def wrong_values(done: list[FrozenTrial], options: argparse.Namespace) -> tuple[bool, int]:
    """Whether every complete trial has the result of its values, and how many have not."""
    wrong = 0
    for trial in done:
        if trial.state != TrialState.COMPLETE:
            continue
        if options.real:
            runs = options.folder.glob(f"m*/{NAME}/{trial.user_attrs['folder']}/retrain/run.json")
            results = [(info.get("result", {}).get("miou"), info.get("multiply_adds")) for info in map(read_json, runs)]
            wrong += tuple(trial.values) not in results
        else:
            wrong += trial.values != list(objective(trial.params)[:2])
    return not wrong, wrong


def fronts(done: list[FrozenTrial], workers: list[Worker], options: argparse.Namespace) -> tuple[bool, int]:
    """Whether each machine's front.json names the trials that no other one beats, with their masks; and how many."""
    points = {t.number: tuple(t.values) for t in done if t.state == TrialState.COMPLETE}
    best = {n for n, a in points.items() if not any(b[0] >= a[0] and b[1] <= a[1] and b != a for b in points.values())}
    holds = True
    for machine in {worker.machine for worker in workers}:
        rows = read_json(machine / NAME / "front.json")["front"]
        holds &= {row["trial"] for row in rows} == best and len(rows) == len(best)
        for row in rows:
            mask = np.load(machine / NAME / row["mask"])
            holds &= int(mask.sum()) == row["connections"]
            if not options.real:
                params = next(t.params for t in done if t.number == row["trial"])
                holds &= bool((mask == objective(params)[2]).all())
    return holds, len(best)


def errors(workers: list[Worker], text: str) -> tuple[bool, int]:
    """Whether every last process of a worker ended well and none had a traceback; and how many did not."""
    bad = sum(worker.process.returncode != 0 for worker in workers) + text.count("Traceback")
    bad += text.count("taken for dead")
    return not bad, bad


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [_WORKER]:
        return as_worker()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--machines", type=int, default=2, help="folders that workers are shared out to")
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--outages", type=int, default=2, help="kills of the server")
    parser.add_argument("--down", type=float, default=8.0, help="seconds until the server is started again")
    parser.add_argument("--heartbeat", type=int, default=2, help="seconds; three missed ones are less than --down")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which workers count as hanging")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="real searches and retrainings on tiny pictures")
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    options = parser.parse_args(argv)
    found = programs()
    if found is None:
        raise UseError("no PostgreSQL server here: initdb is neither on the path nor in /usr/lib/postgresql")
    options.folder = Path(tempfile.mkdtemp(prefix="study-load-"))
    options.folder.chmod(0o755)
    (options.folder / "pg").mkdir()
    server = Server(found, options.folder / "pg", safe=True)
    workers: list[Worker] = []
    try:
        server.start()
        rows, facts = measure(server, workers, options)
    except UseError:
        options.keep = True
        raise
    finally:
        for worker in workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.kill()
        server.kill()
        if options.keep:
            print(f"folder: {options.folder}", file=sys.stderr)
        else:
            shutil.rmtree(options.folder, ignore_errors=True)
    print(markdown_table(facts, {"what": "what", "count": "count"}) + "\n")
    print(markdown_table(rows, {name: name for name in rows[0]}))
    return int(any(row["holds"] != "yes" for row in rows))


def measure(server: Server, workers: list[Worker], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Run the study; returns the rows of the checks and of what happened."""
    data = make_data(options.folder / "data")
    given = ["--study", NAME, *data_flags(data), *SMALL, "--max_iter", "3", "--retrain_iter", "2"]
    given += ["--storage", server.url(), "--heartbeat", str(options.heartbeat), "--trials", str(options.trials)]
    plan, _ = study.settle([*given, "--hopeless", "0.7"])
    for number in range(options.workers):
        machine = options.folder / f"m{number % options.machines}"
        machine.mkdir(exist_ok=True)
        real = [*given, "--hopeless", "0", "--workers", "1", "--exp_path", str(machine)] if options.real else None
        workers.append(Worker(number, machine, real, plan, options.folder))
    start = time.monotonic()
    happened = load(server, workers, options)
    seconds = time.monotonic() - start
    trials = optuna.load_study(study_name=NAME, storage=driver_url(server.url())).trials
    if not options.real:
        for plan in {worker.machine: worker.plan for worker in workers}.values():
            report(plan, trials)
    rows = check(trials, workers, happened, options)
    states = Counter(trial.state.name for trial in trials)
    text = "".join(worker.log.read_text() for worker in workers)
    unclaimed = sum(t.state == TrialState.FAIL and "owner" not in t.user_attrs for t in trials)
    facts = {
        "workers, on machines": f"{options.workers}, {options.machines}",
        "trials complete": states["COMPLETE"],
        "given up as hopeless": states["PRUNED"],
        "broken off by a kill": states["FAIL"] - unclaimed,
        "claims broken off by the server's end, before a worker had them": unclaimed,
        "workers killed": sum(len(worker.killed) for worker in workers),
        "server killed": f"{happened['outages']} times, for {options.down:g} s",
        "times that a worker waited for the server": text.count("waiting for it"),
        "wall time": duration(seconds),
    }
    return rows, [{"what": what, "count": count} for what, count in facts.items()]


if __name__ == "__main__":
    sys.exit(main())
