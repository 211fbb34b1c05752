"""Speed of specialised networks: what keeps everything beside what skips, in turn, at random masks of half of all.

    python bench/specialize.py                       pictures of 128×128, one thread
    python bench/specialize.py --size 512 --clock    times by the clock; without it the processor time of this thread
    python bench/specialize.py --run runs/NAME       a specialised run's network, on its validation pictures
    python bench/specialize.py --run runs/NAME --compiled    torch's side compiled as well, in a row of its own

Forms of one network with the published connectivity mask: torch's own operators (batch norms folded, channels last);
the kernels that skip with everything kept; channel masks alone (half of the channels); data masks as well on maps up to
an eighth of the picture (as many places as the random branches keep). Ratios are to the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import torch

from sparsemask.cli.compress.table import opened
from sparsemask.inference import optimize_for_inference
from sparsemask.tables import table
from sparsemask.spaces.connectivity import named_mask
from sparsemask.spaces.specialized.network import SpecializedNetwork
from sparsemask.spaces.specialized.space import SpecializedSpace
from sparsemask.spaces.sparse_conv.masking import mean_kept


def network(place_stride: int, size: int) -> SpecializedNetwork:
    """Random weights and masks; where there are data masks, all channels are sparse."""
    torch.manual_seed(0)
    made = SpecializedNetwork(named_mask("sparsemask-voc", 9), max_stride=32, place_stride=place_stride).eval()
    for module in made.masked.values():
        torch.nn.init.uniform_(module.channels.ch_mask)
        branch = getattr(module, "locate", None)
        if branch is not None:
            module.channels.ch_mask.data[..., 0] -= 2
    # Branches are set one after the other, so that each keeps about half of a picture's places.
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        for module in made.masked.values():
            branch = getattr(module, "locate", None)
            if branch is not None:
                seen = []
                handle = branch.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
                made(x)
                handle.remove()
                drop, keep = branch.logits(seen[0]).split(1, 1)
                branch[-1].bias[1] -= (keep - drop).median()
    return made


def drawn(space, size: int) -> tuple[dict, list[str], list[torch.Tensor]]:
    """(forms, those that skip, the picture) of random weights and masks."""
    nets = {"channels": network(1, size), "places": network(8, size)}
    forms = {"torch": space.dense_form(nets["channels"]), "kernels": space.kernel_form(nets["channels"])}
    x = torch.randn(1, 3, size, size)
    forms |= {name: space.fast_form(one) for name, one in nets.items()}
    return forms, list(nets), [x]


def trained(space, folder: str, compiled: bool, count: int = 4) -> tuple[dict, list[str], list[torch.Tensor]]:
    """The same of a run, on its first validation pictures."""
    one = opened(Path(folder))
    source = one.task.eval_data
    pictures = [source[n][0][None] for n in range(min(count, len(source)))]
    forms = {"torch": space.dense_form(one.network), "kernels": space.kernel_form(one.network)}
    if compiled:
        whole = optimize_for_inference(space.unmasked(one.network), pictures[0], compiled=True)
        forms["compiled"] = lambda x: whole(x)
    return forms | {"sparse": space.fast_form(one.network)}, ["sparse"], pictures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--run")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    now = time.perf_counter if options.clock else time.thread_time
    space = SpecializedSpace()
    if options.run:
        forms, skipping, pictures = trained(space, options.run, options.compiled)
    else:
        forms, skipping, pictures = drawn(space, options.size)
    pictures = [one.contiguous(memory_format=torch.channels_last) for one in pictures]
    spent, shares = {name: [] for name in forms}, {name: [] for name in skipping}
    with torch.no_grad():
        for turn in range(options.rounds + 8):  # the first ones settle which way is the fastest
            for x in pictures:
                for name, form in forms.items():
                    begun = now()
                    form(x)
                    if turn >= 8:
                        spent[name].append(1e3 * (now() - begun))
                    if name in shares and turn == 0:
                        shares[name].append(float(mean_kept(form)))
    kept = {name: statistics.mean(shares[name]) if name in shares else 1.0 for name in forms}
    times = {name: statistics.median(one) for name, one in spent.items()}
    rows = [
        {"form": name, "ms": ms, "fewer": 1 / kept[name], "faster": times["torch"] / ms, "own": times["kernels"] / ms}
        for name, ms in times.items()
    ]
    columns = {"form": "form", "ms": ("ms", ".2f"), "fewer": ("multiply-adds fewer", ".2f")}
    print(table(rows, columns | {"faster": ("than torch", ".2f"), "own": ("than the kernels", ".2f")}))


if __name__ == "__main__":
    main()
