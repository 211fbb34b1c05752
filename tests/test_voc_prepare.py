"""Preparing VOC and SBD from small archives: what comes out, and runs that are stopped and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparsemask.VOC12 import prepare
from sparsemask.VOC12.convert import looks_whole
from sparsemask.VOC12.lists import STAMP, pairs_from_lists
from sparsemask.VOC12.palette import read_label
from tiny import interruptible
from voc_archives import (
    EXPECT,
    FROM_SBD,
    OWN,
    TRAIN,
    check_output,
    label,
    pack,
    picture,
    sbd_files,
    state,
    unpack,
    voc_files,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    return pack(tmp_path / "voc.tar", voc_files()), pack(tmp_path / "benchmark.tgz", sbd_files())


def test_archives(archives, tmp_path):
    sizes = prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    assert sizes == {"train": 3, "val": 2, "trainval": 5, "train_aug": 6}
    check_output(tmp_path / "out")
    assert len(pairs_from_lists(tmp_path / "out/img", tmp_path / "out/gt", tmp_path / "out/train_aug.txt")) == 6


@pytest.mark.parametrize("voc_part", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("sbd_part", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_unpacked_folders_at_any_depth(voc_part, sbd_part, tmp_path):
    voc, sbd = unpack(tmp_path / "v", voc_files()), unpack(tmp_path / "s", sbd_files())
    prepare.prepare(voc / voc_part, sbd / sbd_part, tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")


def test_sbd_pictures_may_be_absent_where_voc_has_them(tmp_path):
    voc, sbd = voc_files(), {name: data for name, data in sbd_files().items() if "/img/" not in name}
    voc |= {f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": picture(200) for name in OWN}
    prepare.prepare(pack(tmp_path / "v.tar", voc), unpack(tmp_path / "s", sbd), tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")


def test_second_run_touches_nothing_and_needs_no_archives(archives, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.prepare(*archives, out, expect=EXPECT)
    before = state(out)
    capsys.readouterr()
    for archive in archives:
        archive.unlink()
    argv = ["--voc", str(archives[0]), "--sbd", str(archives[1]), "--out", str(out), "--expect", "3,2,6"]
    assert prepare.main(argv) == 0
    said = capsys.readouterr().out
    assert "complete" in said and said.count("\n") == 1
    assert state(out) == before


def test_what_is_missing_or_torn_is_written_again(archives, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.prepare(*archives, out, expect=EXPECT)
    before = state(out)
    (out / "prepared.json").unlink()
    torn, gone = out / "gt" / f"{TRAIN[0]}.png", out / "img" / f"{OWN[0]}.jpg"
    torn.write_bytes(torn.read_bytes()[:-6])  # another program's doing: ours cannot leave such a file
    gone.unlink()
    (out / "gt" / ".x.png.abc.part").write_bytes(b"left by a killed run")
    capsys.readouterr()
    prepare.prepare(*archives, out, expect=EXPECT)
    assert "2 files written, 14 were there already" in capsys.readouterr().out
    check_output(out)
    untouched = [path for path in before if path.endswith((".jpg", ".png")) and Path(path) not in (torn, gone)]
    after = state(out)
    assert len(untouched) == 14 and all(after[path] == before[path] for path in untouched)


def test_a_removed_output_is_noticed_in_spite_of_the_stamp(archives, tmp_path):
    prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    (tmp_path / "out" / "gt" / f"{OWN[2]}.png").unlink()
    prepare.prepare(*archives, tmp_path / "out", expect=EXPECT)
    check_output(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_is_completed(workers, tmp_path):
    own = [f"2009_{i:06d}" for i in range(400)]
    voc, sbd = pack(tmp_path / "v.tar", voc_files()), pack(tmp_path / "s.tgz", sbd_files(own, OWN))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "VOC12" / "prepare.py"), "--voc", voc, "--sbd", sbd, "--out", out]
    command += ["--expect", "3,2,406", "--workers", str(workers)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None and len(list(out.glob("*/*.png"))) < 40:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / STAMP).is_file()
    written = list(out.glob("gt/[0-9]*.png"))
    assert 40 <= len(written) < 408
    assert all(looks_whole(path) for path in written)  # whatever bears its final name is whole
    before = {path: path.stat().st_mtime_ns for path in written}

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((out / "gt").iterdir())) == len(list((out / "img").iterdir())) == 408
    assert (out / STAMP).is_file() and not list(out.rglob("*.part"))
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())  # completed, not begun again
    for name in (own[0], own[-1]):
        np.testing.assert_array_equal(read_label(out / "gt" / f"{name}.png"), label(FROM_SBD))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_in_one_line_and_leaves_nothing_torn(workers, tmp_path):
    own = [f"2009_{i:06d}" for i in range(400)]
    voc, sbd = pack(tmp_path / "v.tar", voc_files()), pack(tmp_path / "s.tgz", sbd_files(own, OWN))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "VOC12" / "prepare.py"), "--voc", voc, "--sbd", sbd, "--out", out]
    command += ["--expect", "3,2,406", "--workers", str(workers)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.poll() is None and len(list(out.glob("gt/[0-9]*"))) < 20:
        time.sleep(0.002)
    run.send_signal(signal.SIGINT)
    error = run.communicate()[1]
    assert run.returncode == 130, error
    assert "stopped" in error.splitlines()[-1] and "Traceback" not in error
    assert not (out / STAMP).is_file() and not list(out.rglob("*.part"))


def test_workers_of_a_killed_run_do_not_stay(tmp_path):
    script = (
        "import os, sys, time\n"
        "from sparsemask.VOC12.workers import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    for pid in run_jobs(os.getpid, ((),) * 400, 400, 'x', 2): pass\n"
        "    jobs = ((60,) for _ in range(400))\n"
        "    import threading, multiprocessing\n"
        "    threading.Thread(target=lambda: (time.sleep(1.5), print(*[p.pid for p in "
        "multiprocessing.active_children()], flush=True))).start()\n"
        "    for _ in run_jobs(time.sleep, jobs, 400, 'x', 2): pass\n"
    )
    (tmp_path / "long.py").write_text(script)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "long.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
