"""Atomic writing, and errors in one line."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from sparsemask import UseError, files
from sparsemask.errors import choose, command, describe


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), files.atomic_write(target) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_file_too_large_is_an_error_of_use_and_keeps_the_old_file(tmp_path):
    # A real refusal by the operating system, in a process of its own.
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")
    child = os.fork()
    if child == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        os._exit(command(lambda argv=None: files.write_bytes(target, b"x" * 5000))())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (UseError("two\nlines"), 2, "error: two lines\n"),
        (OSError(errno.ENOSPC, "x", "/full/disk"), 2, "error: /full/disk: the disk is full\n"),
        (PermissionError(errno.EACCES, "x", "/secret"), 2, "error: /secret: permission denied\n"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_command_turns_errors_into_one_line(capsys, raised, status, words):
    @command
    def main(argv=None):
        raise raised

    assert main() == status
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_failures_of_our_own_keep_their_traceback():
    @command
    def main(argv=None):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        main()
    assert describe(OSError(errno.EIO, "I/O error")) is None


def test_unknown_name_lists_the_right_ones():
    with pytest.raises(UseError, match="unknown fruit 'pear'; known: apple, plum"):
        choose("pear", {"plum": 1, "apple": 2}, "fruit")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_torn_json_is_an_error_of_use(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UseError, match="a.json"):
        files.read_json(tmp_path / "a.json")
