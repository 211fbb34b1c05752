"""The sparsemask command: the verbs, from any directory.

    sparsemask search      learn the masks of a space
    sparsemask prune       make them hard: a mask file
    sparsemask retrain     build, train and evaluate the small network
    sparsemask eval        evaluate it
    sparsemask specialize  learn where, and in which channels, a trained network needs to compute for a task
    sparsemask compress    all of these by a recipe, to a target in milliseconds or multiply-adds, with a table
    sparsemask export      write a trained network for other programs: safetensors, torch.export, ONNX
    sparsemask predict     a class for every pixel of pictures, folders of them, by any trained or exported network
    sparsemask upscale     enlarge pictures by a super-resolution network, and show where it computed
    sparsemask serve       a page in the browser: your picture through a network, its masks, its milliseconds
    sparsemask models      the trained networks that ship, and their cards
    sparsemask segment-points  a class for every point of a cloud, with pictures and a page to turn it in
    sparsemask disparity   how near each point of a stereo pair is, and which voxels were computed
    sparsemask analyse     how many activations of a network are zero, channel by channel
    sparsemask study       search, prune and retrain many times; the Pareto front and its masks
    sparsemask report      one page on a run, report.html in its folder, written anew
    sparsemask prepare     prepare PASCAL VOC 2012 + SBD from the public archives
    sparsemask prepare-points  prepare S3DIS, SemanticKITTI or generated rooms
    sparsemask check       open every picture and label of a data set and say what is wrong
    sparsemask sample      draw the embedded sample set
    sparsemask doctor      what is installed here, what computes and what is missing, on one screen
    sparsemask completion  a script by which the Tab key completes commands and flags, for bash and zsh
    sparsemask demo        all of it on the sample set, in minutes, with a table and pictures

`sparsemask VERB --help` lists a verb's usual flags, `--help-all` every one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from sparsemask._version import __version__
from sparsemask.errors import UseError, choose, command

# The verbs stand above this package; they are imported when asked for, and only here.
VERBS = {
    "search": "sparsemask.search.run",
    "prune": "sparsemask.prune.prune",
    "retrain": "sparsemask.retrain.train",
    "eval": "sparsemask.retrain.eval",
    "specialize": "sparsemask.retrain.specialize",
    "compress": "sparsemask.cli.compress.command",
    "export": "sparsemask.retrain.export",
    "predict": "sparsemask.cli.predict",
    "upscale": "sparsemask.cli.upscale",
    "serve": "sparsemask.cli.serving.command",
    "models": "sparsemask.cli.models",
    "segment-points": "sparsemask.cli.segment_points",
    "disparity": "sparsemask.cli.disparity",
    "analyse": "sparsemask.cli.analyse",
    "study": "sparsemask.search.study",
    "report": "sparsemask.cli.report",
    "prepare": "sparsemask.VOC12.prepare",
    "prepare-points": "sparsemask.tasks.points.prepare.command",
    "check": "sparsemask.VOC12.check",
    "sample": "sparsemask.VOC12.sample",
    "demo": "sparsemask.cli.demo",
    "doctor": "sparsemask.cli.doctor",
    "completion": "sparsemask.cli.completion",
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    program = argv is None  # not a call from Python
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        raise UseError(f"which verb? {', '.join(VERBS)} (sparsemask --help)")
    if argv[0] in ("-h", "--help", "--help-all", "help"):
        print(__doc__.strip())
        return 0
    if argv[0] == "--version":
        print(f"sparsemask {__version__}")
        return 0
    choose(argv[0], VERBS, "verb")
    status = importlib.import_module(VERBS[argv[0]]).main(argv[1:])
    if program and argv[0] == "serve":
        # A thread that comes back to an interpreter that is closing, one of torch's or one that still computes, aborts
        # the process: it ends here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
