"""The flags of super-resolution and what their words mean; names follow the public code."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from sparsemask.config import flag
from sparsemask.errors import UseError
from sparsemask.options import positive, staged, stages
from sparsemask.tasks.protocol import DataSection
from sparsemask.tasks.super_resolution.folders import DIV2K, find_folder
from sparsemask.tasks.super_resolution.store import KINDS

LOSSES = ("L1", "MSE", "FFT")
_SAME = {"L2": "MSE"}
_TERM = re.compile(r"(?:(\d+\.?\d*|\.\d+)\*)?(\w+)")


def parse_loss(text: str) -> list[tuple[float, str]]:
    """(weight, name) of each term of a loss such as "L1" or "0.5*L1+0.05*FFT"; UseError for any other."""
    terms = []
    for term in str(text).replace(" ", "").split("+"):
        match = _TERM.fullmatch(term)
        name = match[2].upper() if match else ""
        name = _SAME.get(name, name)
        if match is None or name not in LOSSES:
            names = ", ".join(LOSSES)
            raise UseError(f"--loss {text}: expected terms weight*name like 1*L1, joined by +, with names {names}")
        terms.append((float(match[1] or 1), name))
    return terms


def loss_text(text: str) -> str:
    """argparse type: a loss, or several with shares of the run, see :func:`sparsemask.options.stages`."""
    stages(text, parse_loss)
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperResolutionData(DataSection):
    """Which images, and how they are cut and scored."""

    scale: int = flag(2, positive, help="high over low resolution (default: 2)")
    dir_data: str | None = flag(help="folder with DIV2K/ and benchmark/ in it")
    hr_path: str | None = flag(help="pictures to train on: a folder of high-resolution ones")
    data_test: str | None = flag(
        help="pictures to validate on: DIV2K, a folder, or a name below --dir_data or $SPARSEMASK_DATA such as Set5 "
        "(default: every tenth of --hr_path, or DIV2K's part)"
    )
    data_range: str = flag(
        "1-800/801-810", help="pictures of DIV2K to train on and to validate, ends included (default: 1-800/801-810)"
    )
    patch_size: int | str = flag(
        96, staged(positive), help="low-resolution pixels, or 48:0.7,96:0.3 by shares of the run (default: 96)"
    )
    test_every: int = flag(1000, positive, help="batches an epoch, about (default: 1000)")
    loss: str = flag(
        "1*L1",
        loss_text,
        help=f"weight*name of {', '.join(LOSSES)}, with +; or L1:0.7,MSE+0.1*FFT:0.3 by shares of the run "
        "(default: 1*L1)",
    )
    rgb_range: int = flag(255, positive, help="greatest value; only 255 is handled")
    ext: str = flag(
        "auto",
        choices=KINDS,
        help="decode pictures each time (img), once onto the disk (sep), or into memory if they fit (default: auto)",
    )
    crop_even: bool = flag(False, help="score with odd low-resolution sides cropped, as published")
    ssim_divisor: int = flag(
        255,
        int,
        choices=(255, 256),
        help="of SSIM's luma weights: 255 as published, 256 consistent with PSNR (default: 255)",
    )


def whole_paths(data: SuperResolutionData) -> dict[str, str]:
    """Whole paths in place of names and relative ones, so that a run finds its images again from anywhere."""
    paths = {}
    for name, value in (("dir_data", data.dir_data), ("hr_path", data.hr_path), ("data_test", data.data_test)):
        if value and not (name == "data_test" and value.lower() == DIV2K.lower()):
            with contextlib.suppress(UseError):  # what is absent is only missed when it is needed
                paths[name] = str(find_folder(value, data.dir_data, f"--{name}").resolve())
    return paths
