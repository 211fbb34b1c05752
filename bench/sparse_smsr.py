"""SMSR on pictures: every backend beside the unmasked network and the public style of skipping."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.smsr_forms import DenseForm, PublicStyle
from sparsemask.costs import compare, multiply_adds
from sparsemask.devices import Arithmetic, arithmetic
from sparsemask.spaces.sparse_conv import SMSR
from sparsemask.sparse import available_backends, backend, set_backend
from sparsemask.timing import timer
from sparsemask.weights import load_weights

# Seconds of the public style over those of the unmasked network, as the method's description gives them.
PUBLISHED_RATIO = {"baby": 1.06 / 0.46, "butterfly": 0.33 / 0.07}


def networks(weights: str) -> tuple[SMSR, SMSR]:
    """The network twice: one stays contiguous, one is channels-last."""
    state = load_weights(weights)
    made = [SMSR(scale=2) for _ in range(2)]
    for one in made:
        one.load_state_dict(state)
        one.eval()
    return made[0], made[1].to(memory_format=torch.channels_last)


def pictures(folder: str) -> dict[str, torch.Tensor]:
    """Low-resolution pictures (1, 3, H, W) of 0 to 255 by name, cut to even sizes."""
    files = sorted(p for p in Path(folder).rglob("*.png") if "LR" in str(p.relative_to(folder).parent))
    found = {}
    for file in files or sorted(Path(folder).glob("*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32))
        height, width = (s // 2 * 2 for s in pixels.shape[:2])
        found[file.stem.removesuffix("x2")] = pixels[:height, :width].permute(2, 0, 1)[None].contiguous()
    return found


@torch.inference_mode()
def run(weights: str, folder: str, rounds: int, compiled: bool, names: list[str]) -> list[dict]:
    """A row a picture, and the geometric means; times in milliseconds."""
    plain, model = networks(weights)
    dense, public = DenseForm(model), PublicStyle(plain)
    fast = torch.compile(dense) if compiled else None
    usable = [n for n, reason in available_backends().items() if reason is None and n in names]
    rows = []
    for name, x in pictures(folder).items():
        last = x.contiguous(memory_format=torch.channels_last)

        def sparse(which: str, last=last):
            with backend(which):
                return model(last)

        calls = {"dense eager": lambda last=last: dense(last), "public style": lambda x=x: public(x)}
        if fast is not None:
            calls["dense compiled"] = lambda last=last: fast(last)
        calls |= {which: lambda which=which: sparse(which) for which in usable}
        want = sparse("reference")
        for which, call in calls.items():
            if which.startswith("dense"):
                continue
            worst = float((call() - want).abs().max())
            assert worst < 0.01, f"{which} differs from the reference by {worst} of 255 on {name}"
        for _ in range(12 if "auto" in calls else 0):  # its choice is made before the clock runs
            calls["auto"]()
        times = compare(calls, rounds=rounds, warmup=2)
        best = min(times[n] for n in times if n.startswith("dense"))
        flops = multiply_adds(dense, last) / multiply_adds(set_backend(model, "reference"), last)
        set_backend(model, "auto")
        kept = float(np.mean([float(m.float().mean()) for m in model.masks]))
        row = {"picture": name, "size": f"{x.shape[2]}×{x.shape[3]}", "kept": kept, "flop_gain": flops, "dense": best}
        row |= {f"ms {n}": t for n, t in times.items()} | {f"gain {n}": best / times[n] for n in times}
        row["public_ratio"] = times["public style"] / best
        rows.append(row)
    mean = {"picture": "geometric mean", "size": "", "kept": float(np.mean([r["kept"] for r in rows]))}
    for key in rows[0]:
        if key not in mean:
            mean[key] = math.exp(float(np.mean([math.log(r[key]) for r in rows])))
    return [*rows, mean]


TYPES = ("float32", "bfloat16", "int8")


@torch.inference_mode()
def run_types(weights: str, folder: str, rounds: int, seconds: float) -> list[dict]:
    """A row a picture, and the geometric means: milliseconds in every arithmetic, skipping and unmasked, in turn."""
    _, model = networks(weights)
    dense, rows = DenseForm(model), []
    time = timer(torch.device("cpu"), torch.get_num_threads(), seconds)
    for name, x in pictures(folder).items():
        last, calls = x.contiguous(memory_format=torch.channels_last), {}
        for kind in TYPES:
            # The unmasked network has no form in int8.
            forms = {"native": model} | ({"unmasked": dense} if kind != "int8" else {})
            for form, net in forms.items():
                calls[form, kind] = functools.partial(_run_in, arithmetic(-1, kind), net, last)
        times, busy = time(calls, rounds)
        row = {"picture": name, "kept": float(np.mean([float(m.float().mean()) for m in model.masks])), "busy": busy}
        row |= {f"{form} {kind}": value for (form, kind), value in times.items()}
        ours = times["native", "int8"]
        row |= {f"{form} {kind} / int8": value / ours for (form, kind), value in times.items() if kind != "int8"}
        rows.append(row)
    means = {key: math.exp(float(np.mean([math.log(r[key]) for r in rows]))) for key in rows[0] if key != "picture"}
    return [*rows, {"picture": "geometric mean", **means}]


def _run_in(compute: Arithmetic, network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with backend("native"):
        return compute.run(network, x)
