"""Every network of fine-grained masks as it is handed out: its plan beside its dense and its skipping form.

    python bench/plans.py "--space smsr --pretrained_model smsr_x2.pt --data_test set5" "--run runs/points"
    python bench/plans.py "--run runs/stereo" --threads 1 2 --unmask 0.005 --out plans.json
    python bench/plans.py "--run runs/stereo" "--run runs/points" --compiled     the unmasked form compiled, too

Each argument is a command line of retrain/eval.py. Forms of the same weights, timed in turn on the first validation
items: *unmasked*, everything kept by plain operators, batch norms folded, and *compiled*, the same by torch.compile,
are another function; *masked dense* and *skip* are the network's own, as is *plan*, what was chosen of the two part by
part. *dropped*: with --unmask, the plan of the network without the masks that cost time, its metric on --eval_limit
items beside. Ratios above 1 are faster; *gain* is against the faster of the unmasked forms. One thread: processor
time, so that other processes change little; more: by the clock.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import torch

from sparsemask import flags, spaces, tasks
from sparsemask.engine import data
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain.trained import open_trained, read_flags
from sparsemask.spaces.protocols import HasFastForm
from sparsemask.spaces.sparse_conv.plan import Plans
from sparsemask.spaces.sparse_conv.planning import make_plan, unmask
from sparsemask.sparse import backend, repeatable
from sparsemask.tables import markdown_table
from sparsemask.timing import timer

COLUMNS = {
    "network": "network", "size": "size", "threads": "threads", "kept": "kept", "unmasked": "unmasked ms",
    "compiled": "compiled ms", "dense": "masked dense ms", "skip": "skip ms", "plan": "plan ms",
    "chosen": "dense parts", "own": "best own form / plan", "gain": "best unmasked / plan",
}  # fmt: skip
DROPPED = {"dropped": "masks dropped: ms", "dropped gain": "best unmasked / dropped", "metric": "metric, dropped"}


class Quality:
    """The task's metric of a network."""

    def __init__(self, restored):
        self.restored, self.task = restored, tasks.get(restored.config.data.task, restored.config)
        self.known: dict[int, float] = {}

    def __call__(self, network) -> float:
        config = self.restored.config
        with repeatable():
            context = tasks.EvaluationContext.from_config(self.restored.arithmetic, config)
            scores = self.task.evaluate(network, context, limit=config.evaluation.eval_limit, quick=True)
        return float(self.task.metrics(scores)[self.task.primary])


def opened(line: str):
    """The network of a command line of retrain/eval.py."""
    argv = shlex.split(line)
    space = flags.space_of(argv, newest="retrain")
    parser = evaluation.parser(space, flags.task_of(argv))
    return open_trained(parser, read_flags(parser, argv, space))


def rows(line: str, options: argparse.Namespace) -> list[dict]:
    """All rows of one network, in the arithmetic of its --type."""
    restored = opened(line)
    with restored.arithmetic.context():
        return _rows(restored, options)


def _rows(restored, options: argparse.Namespace) -> list[dict]:
    quality, network = Quality(restored), restored.model.requires_grad_(False)
    space, source = spaces.get(restored.config.network.space), quality.task.eval_data
    dense_form, found, dropped = space.dense_form(network), [], None
    own = space.fast_form(network) if isinstance(space, HasFastForm) else network
    compiled = torch.compile(dense_form) if options.compiled else None
    for index in range(min(options.items, len(source))):
        inputs, _ = data.collate(source, [source[index]])
        for threads in options.threads:
            torch.set_num_threads(threads)
            time = timer(torch.device("cpu"), threads, options.seconds)
            plan = make_plan(space, network, inputs)
            network.plans = Plans([plan])
            calls = {
                "unmasked": functools.partial(dense_form, inputs), "plan": functools.partial(own, inputs),
                "dense": functools.partial(by, "dense", network, inputs),
                "skip": functools.partial(by, "native", own, inputs),
            }  # fmt: skip
            if not network.parts():
                del calls["dense"]  # it has one form
            if compiled is not None:
                calls["compiled"] = functools.partial(compiled, inputs)
                compiled(inputs)
            if options.unmask is not None and dropped is None:
                dropped = unmask(network, inputs, quality, options.unmask)
            if dropped is not None and dropped.modules:
                dropped.network.plans = Plans([make_plan(space, dropped.network, inputs)])
                calls["dropped"] = functools.partial(dropped.network, inputs)
            times, busy = time(calls, options.rounds)
            name = space.name if plan.machine.arithmetic == "float32" else f"{space.name}, {plan.machine.arithmetic}"
            row = {"network": name, "size": space.size_words(plan.shape), "threads": threads, "kept": plan.kept}
            row |= {str(key): value for key, value in times.items()}
            row["chosen"] = f"{len(plan.dense)} of {len(plan.backends)}" if plan.backends else "-"
            best = min(times[name] for name in ("unmasked", "compiled") if name in times)
            row["own"] = min(times[name] for name in ("dense", "skip", "plan") if name in times) / times["plan"]
            row["gain"], row["busy"] = best / times["plan"], busy
            if "dropped" in times:
                row["dropped gain"] = best / times["dropped"]
                row["metric"] = f"{quality.task.primary} {dropped.before:.4f} to {dropped.after:.4f}"
            found.append(row)
            print({key: show(value) for key, value in row.items()}, file=sys.stderr, flush=True)  # as they come
    return found


def by(name: str, network: torch.nn.Module, inputs: object) -> object:
    """The network by one backend."""
    with backend(name):
        return network(inputs)


def show(value: object) -> object:
    """A table's entry."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return value


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="LINE", help="flags of retrain/eval.py that name a network")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--items", type=int, default=1, help="validation items of each (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="for the timing of a row, about (default: 10)")
    parser.add_argument("--compiled", action="store_true", help="time the unmasked network compiled, too")
    parser.add_argument("--unmask", type=float, default=None, help="by how much the metric may fall for masks dropped")
    parser.add_argument("--out", type=Path, default=None, help="json file of the figures")
    options = parser.parse_args()
    found = [row for line in options.networks for row in rows(line, options)]
    columns = {key: title for key, title in COLUMNS.items() if key != "compiled" or options.compiled}
    columns |= DROPPED if any("dropped" in row for row in found) else {}
    print(markdown_table([{key: show(row.get(key, "-")) for key in columns} for row in found], columns))
    own, gain = ([row[key] for row in found] for key in ("own", "gain"))
    print(f"\nplan against its best own form: least {min(own):.2f}; against unmasked: least {min(gain):.2f}")
    print(f"busy: {max(row['busy'] for row in found):.1f} times a quiet machine's time at most")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
