"""Every vector width of the native kernels on every processor, by brute force; the sanitizers' view of the same sweeps;
and the check that a build has to pass before it is trusted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import kernel_sweeps
from kernel_sweeps import FORMS
from literal_sparse import one_thread  # noqa: F401
from sparsemask.backends import native
from sparsemask.backends.native import build, library, selfcheck
from sparsemask.errors import UseError
from sparsemask.sparse import SparseMaskConv
from test_sparse_native import quick_compiler

pytestmark = pytest.mark.skipif(
    native.BACKEND.why_not(torch.device("cpu"), torch.float32) is not None, reason="no C++ compiler here"
)
ROOT = Path(__file__).resolve().parents[1]


def test_every_width_is_among_the_forms():
    assert {form.width for form in FORMS} == {4, 8, 16}


@pytest.mark.parametrize("sweep", kernel_sweeps.SWEEPS)
@pytest.mark.parametrize(
    "form",
    [*FORMS[: len(build.WIDTHS)], *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[len(build.WIDTHS) :])],
    ids=lambda form: form.name,
)
def test_every_width_computes_every_shape(form, sweep):
    with library.using(form):
        assert library.width() == form.width
        assert kernel_sweeps.wrong(kernel_sweeps.SWEEPS[sweep]) == []


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_nothing_masked_is_torchs_own_convolution(form):
    # As it was reported: with 24 output channels values up to 3e38 on processors with AVX-512.
    torch.manual_seed(0)
    x = torch.randn(1, 16, 9, 11)
    with library.using(form), torch.no_grad():
        for channels in (17, 24, 49, 56, 81, 88, 113, 120):
            layer = SparseMaskConv(16, channels, 3).eval()
            layer.backend = "native"
            every = torch.ones(1, 1, 9, 11, dtype=torch.bool)
            got = layer(x, every, torch.zeros(16, dtype=torch.bool), torch.zeros(channels, dtype=torch.bool))
            bias = layer.bias.double() if layer.bias is not None else None
            wanted = F.relu(F.conv2d(x.double(), layer.weight.double(), bias, padding=1))
            assert torch.allclose(got.double(), wanted, atol=1e-5), channels


def test_threads_sum_up_what_one_sums_up():
    torch.set_num_threads(2)
    for columns, variant in ((17, 4), (56, 100), (130, 127)):
        assert selfcheck.product(columns, rows=200, variant=variant) < selfcheck.TOLERANCE


def program(text: str, home: Path, seconds: int = 300, **more: str) -> subprocess.CompletedProcess:
    """A Python program in a process with a kernel cache of its own."""
    paths = {"SPARSEMASK_HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    if home != build.cache():
        paths["CXX"] = quick_compiler(home)
    env = {**os.environ, **paths, **more}
    return subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=seconds)


WIDTH = """
import torch
from sparsemask.sparse import SparseMaskConv
from sparsemask.backends.native import library
layer = SparseMaskConv(4, 24, 3).eval()
layer.backend = "native"
with torch.no_grad():
    layer(torch.ones(1, 4, 5, 5), torch.ones(1, 1, 5, 5).bool(), torch.ones(4).bool(), torch.ones(24).bool())
print(library.width(), library.form().name)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("width", build.WIDTHS)
def test_the_environment_chooses_the_width_and_it_is_said(home, width):
    done = program(WIDTH, home, SPARSEMASK_VECTOR_WIDTH=str(width))
    assert done.stdout.split()[0] == str(width), done.stderr
    assert f"sparse kernels: vectors of {width} floats, compiled for" in done.stderr


@pytest.mark.slow
def test_a_width_for_another_instruction_set(home):
    done = program(WIDTH, home, SPARSEMASK_VECTOR_WIDTH="16/plain")
    assert done.stdout.split() == ["16", "plain-16"], done.stderr


@pytest.mark.parametrize("value", ["5", "wide", "16/mmx", "/avx2"])
def test_an_unknown_width_is_an_error_of_use(monkeypatch, value):
    monkeypatch.setenv("SPARSEMASK_VECTOR_WIDTH", value)
    with pytest.raises(UseError, match="SPARSEMASK_VECTOR_WIDTH"):
        build.asked_width()


def runtime(name: str) -> str | None:
    """The path of a sanitizer's runtime, as the compiler finds it."""
    call = [*build.compiler(), f"-print-file-name={name}"]
    said = subprocess.run(call, capture_output=True, text=True).stdout.strip()
    return said if os.path.isabs(said) and os.path.exists(said) else None


@pytest.fixture(scope="module")
def sanitizers() -> str:
    """What a process has to be started with."""
    found = [runtime("libasan.so"), runtime("libubsan.so")]
    if None in found:
        pytest.skip("the compiler has no runtimes of the sanitizers")
    return " ".join(found)


