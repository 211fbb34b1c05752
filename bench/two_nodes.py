"""A training over two nodes, each a network namespace of this machine with an address of its own: by torchrun and gloo.

    python bench/two_nodes.py                     needs root, and `ip` of iproute2; a few minutes
    python bench/two_nodes.py --steps 12 --kill 6

The same retraining is run (a) on one node by two processes, (b) on two nodes by one process each, and (c) on two nodes
of which one is killed with SIGKILL, with all of its processes, once step --kill is written down; the other must end
by itself with one line, and the same command on both with --resume goes on. All three must end with the same weights
and the same history, bit for bit. Namespaces and their link are removed at the end.

Both nodes read and write one --exp_path, as on a cluster with a shared file system.

Prints a table; exit status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from sparsemask.errors import UseError, command  # noqa: E402
from sparsemask.tables import duration, markdown_table  # noqa: E402
from tiny import environment  # noqa: E402

ADDRESSES = ("10.193.71.1", "10.193.71.2")


def why_not() -> str | None:
    """Why this machine cannot play two nodes; None where it can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and `ip` (iproute2)"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    name = f"sm{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a link; gives their names, and the interface of a namespace has its name too."""
    names = f"sm{os.getpid()}a", f"sm{os.getpid()}b"
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> None:
    made = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if made.returncode:
        raise UseError(f"ip {' '.join(arguments)}: {made.stderr.strip()}")


class Training:
    """The same retraining in a folder, on one node or two; several times, to go on with it."""

    def __init__(self, folder: Path, steps: int, nodes: tuple[str, str] | None):
        folder.mkdir()
        self.folder, self.nodes, self.run = folder, nodes, folder / "runs" / "a"
        self.flags = ["--mask_path", "unet", "--sample", "--max_iter", str(steps), "--batch_size", "4", "--depth", "8"]
        self.flags += ["--crop_size", "65", "--checkpoint_interval", "2", "--eval_interval", str(steps), "--gpu", "-1"]
        self.flags += ["--log_interval", "1", "--n_worker", "0", "--exp_path", str(folder / "runs"), "--name", "a"]
        self.processes: list[subprocess.Popen] = []
        self.attempt = 0

    def start(self, *more: str) -> None:
        self.attempt += 1
        flags = [str(ROOT / "retrain/train.py"), *self.flags, *more]
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        launches = [[*torchrun, "--standalone", "--nproc_per_node", "2", *flags]]
        if self.nodes:
            common = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", ADDRESSES[0]]
            launches = [
                ["ip", "netns", "exec", name, *torchrun, *common, "--node_rank", str(rank), *flags]
                for rank, name in enumerate(self.nodes)
            ]
        self.processes = []
        for rank, launch in enumerate(launches):
            # One cache of samples for all; gloo is told the interface, since a host name leads elsewhere.
            more = {"GLOO_SOCKET_IFNAME": self.nodes[rank]} if self.nodes else {}
            with open(self.log(rank), "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        launch, stdout=log, stderr=log, cwd=self.folder,
                        env=environment(self.folder.parent / "home", **more),
                    )
                )  # fmt: skip

    def log(self, rank: int) -> Path:
        return self.folder / f"node-{rank}-{self.attempt}.log"

    def wait(self, seconds: float) -> list[int | None]:
        """Exit statuses; None of what had to be ended after so many seconds."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
        statuses = [process.poll() for process in self.processes]
        self.end()
        return statuses

    def end(self) -> None:
        """Kill what is left."""
        for rank in range(len(self.processes)):
            self.kill_node(rank)

    def kill_node(self, rank: int) -> None:
        """Kill a node's torchrun and the processes that it has started."""
        leader = self.processes[rank]
        for pid in family(leader.pid) if leader.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.wait()

    def steps(self) -> int:
        """Steps that are written down."""
        metrics = self.run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def history(self) -> list[dict]:
        """What the run's records say of every step, without times."""
        rows = []
        for name in ("metrics.jsonl", "history.jsonl"):
            for line in (self.run / name).read_text().splitlines():
                row = json.loads(line)
                rows.append({key: value for key, value in row.items() if "second" not in key and "time" not in key})
        return rows

    def weights(self) -> dict[str, np.ndarray]:
        """The network's arrays by name; the file also says which run it is of."""
        return load_file(self.run / "network.safetensors")


def family(ancestor: int) -> list[int]:
    """A process and all that come from it, whatever sessions they have made."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two networks have the same arrays, bit for bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def errors(log: str) -> list[str]:
    """The lines by which the project says what went wrong."""
    return [line for line in log.splitlines() if line.startswith("error: ")]


def measure(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Run the three trainings; returns a row a check."""
    rows = []

    def row(check: str, found: object, holds: bool) -> None:
        rows.append({"check": check, "found": found, "holds": "yes" if holds else "**no**"})

    one = Training(folder / "one", options.steps, None)
    one.start()
    row("one node, two processes: exit status", *_status(one, options))
    with two_nodes() as nodes:
        two = Training(folder / "two", options.steps, nodes)
        two.start()
        row("two nodes, a process each: exit statuses", *_status(two, options))
        killed = Training(folder / "killed", options.steps, nodes)
        killed.start()
        deadline = time.monotonic() + options.limit
        while killed.steps() < options.kill and time.monotonic() < deadline:
            if any(process.poll() is not None for process in killed.processes):
                break
            time.sleep(0.02)
        reached = killed.steps()
        row("steps written down when the second node is killed", reached, options.kill <= reached < options.steps)
        killed.kill_node(1)
        start = time.monotonic()
        statuses = killed.wait(options.bound)
        row("the first node ends by itself, after", duration(time.monotonic() - start), statuses[0] not in (None, 0))
        text = killed.log(0).read_text()
        said = errors(text)
        plain = len(said) == 1 and 'train.py", line' not in text
        row("it says why in one line, without a traceback of its own", said[0] if said else text[-300:], plain)
        killed.start("--resume", str(killed.run))
        row("the same command with --resume on both: exit statuses", *_status(killed, options))
    resumed = [line for line in killed.log(0).read_text().splitlines() if line.startswith("resuming ")]
    row("it goes on behind the last checkpoint", " ".join(resumed).replace(f"{killed.folder}/", ""), len(resumed) == 1)
    weights, history = one.weights(), one.history()
    for name, training in (("two nodes", two), ("killed and resumed", killed)):
        same = equal(training.weights(), weights)
        row(f"{name}: arrays of the network, equal to those of one node", len(weights), same)
        row(f"{name}: rows of the history, equal likewise", len(history), training.history() == history)
    return rows


def _status(training: Training, options: argparse.Namespace) -> tuple[str, bool]:
    statuses = training.wait(options.limit)
    if any(statuses):
        print(training.log(0).read_text()[-3000:], file=sys.stderr)
    return ", ".join(map(str, statuses)), not any(status != 0 for status in statuses)


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--kill", type=int, default=5, help="steps after which the second node is killed")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds in which the first node must end")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each training")
    options = parser.parse_args(argv)
    if reason := why_not():
        raise UseError(reason)
    folder = Path(tempfile.mkdtemp(prefix="two-nodes-"))
    try:
        rows = measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(markdown_table(rows, {name: name for name in rows[0]}))
    return int(any(row["holds"] != "yes" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
