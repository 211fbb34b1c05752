"""Is `auto` ever slower than the dense layer? Random layers, paired, dense against dense as the noise floor.

Two dense layers: *masked*, the same function (backend `reference`: torch's convolutions, then the masks), and
*unmasked*, one convolution and a ReLU, which has less to do. With one thread times are the thread's processor time.
"""

from __future__ import annotations

import random
import statistics
import time

import torch
import torch.nn.functional as F

from bench.sparse_layers import mask_of
from sparsemask.backends.auto import TRIALS
from sparsemask.ops.dispatch import find
from sparsemask.sparse import ConvCall, Geometry


def configurations(count: int, seed: int = 0) -> list[dict]:
    """Kernel, channels, dense shares, size, share kept and kind of mask, drawn at random."""
    draw = random.Random(seed)
    return [
        {
            "kernel": draw.choice([1, 3, 3, 3, 5]),
            "c_in": draw.choice([16, 32, 48, 64, 96, 128]),
            "c_out": draw.choice([16, 32, 48, 64, 96, 128]),
            "size": draw.choice([32, 48, 64, 96, 128, 192, 256]),
            "kept": draw.uniform(0.05, 1.0),
            "dense": draw.choice([0.0, 0.0, 0.1, 0.25]),
            "kind": draw.choice(["random", "blob"]),
        }
        for _ in range(count)
    ]


@torch.inference_mode()
def ratios(one: dict, rounds: int, seed: int) -> tuple[float, float, float, float]:
    """(unmasked / auto, unmasked / unmasked again, unmasked in ms, masked / auto), after auto has made up its mind.

    Medians over paired rounds.
    """
    torch.manual_seed(seed)
    kernel, size = one["kernel"], one["size"]
    x = torch.randn(1, one["c_in"], size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(one["c_out"], one["c_in"], kernel, kernel).contiguous(memory_format=torch.channels_last)
    mask = mask_of(one["kind"], size, one["kept"], seed)
    ins, outs = torch.rand(one["c_in"]) < one["dense"], torch.rand(one["c_out"]) < one["dense"]
    auto, reference = find("auto"), find("reference")
    call = ConvCall(x, weight, None, mask, ins, outs, Geometry.of(2, kernel), "relu")
    dense = lambda: F.relu_(F.conv2d(x, weight, padding=kernel // 2))
    sparse, masked = lambda: auto.conv(call), lambda: reference.conv(call)
    for _ in range(2 * TRIALS + 1):
        sparse()
    dense(), masked()
    orders = ((dense, sparse, dense, masked), (masked, dense, dense, sparse))  # neither is always the one after another
    times = []
    for number in range(2 * rounds):
        taken = [_timed(call) for call in orders[number % 2]]
        times.append(taken if number % 2 == 0 else [taken[1], taken[3], taken[2], taken[0]])
    return (
        statistics.median(d / s for d, s, _, _ in times),
        statistics.median(d / again for d, _, again, _ in times),
        1e3 * statistics.median(d for d, _, _, _ in times),
        statistics.median(m / s for _, s, _, m in times),
    )


def _timed(call) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    call()
    return clock() - begun


def run(count: int, rounds: int, seed: int = 0) -> dict:
    """Shares of configurations at or above 0.95 and 0.9, and the worst, for auto and for the noise floor."""
    found = [ratios(one, rounds, seed + i) for i, one in enumerate(configurations(count, seed))]
    told = {"configurations": count}
    columns = list(zip(*found, strict=True))
    for name, values in {"auto": columns[0], "floor": columns[1], "auto against masked": columns[3]}.items():
        told[f"{name} at least 0.95"] = sum(v >= 0.95 for v in values) / count
        told[f"{name} at least 0.9"] = sum(v >= 0.9 for v in values) / count
        told[f"{name} worst"], told[f"{name} median"] = min(values), statistics.median(values)
    worst = sorted(zip(found, configurations(count, seed), strict=True), key=lambda p: p[0][0])[:10]
    sized = {
        "under 0.5 ms dense": lambda ms: ms < 0.5,
        "0.5 to 2 ms": lambda ms: 0.5 <= ms < 2,
        "over 2 ms": lambda ms: ms >= 2,
    }
    for name, inside in sized.items():
        some = [f[0] for f in found if inside(f[2])]
        if some:
            told[f"auto at least 0.95, {name} ({len(some)})"] = sum(v >= 0.95 for v in some) / len(some)
            told[f"auto at least 0.9, {name}"] = sum(v >= 0.9 for v in some) / len(some)
    return told | {
        "worst": [
            {**one, "ratio": round(r[0], 3), "floor": round(r[1], 3), "masked": round(r[3], 3)} for r, one in worst
        ]
    }
