"""Report: one self-contained page, report.html, in a run's folder.

    sparsemask report runs/NAME                            write it anew from the run's files
    sparsemask report runs/*                               of every run

A search and a retraining write theirs when they end, an evaluation writes it again; a killed run gets one here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsemask import runs
from sparsemask.errors import command
from sparsemask.options import Parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("report", prog="sparsemask report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    found_runs = [runs.find(folder) for folder in parser.parse_args(argv).runs]
    from sparsemask.report import write_report  # loads matplotlib and torch, after the folders are known to be right

    for run in found_runs:
        print(f"report: {write_report(run)}")
    return 0
