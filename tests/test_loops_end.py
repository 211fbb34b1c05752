"""Every command ends, and its loader processes with it: after an error in one, Ctrl-C, SIGTERM, SIGKILL."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from small_classes import write_classes
from small_clouds import CROPS, NETWORK, rooms
from small_pairs import write_scenes
from small_pictures import make_folder
from sparsemask.engine import data as engine_data
from sparsemask.errors import UseError
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.sparse import backend
from sparsemask.tasks.points import data as points_data
from spoilt import truncate
from tiny import ROOT, SMALL, borrow_kernels, data_flags, environment, fails, interruptible, make_data
from without_images import without_images

LIMIT = 180  # seconds that nothing here takes, on any machine
FEW = ["--n_worker", "2", "--eval_interval", "2", "--checkpoint_interval", "2", "--log_interval", "1", "--lr", "0.01"]
PICTURES = [*data_flags(Path("pictures")), *SMALL, *FEW]
STEREO = ["--training_list", "pairs/pairs.txt", "--eval_list", "pairs/pairs.txt", "--batch_size", "2", *FEW]
STEREO += ["--crop_height", "32", "--crop_width", "48", "--eval_limit", "2", "--bn_reestimate", "1"]
CLOUDS = ["--task", "s3dis", "--data_root", "clouds", *CROPS, "--batch_size", "2", *FEW]
LARGE = ["--hr_path", "large", "--ext", "img", "--patch_size", "8", "--batch_size", "2", "--test_every", "4", *FEW]
CLASSES = ["--data_root", "classes", "--batch_size", "4", "--image_size", "16", *FEW]

SEARCHES = {
    "connectivity": PICTURES,
    "smstereo": ["--space", "smstereo", "--maxdisp", "16", *STEREO],
    "smpointseg": ["--space", "smpointseg", *CLOUDS, *NETWORK],
    "smsr": ["--space", "smsr", *LARGE, "--n_feats", "8", "--n_modules", "2"],
    "hinge": ["--space", "hinge", "--arch", "resnet8", *CLASSES],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data of every task, finished runs (runs/NAME of a search's name, runs/r retrained); not to be touched."""
    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "pictures", n=8)
    write_scenes(folder / "pairs", 3, 36, 50, 10)
    rooms(folder / "clouds")
    make_folder(folder / "large", 4, (32, 40))
    for part in ("train", "val"):
        for name, side in (("cats", 20), ("dogs", 24)):  # of one size they would be held in memory, without workers
            write_classes(folder / "classes" / part, {name: 4}, (side, 30))
    with pytest.MonkeyPatch.context() as patch, backend("reference"), without_images():
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
        for name in ("smsr", "smpointseg", "hinge"):
            assert search_run.main([*SEARCHES[name], "--n_worker", "0", "--max_iter", "2", "--name", name]) == 0
        flags = ["--mask_path", "unet", *PICTURES, "--n_worker", "0", "--max_iter", "2", "--name", "r"]
        assert retrain_train.main(flags) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of it as working directory; one thread and one backend, since processes are forked and times are short."""
    folder = tmp_path / "place"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(folder / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("reference"):
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def spoil(monkeypatch) -> Callable[[bool], None]:
    """spoil(training): from now on workers fail at the third sample (training), or at any validation sample."""

    def spoilt(training: bool) -> None:
        left = [3]

        def failing(function, *arguments):
            info = get_worker_info()
            mine = info is not None and isinstance(info.dataset, engine_data.SeededSamples) == training
            left[0] -= mine
            if mine and (left[0] <= 0 or not training):
                raise UseError("spoilt.png: not readable")
            return function(*arguments)

        for module in (engine_data, points_data):
            monkeypatch.setattr(module, "one_line_errors", failing)

    return spoilt


SAID = ["spoilt.png: not readable"]
TRAINED = ["--mask_path", "unet", *PICTURES, "--max_iter", "4", "--name", "new"]
SPECIAL = ["--run", "runs/r", *PICTURES, "--max_iter", "4", "--rounds", "1", "--max_stride", "8", "--name", "new"]
LATER = {  # commands after the search: main, flags, whether it trains
    "retrain": (retrain_train.main, TRAINED, True),
    "retrain, evaluating": (retrain_train.main, TRAINED, False),
    "specialize": (retrain_specialize.main, SPECIAL, True),
    "specialize, evaluating": (retrain_specialize.main, SPECIAL, False),
    "eval": (retrain_eval.main, ["--run", "runs/r", "--n_worker", "2"], False),
    "eval smsr": (retrain_eval.main, ["--run", "runs/smsr", "--n_worker", "2", "--rounds", "0"], False),
    "eval by votes": (retrain_eval.main, ["--run", "runs/smpointseg", "--n_worker", "2", "--rounds", "0"], False),
    "prune smsr": (prune_prune.main, ["--run", "runs/smsr", "--ext", "img", "--n_worker", "2"], False),
    "prune smpointseg": (prune_prune.main, ["--run", "runs/smpointseg", "--n_worker", "2"], False),
    "prune hinge": (
        prune_prune.main,
        ["--run", "runs/hinge", "--n_worker", "2", "--target", "0.5", "--curve", "0.5", "--bn_reestimate", "0"],
        False,
    ),
}


def ended() -> None:
    """No process is left that Python would wait for at its end."""
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", SEARCHES)
def test_an_error_in_a_worker_of_a_search_ends_it(place, spoil, capfd, name, training):
    spoil(training)
    fails(capfd, search_run.main, ["--search", *SEARCHES[name], "--max_iter", "4", "--name", "new"], SAID)
    ended()


@pytest.mark.parametrize("name", LATER)
def test_an_error_in_a_worker_ends_every_later_command(place, spoil, capfd, name):
    main, argv, training = LATER[name]
    spoil(training)
    fails(capfd, main, argv, SAID)
    ended()


def test_a_lost_worker_is_one_line(place, monkeypatch, capfd):
    def dying(function, *arguments):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    monkeypatch.setattr(engine_data, "one_line_errors", dying)
    fails(capfd, search_run.main, ["--search", *PICTURES, "--max_iter", "4", "--name", "new"], ["--n_worker"])
    ended()


def test_what_the_system_refuses_in_a_worker_is_one_line(place, monkeypatch, capfd):
    def gone(function, *arguments):
        return function(*arguments) if get_worker_info() is None else open("data/gone.png")

    plain = engine_data.one_line_errors
    monkeypatch.setattr(engine_data, "one_line_errors", lambda *a: plain(gone, *a))
    words = ["data/gone.png: no such file"]
    fails(capfd, search_run.main, ["--search", *PICTURES, "--max_iter", "4", "--name", "new"], words)
    ended()


def slow(_index):
    time.sleep(3600)


class Stuck(torch.utils.data.Dataset):
    """One sample, then none for an hour."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> int:
        return index if index == 0 else slow(index)


