"""Command lines that stand in the documentation's pages."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsemask import spaces
from sparsemask.cli.main import VERBS
from sparsemask.cli.main import main as sparsemask
from tiny import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
STARTS = re.compile(
    r"(?:\$ )?((?:[A-Z_]+=\S+ )*(?:sparsemask|python|torchrun|make|pip|cat|cmake|curl|kubectl|sbatch|tensorboard|pnnx"
    r"|build/cpp/\w+) .*)"
)
REMARK = re.compile(r"\s{3,}\S.*$|\s+#\s.*$")
LETTERS = re.compile(r"(--(?:seed|max_iter|threads) )[A-Z]+\b")  # that stand for a number


@dataclass(frozen=True)
class Command:
    """A command line of a page, without the prompt before it and the remark behind it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def commands(page: Path) -> list[Command]:
    """The commands of a page's blocks: those fenced as `sh`, and indented ones."""
    found, fence = [], None
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
        elif fence == "sh" or (fence is None and line.startswith("    ")):
            begun = STARTS.fullmatch(line.strip())
            if begun:
                text = re.sub(r" {2,}(?=--|>|\||[\w./]+=)", " ", begun[1])  # where a line was broken
                found += [Command(str(page.relative_to(ROOT)), part) for part in REMARK.sub("", text).split(" && ")]
    return found


def every_command() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


def run_verb(words: list[str]) -> int:
    """Run a command of this toolkit, `sparsemask VERB ...` or `python FOLDER/FILE.py ...`, here."""
    if words[0] == "sparsemask":
        return sparsemask(words[1:])
    folder, _, name = words[1].removesuffix(".py").rpartition("/")
    if folder in ("search", "prune", "retrain", "VOC12"):
        return importlib.import_module(f"sparsemask.{folder}.{name}").main(words[2:])
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / words[1])
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])  # the first of which these scripts replace
        patch.setattr(sys, "argv", words[1:])
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module.main()


class _Parsed(BaseException):
    """A command line was read to its end."""


def is_known(command: Command) -> bool:
    """Whether a command line is read by the command that it names, which is not run; True of other programs."""
    words = shlex.split(LETTERS.sub(r"\g<1>0", command.text))
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "torchrun":  # its own flags are before the file
        words = ["python", *words[next(n for n, word in enumerate(words) if word.endswith(".py")) :]]
    ours = (
        words[0] == "sparsemask" and words[1] in VERBS or re.match(r"(?:search|prune|retrain|VOC12|bench)/", words[1])
    )
    if not ours or "..." in words or words[1] == "bench/masks.py":  # which hands on what it does not know
        return True
    plain = argparse.ArgumentParser.parse_args

    def parse_args(parser, argv=None, namespace=None):
        plain(parser, argv, namespace)
        raise _Parsed

    # Which network's flags they are a mask or a run would say, that only the page's reader has.
    named = "--space" in words or not re.match(r"(?:prune|retrain)/", words[1])
    for more in [[]] if named else [[], *(["--space", name] for name in spaces.available())]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
            try:
                run_verb([*words, *more])
            except _Parsed:
                return True
            except SystemExit:
                pass
    return False
