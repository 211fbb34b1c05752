"""Counts what must hold of the product code: one line of output a rule, its places with ``--list``.

    python tests/house.py                    all that is counted by reading
    python tests/house.py --list changes     the places of one count
    python tests/house.py --road             the files that run from a search to an evaluation (a minute)
    python tests/house.py --root FOLDER      another checkout

Product code is every Python file of the folders that are installed. `tests/test_house.py` holds what is reached.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOMS = ("VOC12", "sparsemask", "spaces", "search", "prune", "retrain")
# Imports run from the right to the left; the two of the ground apart, rooms of one level do not import each other.
LEVELS = {"VOC12": 0, "sparsemask": 0, "spaces": 1, "search": 2, "prune": 2, "retrain": 2}
# What stands above the verbs, and may import all of them.
ABOVE = ("sparsemask/api/", "sparsemask/cli/", "sparsemask/__main__.py", "sparsemask/testing/", "search/study")
# Names under which functions hold a configuration or a parsed command line.
OPTIONS = {"options", "config", "namespace", "settings", "opt", "opts"}
# Files that run on the road and that a reader of the method passes by: their names say what they do.
ASIDE = (
    "VOC12/", "sparsemask/report/", "sparsemask/pictures/", "sparsemask/_checkout.py", "sparsemask/errors.py",
    "sparsemask/files.py", "sparsemask/locks.py", "sparsemask/containers.py", "sparsemask/processes.py",
    "sparsemask/tables.py", "sparsemask/timing.py", "sparsemask/costs.py", "sparsemask/devices.py",
    "sparsemask/finite.py", "sparsemask/plugins.py", "sparsemask/checkpoint_schema.py", "sparsemask/weight_files.py",
    "sparsemask/engine/interrupt.py", "sparsemask/engine/distributed.py", "sparsemask/engine/records.py",
    "sparsemask/tracking/", "sparsemask/command_lines.py",  # who is told of a run; the texts of advice
)  # fmt: skip
STRETCH = 6


@dataclass(frozen=True)
class Source:
    """A file of the product: its path below the root, its lines, its syntax tree."""

    path: str
    lines: list[str]
    tree: ast.Module

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def module(self) -> str:
        """The name under which it is imported where it is installed."""
        parts = Path(self.path).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        return ".".join(parts if parts[0] == "sparsemask" else ("sparsemask", *parts))


def sources(root: Path) -> list[Source]:
    """All files of the product, in order."""
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    texts = [(str(path.relative_to(root)), path.read_text()) for path in paths]
    return [Source(path, text.splitlines(), ast.parse(text)) for path, text in texts]


def attribute_lines(files: list[Source]) -> list[str]:
    """Lines that call hasattr or getattr."""
    return sorted(
        {
            f"{file.path}:{node.lineno}: {file.lines[node.lineno - 1].strip()}"
            for file in files
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
        }
    )


def _is_options(node: ast.expr) -> bool:
    """Whether an expression is a configuration: by its name, or an attribute of such a name."""
    if isinstance(node, ast.Name):
        return node.id in OPTIONS
    return isinstance(node, ast.Attribute) and node.attr.lstrip("_") in OPTIONS


def option_changes(files: list[Source]) -> list[str]:
    """Places that write into a configuration: an attribute or an entry assigned or deleted, setattr, update."""
    found = []
    for file in files:
        for node in ast.walk(file.tree):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign | ast.Delete):
                targets = [part for t in node.targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]
            elif isinstance(node, ast.AugAssign | ast.AnnAssign):
                targets = [node.target]
            changed = any(isinstance(t, ast.Attribute) and _is_options(t.value) for t in targets)
            if isinstance(node, ast.Call):
                name = node.func
                changed = isinstance(name, ast.Name) and name.id in ("setattr", "delattr") and _is_options(node.args[0])
                if isinstance(name, ast.Attribute) and name.attr in ("update", "setdefault", "pop"):
                    inner = name.value
                    inside = (
                        isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "vars"
                    )
                    changed = inside and bool(inner.args) and _is_options(inner.args[0])
            if changed:
                found.append(f"{file.path}:{node.lineno}: {file.lines[node.lineno - 1].strip()}")
    return found


def _imports(file: Source, known: dict[str, Source], lazy: bool) -> Iterator[tuple[int, Source]]:
    """(line, file) of what a file imports of ours: when it is loaded, or with `lazy` also within functions."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    def ours(name: str) -> str:
        return name if name.split(".")[0] == "sparsemask" else f"sparsemask.{name}"

    for node in walk(file.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if ours(name) in known else node.module for name in deeper]
        for name in names:
            if (target := known.get(ours(name))) and target is not file:
                yield node.lineno, target


