"""The reports: of one drafter (plots, a self-contained HTML page, the same in Markdown) and of the prompts."""

from specdec.report.content import Report, environment_facts, examples
from specdec.report.page import write_evaluation, write_prompts_report, write_report

__all__ = ["Report", "environment_facts", "examples", "write_evaluation", "write_prompts_report", "write_report"]
