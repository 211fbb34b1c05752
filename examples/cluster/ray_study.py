"""Workers of one study as Ray tasks, wherever the cluster has room for them.

    python ray_study.py --workers 8 -- --study first --trials 200 --exp_path /shared/runs --storage URL ...
    python ray_study.py --workers 2 --address local -- ...                  on this machine, in a Ray of its own

What follows `--` is the study's command line, as `sparsemask study` takes it; --workers 1 is added. Each task starts
that command, which joins the study: give absolute paths that all machines see, and a --storage that they all reach.
A password belongs into ~/.pgpass or PGPASSWORD, which is handed to the tasks. A task whose machine is lost is started
again by Ray; its trial is taken up again by the study.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

PASSED_ON = ("PGPASSWORD", "SPARSEMASK_HOME", "SPARSEMASK_WEIGHTS", "SPARSEMASK_DATA", "PYTHONPATH")


def command_line(study: Sequence[str]) -> list[str]:
    """A worker's command."""
    return [sys.executable, "-m", "sparsemask.cli", "study", *study, "--workers", "1"]


def work(command: list[str], threads: int, passed_on: dict[str, str]) -> int:
    """What a task does: the command. Returns its exit status."""
    return subprocess.run(command, env={**os.environ, **passed_on, "OMP_NUM_THREADS": str(threads)}).returncode


def options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This script's own options, and the study's command line."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=2, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker, or a share of one")
    parser.add_argument("--address", default="auto", help="of the cluster; local: a Ray of its own on this machine")
    return parser.parse_args(argv[:split]), argv[split + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """Start the workers and wait for them."""
    own, study = options(sys.argv[1:] if argv is None else argv)
    if not study:
        print("error: the study's command line is missing, behind --", file=sys.stderr)
        return 2
    try:
        import ray
    except ImportError as error:
        print(f"error: Ray cannot be imported ({error}): pip install ray", file=sys.stderr)
        return 2
    ray.init(address=own.address, **({"num_cpus": own.workers * own.cpus} if own.address == "local" else {}))
    task = ray.remote(num_cpus=own.cpus, num_gpus=own.gpus, max_retries=100)(work)
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    running = [task.remote(command_line(study), own.cpus, passed_on) for _ in range(own.workers)]
    return max(ray.get(running))


if __name__ == "__main__":
    sys.exit(main())
