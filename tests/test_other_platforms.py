"""Windows and macOS, as far as a stand-in shows: without the modules and calls that they lack all imports and runs.

What belongs to the systems themselves (files that are open elsewhere, their compilers) is not shown.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiny import ROOT, SMALL, data_flags, environment, make_data

STAND_IN = '''
import sys, warnings

# What is not ours keeps the real system: it is loaded before.
import asyncio, concurrent.futures, ctypes.util, http.server, multiprocessing.connection, os, platform, shutil, signal
import socket, subprocess, tarfile, tempfile, webbrowser, zipfile
import filelock, matplotlib.figure, matplotlib.backends.backend_agg, numpy, optuna, PIL.Image, scipy.ndimage, yaml
import torch, torch.export, torch.utils.data, skimage.morphology, tensorboardX, tqdm, safetensors.torch

name, verb, *argv = sys.argv[1:]
absent = {"win32": "fcntl resource pwd grp termios tty pty posix syslog".split(), "darwin": ["spwd", "msvcrt"]}[name]


class Blocked:
    """Finds nothing under the names that this system does not have."""

    def find_spec(self, module, path=None, target=None):
        if module in absent:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


for module in absent:
    sys.modules.pop(module, None)
sys.meta_path.insert(0, Blocked())
calls = {
    "win32": {
        os: "fork forkpty register_at_fork getuid geteuid getgid sched_getaffinity uname setsid killpg getpgid nice "
            "getloadavg sysconf mkfifo posix_fallocate statvfs pread pwrite O_DIRECTORY O_NOFOLLOW wait4 fchmod",
        signal: "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGCHLD SIGQUIT alarm setitimer pause",
    },
    "darwin": {os: "sched_getaffinity posix_fadvise posix_fallocate sched_setaffinity"},
}[name]
for where, names in calls.items():
    for call in names.split():
        if hasattr(where, call):
            delattr(where, call)
sys.platform = name
platform.machine = lambda: {"win32": "AMD64", "darwin": "arm64"}[name]
if name == "win32":
    opened = os.open

    def open_file(path, *rest, **named):
        if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **named)

    os.open = open_file
    masked = signal.pthread_sigmask  # which the real system's multiprocessing needs

    def mask(*given):
        if sys._getframe(1).f_globals["__name__"].startswith("sparsemask"):
            raise AttributeError("module 'signal' has no attribute 'pthread_sigmask'")
        return masked(*given)

    signal.pthread_sigmask = mask
    for kind in ("Fork", "ForkServer"):
        for word in ("Process", "Context"):
            delattr(multiprocessing.context, kind + word)
    shutil._use_fd_functions = False  # as it is there
if multiprocessing.get_start_method(allow_none=True) is None:  # helpers come here again
    multiprocessing.set_start_method("spawn")
# Texts are read and written in UTF-8, whatever the system's own encoding is.
warnings.filterwarnings("error", category=EncodingWarning, module="sparsemask")

import importlib, pkgutil
import sparsemask

if __name__ != "__main__":
    pass
elif verb == "import":
    import sparsemask.prune, sparsemask.retrain, sparsemask.search, sparsemask.spaces, sparsemask.VOC12

    bad, count = [], 0
    verbs = sparsemask.prune, sparsemask.retrain, sparsemask.search
    for top in (sparsemask, *verbs, sparsemask.spaces, sparsemask.VOC12):
        for found in pkgutil.walk_packages(top.__path__, f"{top.__name__}.", onerror=lambda name: None):
            if found.name.startswith("sparsemask.tracking.") or found.name.endswith(".__main__"):
                continue  # packages that may be absent; a command
            try:
                importlib.import_module(found.name)
                count += 1
            except ImportError as error:
                if getattr(error, "name", None) not in ("timm", "onnxscript", "onnxruntime", "triton", "pytest"):
                    bad.append(f"{found.name}: {error}")
    assert not bad, bad
    print(count)
else:
    from sparsemask.cli import main

    sys.exit(main.main([verb, *argv]))
'''


def stand_in(system: str, cwd: Path, *argv: str) -> subprocess.CompletedProcess:
    home = environment(cwd / "nothing", PYTHONPATH=str(ROOT), SPARSEMASK_HOME=str(cwd / "nothing"), CXX="")
    home["PATH"] = str(cwd)  # no compiler
    (cwd / "stand_in.py").write_text(STAND_IN)
    call = [sys.executable, "-X", "warn_default_encoding", "stand_in.py", system, *argv]
    done = subprocess.run(call, cwd=cwd, env=home, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_is_imported(tmp_path, system):
    assert int(stand_in(system, tmp_path, "import").stdout) > 250


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_search_prune_retrain_and_predict(tmp_path, system):
    data = data_flags(make_data(tmp_path / "data"))
    few = [*SMALL, "--max_iter", "2", "--eval_interval", "2"]
    helpers = {"darwin": "1", "win32": "0"}[system]  # Windows' way of starting processes has no stand-in
    stand_in(system, tmp_path, "search", *data, *few, "--name", "s", "--n_worker", helpers)
    stand_in(system, tmp_path, "prune", "--run", "runs/s")
    said = stand_in(system, tmp_path, "retrain", "--mask_path", "mask.npy", "--name", "r", *few[2:])
    assert "retrained: miou" in said.stdout
    stand_in(system, tmp_path, "retrain", "--resume", "runs/r")
    assert "(3 pictures)" in stand_in(system, tmp_path, "eval", "--run", "runs/r").stdout
    stand_in(system, tmp_path, "predict", "data/img", "--run", "runs/r")
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 13
    assert "kernels" in stand_in(system, tmp_path, "doctor").stdout
    # Sparse convolutions, in pure PyTorch.
    done = stand_in(system, tmp_path, "upscale", "data/img/000.png", "big.png", "--scale", "2")
    assert (tmp_path / "big.png").is_file() and "Traceback" not in done.stderr
