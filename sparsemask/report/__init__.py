"""One self-contained page for a run or a study: ``report.html`` in its folder."""

from sparsemask.report.environment import cost_entries, environment
from sparsemask.report.page import build_page, next_command, write_report
from sparsemask.report.run_data import names_of, record_confusion
from sparsemask.report.study_page import write_study_report

__all__ = [
    "build_page",
    "cost_entries",
    "environment",
    "names_of",
    "next_command",
    "record_confusion",
    "write_report",
    "write_study_report",
]
