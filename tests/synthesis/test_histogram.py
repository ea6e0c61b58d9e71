"""Percentiles in constant memory."""

import random

import pytest

from specdec.synthesis.histogram import Histogram


@pytest.mark.parametrize("spread", ["uniform", "lognormal", "constant"])
def test_percentiles_are_right_within_one_percent(spread: str) -> None:
    draw = random.Random(7)
    make = {
        "uniform": lambda: draw.uniform(0.05, 900),
        "lognormal": lambda: draw.lognormvariate(1, 2) + 0.05,
        "constant": lambda: 1.0,
    }[spread]
    values, histogram = sorted(make() for _ in range(20_000)), Histogram()
    for value in values:
        histogram.add(value)
    assert len(histogram) == 20_000
    found = histogram.percentiles()
    assert found is not None
    for percent in (50, 90, 99):
        exact = values[len(values) * percent // 100 - 1]
        assert found[f"p{percent}"] == pytest.approx(exact, rel=0.01)
    assert len(histogram._counts) < 2500


def test_nothing_one_and_zero() -> None:
    histogram = Histogram()
    assert histogram.percentiles() is None
    histogram.add(0.0)
    assert histogram.percentiles() == {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    histogram.add(4.0)
    assert histogram.percentiles((100,)) == {"p100": pytest.approx(4.0, rel=0.01)}
