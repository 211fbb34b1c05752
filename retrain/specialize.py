"""Specialise: learn where, and in which channels, a trained network needs to compute for the task at hand.

    python retrain/specialize.py                                    the newest retrained network
    python retrain/specialize.py --run runs/NAME --keep 0.4         another one, and another share of the multiply-adds
    python retrain/specialize.py --mask_path mask.npy --ft_model W  a connectivity mask and weights of its network
    python retrain/specialize.py --run runs/NAME --task saliency --data_root MSRA-B
    python retrain/specialize.py --run runs/NAME --task super_resolution --scale 2 --hr_path pictures
    python retrain/specialize.py --space smpointseg --ft_model W    masks of these networks, from dense weights;
    python retrain/specialize.py --space smstereo --ft_model W      likewise --space smsr

Writes runs/<name>/: config.yaml, checkpoints/, metrics.jsonl, pictures, network.safetensors, mask.npz (all masks: of
connections, channels and locations) and forms.json, the table of its dense, masked and skipping form.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import sys
from collections.abc import Sequence

import spaces
from retrain.opening import for_task
from retrain.sparse_conv import share
from retrain.specialize_forms import compare_forms
from retrain.specialize_start import check_start, find_start, newest_start
from search import sparse_conv as learning
from spaces.sparse_conv.masking import set_threshold
from spaces.sparse_conv.records import begin, conclude
from sparsemask import flags, session
from sparsemask import report as page
from sparsemask.engine import distributed, fit
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, command
from sparsemask.files import write_json
from sparsemask.options import Parser, natural, plain
from sparsemask.weights import load_weights

SPACE = "specialized"


def peek(argv: Sequence[str] | None):
    """The space whose masks are learnt, with the task that the other flags are to be for."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task")
    first.add_argument("--space")
    seen, _ = first.parse_known_args(argv)
    again = _names_a_run(argv)  # --run names what is started from, which may have another task
    name = seen.space or (flags.peek_space(argv) if again else SPACE)
    name = SPACE if name == "connectivity" else name
    if spaces.get(name).family != "sparse_conv":
        raise UseError(f"--space {name}: its networks have no fine-grained masks to specialise")
    return for_task(name, flags.peek_task(argv) if again else seen.task)


def _names_a_run(argv: Sequence[str] | None) -> bool:
    return any(one.split("=")[0] in ("--resume", "--config") for one in (sys.argv[1:] if argv is None else argv))


def parser(space) -> Parser:
    """The command's flags."""
    made = Parser("specialize", prog="retrain/specialize.py", description=__doc__)
    for add in (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(made, space)
    learning.add_options(made)
    made.set_defaults(keep=0.5)
    group = made.add_argument_group("what is specialised")
    group.add_argument("--run", default=None, help="a retrained connectivity run (default: the newest)")
    group.add_argument("--mask_path", default=None, help="its connectivity mask, to be sure, or that of --ft_model")
    group.add_argument("--ft_model", default=None, help="weights of the dense network instead of a run")
    group.add_argument("--rounds", type=natural, default=5, help="timed calls of each form, 0: none (default: 5)")
    group.add_argument("--compiled", action="store_true", help="time the dense form compiled, too (a minute)")
    return made


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """(the parser that a command line means, what stands on it); UseError where it is none. Reads no data."""
    made = parser(spaces.get(space) if space else peek(argv))
    given = made.given(argv)
    check_start(given)
    return made, given


def build(opened: session.Session):
    """The network with soft masks on the dense network's weights, or as its checkpoint has it."""
    options = opened.options
    seed_all(options.seed)
    space = spaces.get(options.space)
    model = space.supernet(options)
    if opened.state is None:
        space.load_weights_into(model, load_weights(options.ft_model), options.ft_model)
        opened.say(f"starting from {options.ft_model}")
    set_threshold(model, options.thres)
    begin(opened)
    return model


def finish(opened: session.Session, model, task, result: dict) -> int:
    """The network and its mask file, the table of forms, the report; 1 where forms differ that must not, else 0."""
    options, run = opened.options, opened.run
    found = conclude(opened, model, task)
    masks = share(opened, model, found, options.thres)
    text, rows, wrong = compare_forms(opened, model, task)
    write_json(run.folder / "forms.json", rows)
    run.note(forms=rows, **({"wrong": wrong, "milliseconds": None, "milliseconds_dense": None} if wrong else {}))
    opened.say(text)
    kept = masks.mean_kept
    missed = learning.missed(kept, options.keep) if options.keep is not None else ""
    of = "the multiply-adds" if model.kept_weights else "what has masks"
    opened.say(f"kept {kept:.3f} of {of} (budget {options.keep:g}{missed})")
    opened.say(f"run: {run.folder} (network.safetensors, mask.npz, forms.json, pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    if wrong:
        session.warn(f"error: {'; '.join(wrong)}: the kernels of this machine are not to be trusted with this network")
        return 1
    opened.say(f"next: {page.next_command(run, 'eval')}")
    return 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    opened = session.open_training(read(argv)[0], argv, find_start, newest_start)
    options, run, task = opened.options, opened.run, opened.task
    with opened.clean():
        model = build(opened)
        extra = {"verb": "specialize", "space": options.space, "config": plain(options)}
        result = fit(model, learning.method(options), task, options, run, opened.arithmetic, extra, opened.state)
    status = 0
    if opened.main:
        run.note(state="finished", result=result)
        status = finish(opened, model, task, result)
    distributed.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
