"""One self-contained page for a run: ``report.html`` in its folder."""

from sparsemask.report.contents import record_confusion
from sparsemask.report.environment import environment
from sparsemask.report.page import build_page, write_report

__all__ = ["build_page", "environment", "record_confusion", "write_report"]
