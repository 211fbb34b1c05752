"""The command line's conveniences: short and long help, dashes in flags, --dry_run, completion, times left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from literal_sparse import one_thread  # noqa: F401
from pyramid import Pyramid
from sparsemask.cli import completion
from sparsemask.cli import main as front
from sparsemask.engine.records import Progress
from sparsemask.options import COMMON, Parser, positive
from sparsemask.retrain import train
from sparsemask.search import run as search
from sparsemask.spaces import backbones
from tiny import MASKS, SMALL, data_flags, fails, make_data
from without_images import without_images


def text_of(capsys, main, *argv: str) -> str:
    """What a command prints before it leaves with status 0."""
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE))


# ---- help


@pytest.mark.parametrize("main", [search.main, train.main])
def test_help_is_short_and_help_all_is_not(capsys, main):
    short, full = text_of(capsys, main, "--help"), text_of(capsys, main, "--help-all")
    assert flags_in(short) < flags_in(full)
    assert len(flags_in(short)) <= 34 and len(flags_in(full)) > 45
    assert {"--sample", "--im_path", "--max_iter", "--help-all"} <= flags_in(short)
    assert "--nesterov" in flags_in(full) - flags_in(short)
    more = re.search(r"^(\d+) more flags, .*--help-all$", short, re.MULTILINE)
    assert int(more[1]) == len(flags_in(full)) - len(flags_in(short))
    for text in (short, full):
        assert re.match(r"usage: .* \[flags\]\n\n\w", text)
    titles = re.findall(r"^(\w[\w -]*):$", short, re.MULTILINE)
    assert titles[:3] == ["options", "run", "data"] and "training" in titles


def test_asking_for_help_changes_nothing():
    parser = search.parser()
    before = {name: action.help for name, action in parser.actions().items()}
    parser.format_help()
    assert {name: action.help for name, action in parser.actions().items()} == before


def test_commands_with_few_flags_show_all(capsys):
    parser = Parser("few", prog="few")
    parser.add_argument("--rare", type=positive, help="a rare one")
    assert "rare" not in COMMON and "--rare" in parser.format_help() and "more flags" not in parser.format_help()
    assert parser.format_help() == parser.full_help()


def test_flags_take_dashes_for_underscores():
    parser = Parser("few", prog="few")
    parser.add_argument("--im_path")
    parser.add_argument("--show-masks", "--show_masks")
    assert parser.parse_args(["--im-path", "a-b"]).im_path == "a-b"
    assert parser.parse_args(["--im-path=a-b_c"]).im_path == "a-b_c"
    assert parser.parse_args(["--show-masks", "x"]).show_masks == "x"
    assert search.parser().given(["--training-list", "--x", "--eval-list=l"][2:]) == {"eval_list": "l"}


# ---- a dry run


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(backbones.BUILDERS, "small_pyramid", lambda in_channels=3, momentum=0.1: Pyramid())
    monkeypatch.chdir(tmp_path)
    make_data(Path("data"))
    return tmp_path


@pytest.mark.usefixtures("one_thread")
def test_a_dry_run_says_what_would_be_and_writes_nothing(place, capsys):
    flags = [*data_flags(Path("data")), *SMALL, "--backbone_name", "small_pyramid", "--max_iter", "1000"]
    with without_images():
        assert search.main([*flags, *MASKS, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert train.main(["--mask_path", "dense", *flags, "--eval_limit", "1", "--dry_run"]) == 0
    assert sorted(path.name for path in place.iterdir()) == ["data"]
    assert "dry run, nothing was written" in said and "would     search: space connectivity" in said
    assert "on        9 training pictures, 3 validation pictures of val.txt" in said
    assert "1000 steps of 4 pictures at 33x33: 444.4 passes; 200 validation(s) of 3 pictures" in said
    assert re.search(r"takes     about \d", said) and re.search(r"memory    about \d+\.\d GB", said)
    assert "200 validation(s) of 1 pictures" in capsys.readouterr().out


def test_a_dry_run_finds_what_a_run_would_refuse(place, capfd):
    flags = [*data_flags(Path("data")), *SMALL, "--backbone_name", "small_pyramid"]
    fails(capfd, train.main, ["--mask_path", "absent.npy", *flags, "--dry_run"], ["absent.npy"])
    fails(capfd, search.main, ["--resume", "runs/none", "--dry_run"], ["--resume"])
    assert not Path("runs").exists()


# ---- completion


def complete(script: Path, *words: str, cwd: Path) -> list[str]:
    """What bash offers for the last of some words."""
    begin = f'source {script}; COMP_WORDS=(sparsemask "$@"); COMP_CWORD={len(words)}'
    call = begin + "; _sparsemask; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", call, "bash", *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_completion_knows_commands_flags_and_values(tmp_path, capsys):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert completion.main(["bash"]) == 0
    script = tmp_path / "script.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "pictures").mkdir()
    assert complete(script, "pre", cwd=tmp_path) == ["predict", "prepare", "prepare-points"]
    assert complete(script, "search", "--max_", cwd=tmp_path) == ["--max_epoch", "--max_iter"]
    assert complete(script, "search", "--nest", cwd=tmp_path) == ["--nesterov"]
    assert complete(script, "search", "--method", "l", cwd=tmp_path) == ["latency"]
    assert complete(script, "retrain", "--space", "sms", cwd=tmp_path) == ["smsr", "smstereo"]
    assert complete(script, "predict", "pic", cwd=tmp_path) == ["pictures"]
    assert complete(script, "predict", "--write", "", cwd=tmp_path) == ["labels", "overlay", "colours", "probabilities"]
    assert complete(script, "completion", "z", cwd=tmp_path) == ["zsh"]


def test_every_command_of_the_help_is_completed():
    script = completion.script()
    for verb in front.VERBS:
        assert re.search(rf"^    sparsemask {verb} ", front.__doc__, re.MULTILINE), verb
        assert verb in script


# ---- times


def test_times_left_are_for_people(capsys, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_PROGRESS_SECONDS", "0")
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock, 20.0))
    bar = Progress(1000, 0, "r")
    bar.update(3, {"loss": 1.0})
    bar.update(1000, {"loss": 1.0})
    error = capsys.readouterr().err
    assert "r 3/1000  loss 1  55 min left" in error and error.endswith("done\n")


@pytest.mark.parametrize(("columns", "shown"), [(100, r"100%\|.* 5/5 "), (0, r"r 5/5  loss 1  done")])
def test_a_terminal_without_a_width_has_lines(columns, shown, monkeypatch):
    pty, termios, fcntl = map(pytest.importorskip, ("pty", "termios", "fcntl"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        bar = Progress(5, 0, "r")
        bar.update(5, {"loss": 1.0})
        bar.close()
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as other_end, contextlib.suppress(OSError):  # the end of what was written
        while part := other_end.read(4096):
            seen += part
    assert re.search(shown, seen.decode())