def circles(files: list[Source]) -> list[str]:
    """Groups of files that import each other while they are loaded."""
    known = {file.module: file for file in files}
    graph = {file.path: {target.path for _, target in _imports(file, known, lazy=False)} for file in files}
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            if (path := todo.pop()) not in seen:
                seen.add(path)
                todo.extend(graph[path])
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return [" ".join(group) for group in sorted(groups)]


def upward(files: list[Source]) -> list[str]:
    """Imports, within functions too, from a room to one above it or beside it."""
    known = {file.module: file for file in files}
    found = []
    for file in files:
        if file.path.startswith(ABOVE):
            continue
        room = file.path.split("/")[0]
        for line, target in _imports(file, known, lazy=True):
            other = target.path.split("/")[0]
            up = other != room and LEVELS[other] >= max(LEVELS[room], 1)
            if up or target.path.startswith(ABOVE):
                found.append(f"{file.path}:{line}: imports {target.path}")
    return found


def undocumented(files: list[Source]) -> list[str]:
    """Public functions, classes and methods without a docstring.

    An inherited one counts; overloads, setters and the tests of contracts, whose names say all, need none.
    """
    documented: dict[str, set[str]] = defaultdict(set)  # of every class by name: its methods with a docstring
    bases: dict[str, set[str]] = defaultdict(set)
    classes = [(f, node) for f in files for node in ast.walk(f.tree) if isinstance(node, ast.ClassDef)]
    for _, node in classes:
        bases[node.name] |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        documented[node.name] |= {
            part.name for part in node.body if isinstance(part, ast.FunctionDef) and ast.get_docstring(part)
        }

    def inherits(name: str, method: str, seen: frozenset[str] = frozenset()) -> bool:
        above = bases.get(name, set()) - seen
        # The methods of torch's modules are torch's: their own documentation says what they do.
        return any(
            method in documented.get(base, set())
            or (base == "Module" and method in ("forward", "train", "extra_repr"))
            or (base == "Function" and method in ("forward", "backward"))
            or inherits(base, method, seen | {name})
            for base in above
        )

    found = []
    for file in files:
        if any(part.startswith("_") and part != "__init__.py" for part in file.path.split("/")):
            continue
        for node in file.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            overloaded = any(ast.unparse(d) == "overload" for d in node.decorator_list)
            if not ast.get_docstring(node) and not overloaded:
                found.append(f"{file.path}:{node.lineno}: {node.name}")
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if not isinstance(part, ast.FunctionDef) or part.name.startswith("_") or ast.get_docstring(part):
                    continue
                decorators = "".join(ast.unparse(d) for d in part.decorator_list)
                if "setter" in decorators or part.name.startswith("test_") or inherits(node.name, part.name):
                    continue
                found.append(f"{file.path}:{part.lineno}: {node.name}.{part.name}")
    return found


