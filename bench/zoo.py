"""Half of the multiply-adds of 80 public networks: is it reached, is it exact, what is gained; beside Torch-Pruning.

    python bench/zoo.py --out zoo.jsonl                      all that can be imported here; continues where it ended
    python bench/zoo.py --out zoo.jsonl --only timm/resnet50 sr/EDSR
    python bench/zoo.py --table zoo.jsonl                    a Markdown table and its summary

Every network runs in a process of its own with a limit of processor time (`--limit`, 60 s) and one thread. Weights are
random, batch norms have statistics of a batch, so that removed channels leave constants. Both tools rank channels by
the same importance (L2 norm over the layers of a group) and take the same share of every layer; the share is corrected
until half of the multiply-adds is left as torch counts them. "by time" are networks of the policy "time", which takes
more of the layers that take longer for their multiply-adds. "difference" is the largest one of the small from the
zeroed network, over the largest output (float32). "time" is that of the small network over the whole one's in the same
rounds, processor time of one thread. Torch-Pruning runs where it is installed (bench/requirements.txt).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import sparsemask  # noqa: I001  (before torch: it says how threads wait)
import torch
from torch import Tensor, nn

from bench.torch_pruning_tool import pruned, tensors
from sparsemask import costs
from sparsemask.errors import UseError, one_line
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.shrinking.fitting import time_networks
from sparsemask.spaces.group_sparsity.tracing.graph import trace
from sparsemask.spaces.group_sparsity.tracing.plain_weights import plain_weights
from sparsemask.tables import markdown_table
from sparsemask.timing import timer
from zoo_networks import NAMES, build

OURS = {"sparsemask": "uniform", "sparsemask, by time": "time"}  # policies
TOOLS = {**dict.fromkeys(OURS), "torch-pruning": "torch_pruning"}
SOURCES = {"timm": "timm", "smp": "segmentation_models_pytorch", "sr": "torch"}
NEAR = 0.03
_OUTPUTS = "it reaches the network's output"  # why channels stay in every network


def measured(whole: nn.Module, small: nn.Module, x: Tensor, seconds: float) -> dict:
    """Share of the multiply-adds and of the time that is left."""
    count = lambda network: costs.multiply_adds(network, x)
    networks = {"whole": whole.eval(), "small": small.eval()}
    times, busy = time_networks(networks, Inputs.of(x), timer(x.device, 1, seconds))
    share = count(small) / count(whole)
    return {"share": share, "time": times["small"] / times["whole"], "milliseconds": times["whole"], "busy": busy}


def with_sparsemask(network: nn.Module, x: Tensor, target: float, seconds: float, policy: str) -> dict:
    """Shrink a network, and compare it with the zeroed one."""
    begun = time.thread_time()
    trace(plain_weights(network, x), x)
    tracing = time.thread_time() - begun
    difference = None
    try:
        plan = sparsemask.plan(network, x)
        small = plan.shrink(target, policy=policy, timed=False)
    except UseError:  # nothing can be removed exactly
        small = sparsemask.shrink(network, x, target, policy=policy, fold="none", timed=False)
    else:
        with torch.no_grad():
            given = Inputs.of(torch.randn_like(x))
            outputs = [tensors(given.run(net)) for net in (small, plan.zeroed(small))]
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*outputs, strict=True))
    reasons: dict[str, int] = {}
    for one in small.report.locked:
        reasons[one.why] = reasons.get(one.why, 0) + one.channels
    report = small.report
    counted = report.after.multiply_adds / report.before.multiply_adds
    result = {"tracing": tracing, "difference": difference, "locked": reasons, "notes": list(report.notes)}
    return {**measured(network, small, x, seconds), **result, "share": counted}


def with_torch_pruning(network: nn.Module, x: Tensor, target: float, seconds: float) -> dict:
    """Prune a network by Torch-Pruning, with the share of channels that leaves the target."""
    small, tracing = pruned(network, x, target)
    return {**measured(network, small, x, seconds), "tracing": tracing}


def one(name: str, tool: str, options: argparse.Namespace) -> dict:
    """The line of a network and a tool."""
    torch.set_num_threads(1)
    try:
        given = *build(name, options.side), options.target, options.seconds
        done = with_sparsemask(*given, OURS[tool]) if tool in OURS else with_torch_pruning(*given)
        return {"network": name, "tool": tool, **done}
    except Exception as error:
        return {"network": name, "tool": tool, "error": f"{type(error).__name__}: {one_line(error)[:300]}"}


def in_process(name: str, tool: str, options: argparse.Namespace) -> dict:
    """The same in a process of its own, with a limit of its processor time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 5))

    numbers = [f"--{key}={vars(options)[key]}" for key in ("side", "target", "seconds")]
    command = [sys.executable, __file__, "--one", name, tool, *numbers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    seconds = f"beyond {options.limit} s of processor time" if done.returncode < 0 else done.stderr.strip()[-300:]
    return {"network": name, "tool": tool, "error": one_line(seconds)}


def installed() -> list[str]:
    """The tools that can be imported here."""
    return [tool for tool, module in TOOLS.items() if module is None or importlib.util.find_spec(module)]


def table(path: Path) -> str:
    """Markdown of a file of lines: a row a network, and how many reach the target."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_tool = {tool: {line["network"]: line for line in lines if line["tool"] == tool} for tool in TOOLS}
    rows = []
    for name in (name for name in NAMES if name in by_tool["sparsemask"]):
        ours, other = by_tool["sparsemask"][name], by_tool["torch-pruning"].get(name, {})
        reasons = sorted(ours.get("locked", {}).items(), key=lambda pair: -pair[1])
        others = [f"{reason} ({count})" for reason, count in reasons if reason != _OUTPUTS]
        if "error" not in ours and ours["difference"] is None:
            others.insert(0, "not exact (fold none)")
        row = {key: ours.get(key) for key in ("share", "difference", "tracing", "time")}
        row |= {"network": name, "other time": other.get("time")}
        row["by time"] = by_tool["sparsemask, by time"].get(name, {}).get("time")
        if "error" in other:
            row["other share"] = "too slow" if other["error"].startswith("beyond") else "fails"
        elif other:
            row["other share"] = f"{other['share']:.1%}"
        row["why"] = ours.get("error") or "; ".join(others[:2])
        rows.append(row)
    columns = {
        "network": "network",
        "share": ("left", ".1%"),
        "difference": ("difference", ".0e"),
        "tracing": ("tracing s", ".2f"),
        "time": ("time", ".2f"),
        "by time": ("by time", ".2f"),
        "other share": "Torch-Pruning left",
        "other time": ("its time", ".2f"),
        "why": "what stays beside outputs (channels), or the error",
    }
    return "\n".join([markdown_table(rows, columns), "", *summary(by_tool)])


def summary(by_tool: dict[str, dict[str, dict]]) -> list[str]:
    """How many networks reach the target, are exact, and what time is left."""
    near = {
        tool: {name for name, line in lines.items() if abs(line.get("share", 0) - 0.5) <= NEAR}
        for tool, lines in by_tool.items()
    }
    texts = []
    for tool, lines in by_tool.items():
        if lines:
            failed = sum("error" in line for line in lines.values())
            texts.append(f"{tool}: {len(near[tool])} of {len(lines)} at half within 3 %, {failed} failed")
    ours = [line for tool in OURS for line in by_tool[tool].values() if line.get("difference") is not None]
    if ours:
        worst = max(line["difference"] for line in ours)
        slowest = max(line["tracing"] for line in ours)
        texts.append(f"largest difference from the zeroed network {worst:.1e}; slowest tracing {slowest:.2f} s")
    for tool in OURS:
        both = near[tool] & near["torch-pruning"]
        if both:
            ours, theirs = (
                sum(by_tool[one][name]["time"] for name in both) / len(both) for one in (tool, "torch-pruning")
            )
            texts.append(f"mean time of the {len(both)} that both do: {tool} {ours:.3f}, Torch-Pruning {theirs:.3f}")
    return texts


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"), help="a line for every network and tool")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="these networks")
    parser.add_argument("--table", type=Path, help="print the table of a file")
    parser.add_argument("--limit", type=int, default=60, help="seconds of processor time a network and tool")
    parser.add_argument("--side", type=int, default=128, help="of the inputs, where networks take any size")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, beyond eight rounds")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "TOOL"), help="run in this process, and print the line")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    if options.one:
        print(json.dumps(one(*options.one, options)))
        return
    done = set()
    if options.out.exists():
        lines = [json.loads(line) for line in options.out.read_text().splitlines()]
        done = {(line["network"], line["tool"]) for line in lines}
    found = {source: importlib.util.find_spec(module) is not None for source, module in SOURCES.items()}
    tools = installed()
    for name in options.only or NAMES:
        if not found[name.partition("/")[0]]:
            print(f"{name}: left out, {SOURCES[name.partition('/')[0]]} is not installed")
            continue
        for tool in tools:
            if (name, tool) not in done:
                line = in_process(name, tool, options)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line)[:300], flush=True)


if __name__ == "__main__":
    main()