def test_a_worker_that_hangs_is_ended_too(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # torch's patience with it
    batches = engine_data.plainly(engine_data.make_loader(Stuck(), 1, batch_size=1))
    assert next(batches).item() == 0
    (worker,) = multiprocessing.active_children()
    batches.close()
    assert not worker.is_alive() and worker.exitcode == -signal.SIGKILL


# Below: real processes, since what hung was Python's own end.


def begin(script: str, argv: list[str]) -> subprocess.Popen:
    """A command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *argv],
        env=environment(Path("home")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        process_group=0, preexec_fn=interruptible,
    )  # fmt: skip


def descendants(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found |= {pid} if state != "Z" else set()
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def finish(process: subprocess.Popen) -> str:
    """Standard error of a command that ends in time."""
    try:
        return process.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it does not end: {process.communicate()[1]}")


def working(argv: list[str]) -> tuple[subprocess.Popen, set[int]]:
    """A search of many steps that is at work, and the processes below it."""
    process = begin("search/run.py", ["--search", *argv, "--name", "new"])
    log = Path("runs/new/metrics.jsonl")
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3, process)
    helpers = descendants(process.pid)
    assert len(helpers) >= 2
    return process, helpers


def gone(pids: set[int]) -> None:
    deadline = time.monotonic() + LIMIT
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pids) == set()


SLOW = pytest.mark.slow  # the same by another signal or in another command
ENDLESS = [*PICTURES, "--max_iter", "100000", "--eval_interval", "100000"]


@pytest.mark.parametrize(
    ("script", "argv", "picture"),
    [
        ("search/run.py", ["--search", *PICTURES, "--max_iter", "9", "--name", "new"], "002"),
        pytest.param("search/run.py", ["--search", *PICTURES, "--max_iter", "9", "--name", "new"], "007", marks=SLOW),
        pytest.param(
            "retrain/eval.py", ["--run", "runs/r", *data_flags(Path("pictures")), "--n_worker", "1"], "007", marks=SLOW
        ),
    ],
    ids=["training", "evaluating while training", "eval"],
)
def test_a_truncated_picture_ends_the_process(place, script, argv, picture):
    truncate(place / "pictures" / "img" / f"{picture}.png")
    process = begin(script, argv)
    error = finish(process)
    assert process.returncode == 2 and "Traceback" not in error
    assert f"{picture}.png: not readable as a picture" in error.splitlines()[-1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=SLOW)])
def test_signals_to_the_whole_group_save_and_end(place, number, status):
    process, helpers = working(ENDLESS)
    os.killpg(process.pid, number)
    error = finish(process)
    assert process.returncode == status and "Traceback" not in error and "is saved" in error
    last = json.loads(Path("runs/new/metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert torch.load("runs/new/checkpoints/last.pt", weights_only=True)["step"] == last
    assert alive(helpers) == set()


def test_a_second_ctrl_c_ends_at_once(place):
    process, helpers = working(ENDLESS)
    for _ in range(20):  # again and again, while it puts things in order too
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.002)
    error = finish(process)
    assert process.returncode in (130, -signal.SIGINT) and "stopping after this step" in error
    gone(helpers)


def test_a_killed_command_leaves_no_process(place):
    process, helpers = working(ENDLESS)
    process.kill()
    process.communicate(timeout=LIMIT)
    gone(helpers)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_that_is_told_to_stop(place, number, status):
    script = (
        "import os, sys, time\n"
        "sys.path.insert(0, os.environ['ROOT'])\n"
        "from sparsemask.tasks.segmentation import task as segmentation\n"
        "import sparsemask.retrain.eval\n"
        "def slow(*a):\n"
        "    open('begun', 'w').close()\n"
        "    time.sleep(3600)\n"
        "segmentation.resize = slow\n"
        "sys.exit(sparsemask.retrain.eval.main(['--run', 'runs/r', '--n_worker', '2']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(Path("home"), ROOT=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        process_group=0, preexec_fn=interruptible,
    )  # fmt: skip
    wait_for(Path("begun").exists, process)
    helpers = descendants(process.pid)
    os.killpg(process.pid, number)
    error = finish(process)
    assert process.returncode == status and "Traceback" not in error and "stopped" in error
    assert len(helpers) >= 2 and alive(helpers) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pool_that_is_told_twice_ends_at_once(tmp_path, number):
    script = tmp_path / "long.py"
    script.write_text(
        "import sys, time\n"
        "from sparsemask.errors import command\n"
        "from sparsemask.VOC12.workers import run_jobs\n"
        "def job(number):\n"
        "    open(f'begun{number}', 'w').close()\n"
        "    time.sleep(3600)\n"
        "@command\n"
        "def main(argv=None):\n"
        "    for _ in run_jobs(job, ((k,) for k in range(400)), 400, 'x', 2): pass\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0, preexec_fn=interruptible,
    )  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("begun*"))) == 2, process)
    helpers = descendants(process.pid)
    os.killpg(process.pid, number)
    time.sleep(1)
    assert process.poll() is None  # it waits for the jobs that have begun
    os.killpg(process.pid, number)
    error = finish(process)
    assert process.returncode == (130 if number == signal.SIGINT else 143) and "Traceback" not in error, error
    gone(helpers)
