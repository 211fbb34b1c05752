"""The choice by measuring: right numbers, the fastest that is there, remembered, whole whatever the cache holds."""

from __future__ import annotations

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from literal_sparse import Case, difference, one_thread, problem  # noqa: F401
from sparsemask.backends import Backend, auto
from sparsemask.backends.auto import calibration
from sparsemask.backends.native import tiles
from sparsemask.ops import dispatch
from sparsemask.sparse import SparseMaskBlock, available_backends
from test_sparse_block import attention, block_problem

CPU = torch.device("cpu")
ALIKE = calibration.Model(1e-5, (1e9,) * len(calibration._CHANNELS), 1e9)


@pytest.fixture
def fresh(monkeypatch) -> auto.Auto:
    """A new one in the place of `auto`, with costs that make every backend worth trying, so that nothing is timed."""
    monkeypatch.setattr(auto, "model", lambda *_: ALIKE)
    monkeypatch.setattr(auto, "NEAR", 1e9)
    made = auto.Auto()
    dispatch.find("auto")
    monkeypatch.setitem(dispatch.loaded, "auto", made)
    return made


def work(seconds: float) -> None:
    """Take so much of the processor's time: a thread that sleeps takes none, whatever the clock says."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Stub(Backend):
    """A backend that takes a given time and says that it was called; its numbers are the reference's."""

    def __init__(self, name: str, seconds: float, log: list, reason: str | None = None):
        self.name, self.seconds, self.log, self.reason = name, seconds, log, reason

    def why_not(self, device, dtype):
        return self.reason

    def conv(self, call):
        self.log.append(self.name)
        work(self.seconds)
        return own["reference"].conv(call)


own = {name: dispatch.find(name) for name in ("reference", "dense", "gather", "native", "triton")}


@pytest.fixture
def stubs(fresh, monkeypatch):
    """Puts stubs in the place of the backends; returns the list of who was called."""

    def put(**seconds) -> list:
        log = []
        for name in own:
            reason = None if name in seconds else f"no {name} today"
            monkeypatch.setitem(dispatch.loaded, name, Stub(name, seconds.get(name, 0), log, reason))
        return log

    return put


def test_it_is_there_and_has_the_formulas_numbers_from_the_first_call_on(fresh):
    # Every call of the race by another backend, and the calls after it.
    given = problem(Case())
    expected = given.literal()
    for _ in range(20):
        assert difference(given.run("auto"), expected) < 1e-5
    assert len(fresh.choices()) == 1


def test_modules_and_their_attention_too(fresh):
    given, weights = block_problem(), attention(6)
    plain = torch.ops.sparsemask.block(*given, "relu", "reference")
    gated = torch.ops.sparsemask.attended_block(*given, weights, "relu", "reference")
    for _ in range(20):
        assert torch.allclose(torch.ops.sparsemask.block(*given, "relu", "auto"), plain, atol=1e-5)
        assert torch.allclose(torch.ops.sparsemask.attended_block(*given, weights, "relu", "auto"), gated, atol=1e-5)
    assert len(fresh.choices()) == 2  # with and without are timed apart