def sanitized(text: str, preloaded: str, seconds: int = 300, **more: str) -> subprocess.CompletedProcess:
    env = {"SPARSEMASK_SANITIZED_KERNELS": "1", "LD_PRELOAD": preloaded, "OMP_NUM_THREADS": "1", **more}
    env["ASAN_OPTIONS"] = "detect_leaks=0:detect_odr_violation=0"  # Python's and torch's own are none of ours
    return program(text, build.cache(), seconds, **env)


# The sweeps with what is only repetition left out: sanitizers are slow.
SWEPT = """
import itertools, sys
import kernel_sweeps
bad = [one for sweep in kernel_sweeps.SWEEPS.values()
       for one in itertools.islice(sweep(), 0, None, 3) if not one[1] <= 1e-4]
print(len(bad), bad[:3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", {form.width: form for form in reversed(FORMS)}.values(), ids=lambda form: form.name)
def test_sanitizers_find_nothing_in_the_sweeps(form, sanitizers):
    done = sanitized(SWEPT, sanitizers, SPARSEMASK_VECTOR_WIDTH=f"{form.width}/{form.instruction_set}")
    assert done.returncode == 0 and done.stdout.startswith("0 "), done.stdout + done.stderr[-3000:]


@pytest.mark.slow
def test_sanitizers_see_what_reads_past_the_end(sanitizers):
    # The watch itself: a product told of one column more than its buffers have.
    text = """
import torch
from sparsemask.backends.native import library
x, out = torch.randn(5, 8), torch.empty(5, 9)
library.product(torch.arange(5, dtype=torch.int32), [library.Segment(x, None, 0, 9)],
                library.pack(torch.randn(9, 9)), 9, library.Target(out))
"""
    form = FORMS[-1]
    done = sanitized(text, sanitizers, SPARSEMASK_VECTOR_WIDTH=f"{form.width}/{form.instruction_set}")
    assert done.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.slow
def test_sanitizers_find_nothing_in_the_operators_of_onnx_runtime(sanitizers):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    # -s: what the sanitizers say as they end a process would be lost in pytest's capture.
    words = ["-s", "-x", "-m", "not slow", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_export_nodes.py")]
    text = f"import sys, pytest\nsys.exit(pytest.main({words}))"
    best = f"{library.supported_width()}/{library.supported()[-1]}"
    done = sanitized(text, sanitizers, 900, SPARSEMASK_VECTOR_WIDTH=best)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-3000:]


# Faults put into the sources, none of which writes beyond its memory; the first two were there. Each is of a file, what
# stands there and what is put in its place.
FAULTS = {
    "slopes": ("rows.h", "(p.slopes + first + j * W)", "(p.slopes + j * W)"),
    "two panels": ("rows.h", " columns - first > PANEL + 8; first += 2", " columns - first > PANEL; first += 2"),
    "four panels": ("rows.h", "first > 3 * PANEL + 8; first += 4", "first > 3 * PANEL; first += 4"),
    "sums": ("rows.h", "sums[j] += value;", "sums[j] += v[j - first];"),
    "zeros": ("rows.h", "reinterpret_cast<uintptr_t>(zeros) & none", "reinterpret_cast<uintptr_t>(one.base) & none"),
    "three panels": ("rows.h", "first > 2 * PANEL + 8; first += 3", "first > 2 * PANEL; first += 3"),
    "steps": ("rows.h", "for (; k < length; k++, w += width) add", "for (; k + 1 < length; k++, w += width) add"),
    "sums of neighbours": ("rows.h", "__builtin_shuffle(a, b, even + 1)", "__builtin_shuffle(a, b, even)"),
    "squares": ("squares.h", "d[3][b] = column[1] - column[3]", "d[3][b] = column[3] - column[1]"),
    "squares' columns": ("squares.h", "rest > 8 ? PANEL : rest ? 8 : 0", "rest ? PANEL : 0"),
    "squares' zeros": ("squares.h", "place / 4 * p.pitch + place % 4", "place / 4 * p.pitch + place % 3"),
    "which are squares": ("kernels.cpp", "pos[below + 1] == under + 1", "true"),
    "tails of columns": ("rows.h", "if (k < to) block(Width<W>{}, to - W);", ""),
    "inner products": ("narrow.h", "const int64_t kept = p.places ? 0 : p.columns;", "const int64_t kept = p.columns;"),
    "tiles": ("tiles.h", "one.row[pos[i] - first] = start + i;", "one.row[i] = start + i;"),
    "tiles' rows": ("tiles.h", "if (from >= 0 && last - from == end - begin)", "if (from >= 0)"),
    "rounding": ("bfloat16.h", "bits + 0x7fffu + (bits >> 16 & 1u)", "bits"),
    "dots": ("dots.h", "(one.channels + NUMBERS - 1) / NUMBERS", "one.channels / NUMBERS"),
    "int8": ("int8.h", "(reinterpret_cast<Ints>(b << 8) >> 24)", "(reinterpret_cast<Ints>(b << 8) >> 24 & 0xff)"),
    "int8's zero": ("packed.h", "static_cast<Number>(p.zero)", "Number{0}"),
    "points": (
        "points.h",
        "std::min(first + (count - 1) * W, p.columns - W)",
        "std::max<int64_t>(first, p.columns - W - 1)",
    ),
    "point gradients": ("points.h", "mine -= dy", "mine += dy"),
    "correlation": ("stereo.h", "for (; g < groups; g++)", "for (; g + 1 < groups; g++)"),
    "residual": ("inverted.h", "for (int64_t k = to; k < to + p.only_after; k++)", "for (int64_t k = to; k < to; k++)"),
    "stage": ("stages.h", "const double wide = 1 + 1e-4;", "const double wide = 0.5;"),
    "mask branch": ("locating.h", "odd && m + 1 < lines", "odd && m + 2 < lines"),
    "mask branch of 3x3": ("locate.h", "y < (p.height + 1) / 2 * 2", "y < p.height"),
    "module": ("module.h", "sums[i % p.columns] += room[i]", "sums[i % p.columns] = room[i]"),
    "lists": ("kernels.cpp", "if (eight == 0 || eight == 0x0101010101010101u)", "if (eight == 0 || (eight & 1))"),
}  # fmt: skip

FEW = ("two panels", "points", "mask branch")  # one of a file's kernels each; every fault is in the whole set


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A function that makes the default library one with a fault, of vectors of 16 floats."""

    def make(fault: str) -> build.Form:
        file, stands, put = FAULTS[fault]
        sources = tmp_path / "src"
        shutil.copytree(build.SOURCES, sources)
        text = (sources / file).read_text()
        assert stands in text
        (sources / file).write_text(text.replace(stands, put))
        monkeypatch.setattr(build, "SOURCES", sources)
        monkeypatch.setattr(build, "_COMMON", tuple(f.replace("-O3", "-O0") for f in build._COMMON))
        monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
        return build.Form(16, "plain")

    return make


