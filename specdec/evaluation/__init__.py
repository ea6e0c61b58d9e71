"""What a drafter is worth: acceptance, speedup, their intervals, and proof that the output did not change."""

from specdec.evaluation.certificate import Certificate, certify
from specdec.evaluation.check import Check
from specdec.evaluation.comparison import Comparison, compare, paired_test
from specdec.evaluation.measure import PromptMeasurement, Way, measure
from specdec.evaluation.plan import Plan
from specdec.evaluation.prompt_files import FileEvaluation
from specdec.evaluation.run import Evaluation, evaluate
from specdec.evaluation.statistics import Interval, difference_interval, ratio_interval
from specdec.evaluation.summary import Bootstrap, summarize

__all__ = [
    "Bootstrap",
    "Certificate",
    "Check",
    "Comparison",
    "Evaluation",
    "FileEvaluation",
    "Interval",
    "Plan",
    "PromptMeasurement",
    "Way",
    "certify",
    "compare",
    "difference_interval",
    "evaluate",
    "measure",
    "paired_test",
    "ratio_interval",
    "summarize",
]
