"""Mutation testing of the core modules: change one thing at a time, and see whether a test notices.

    make mutants                                        every module of modules.toml
    make mutants MUTANTS="spaces/connectivity/prune_rules.py --most 0"

Cosmic Ray makes the mutants and keeps the results, one session file a module in build/mutants, so that a run that
was stopped goes on. They are made in a copy of the checkout, and tested in processes forked from this one, which has
imported torch already. docs/mutants.md says how to read the results, and judges what survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import fcntl
import hashlib
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
JUDGED = ROOT / "docs" / "mutants.md"

# Cosmic Ray replaces each operator by every other; these are the changes that a programmer makes by mistake.
_COMPARISONS = ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq")
_IDENTITY = ("Is_IsNot", "IsNot_Is")
_BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul", "LShift_RShift",
           "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd")  # fmt: skip
_UNARY = ("USub_UAdd", "Delete_Not", "Delete_Invert")
_OTHERS = ("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
           "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer",
           "ZeroIterationForLoop")  # fmt: skip
OPERATORS = {
    *(f"core/ReplaceComparisonOperator_{name}" for name in (*_COMPARISONS, *_IDENTITY)),
    *(f"core/ReplaceBinaryOperator_{name}" for name in _BINARY),
    *(f"core/ReplaceUnaryOperator_{name}" for name in _UNARY),
    *(f"core/{name}" for name in _OTHERS),
    "statements/RemoveStatement",
}

# What tests import, nothing of the project; none starts a thread.
_WARM = ("hypothesis.extra.numpy", "matplotlib.figure", "optuna", "safetensors.torch", "scipy.ndimage", "scipy.spatial",
         "skimage.metrics", "torch.utils.flop_counter")  # fmt: skip
_MEMORY = 16 << 30  # bytes of address space a test process may take: mutants make sizes of any kind
_FACTOR, _LEAST = 10, 20  # a mutant may take that many times as long as the module's tests, and that many seconds


# What was judged


@dataclass(frozen=True)
class Change:
    """One changed line (several are joined by a space), without its indentation."""

    module: str
    old: str
    new: str

    @classmethod
    def of(cls, module: str, diff: str) -> Change:
        """The change that a unified diff shows."""
        lines = [line for line in diff.splitlines() if line[:3] not in ("---", "+++")]
        old, new = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
        return cls(module, old, new)


def judgements(text: str) -> dict[Change, str]:
    """Why survivors are accepted, from docs/mutants.md.

    A heading of level 3 names the module, a line "- `old` → `new`, `another`: reason" the changes.
    """
    found, module = {}, None
    for line in text.splitlines():
        if heading := re.fullmatch(r"### `?([\w/]+\.py)`?", line):
            module = heading[1]
        elif module and (row := re.fullmatch(r"- `([^`]+)` → (`[^`]+`(?:, `[^`]+`)*): (.+)", line)):
            for new in re.findall(r"`([^`]+)`", row[2]):
                found[Change(module, row[1], new)] = row[3]
    return found


# Tests in a process of their own


def warm() -> None:
    """Import what the tests need, once for all the processes that are forked from this one."""
    for name in _WARM:
        importlib.import_module(name)


def outcome(tree: Path, files: Sequence[str], seconds: float, bytecode: bool = False) -> str:
    """How pytest ends on test files of a tree: "passed", "failed", "timeout", or "none" where no test ran.

    Args:
        tree: root of a copy of the checkout.
        files: test files, relative to it.
        seconds: after which the tests are ended.
        bytecode: write compiled files; never while a module is mutated, since they are told apart by whole seconds.
    """
    scratch = tempfile.mkdtemp(prefix="mutant-")
    child = os.fork()
    if not child:
        _run_tests(tree, files, seconds, scratch, bytecode)
    end, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < end:
        ended, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if ended else None
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):  # what the tests started and left, or the tests themselves
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    shutil.rmtree(scratch, ignore_errors=True)
    return {None: "timeout", 0: "passed", 4: "none", 5: "none"}.get(status, "failed")


def _run_tests(tree: Path, files: Sequence[str], seconds: float, scratch: str, bytecode: bool) -> NoReturn:
    """The forked process: pytest, whose exit status it ends with."""
    status = 3
    try:
        os.setsid()
        signal.alarm(int(seconds) + 10)  # for the case that nobody is left to end it
        with open(os.path.join(scratch, "log"), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ |= {"TMPDIR": scratch, "HYPOTHESIS_STORAGE_DIRECTORY": scratch, "PYTHONPATH": str(tree)}
        os.environ.pop("SPARSEMASK_DATA", None)  # the same tests on every machine
        tempfile.tempdir = None
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = not bytecode
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:faulthandler", "--hypothesis-seed=0"]
        status = int(pytest.main(["-x", "-q", "--tb=no", *plugins, "-m", "not slow and not real", *files]))
    finally:
        os._exit(status)


# Mutants


def add_operator() -> None:
    """Teach Cosmic Ray to put `pass` in the place of a call, a raise, or a change of something."""
    import cosmic_ray.plugins
    from cosmic_ray.operators.operator import Example, Operator
    from parso.python.tree import Keyword

    class RemoveStatement(Operator):
        def mutation_positions(self, node):
            if node.type == "simple_stmt" and self._acts(node.children[0]):
                yield node.children[0].start_pos, node.children[0].end_pos

        @staticmethod
        def _acts(statement) -> bool:
            if statement.type == "expr_stmt":
                target, change = statement.children[:2]
                plain = target.type in ("name", "testlist_star_expr") and change.type != "annassign"
                return change.get_code().strip() != "=" if plain else change.type != "annassign"
            words = statement.get_code().split()
            return statement.type in ("atom_expr", "raise_stmt", "del_stmt") or words == ["raise"]

        def mutate(self, node, index):
            first = node.children[0].get_first_leaf()
            node.children[0] = Keyword("pass", first.start_pos, first.prefix)
            return node

        @classmethod
        def examples(cls):
            return (Example("work(1)\n", "pass\n"),)

    cosmic_ray.plugins.OPERATOR_PROVIDERS["statements"] = {"RemoveStatement": RemoveStatement}


def pointless(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans (line, column) whose mutants tell nothing: annotations, which nobody evaluates, and texts of errors."""
    lines = source.splitlines()
    spans = []
    for node in ast.walk(ast.parse(source)):
        nodes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            nodes += node.exc.args
        for one in filter(None, nodes):
            ends = ((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset))
            # ast counts bytes, Cosmic Ray characters.
            spans.append(tuple((row, len(lines[row - 1].encode()[:column].decode())) for row, column in ends))
    return spans


