"""The measurement over public networks: its lines, how it continues, rows of networks that fail, and its table."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import zoo
from hinge import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = "sr/ESPCN"


def run(patch, *arguments):
    patch.setattr(sys, "argv", ["zoo.py", "--seconds", "0.1", *map(str, arguments)])
    zoo.main()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def alone(monkeypatch):
    """Measurements of our own tool, whatever else is installed."""
    monkeypatch.setattr(zoo, "installed", lambda: ["sparsemask"])
    return monkeypatch


@pytest.fixture
def here(alone):
    """The same, in this process."""
    alone.setattr(zoo, "in_process", zoo.one)
    return alone


def test_a_row_for_every_network_and_none_twice(here, tmp_path, capsys):
    out = tmp_path / "zoo.jsonl"
    run(here, "--out", out, "--side", 32, "--only", SMALL)
    (first,) = lines_of(out)
    assert (first["network"], first["tool"]) == (SMALL, "sparsemask") and first["milliseconds"] > 0
    assert abs(first["share"] - 0.5) <= zoo.NEAR and first["difference"] < 1e-5 and 0 < first["tracing"] < 5
    assert sum(first["locked"].values()) == 12  # the last convolution's: they are the output
    run(here, "--out", out, "--side", 32, "--only", SMALL, "sr/FSRCNN")  # continues
    both = lines_of(out)
    assert both[0] == first and [line["network"] for line in both] == [SMALL, "sr/FSRCNN"]
    capsys.readouterr()
    run(here, "--table", out)
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| sr/")] == [SMALL, "sr/FSRCNN"]
    assert "sparsemask: 2 of 2 at half within 3 %, 0 failed" in text and "largest difference" in text


def test_a_network_that_fails_has_a_row_that_says_why(here, tmp_path, capsys):
    def broken(name, side):
        if name != SMALL:
            return zoo_build(name, side)
        return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1)), torch.zeros(1, 3, 8, 8)

    zoo_build = zoo.build
    here.setattr(zoo, "build", broken)
    out = tmp_path / "zoo.jsonl"
    run(here, "--out", out, "--side", 32, "--only", SMALL, "sr/FSRCNN")
    first, second = lines_of(out)
    assert "does not run on an input of 1x3x8x8" in first["error"] and "\n" not in first["error"]
    assert "error" not in second
    capsys.readouterr()
    run(here, "--table", out)
    text = capsys.readouterr().out
    assert "does not run on an input" in next(line for line in text.splitlines() if SMALL in line)
    assert "sparsemask: 1 of 2 at half within 3 %, 1 failed" in text


def test_processes_of_their_own_and_their_limit(alone, tmp_path):
    out = tmp_path / "zoo.jsonl"
    run(alone, "--out", out, "--limit", 1, "--only", "sr/SRCNN")  # torch alone takes longer to import and to time
    (line,) = lines_of(out)
    assert line["error"] == "beyond 1 s of processor time"
    run(alone, "--out", out, "--limit", 60, "--side", 16, "--only", SMALL)
    assert lines_of(out)[1]["network"] == SMALL and "error" not in lines_of(out)[1]


def test_the_table_compares_both_tools(tmp_path):
    entries = {"difference": 1e-7, "tracing": 0.2, "locked": {"it is the output": 3, "a": 9, "b": 1}}
    lines = [
        {"network": "sr/EDSR", "tool": "sparsemask", "share": 0.5, "time": 0.6, **entries},
        {"network": "sr/EDSR", "tool": "sparsemask, by time", "share": 0.51, "time": 0.55, **entries},
        {"network": "sr/EDSR", "tool": "torch-pruning", "share": 0.52, "time": 0.7},
        {"network": "sr/RCAN", "tool": "sparsemask", "share": 0.8, "time": 0.9, **entries, "tracing": 0.4},
        {"network": "sr/RCAN", "tool": "torch-pruning", "error": "ValueError: no"},
    ]
    path = tmp_path / "zoo.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = zoo.table(path)
    for words in (
        "sparsemask: 1 of 2 at half within 3 %, 0 failed",
        "torch-pruning: 1 of 2 at half within 3 %, 1 failed",
        "difference from the zeroed network 1.0e-07; slowest tracing 0.40 s",
        "mean time of the 1 that both do: sparsemask 0.600, Torch-Pruning 0.700",
        "mean time of the 1 that both do: sparsemask, by time 0.550, Torch-Pruning 0.700",
        "a (9); it is the output (3)",
    ):
        assert words in text, text
    path.write_text(json.dumps(lines[0]) + "\n")  # of one tool alone
    assert "mean time" not in zoo.table(path) and "torch-pruning" not in zoo.table(path)
