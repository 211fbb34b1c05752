"""The compiled kernels: building them, healing what is broken, and what the number of threads may not change."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparsemask.backends import AttendedBlockCall, BlockCall, ConvCall
from sparsemask.backends.native import BACKEND, build
from sparsemask.ops.block_with_channel_attention import factors
from sparsemask.ops.geometry import Geometry
from test_sparse_block import attention

ROOT = Path(__file__).resolve().parents[1]
needs_compiler = pytest.mark.skipif(
    BACKEND.why_not(torch.device("cpu"), torch.float32) is not None, reason="no C++ compiler here"
)

SLOW = pytest.mark.slow  # every build takes seconds

PROGRAM = """
import torch
from sparsemask.backends.native import BACKEND
print(BACKEND.why_not(torch.device("cpu"), torch.float32))
"""


def quick_compiler(folder: Path) -> str:
    """A command that compiles without optimising: what is built here is loaded, not timed."""
    script = folder / "quick-c++"
    if not script.exists():
        script.write_text(f'#!/bin/sh\nexec {" ".join(build.compiler())} "$@" -O0\n')
        script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str, str]:
    """A kernel cache with a library in it, not to be touched; the compiler that made it; what was said meanwhile."""
    home = tmp_path_factory.mktemp("whole")
    done = fresh(home)
    assert done.stdout.strip() == "None"
    return home, quick_compiler(home), done.stderr


@pytest.fixture
def spoilable(whole, tmp_path) -> tuple[Path, str]:
    """A copy of it that may be spoilt."""
    home, compiler, _ = whole
    return Path(shutil.copytree(home, tmp_path / "home")), compiler


def fresh(home: Path, **more: str) -> subprocess.CompletedProcess:
    """A new process with a kernel cache of its own."""
    if "CXX" not in more:
        more["CXX"] = quick_compiler(home)
    env = {**os.environ, "SPARSEMASK_HOME": str(home), "PYTHONPATH": str(ROOT), **more}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)


def built(home: Path) -> list[Path]:
    return sorted((home / "kernels").glob("*/libsparsemask.so"))


@needs_compiler
def test_it_is_built_once_with_a_line_of_progress(whole):
    home, _, said = whole
    assert "building the sparse kernels" in said  # seconds pass: say why
    again = fresh(home)
    assert again.stdout.strip() == "None"
    assert "building" not in again.stderr  # the cache serves
    assert len(built(home)) == 1


@needs_compiler
@pytest.mark.parametrize(
    "content", [b"", *(pytest.param(one, marks=SLOW) for one in (b"not a library", b"\x7fELF" + bytes(100)))]
)
def test_a_broken_library_is_built_again(spoilable, content):
    # A full disk or a crash may leave anything under the right name.
    home, compiler = spoilable
    (library,) = built(home)
    library.write_bytes(content)
    again = fresh(home, CXX=compiler)
    assert again.stdout.strip() == "None" and "broken" in again.stderr
    assert built(home)[0].stat().st_size > 10000


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["half", "short", "byte", "unsaid"])
def test_a_library_that_is_not_what_was_built_is_built_again(spoilable, spoil):
    # A library cut short loads as far as it goes, and kills the process later.
    home, compiler = spoilable
    (library,) = built(home)
    whole = library.read_bytes()
    if spoil == "unsaid":
        library.with_suffix(".json").unlink()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 255
    library.write_bytes({"half": whole[: len(whole) // 2], "short": whole[:-100], "byte": changed}.get(spoil, whole))
    again = fresh(home, CXX=compiler)
    assert again.returncode == 0 and again.stdout.strip() == "None" and "broken" in again.stderr
    assert built(home)[0].read_bytes() == whole
    assert not list(library.parent.glob(".*.part"))


@needs_compiler
@pytest.mark.slow
def test_a_killed_build_leaves_nothing_in_the_way(tmp_path):
    # The real thing: a compiler that hangs, its process killed, its lock and its half-built folder left behind.
    slow = tmp_path / "slow-g++"
    slow.write_text('#!/bin/sh\ncase "$1" in --version) g++ --version;; *) exec sleep 60;; esac\n')
    slow.chmod(0o755)
    env = {**os.environ, "SPARSEMASK_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "CXX": str(slow)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stderr=subprocess.PIPE, start_new_session=True)
    process.stderr.readline()  # it says that it builds
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("kernels/*/build-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert list(tmp_path.glob("kernels/*/build-*"))  # the half-built folder is there
    slow.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')  # the same command, and so the same folder
    assert fresh(tmp_path, CXX=str(slow)).stdout.strip() == "None"


def test_without_a_compiler_it_says_so(tmp_path):
    done = fresh(tmp_path, CXX="/nowhere/g++")
    assert "no C++ compiler found (CXX=/nowhere/g++)" in done.stdout


@needs_compiler
def test_a_compiler_that_fails_is_reported_in_one_line(tmp_path):
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\necho "x.cpp:1: error: out of luck" >&2\nexit 1\n')
    failing.chmod(0o755)
    done = fresh(tmp_path, CXX=str(failing))
    assert "could not build the sparse kernels" in done.stdout and "out of luck" in done.stdout


def test_other_processors_get_the_portable_kernels_only():
    # What is not an x86 gets no x86 flags.
    calls = build.commands(["g++"], Path("/x/lib.so"), "aarch64")
    assert not any("-mavx2" in part for call in calls for part in call)
    assert sum("isa.cpp" in part for call in calls for part in call) == 1


@needs_compiler
def test_threads_give_the_same_bits():
    # Rows are shared out, sums are not: the number of threads must not show.
    torch.manual_seed(0)
    x, w = torch.randn(1, 32, 40, 40), torch.randn(32, 32, 3, 3)
    mask, none = torch.rand(1, 1, 40, 40) < 0.5, torch.zeros(32, dtype=torch.bool)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(BACKEND.conv(ConvCall(x, w, None, mask, none, none, Geometry.of(2, 3), "relu")))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_compiler
def test_attention_through_means_equals_attention_on_the_output():
    # The fusion is linear: the mean of its output is the fusion of the means.
    torch.manual_seed(0)
    x, mask = torch.randn(1, 8, 7, 9), torch.rand(1, 1, 7, 9) < 0.4
    weights, dense = [torch.randn(8, 8, 3, 3) / 4 for _ in range(3)], torch.rand(3, 8) < 0.3
    collect, bias = torch.randn(8, 24, 1, 1), torch.randn(8)
    call, weights = BlockCall(x, mask, weights, dense, collect, bias, "relu"), tuple(attention(8))
    y = BACKEND.block(call)
    want = x + y * factors(y.mean((2, 3)), weights)[..., None, None]
    got = BACKEND.attended_block(AttendedBlockCall(call, weights))
    assert torch.allclose(got, want, atol=1e-5)