def make_session(module: str, tree: Path, work_db) -> None:
    """List a module's mutants in a new session; those that are not wanted are marked as skipped there."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    init([Path(module)], work_db, {})
    spans = pointless((tree / module).read_text())
    unwanted = []
    for item in work_db.work_items:
        [mutation] = item.mutations
        within = any(start <= mutation.start_pos and mutation.end_pos <= end for start, end in spans)
        if mutation.operator_name not in OPERATORS or within:
            unwanted.append(item.job_id)
    work_db.set_multiple_results(unwanted, WorkResult(WorkerOutcome.SKIPPED))


def in_order(items: Iterable, seed: int) -> list:
    """Work items shuffled by a seed; the order of those that stay does not change when others come or go."""

    def key(item) -> str:
        [mutation] = item.mutations
        words = (seed, mutation.operator_name, mutation.occurrence, *mutation.start_pos)
        return hashlib.sha256(repr(words).encode()).hexdigest()

    return sorted(items, key=key)


def run_mutant(item, tree: Path, files: Sequence[str], seconds: float):
    """Test one mutant: Cosmic Ray's result, with the diff."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    [mutation] = item.mutations
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)()
    with contextlib.ExitStack() as restored:
        try:
            made = use_mutation(mutation.module_path, operator, mutation.occurrence)
            before, after = restored.enter_context(made)
        except Exception as error:  # an operator that cannot: ExceptionReplacer, of dotted names
            return WorkResult(WorkerOutcome.EXCEPTION, repr(error), TestOutcome.INCOMPETENT)
        if after is None:
            return WorkResult(WorkerOutcome.NO_TEST)
        ended = outcome(tree, files, seconds)
    names = (f"a/{mutation.module_path}", f"b/{mutation.module_path}")
    diff = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), *names, n=0, lineterm=""))
    verdict = TestOutcome.SURVIVED if ended == "passed" else TestOutcome.KILLED
    return WorkResult(WorkerOutcome.NORMAL, ended, verdict, diff)


# The run


