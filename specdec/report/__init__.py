"""The reports: of one drafter (plots, an HTML page, the same in Markdown), of a drafter in vLLM, of all
drafters, and of the prompts."""

from specdec.report.content import Report, environment_facts, examples
from specdec.report.page import write_comparison, write_engine, write_evaluation, write_prompts_report, write_report

__all__ = [
    "Report",
    "environment_facts",
    "examples",
    "write_comparison",
    "write_engine",
    "write_evaluation",
    "write_prompts_report",
    "write_report",
]