def test_what_it_chooses_is_available(fresh):
    able = {name for name, reason in available_backends().items() if reason is None}
    for kept, size in itertools.product((0.0, 0.3, 1.0), ((4, 5), (9, 8))):
        given = problem(Case(spatial=size, kept=kept))
        for _ in range(20):
            given.run("auto")
    chosen = fresh.choices()
    assert len(chosen) == 6 and set(chosen.values()) <= able - {"auto"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_the_kernels_do_not_have(fresh, dtype):
    given = problem(Case(), dtype)
    expected = given.run("reference")
    with tiles.using("none"):
        for _ in range(20):
            assert torch.allclose(given.run("auto"), expected, rtol=2e-2, atol=2e-2)
    assert set(fresh.choices().values()) <= {"reference", "gather"}


@pytest.mark.parametrize("fastest", ["reference", "gather", "native"])
def test_the_fastest_serves(stubs, fresh, fastest):
    log = stubs(**{name: 0.0 if name == fastest else 0.02 for name in ("reference", "gather", "native")})
    given = problem(Case())
    for _ in range(16):
        given.run("auto")
    assert list(fresh.choices().values()) == [fastest]
    del log[:]
    for _ in range(5):
        given.run("auto")
    assert log == [fastest] * 5  # remembered: nobody else is asked any more


def test_the_dense_form_serves_where_nothing_is_faster(stubs, fresh):
    stubs(reference=0.01, gather=0.01, native=0.01)
    given = problem(Case())
    for _ in range(30):
        given.run("auto")
    (chosen,) = fresh.choices().values()
    assert chosen in own  # a tie: anyone, but the race ends
    fresh.forget()
    stubs(reference=0.01, gather=0.013, native=0.013)
    for _ in range(30):
        given.run("auto")
    assert list(fresh.choices().values()) == ["reference"]


def test_one_slow_first_call_does_not_decide(stubs, fresh, monkeypatch):
    # The first call of a backend packs weights, builds tables, warms caches.
    log = stubs(reference=0.008, gather=0.001, native=0.02)
    slow = dispatch.find("gather")
    conv, first = slow.conv, [0.05]

    def warming(*given):
        work(first.pop() if first else 0)
        return conv(*given)

    monkeypatch.setattr(slow, "conv", warming)
    given = problem(Case())
    for _ in range(16):
        given.run("auto")
    assert list(fresh.choices().values()) == ["gather"] and log.count("native") < 5


def test_what_is_predicted_to_be_slow_is_not_even_tried(stubs, fresh, monkeypatch):
    slow = calibration.Model(1.0, ALIKE.rates, ALIKE.bandwidth)
    monkeypatch.setattr(auto, "NEAR", 2.0)
    monkeypatch.setattr(auto, "model", lambda name, *_: slow if name == "gather" else ALIKE)
    log = stubs(reference=0.0, gather=0.0, native=0.0)
    given = problem(Case(kept=0.1))
    for _ in range(16):
        given.run("auto")
    assert "gather" not in log and log


def test_with_native_kernels_skipping_and_dense_are_tried_and_nothing_else(stubs, fresh):
    for fastest in ("native", "dense"):
        fresh.forget()
        log = stubs(**{name: 0.0 if name == fastest else 0.01 for name in ("reference", "dense", "gather", "native")})
        given = problem(Case())
        for _ in range(16):
            given.run("auto")
        assert list(fresh.choices().values()) == [fastest] and set(log) == {"native", "dense"}


def test_sleep_is_not_counted_on_one_thread(stubs, fresh, monkeypatch):
    # As little as the time that other processes take.
    stubs(dense=0.004, native=0.001)
    slept = dispatch.find("native")
    conv = slept.conv

    def interrupted(*given):
        time.sleep(0.01)
        return conv(*given)

    monkeypatch.setattr(slept, "conv", interrupted)
    given = problem(Case())
    for _ in range(16):
        given.run("auto")
    assert list(fresh.choices().values()) == ["native"]


def test_configurations_are_judged_apart(stubs, fresh):
    stubs(reference=0.0, native=0.0)
    run = lambda **more: [problem(Case(**more)).run("auto") for _ in range(12)]
    run()
    assert len(fresh.choices()) == 1
    for number, more in enumerate((dict(spatial=(9, 9)), dict(kept=0.95), dict(ins="all"), dict(n=1),
                                   dict(form=(("kernel", 3), ("dilation", 2)))), 2):  # fmt: skip
        run(**more)
        assert len(fresh.choices()) == number, more
    run()  # met before
    assert len(fresh.choices()) == number


def test_forget(stubs, fresh):
    log = stubs(reference=0.0, gather=0.02)
    given = problem(Case())
    for _ in range(12):
        given.run("auto")
    fresh.forget()
    assert fresh.choices() == {}
    del log[:]
    given.run("auto")
    given.run("auto")
    assert set(log) == {"reference", "gather"}  # the race begins anew


def test_it_remembers_a_bounded_number(stubs, fresh, monkeypatch):
    monkeypatch.setattr(auto, "_MOST", 5)
    stubs(reference=0.0)
    for width in range(4, 20):
        problem(Case(1, 2, 2, (3, width))).run("auto")
    assert len(fresh.choices()) <= 5


def test_without_the_kernels_it_says_so_once_and_goes_on(fresh, monkeypatch, capsys):
    native = own["native"]
    monkeypatch.setattr(type(native), "why_not", lambda *_: "no C++ compiler found (g++, clang++, c++)")
    for case in (Case(), Case(spatial=(4, 4)), Case(kept=0.9)):
        given = problem(case)
        for _ in range(10):
            assert difference(given.run("auto"), given.literal()) < 1e-5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no C++ compiler found" in said[0]
    assert set(fresh.choices().values()) <= {"reference", "gather"}


def test_a_module_without_a_compiler_works(fresh, monkeypatch, capsys):
    native = own["native"]
    monkeypatch.setattr(type(native), "why_not", lambda *_: "no C++ compiler found")
    torch.manual_seed(0)
    block = SparseMaskBlock(8, 2).eval()
    x, mask = torch.randn(1, 8, 6, 6), torch.rand(1, 1, 6, 6) < 0.4
    with torch.no_grad():
        y, _ = block(x, mask)
        block.backend = "reference"
        assert torch.allclose(y, block(x, mask)[0], atol=1e-5)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_call_that_fails_ends_nothing(stubs, fresh, monkeypatch):
    stubs(reference=0.0, gather=0.0)
    given = problem(Case())
    broken = dispatch.find("gather")
    monkeypatch.setattr(broken, "conv", lambda *_: 1 / 0)
    failures = 0
    for _ in range(4):
        try:
            given.run("auto")
        except ZeroDivisionError:
            failures += 1
    assert failures
    monkeypatch.undo()


@pytest.mark.parametrize("threads", [2, 6])
def test_threads_race_together(fresh, threads):
    given = [problem(Case(kept=kept), seed=i) for i, kept in enumerate((0.1, 0.3, 0.6, 0.9))]
    expected = [one.literal() for one in given]
    start = threading.Barrier(threads)

    def work(number: int) -> float:
        torch.set_num_threads(1)
        start.wait(10)
        return max(difference(given[(number + i) % 4].run("auto"), expected[(number + i) % 4]) for i in range(60))

    with ThreadPoolExecutor(threads) as pool:
        assert max(pool.map(work, range(threads))) < 1e-5
    assert len(fresh.choices()) == 4


# What a call costs


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A cache of its own, and measuring replaced by a count."""
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(calibration, "_measure", lambda *given: calls.append(given) or ALIKE)
    calibration._model.cache_clear()
    yield calls
    calibration._model.cache_clear()


def ask(new_process: bool = True) -> calibration.Model:
    if new_process:
        calibration._model.cache_clear()
    return calibration.model("reference", CPU, torch.float32)


def files(tmp_path):
    return sorted(path for path in tmp_path.rglob("*.json"))


def test_costs_are_measured_once_a_machine(measured, tmp_path):
    assert ask() == ask(new_process=False) == ask() == ALIKE
    assert len(measured) == 1 and len(files(tmp_path)) == 1
    calibration.model("gather", CPU, torch.float32)
    calibration.model("reference", CPU, torch.float64)
    assert len(measured) == 3 and len(files(tmp_path)) == 3


GOOD = {"fixed": 1e-5, "rates": [1e9] * len(calibration._CHANNELS), "bandwidth": 1e9}
BROKEN = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"{}",
    *(json.dumps({**GOOD, **more}).encode() for more in (
        {"rates": []}, {"rates": [1e9]}, {"rates": None}, {"rates": "abc"}, {"rates": [0.0] * 3},
        {"rates": [-1e9] * len(calibration._CHANNELS)}, {"bandwidth": 0}, {"bandwidth": "fast"}, {"fixed": None},
        {"rates": [1e9, *[float("nan")] * (len(calibration._CHANNELS) - 1)]}, {"bandwidth": float("nan")},
        {"fixed": float("nan")}, {"fixed": float("inf")}, {"bandwidth": float("inf")},
    )),
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=lambda b: b.decode("latin1")[:40])
def test_a_broken_file_is_measured_again(measured, tmp_path, content):
    ask()
    (path,) = files(tmp_path)
    path.write_bytes(content)
    assert ask() == ALIKE and len(measured) == 2
    assert ask() == ALIKE and len(measured) == 2  # and mended


def test_a_folder_in_the_files_place(measured, tmp_path):
    ask()
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    assert ask() == ALIKE and len(measured) == 2


def test_a_cache_that_cannot_be_written(measured, tmp_path, monkeypatch):
    (tmp_path / "costs").write_text("a file where the folder should be")
    assert ask() == ALIKE and ask() == ALIKE and len(measured) == 2


def test_costs_grow_with_work():
    model = calibration.Model(1e-5, tuple(1e9 * (i + 1) for i in range(len(calibration._CHANNELS))), 1e9)
    for channels in (1, 4, 5, 16, 40, 64, 500):
        few, many = (model.seconds(work, 1e4, channels) for work in (1e6, 2e6))
        assert 1e-5 < few < many
        assert model.seconds(1e6, 1e4, channels) < model.seconds(1e6, 2e4, channels)
    narrow = [model.seconds(1e7, 0, channels) for channels in (1, 4, 10, 16, 30, 64, 100)]
    assert narrow == sorted(narrow, reverse=True)  # this machine's rates rise with the width


def test_measuring_gives_a_model_that_can_be_used(monkeypatch, tmp_path):
    # The real thing, once.
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path))
    calibration._model.cache_clear()
    model = ask()
    calibration._model.cache_clear()
    assert model == ask()  # as read back from the file
    calibration._model.cache_clear()
    assert model.fixed > 0 and model.bandwidth > 0 and min(model.rates) > 0
    assert model.seconds(9 * 64 * 64 * 64**2, 2 * 64 * 64**2, 64) < 5
