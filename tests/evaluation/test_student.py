"""Student's t, beside scipy's."""

import pytest
from scipy import stats

from specdec.evaluation.student import student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 7, 19, 20, 99, 100, 2001])
@pytest.mark.parametrize("confidence", [0.001, 0.5, 0.9, 0.95, 0.999])
def test_quantiles(degrees: int, confidence: float) -> None:
    assert student_quantile(confidence, degrees) == pytest.approx(
        stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-8
    )
