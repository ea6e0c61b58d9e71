"""The report of one drafter: plots as PNG, one self-contained HTML page, the same in Markdown."""

from specdec.report.content import Report, examples
from specdec.report.page import write_report

__all__ = ["Report", "examples", "write_report"]
