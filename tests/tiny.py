"""A data set and command lines small enough to train in seconds, for tests of whole verbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask.datasets import cache
from sparsemask.engine.loop import Fit

ROOT = Path(__file__).resolve().parents[1]


def make_data(folder: Path, n: int = 12, size: int = 40, n_class: int = 4, seed: int = 0) -> Path:
    """Coloured rectangles on noise: img/, gt/, train.txt, val.txt."""
    rng = np.random.default_rng(seed)
    for part in ("img", "gt"):
        (folder / part).mkdir(parents=True)
    for i in range(n):
        picture = rng.integers(0, 80, (size, size + 3, 3), dtype=np.uint8)
        label = np.zeros((size, size + 3), np.uint8)
        for c in range(1, n_class):
            y, x = rng.integers(0, size // 2, 2)
            picture[y : y + 14, x : x + 14] = 90 + 40 * c, 255 - 60 * c, 60 * c
            label[y : y + 14, x : x + 14] = c
        Image.fromarray(picture).save(folder / "img" / f"{i:03d}.png")
        Image.fromarray(label).save(folder / "gt" / f"{i:03d}.png")
    names = [f"{i:03d}" for i in range(n)]
    (folder / "train.txt").write_text("\n".join(names[: n * 3 // 4]) + "\n")
    (folder / "val.txt").write_text("\n".join(names[n * 3 // 4 :]) + "\n")
    return folder


def data_flags(folder: Path, n_class: int = 4) -> list[str]:
    """The flags that name such a data set."""
    return [
        "--im_path", str(folder / "img"), "--gt_path", str(folder / "gt"),
        "--training_list", str(folder / "train.txt"), "--eval_list", str(folder / "val.txt"),
        "--n_class", str(n_class),
    ]  # fmt: skip


# Small in every dimension; batch norms get two pictures.
SMALL = [
    "--depth", "8", "--crop_size", "33", "--batch_size", "4", "--bn_reestimate", "2", "--checkpoint_interval", "3",
    "--eval_interval", "5", "--log_interval", "1", "--lr", "0.01", "--last_layer_lr_mult", "1", "--n_worker", "0",
]  # fmt: skip


# The search's own, so that its masks do move: SGD from the first step, at a rate that shows within a few.
MASKS = ["--optimizer", "sgd", "--warmup", "0", "--mask_warmup", "0", "--mask_lr_mult", "50", "--sparse", "0.1"]


_REAL = cache()  # before any test says otherwise


def borrow_kernels(home: Path) -> Path:
    """Let a cache folder of a test's own serve the compiled kernels and measured costs of the user's; returns it."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("kernels", "costs"):
        (_REAL / name).mkdir(parents=True, exist_ok=True)
        if not (home / name).exists():
            (home / name).symlink_to(_REAL / name)
    return home


def environment(home: Path, **more: str) -> dict[str, str]:
    """Environment of a command: its own cache folder, one thread, no weights found by chance."""
    borrow_kernels(Path(home))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSEMASK_", "PYTEST_"))}
    return {**kept, "SPARSEMASK_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def interruptible() -> None:
    """For Popen's preexec_fn: hear Ctrl-C even where the test run itself was started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def verb(script: str, argv: list[str], cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """Run a command as a user would, from any folder; output is text."""
    kwargs.setdefault("env", environment(cwd / "home"))
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv], cwd=cwd, capture_output=True, text=True, timeout=600, **kwargs
    )


def fails(capfd, main, argv: list[str], words: list[str]) -> None:
    """The command ends with status 2 and one line that holds the words."""
    status = main(argv)
    error = capfd.readouterr().err
    assert status == 2, error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0], error


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside, a training ends before a step, as if its process had been killed; the `with` expects that."""
    plain = Fit.train_step

    def train_step(self, parts):
        if self.step == step:
            raise RuntimeError("as if killed")
        return plain(self, parts)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="as if killed"):
        patch.setattr(Fit, "train_step", train_step)
        yield
