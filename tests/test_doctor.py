"""sparsemask doctor: one screen on what is here and what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsemask._version import __version__
from sparsemask.backends.native import build
from sparsemask.cli import doctor
from tiny import environment


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and a compiler without which nothing is built."""
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_one_screen(home, capsys):
    assert doctor.main([]) == 0
    said = lines(capsys)
    text = "\n".join(said)
    assert len(said) <= 24
    assert __version__ in said[0] and "torch " in text and "machine" in text and "devices" in text
    assert "! not built yet" in text and "doctor --build" in text
    assert "! none of mobilenet_v2" in text and "! PASCAL VOC 2012 is not prepared" in text
    assert str(home) in text


def test_weights_and_caches_are_found(home, capsys):
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "mobilenet_v2-b0353104.pth").write_bytes(bytes(3_000_000))
    assert doctor.main([]) == 0
    text = "\n".join(lines(capsys))
    assert "weights 3.0 MB" in text and "mobilenet_v2: " in text and "! none of" not in text


def test_no_compiler_is_no_fault(home, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor.main(["--build"]) == 0
    told = "\n".join(lines(capsys))
    assert "! no C++ compiler found (CXX=no-such-compiler)" in told and "run in PyTorch" in told
    assert doctor.main([]) == 0
    plain = "\n".join(lines(capsys))
    assert plain == told and "built at first use" not in plain  # nothing will be, and nothing was written
    assert not list(home.rglob("lock"))


def test_what_is_broken_ends_with_status_1(home, capsys, monkeypatch):
    monkeypatch.setenv("SPARSEMASK_WEIGHTS", str(home / "absent"))
    assert doctor.main([]) == 1
    assert f"! SPARSEMASK_WEIGHTS: no such file or folder: {home / 'absent'}" in "\n".join(lines(capsys))


def test_built_kernels_are_checked(tmp_path):
    """With the kernels of the user's cache, where there is a compiler or they are built already."""
    try:
        build.compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    words = [sys.executable, "-m", "sparsemask.cli", "doctor", "--build"]
    done = subprocess.run(words, env=environment(tmp_path / "home"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "right on this processor" in done.stdout and "vectors of " in done.stdout
    assert "AMX" in done.stdout or "AVX512-BF16" in done.stdout
