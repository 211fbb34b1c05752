"""Storage of a study: assignment of trials to workers, and recovery of trials whose workers died.

A journal file (the default) is read and written under a lock that the kernel releases when its holder is killed.
Every worker holds a lock file of its own while it lives; a free one shows that the worker is dead, without clocks and,
on a network file system with locks, from other machines too. With a database, a running trial's owner records
heartbeats and counts as dead after three missed ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsemask import locks
from sparsemask.errors import UseError
from sparsemask.search.studies import backend
from sparsemask.search.studies.plan import ADDED, Plan, difference

RETRIES = 2  # times a trial whose worker died is tried again; one that kills every worker must end somewhere
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Store:
    """A study in its storage."""

    def __init__(self, plan: Plan):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # Store.beating records them
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.owner, self._lock = plan, None, None
        self.database = backend.is_database(plan.storage)
        folder = Path(plan.folder)
        if self.database:
            self.storage = backend.open_database(plan.storage, plan.heartbeat, enqueue_again)
            self.place, self.locks = plan.storage, folder / "locks"
        else:
            journal = Path(plan.storage or folder / "study.journal")
            if plan.storage is None:
                folder.mkdir(parents=True, exist_ok=True)
            self.storage = backend.open_journal(journal)
            self.place, self.locks = str(journal), journal.with_name(f"{journal.name}.locks")
        self.locks.mkdir(parents=True, exist_ok=True)
        with self.reachable(), self.lock():
            self.study = self._join()

    def reachable(self):
        """Context that turns storage errors into UseErrors."""
        return backend.reachable(self.plan.storage)

    def _join(self) -> optuna.Study:
        """Open or create the study; UseError if one of this name has another identity."""
        study = optuna.create_study(
            study_name=self.plan.study, storage=self.storage, directions=["maximize", "minimize"], load_if_exists=True
        )
        known = study.user_attrs.get("sparsemask")
        if known is None:
            if study.trials or [d.name for d in study.directions] != ["MAXIMIZE", "MINIMIZE"]:
                raise UseError(f"storage: a study '{self.plan.study}' of another program; take another --study")
            study.set_user_attr("sparsemask", self.plan.identity)
            study.set_user_attr("id", uuid.uuid4().hex)
            study.set_metric_names(self.plan.objectives)
        elif self.plan.identity and (mismatch := difference(self.plan.identity, known)):
            raise UseError(f"study '{self.plan.study}' exists, and {mismatch}; take another --study, or its own flags")
        elif added := {name: self.plan.identity[name] for name in ADDED if name in self.plan.identity.keys() - known}:
            # Begun by an older version: from now on it is known what it is about.
            study.set_user_attr("sparsemask", {**known, **added})
        return study

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context in which no other process of this storage (database: of this machine) assigns trials."""
        with locks.acquire(self.locks / f"{self.plan.study}.lock"):
            yield

    def enlist(self) -> None:
        """Register this process as a worker: hold a lock file while it lives."""
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = locks.acquire(self._lock_file(self.owner))  # held while the process lives

    def leave(self) -> None:
        """Unregister the worker and remove its lock file."""
        if self._lock is not None:
            self._lock_file(self.owner).unlink(missing_ok=True)
            self._lock.release()

    def _lock_file(self, owner: str) -> Path:
        return self.locks / f"{owner}.worker"

    def counts(self) -> dict[TrialState, int]:
        """Number of trials in each state."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        return {state: states.count(state) for state in TrialState}

    def claim(self) -> tuple[Trial | None, bool]:
        """Claim a trial.

        Returns:
            A trial to work on or None, and whether all trials of the plan are done.
        """
        with self.reachable(), self.lock():
            self._reclaim()
            counts = self.counts()
            done = sum(counts[state] for state in DONE)
            if done >= self.plan.trials or done + counts[TrialState.RUNNING] >= self.plan.trials:
                return None, done >= self.plan.trials
            self.study.sampler = optuna.samplers.TPESampler(
                # Another seed for every trial: workers of equal seeds would draw the same ones.
                seed=(self.plan.seed * 1_000_003 + sum(counts.values())) % 2**32,
                n_startup_trials=max(4, min(10, self.plan.trials // 3)),
                constant_liar=True,
            )
            trial = self.study.ask()
            self.plan.suggest(trial)
            if self.database:
                self.storage.record_heartbeat(trial._trial_id)  # by number the storage knows no heartbeat
            trial.set_user_attr("owner", self.owner)
            return trial, False

    def _reclaim(self) -> None:
        """Fail the running trials of dead workers and enqueue them again."""
        if self.database:
            optuna.storages.fail_stale_trials(self.study)
        late = datetime.now() - timedelta(seconds=3 * self.plan.heartbeat)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner")
            if self.database:
                dead = owner is None and trial.datetime_start < late  # killed before its first heartbeat
            else:
                dead = owner is None or not self._lives(owner)
            if dead and self._fail(trial):
                enqueue_again(self.study, trial)

    def _lives(self, owner: str) -> bool:
        path = self._lock_file(owner)
        if locks.is_held(path):
            return True
        path.unlink(missing_ok=True)
        return False

    def _fail(self, trial: FrozenTrial) -> bool:
        """Whether it was this process that failed the trial."""
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def tell(self, trial: Trial, state: TrialState, values: list[float] | None = None, **facts) -> bool:
        """End a trial.

        Args:
            trial: claimed by this worker.
            state: how it ended.
            values: of the objectives, if it is complete.
            facts: user attributes to store.

        Returns:
            False if the trial was taken for dead meanwhile, so that its result does not count.
        """
        try:
            with self.reachable():
                for name, value in facts.items():
                    trial.set_user_attr(name, value)
                self.study.tell(trial, values, state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def give_back(self, trial: Trial, died: bool) -> None:
        """Enqueue a trial again that this worker cannot finish; died: count it as a failed attempt."""
        with self.reachable(), self.lock():
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            if self._fail(frozen):
                enqueue_again(self.study, frozen, died)

    @contextlib.contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Context in which a thread records the trial's heartbeat, if the storage is a database."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.plan.heartbeat):
                with contextlib.suppress(Exception):  # a storage that is away for a moment; the next beat may reach it
                    self.storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        if self.database:
            thread.start()
        try:
            yield
        finally:
            over.set()


def enqueue_again(study: optuna.Study, trial: FrozenTrial, died: bool = True) -> None:
    """Enqueue a failed trial's parameters again, at most `RETRIES` times if its workers died.

    The retry uses the first trial's folder, which holds its checkpoints.
    """
    deaths = trial.user_attrs.get("deaths", 0) + died
    if deaths > RETRIES or set(trial.params) != set(study.user_attrs["sparsemask"]["ranges"]):
        return
    first = trial.user_attrs.get("first", trial.number)
    attributes = {"first": first, "folder": folder_name(first), "deaths": deaths}
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs={"failed_trial": first, "retry_history": history},  # as Optuna's own callback has it
        )
    )


def folder_name(number: int) -> str:
    """Name of a trial's folder in the study's."""
    return f"trial-{number:04d}"
