"""Storage of a study: assignment of trials to workers, and recovery of trials whose workers died.

A journal file (the default) is read and written under a lock that the kernel releases when its holder is killed.
Every worker holds a lock file of its own while it lives; a free one shows that the worker is dead, without clocks and,
on a network file system with locks, from other machines too. With a database, a running trial's owner records
heartbeats and counts as dead after three missed ones, which a worker judges only if it could reach the database itself
all that time: one that was away has heard nobody.

Everything that is asked of a database can be asked again, since a connection may break before or after the server has
done it: a claim finds the trial that it had taken, a result that is there already is no other's, and of two retries of
a trial one is dropped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsemask import locks
from sparsemask.errors import UseError, say
from sparsemask.search.studies import backend
from sparsemask.search.studies.plan import ADDED, Plan, difference

RETRIES = 2  # times a trial whose worker died is tried again; one that kills every worker must end somewhere
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_PAUSES = 0.25, 5.0  # seconds, the first and the longest between two tries to reach a database

T = TypeVar("T")


class Store:
    """A study in its storage.

    Args:
        plan: the study.
        begun: the study is there: wait for its database, where that does not answer.

    Raises:
        UseError: the storage is no storage, or has another study of that name.
        StorageError: the database cannot be used.
    """

    def __init__(self, plan: Plan, begun: bool = False):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # Store.beating records them
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.owner, self._lock = plan, None, None
        self._claimed: set[int] = set()  # numbers of trials
        self.wait = plan.storage_wait if begun else 0  # seconds
        self._log = sys.stderr  # not the trial's, to which streams are redirected later
        self._heard = time.monotonic()  # since when the database answers
        self.database = backend.is_database(plan.storage)
        folder = Path(plan.folder)
        self.artifacts = folder / "artifacts"
        if self.database:
            self.place, self.locks = plan.storage, folder / "locks"
            self.storage = self._patiently(lambda: backend.open_database(plan.storage, plan.heartbeat, enqueue_again))
        else:
            journal = Path(plan.storage or folder / "study.journal")
            if plan.storage is None:
                folder.mkdir(parents=True, exist_ok=True)
            self.storage = backend.open_journal(journal)
            self.place, self.locks = str(journal), journal.with_name(f"{journal.name}.locks")
        for made in (self.locks, self.artifacts):
            made.mkdir(parents=True, exist_ok=True)
        self.study = self._patiently(self._join)
        self.id: str = self._patiently(lambda: self.study.user_attrs["id"])
        self.wait = plan.storage_wait

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do what can be done again; a database that does not answer is tried for `wait` seconds, ever more seldom."""
        pause, longest = _PAUSES
        gone = None
        while True:
            try:
                with backend.reachable(self.plan.storage):
                    result = work()
            except backend.StorageAway as error:
                self._heard = now = time.monotonic()
                if gone is None:
                    gone = now
                    if self.wait:
                        say(f"{error}; waiting for it, {self.wait} s at most", self._log)
                if now + pause > gone + self.wait:
                    waited = f" (waited {now - gone:.0f} s)" if self.wait else ""
                    raise backend.StorageError(f"{error}{waited}") from None
                time.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                if gone is not None:
                    away = time.monotonic() - gone
                    say(f"storage {backend.shown_url(self.plan.storage)} is back after {away:.0f} s", self._log)
                return result

    def _join(self) -> optuna.Study:
        """Open or create the study; UseError if one of this name has another identity."""
        with self.lock():
            return self._open()

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            study_name=self.plan.study, storage=self.storage, directions=["maximize", "minimize"], load_if_exists=True
        )
        known = study.user_attrs.get("sparsemask")
        if known is None:
            if study.trials or [d.name for d in study.directions] != ["MAXIMIZE", "MINIMIZE"]:
                raise UseError(f"storage: a study '{self.plan.study}' of another program; take another --study")
            study.set_metric_names(self.plan.objectives)
            study.set_user_attr("id", uuid.uuid4().hex)
            study.set_user_attr("sparsemask", self.plan.identity)  # the last: what is known is whole
        elif self.plan.identity and (mismatch := difference(self.plan.identity, known)):
            raise UseError(f"study '{self.plan.study}' exists, and {mismatch}; take another --study, or its own flags")
        elif added := {name: self.plan.identity[name] for name in ADDED if name in self.plan.identity.keys() - known}:
            # Begun by an older version: from now on it is known what it is about.
            study.set_user_attr("sparsemask", {**known, **added})
        return study

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context in which no other process of this storage assigns trials.

        With databases other than PostgreSQL: no other one of this machine.
        """
        engine = self.storage.engine if self.database else None
        with locks.acquire(self.locks / f"{self.plan.study}.lock"), backend.alone(engine, f"study {self.plan.study}"):
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

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self._patiently(lambda: self.study.get_trials(deepcopy=False))

    def counts(self) -> dict[TrialState, int]:
        """Number of trials in each state."""
        states = [trial.state for trial in self.trials()]
        return {state: states.count(state) for state in TrialState}

    def claim(self) -> tuple[Trial | None, bool]:
        """Claim a trial.

        Returns:
            A trial to work on or None, and whether all trials of the plan are done.
        """
        return self._patiently(self._claim)

    def _claim(self) -> tuple[Trial | None, bool]:
        with self.lock():
            self._reclaim()
            trials = self.study.get_trials(deepcopy=False)
            # A claim whose connection broke: the worker does not know that it has the trial.
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            mine = [t for t in running if t.user_attrs.get("owner") == self.owner and t.number not in self._claimed]
            done = sum(trial.state in DONE for trial in trials)
            dealt = done + len(running)
            if not mine and dealt >= self.plan.trials:
                return None, done >= self.plan.trials
            self.study.sampler = optuna.samplers.TPESampler(
                # Another seed for every trial: workers of equal seeds would draw the same ones.
                seed=(self.plan.seed * 1_000_003 + len(trials)) % 2**32,
                n_startup_trials=max(4, min(10, self.plan.trials // 3)),
                constant_liar=True,
            )
            trial = Trial(self.study, mine[0]._trial_id) if mine else self.study.ask()
            if self.database:  # first: an owner without a heartbeat would count as alive for ever
                self.storage.record_heartbeat(trial._trial_id)  # by number the storage knows no heartbeat
            trial.set_user_attr("owner", self.owner)
            self.plan.suggest(trial)
            self._claimed.add(trial.number)
            return trial, False

    def _reclaim(self) -> None:
        """Fail the running trials of dead workers, and enqueue again what was broken off."""
        grace = 3 * self.plan.heartbeat
        if not self.database or time.monotonic() - self._heard > grace:
            if self.database:
                optuna.storages.fail_stale_trials(self.study)
            late = datetime.now() - timedelta(seconds=grace)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                owner = trial.user_attrs.get("owner")
                if self.database:
                    dead = owner is None and trial.datetime_start < late  # killed before its first heartbeat
                else:
                    dead = owner is None or not self._lives(owner)
                if dead and self._fail(trial):
                    enqueue_again(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        self._settle_retries()

    def _settle_retries(self) -> None:
        """Enqueue what a worker was killed over before it had done so, and drop what was enqueued twice."""
        trials = self.study.get_trials(deepcopy=False)
        again: dict[int, int] = {}
        for trial in trials:
            if history := trial.system_attrs.get("retry_history"):
                if trial.number != again.setdefault(history[-1], trial.number) and trial.state == TrialState.WAITING:
                    self.storage.set_trial_user_attr(trial._trial_id, "duplicate", again[history[-1]])
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        for trial in trials:
            known = trial.number in again or trial.user_attrs.keys() & {"error", "duplicate"}
            if trial.state == TrialState.FAIL and not known:
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
            self.note(trial, **facts)
            self._patiently(lambda: self.study.tell(trial, values, state))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # It may have been told by a connection that broke behind it. Nobody else completes this trial.
            return self.trials()[trial.number].state == state and state in DONE
        return True

    def note(self, trial: Trial, **facts) -> None:
        """Store user attributes of a trial that this worker has claimed."""

        def store() -> None:
            for name, value in facts.items():
                trial.set_user_attr(name, value)

        self._patiently(store)

    def attach(self, trial: Trial, files: Sequence[Path]) -> None:
        """Make artifacts of files of a trial that this worker has claimed, which optuna-dashboard shows with it."""
        place = optuna.artifacts.FileSystemArtifactStore(self.artifacts)

        def upload() -> None:
            known = optuna.artifacts.get_all_artifact_meta(trial, storage=self.storage)
            for file in files:
                if file.is_file() and file.name not in {one.filename for one in known}:
                    optuna.artifacts.upload_artifact(artifact_store=place, file_path=str(file), study_or_trial=trial)

        with contextlib.suppress(
            optuna.exceptions.UpdateFinishedTrialError
        ):  # taken for dead: its result will not count
            self._patiently(upload)

    def give_back(self, trial: Trial, died: bool) -> None:
        """Enqueue a trial again that this worker cannot finish; a database that is away is not waited for.

        Args:
            trial: claimed by this worker.
            died: count it as a failed attempt.
        """
        with backend.reachable(self.plan.storage), self.lock():
            if not died:
                trial.set_user_attr("returned", True)
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            if self._fail(frozen):
                enqueue_again(self.study, frozen)

    @contextlib.contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Context in which a thread records the trial's heartbeat, if the storage is a database."""
        over = threading.Event()

        def beat() -> None:
            pause = float(self.plan.heartbeat)
            while not over.wait(pause):
                try:
                    self.storage.record_heartbeat(trial._trial_id)
                    pause = float(self.plan.heartbeat)
                except Exception:  # away for a moment: once back, it is to hear of this trial before others judge it
                    self._heard = time.monotonic()
                    pause = min(pause, 1.0)

        thread = threading.Thread(target=beat, daemon=True)
        if self.database:
            thread.start()
        try:
            yield
        finally:
            over.set()


def enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a failed trial's parameters again, at most `RETRIES` times if its workers died.

    The retry uses the first trial's folder, which holds its checkpoints. A trial that nobody had begun, or that was
    given back, has killed nobody.
    """
    died = "owner" in trial.user_attrs and not trial.user_attrs.get("returned", False)
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