@pytest.mark.parametrize(
    "fault", [fault if fault in FEW else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_the_check_catches_a_kernel_that_is_broken(broken, fault):
    with library.using(broken(fault)):
        wrong = selfcheck.trust()
        assert wrong is not None and "off by" in wrong
        assert not list((build.cache() / "kernels").glob("*/checked-*"))  # nobody trusts it later


def test_a_broken_kernel_serves_nobody(broken, capfd):
    # One line, and PyTorch's own way computes: convolutions, points, stages alike.
    native.say_absent.cache_clear()
    x, layer = torch.randn(1, 16, 9, 11), SparseMaskConv(16, 24, 3).eval()
    every = torch.ones(1, 1, 9, 11, dtype=torch.bool)
    none_in, none_out = torch.zeros(16, dtype=torch.bool), torch.zeros(24, dtype=torch.bool)
    with library.using(broken("two panels")), torch.no_grad():
        native._absent.cache_clear()
        try:
            got = [layer(x, every, none_in, none_out) for _ in range(6)]
            with pytest.raises(UseError, match="wrong results on this processor"):
                layer.backend = "native"
                layer(x, every, none_in, none_out)
        finally:
            native._absent.cache_clear()
    bias = layer.bias.double() if layer.bias is not None else None
    wanted = F.relu(F.conv2d(x.double(), layer.weight.double(), bias, padding=1))
    assert all(torch.allclose(one.double(), wanted, atol=1e-5) for one in got)
    said = [line for line in capfd.readouterr().err.splitlines() if "wrong results" in line]
    assert len(said) == 1 and "pure PyTorch computes" in said[0]


def test_a_build_is_checked_once_a_machine(home):
    text = """
from sparsemask.backends.native import library, selfcheck
calls = []
check = selfcheck.check
selfcheck.check = lambda: calls.append(1) or check()
import torch
from sparsemask.backends.native import BACKEND
print(BACKEND.why_not(torch.device("cpu"), torch.float32), len(calls))
"""
    for left in home.glob("kernels/*/checked-*"):  # of the tests before
        left.unlink()
    first, second = program(text, home), program(text, home)
    assert first.stdout.split() == ["None", "1"] and second.stdout.split() == ["None", "0"], first.stderr


def test_the_check_is_in_float32_whatever_computes_around_it():
    # A build's first use may be within a forward pass in bfloat16.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert selfcheck.check() is None


def test_the_check_leaves_random_states_and_threads_alone():
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    assert selfcheck.check() is None
    assert torch.equal(torch.random.get_rng_state(), before) and torch.get_num_threads() == threads
