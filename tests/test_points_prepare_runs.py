"""Checks of prepared clouds, and preparations that are killed, run again, or run twice at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raw_clouds import raw_rooms, state
from sparsemask.tasks.points.layouts import semantickitti
from sparsemask.tasks.points.prepare.command import check_s3dis, main, prepare_s3dis_rooms, prepare_semantickitti_scans
from tiny import environment


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "sparsemask.tasks.points.prepare.command", *map(str, argv), "--jobs", "1"]


def _renumber(out: Path) -> None:
    path = out / "sub_0.040/Area_1_office_1_proj.npz"
    found = dict(np.load(path))
    np.savez(path, **found | {"projection": found["projection"] + 2})


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda out: (out / "original/Area_1_office_1.ply").unlink(), "missing or torn"),
        (lambda out: os.truncate(out / "sub_0.040/Area_1_office_1.ply", 200), "missing or torn"),
        (lambda out: (out / "sub_0.040/Area_1_office_1_proj.npz").write_bytes(b"PK"), "not readable"),
        (lambda out: (out / "sub_0.040/Area_1_office_1_proj.npz").unlink(), "missing"),
        (_renumber, "points beyond the 3"),
    ],
)
def test_check_names_what_is_wrong_and_preparing_mends_it(spoil, said, tmp_path, capsys):
    rooms = raw_rooms(tmp_path)
    prepare_s3dis_rooms(rooms, jobs=1)
    whole = state(tmp_path / "S3DIS_ply")
    spoil(tmp_path / "S3DIS_ply")
    (fault,) = check_s3dis(rooms)
    assert said in fault and "office_1" in fault
    assert main(["s3dis", str(rooms), "--check"]) == 2
    assert "1 fault" in capsys.readouterr().out
    if spoil is not _renumber:  # a whole file with wrong content is not made again unasked
        assert prepare_s3dis_rooms(rooms, jobs=1) == (1, 1)
        assert state(tmp_path / "S3DIS_ply") == whole


def test_a_killed_run_leaves_no_torn_file_and_can_be_run_again(tmp_path):
    raw = tmp_path / "sequences/08/velodyne"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(60):
        (rng.normal(0, 10, (20000, 4)) * [1, 1, 1, 0] + 0.5).astype("<f4").tofile(raw / f"{number:06d}.bin")
    run = subprocess.Popen(command("semantickitti", tmp_path), env=environment(tmp_path / "home"))
    out = tmp_path / "sequences_0.06"
    deadline = time.monotonic() + 60
    while len(list(out.glob("08/velodyne/[!.]*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = list(out.glob("08/velodyne/[!.]*.npy"))
    assert 3 <= len(done) < 60
    for path in done:  # whatever bears its name is whole, with the projection that it vouches for
        cloud = semantickitti.list_clouds(tmp_path, only=[f"08/{path.stem}"])[0].read()
        assert len(cloud.projection) == 20000
    times = {path: path.stat().st_mtime_ns for path in done}
    assert prepare_semantickitti_scans(tmp_path, jobs=1) == (60 - len(done), len(done))
    assert {path: path.stat().st_mtime_ns for path in done} == times
    assert not list(out.rglob(".*.part"))


def test_two_at_once_wait_for_each_other(tmp_path):
    rooms = raw_rooms(tmp_path)
    runs = [
        subprocess.Popen(command("s3dis", rooms), env=environment(tmp_path / "home"), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(run.communicate()[0].split(": ")[1] for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert [line.split(",")[0] for line in said] == ["0 prepared", "2 prepared"]
