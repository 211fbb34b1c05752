"""What full disks and kills leave of a run: nothing that stands in the way, and nothing for ever."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsemask import files, runs
from sparsemask.config import RunConfig
from sparsemask.errors import UseError
from sparsemask.flags import NetworkSection, RunSection
from sparsemask.runs import Run
from sparsemask.search import run as search_run
from spoilt import SEARCH, listing
from tiny import ROOT, fails


def options(folder: Path) -> RunConfig:
    return RunConfig(run=RunSection(exp_path=str(folder), name="a"), network=NetworkSection())


def in_a_child(work) -> int:
    """The exit status of a forked process that calls `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tiny_disk() -> None:
    """From now on the system takes empty files alone, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def killed_while_writing(path: Path) -> None:
    """A process dies by SIGKILL in the middle of a file."""

    def work() -> None:
        with files.atomic_write(path) as file:
            file.write(b"half of i")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(work) == -signal.SIGKILL


def test_a_full_disk_does_not_use_up_the_name(tmp_path):
    def work() -> None:
        tiny_disk()
        try:
            runs.create(options(tmp_path / "runs"), "search")
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 1)

    assert in_a_child(work) == 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert runs.create(options(tmp_path / "runs"), "search").config.is_file()


@pytest.mark.parametrize("moment", ["config.yaml", "run.json", "last.pt"])
def test_a_search_on_a_full_disk_leaves_nothing_and_can_be_begun_again(place, monkeypatch, capfd, moment):
    before = listing(place)
    sync = os.fsync

    def full(handle: int) -> None:
        if f".{moment}." in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        fails(capfd, search_run.main, SEARCH, ["the disk is full"])
    assert listing(place) == before and not (place / "runs" / "new").exists()
    if moment == "config.yaml":  # where the lock alone was left, which used up the name
        assert search_run.main([*SEARCH, "--max_iter", "1"]) == 0


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.yaml.ab12cd34.part"]])
def test_what_a_kill_left_before_the_configuration_does_not_use_up_the_name(tmp_path, left):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).touch()
    run = runs.create(options(tmp_path / "runs"), "search")
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "run.json"} and run.fresh


def test_a_folder_with_anything_else_is_not_touched(tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(UseError, match="is no run"):
        runs.create(options(tmp_path / "runs"), "search")
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_failure_takes_nothing_from_the_process_that_is_at_work(tmp_path):
    folder = tmp_path / "runs" / "a"
    held, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        run = Run(folder).hold()
        os.write(held[1], b"x")
        os.read(go_on[0], 1)
        os._exit(0 if run.folder == folder else 1)
    os.read(held[0], 1)
    try:
        with pytest.raises(UseError, match="another process is at work"):
            runs.create(options(tmp_path / "runs"), "search")
        assert (folder / ".lock").exists()
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)


def test_parts_of_killed_processes_go_when_the_run_is_held(tmp_path):
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.last.write_bytes(b"whole")
    for path in (run.last, run.config, run.pictures / "a.png"):
        killed_while_writing(path)
    (run.folder / "mine.part").write_text("of the user")
    assert len(list(run.folder.rglob(".*.part"))) == 3
    run.hold()
    assert {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()} == {
        ".lock", "checkpoints/last.pt", "mine.part",
    }  # fmt: skip
    assert run.last.read_bytes() == b"whole"


def test_what_is_being_written_is_not_taken_for_a_leftover(tmp_path):
    with files.atomic_write(tmp_path / "eval.json") as file:
        file.write(b"{}")
        assert in_a_child(lambda: os._exit(files.remove_stale(tmp_path) or 0)) == 0
    assert os.listdir(tmp_path) == ["eval.json"] and (tmp_path / "eval.json").read_bytes() == b"{}"


def test_a_killed_search_goes_on_without_its_parts(place):
    shutil.copytree("runs/s", "runs/t")
    killed_while_writing(Path("runs/t/checkpoints/last.pt"))
    assert list(Path("runs/t").rglob(".*.part"))
    assert search_run.main(["--resume", "runs/t"]) == 0
    assert not list(Path("runs/t").rglob(".*.part"))


def test_sigterm_while_writing_leaves_nothing(tmp_path):
    script = (
        "import sys, time\n"
        "from sparsemask import files\n"
        "from sparsemask.errors import command\n"
        "@command\n"
        "def main(argv=None):\n"
        "    with files.atomic_write('out.bin') as file:\n"
        "        file.write(b'half')\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(600)\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    began = time.monotonic()
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and error.strip() == "stopped by SIGTERM" and time.monotonic() - began < 60
    assert os.listdir(tmp_path) == []
