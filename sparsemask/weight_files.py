"""Weight files of other origin: their actual format, and the state dict inside a checkpoint.

Training frameworks wrap state dicts in entries (`params_ema`) and names in prefixes (`_orig_mod.` of compiled modules);
downloads are often not the file that was meant (a Git LFS pointer, an HTML page, one shard, an index).
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsemask.containers import stand_in
from sparsemask.errors import UseError, say

# Where the tensors stand inside a checkpoint: ours, then the names public checkpoints use. Of `params` and `params_ema`
# the latter is what BasicSR and its descendants evaluate.
ENTRIES = ("model", "state_dict", "model_state_dict", "params_ema", "params", "net", "ema")
_USUAL = ENTRIES[:3]  # nothing is said about these
_SHARD = re.compile(r"-(\d{4,6})-of-(\d{4,6})\.")
_HEAD = 1 << 16
_JSON = 1 << 24  # bytes of an index that is read
_said: set[str] = set()


def unwrapped(checkpoint: Mapping, what: object) -> dict[str, object]:
    """The bare state dict inside a checkpoint, its keys without the prefixes of wrappers.

    The first entry of :data:`ENTRIES` that exists is used. The prefixes `module.` (DataParallel, AveragedModel) and
    `_orig_mod.` (torch.compile) are removed where every key has them, `_orig_mod.` inside a key everywhere. Unusual
    entries and prefixes are printed in one line. Values are not checked: the result may hold other types than tensors.
    """
    entry = next((name for name in ENTRIES if isinstance(checkpoint.get(name), Mapping)), None)
    if entry is not None:
        checkpoint = checkpoint[entry]
    state = {str(key): value for key, value in checkpoint.items()}
    removed: list[str] = []
    if "n_averaged" in state and all(key == "n_averaged" or key.startswith("module.") for key in state):
        del state["n_averaged"]  # AveragedModel's counter
    while state:
        prefix = next((p for p in ("module.", "_orig_mod.") if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        removed.append(prefix)
    inner = {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): value for key, value in state.items()}
    if len(inner) == len(state) and list(inner) != list(state):
        state = inner
        removed.append("_orig_mod.")
    notes = [f"weights taken from its entry '{entry}'"] * (entry is not None and entry not in _USUAL)
    if any(prefix != "module." for prefix in removed):
        notes.append(f"prefix '{''.join(removed)}' removed from the names")
    _note(f"{what}: {', '.join(notes)}" if notes else "")
    return state


def check_finite(state: Mapping[str, object], what: object) -> None:
    """Raise UseError, with the first names, where tensors of a state dict hold NaN or infinite values."""
    real = {k: v for k, v in state.items() if isinstance(v, Tensor) and _floats(v) and not v.is_meta}
    bad = [k for k, v in real.items() if not bool(torch.isfinite(v).all())]
    if bad:
        some = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise UseError(f"{what}: {len(bad)} of {len(state)} tensors are not finite (NaN or infinite): {some}")


def what_it_is(path: Path) -> str:
    """Describe what a file that is no checkpoint actually is; empty where unknown."""
    with contextlib.suppress(OSError):
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return _kind(path, head)
    return ""


def shard(path: Path) -> str:
    """Describe which part of a sharded checkpoint a file is, by its name; empty for a whole one."""
    match = _SHARD.search(path.name)
    if not match or int(match[2]) < 2:
        return ""
    return (
        f"is part {int(match[1])} of {int(match[2])} of a sharded checkpoint, with some of the weights only: "
        "join the parts into one file first"
    )


def _kind(path: Path, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if explanation := stand_in(path):
        return explanation
    if text.startswith(b"{"):
        return _json_kind(path)
    if path.suffix == ".safetensors" and head.startswith(b"PK\x03\x04"):
        return "is a torch file (a zip archive) under the name of a safetensors file: rename it to .pth"
    if path.suffix != ".safetensors" and re.match(rb'.{8}\{\s*"', head, re.DOTALL):
        return "is a safetensors file under another name: rename it to .safetensors"
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"7z\xbc\xaf", "7-zip")):
        if head.startswith(magic):
            return f"is compressed ({name}): unpack it first"
    return ""


def _json_kind(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _JSON:
            parts = json.loads(path.read_bytes()).get("weight_map")
            if isinstance(parts, dict):
                names = sorted({str(name) for name in parts.values()})
                some = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
                return f"is the index of a checkpoint in {len(names)} parts ({some}), not the weights themselves"
    return "is a JSON text, not a checkpoint"


def _floats(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _note(line: str) -> None:
    """Say a line once a process; networks are often opened twice, to look at them and to use them."""
    from sparsemask.engine import distributed

    if line and line not in _said and distributed.rank() == 0:
        _said.add(line)
        say(f"note: {line}", sys.stderr)