def _code_lines(file: Source) -> list[tuple[int, str]]:
    """(number, text) of the lines that compute: no blank lines, comments, docstrings, imports, ``__all__``."""
    left_out: set[int] = set()
    for node in ast.walk(file.tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        public = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if text or public or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((n, line.strip()) for n, line in enumerate(file.lines, 1) if n not in left_out)
    return [(n, line) for n, line in lines if line and not line.startswith("#")]


def repeated(files: list[Source]) -> list[str]:
    """Stretches of six and more lines of code, indentation aside, that stand in more than one place."""
    lines = [(file.path, n, text) for file in files for n, text in [*_code_lines(file), (0, f"end of {file.path}")]]
    windows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in range(len(lines) - STRETCH + 1):
        windows[tuple(text for *_, text in lines[i : i + STRETCH])].append(i)
    found, taken = [], set()
    for places in windows.values():
        if len(places) < 2 or places[0] in taken:
            continue
        first, second = places[0], next((p for p in places[1:] if p >= places[0] + STRETCH), None)
        if second is None:
            continue
        length = STRETCH
        while second + length < len(lines) and lines[first + length][2] == lines[second + length][2]:
            length += 1
        taken |= {p + k for p in places for k in range(length - STRETCH + 1)}
        found.append(f"{length} lines: " + " ".join(f"{lines[p][0]}:{lines[p][1]}" for p in places))
    return found


COUNTS = {
    "attributes": ("lines with hasattr or getattr", attribute_lines),
    "changes": ("places that change a configuration", option_changes),
    "circles": ("import circles", circles),
    "upward": ("imports that run up", upward),
    "undocumented": ("public names without a docstring", undocumented),
    "repeated": ("repeated stretches of six lines and more", repeated),
}


def road(root: Path) -> dict[str, int]:
    """Files of the product of which a function runs from a search over its mask to an evaluation, and how many do.

    The way of the default space on a tiny data set, without what draws. It is gone twice and watched the second time,
    so that what only runs when a file is loaded is not counted.
    """
    sys.path[:0] = [str(root), str(root / "tests")]
    from importlib import import_module

    from tiny import MASKS, SMALL, data_flags, make_data
    from without_images import without_images

    installed = "sparsemask." if (root / "sparsemask" / "_checkout.py").exists() else ""
    names = ("search.run", "prune.prune", "retrain.train", "retrain.eval")
    verbs = [import_module(installed + name).main for name in names]
    seen: dict[str, set[str]] = defaultdict(set)

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function, not a file or a class
            seen[frame.f_code.co_filename].add(frame.f_code.co_qualname.split(".<locals>")[0])

    def go(name: str) -> None:
        lines = (
            ["--search", *data, *SMALL, *MASKS, "--max_iter", "2", "--name", f"s{name}"],
            ["--thres", "0.001", "--run", f"runs/s{name}"],
            ["--mask_path", "mask.npy", *data, *SMALL, "--max_iter", "2", "--name", f"r{name}"],
            ["--run", f"runs/r{name}"],
        )
        for main, argv in zip(verbs, lines, strict=True):
            if status := main(argv):
                raise SystemExit(f"{argv}: status {status}")

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, without_images():
        os.chdir(folder)
        data = data_flags(make_data(Path("data").resolve(), n=8))
        go("1")
        sys.setprofile(watch)
        go("2")
        sys.setprofile(None)
        os.chdir(before)
    ours = {Path(path).resolve(): len(names) for path, names in seen.items()}
    inside = {path.relative_to(root): count for path, count in ours.items() if path.is_relative_to(root)}
    return {str(path): inside[path] for path in sorted(inside) if path.parts[0] in ROOMS}


def main(argv: list[str] | None = None) -> int:
    """Print the counts, or the places of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="another checkout")
    parser.add_argument("--list", choices=COUNTS, help="the places of one count")
    parser.add_argument("--road", action="store_true", help="the files that run from a search to an evaluation")
    given = parser.parse_args(argv)
    root = given.root.resolve()
    if given.road:
        files = road(root)
        read = [path for path in files if not path.startswith(ASIDE)]
        for path in read:
            print(f"{files[path]:4} functions  {path}")
        print(f"{len(read)} files are read, {len(files)} run")
        return 0
    files = sources(root)
    if given.list:
        print("\n".join(COUNTS[given.list][1](files)))
        return 0
    print(f"{sum(len(file.lines) for file in files):6}  lines of product code in {len(files)} files")
    for what, count in COUNTS.values():
        print(f"{len(count(files)):6}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
