"""Report: one self-contained page, report.html, in a run's folder.

    sparsemask report runs/NAME                            write it anew from the run's files
    sparsemask report runs/*                               of every run
    sparsemask report runs/STUDY                           of a study, from its front.json

A search and a retraining write theirs when they end, an evaluation writes it again; a killed run gets one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemask import runs
from sparsemask.errors import command
from sparsemask.options import Parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("report", prog="sparsemask report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a study's")
    folders = [Path(folder) for folder in parser.parse_args(argv).runs]
    studies = [
        folder for folder in folders if (folder / "front.json").is_file() and not runs.Run(folder).config.exists()
    ]
    found_runs = [runs.find(folder) for folder in folders if folder not in studies]
    # Which loads matplotlib and torch, after the folders are known to be right.
    from sparsemask.report import write_report, write_study_report

    for run in found_runs:
        print(f"report: {write_report(run)}")
    for folder in studies:
        print(f"report: {write_study_report(folder)}")
    return 0
