"""The table an evaluation of a network with fine-grained masks prints: quality beside what it really cost."""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

from spaces.sparse_conv.masking import hard_masks
from spaces.sparse_conv.measuring import COLUMNS
from sparsemask.costs import count_parameters
from sparsemask.tables import format_count, table


def rows(scores, costs: Tensor) -> list[dict]:
    """A row for each picture and one of the means: the task's figures, then the costs."""
    quality = scores.rows()
    means = costs.mean(0).tolist()
    found = []
    for row, values in zip(quality, [*costs.tolist(), means], strict=True):
        one = dict(zip(COLUMNS, values, strict=True))
        one["gain"] = one["dense_ms"] / one["ms"]
        found.append({**row, **one, "share": one["executed"] / one["dense"]})
    if len(costs):
        found[-1]["gain"] = math.exp(float((costs[:, 4] / costs[:, 3]).log().mean()))  # of ratios the geometric mean
    return found


def evaluation_text(
    space, model: nn.Module, task, scores, costs: Tensor, by_module: dict, where, options: argparse.Namespace
) -> str:
    """The table, what each module keeps, and the line of the means."""
    found = rows(scores, costs)
    columns = {
        "picture": "picture", "size": "size", "bicubic_psnr": ("bicubic dB", ".2f"), "psnr": ("PSNR dB", ".3f"),
        "ssim": ("SSIM", ".4f"), "kept": ("kept", ".3f"), "ms": ("ms", ".1f"), "dense_ms": ("dense ms", ".1f"),
        "gain": ("gain", ".2f"), "executed": ("multiply-adds", format_count), "dense": ("dense", format_count),
    }  # fmt: skip
    if not options.rounds:
        for name in ("ms", "dense_ms", "gain"):
            del columns[name]
    mean = found[-1]
    lines = [table(found, columns), ""]
    channels = hard_masks(model)
    modules = [
        {
            "module": name,
            "locations": shares["locations"],
            "dense": " ".join(map(str, channels[name].sum(1).tolist())) + f" of {channels[name].shape[1]}",
            "kept": shares["kept"],
        }
        for name, shares in by_module.items()
    ]
    lines.append(
        table(
            modules,
            {
                "module": "module",
                "dense": "dense channels by layer",
                "locations": ("kept locations", ".3f"),
                "kept": ("kept fraction", ".3f"),
            },  # fmt: skip
        )
    )
    lines.append("")
    said = f"PSNR {mean['psnr']:.3f} dB  SSIM {mean['ssim']:.4f}  kept {mean['kept']:.3f}  "
    said += f"multiply-adds {100 * mean['share']:.1f} % of dense"
    if options.rounds:
        said += f"  {mean['gain']:.2f} times as fast as dense"
    lines.append(said)
    lines.append(published_row(space, model, mean["share"]))
    device = str(where.device) if where.device.type == "cpu" else torch.cuda.get_device_name(where.device)
    lines.append(
        f"({task.source('eval').title}, {len(costs)} pictures; {scores.protocol}; ms: medians of {options.rounds} in "
        f"turn, {device}, {torch.get_num_threads()} thread(s), {options.type}, backend {options.backend})"
    )
    return "\n".join(lines)


def published_row(space, model: nn.Module, share: float) -> str:
    """Size and cost as papers give them: parameters, and multiply-adds of an output of 1280 × 720."""
    scale = space.config_of(model).get("scale", 1)
    picture = torch.empty(1, 3, 720 // scale, 1280 // scale, device="meta")
    dense, printed = (space.dense_cost(model, picture, published) for published in (False, True))
    return (
        f"at 1280x720: {format_count(count_parameters(model) - _mask_logits(model), 'k')} parameters, multiply-adds "
        f"{dense / 1e9:.1f} G dense ({printed / 1e9:.1f} G as published papers count), "
        f"{share * dense / 1e9:.1f} G at these pictures' share"
    )


def _mask_logits(model: nn.Module) -> int:
    return sum(2 * mask.size for mask in hard_masks(model).values())


def record(model: nn.Module, task, scores, costs: Tensor, by_module: dict) -> dict:
    """What run.json keeps of an evaluation."""
    each, mean = rows(scores, costs)[:-1], rows(scores, costs)[-1]
    costs_of = lambda row: {k: _known(row[k]) for k in (*COLUMNS, "gain", "share")}
    kept = task.record(scores)
    kept["each"] = [{**a, **costs_of(b)} for a, b in zip(kept["each"], each, strict=True)]
    return {**kept, **costs_of(mean), "pictures": len(costs), "modules": by_module}


def _known(value):
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