def copy_checkout() -> Path:
    """A fresh copy of what git knows of, or would add; mutants are written there, never in the checkout."""
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def run_module(module: str, files: Sequence[str], tree: Path, options: argparse.Namespace, end: float) -> list[str]:
    """Run a module's mutants, as many as the options say and the time allows; lines of what survived unjudged."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    judged = judgements(JUDGED.read_text())
    source = (tree / module).read_bytes()
    version = hashlib.sha256(source).hexdigest()[:8]
    sessions = BUILD / "sessions"
    sessions.mkdir(parents=True, exist_ok=True)
    name = module.removesuffix(".py").replace("/", ".")
    for old in sessions.glob(f"{name}-*.sqlite"):
        if old.stem != f"{name}-{version}":
            old.unlink()  # of another version of the module
    with use_db(sessions / f"{name}-{version}.sqlite") as work_db:
        if not work_db.num_work_items:
            make_session(module, tree, work_db)
        ran = lambda: [r for _, r in work_db.completed_work_items if r.worker_outcome == WorkerOutcome.NORMAL]
        todo = in_order(work_db.pending_work_items, options.seed)
        wanted = len(todo) + len(ran())
        if options.most:
            todo = todo[: max(0, options.most - len(ran()))]
        if options.retry:
            survivors = [(i, r) for i, r in work_db.completed_work_items if r.test_outcome == TestOutcome.SURVIVED]
            todo += [i for i, r in survivors if Change.of(module, r.diff) not in judged]
        if todo and not options.list:
            seconds = _baseline(module, files, tree)
            for item in todo:
                if time.monotonic() > end:
                    break
                work_db.set_result(item.job_id, run_mutant(item, tree, files, seconds))
        results = ran()
    survived = [Change.of(module, r.diff) for r in results if r.test_outcome == TestOutcome.SURVIVED]
    fresh = sorted({(c.old, c.new) for c in survived if c not in judged})
    slow = sum(r.output == "timeout" for r in results)
    accepted = sum(c in judged for c in survived)
    columns = (module, wanted, len(results), len(results) - len(survived), slow, len(survived), accepted)
    print("|", " | ".join(map(str, columns)), "|", flush=True)
    text = source.decode()
    stale = {c.old for c in judged if c.module == module and " ".join(text.split()).count(" ".join(c.old.split())) == 0}
    for old in sorted(stale):
        print(f"judged, but no longer in {module}: {old}", file=sys.stderr)
    return [f"{module}\n  - {old}\n  + {new}" for old, new in fresh]


class Unfit(Exception):
    """The tests named for a module cannot judge its mutants."""


def _baseline(module: str, files: Sequence[str], tree: Path) -> float:
    """Seconds that a mutant of a module may take; raises Unfit unless its tests pass, and do import the module."""
    outcome(tree, files, 600, bytecode=True)
    start = time.monotonic()
    ended = outcome(tree, files, 600)
    seconds = time.monotonic() - start
    if ended != "passed":
        raise Unfit(f"{module}: the tests of the unchanged module end with '{ended}': {' '.join(files)}")
    path = tree / module
    source = path.read_text()
    try:
        path.write_text(source.replace("\nfrom __future__ import annotations\n", "\nraise SystemError\n", 1))
        if outcome(tree, files, 600) == "passed":
            raise Unfit(f"{module}: the tests pass without the module: {' '.join(files)}")
    finally:
        path.write_text(source)
    return max(_LEAST, _FACTOR * seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 1 where a mutant survived that nobody has judged."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n\n")[0])
    parser.add_argument("modules", nargs="*", help="modules of modules.toml, or beginnings of their paths")
    parser.add_argument("--most", type=int, default=40, help="mutants of each module, 0: all (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="which of them come first (default: 0)")
    parser.add_argument("--minutes", type=float, default=60, help="time after which the run ends (default: 60)")
    parser.add_argument("--retry", action="store_true", help="run again what survived, for tests that are new")
    parser.add_argument("--list", action="store_true", help="run nothing, show the results so far")
    options = parser.parse_args(argv)
    modules = tomllib.loads((Path(__file__).parent / "modules.toml").read_text())
    unknown = [one for one in options.modules if not any(m.startswith(one) for m in modules)]
    if unknown:
        parser.error(f"not in modules.toml: {' '.join(unknown)}")
    if options.modules:
        modules = {m: files for m, files in modules.items() if m.startswith(tuple(options.modules))}
    BUILD.mkdir(parents=True, exist_ok=True)
    lock = open(BUILD / "lock", "w")  # held until the process ends
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the kind that forked processes do not inherit
    except OSError:
        parser.error(f"another run is going on in {BUILD}")
    tree = copy_checkout()
    os.chdir(tree)  # Cosmic Ray's paths are relative
    warm()
    add_operator()
    end = time.monotonic() + 60 * options.minutes
    print("| module | mutants | run | killed | of these by time | survived | judged |\n|---|---|---|---|---|---|---|")
    fresh = []
    for module, files in modules.items():
        try:
            fresh += run_module(module, [f"tests/{file}" for file in files], tree, options, end)
        except Unfit as error:
            fresh.append(str(error))
    if time.monotonic() > end:
        print("The time is up: the same command goes on.")
    if fresh:
        print(
            f"\n{len(fresh)} findings: changes that survived and docs/mutants.md does not judge, tests that fail:",
            *fresh,
            sep="\n",
        )
    return bool(fresh)


if __name__ == "__main__":
    sys.exit(main())
