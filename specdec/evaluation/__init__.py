"""What a drafter is worth: acceptance, speedup, their intervals, and proof that the output did not change."""

from specdec.evaluation.measure import Measurement, PromptMeasurement, measure
from specdec.evaluation.statistics import Interval, ratio_interval
from specdec.evaluation.summary import Bootstrap, losslessness, summarize

__all__ = [
    "Bootstrap",
    "Interval",
    "Measurement",
    "PromptMeasurement",
    "losslessness",
    "measure",
    "ratio_interval",
    "summarize",
]
