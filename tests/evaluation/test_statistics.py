"""Intervals that hold: they cover the truth as often as they say."""

import numpy as np
import pytest

from specdec.evaluation import ratio_interval


def test_intervals_cover_the_truth() -> None:
    """Prompts of different length whose tokens are accepted with a rate of their own; the truth is 0.6."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        steps = rng.integers(5, 60, 80)
        rates = rng.beta(6, 4, 80)
        accepted = rng.binomial(steps, rates)
        interval = ratio_interval(accepted, steps, 400, 0.95, trial)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.92 <= covered / 300 <= 0.98


def test_a_ratio_of_sums() -> None:
    interval = ratio_interval([1, 30], [10, 30], 500, 0.9, 0)
    assert interval.value == pytest.approx(31 / 40)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(1.0)
    assert interval.plus(1).value == pytest.approx(1 + 31 / 40)


def test_one_prompt_has_no_interval_and_no_step_no_length() -> None:
    assert ratio_interval([3], [4], 100, 0.95, 0).as_dict() == {"value": 0.75, "low": None, "high": None}
    assert ratio_interval([0, 0], [0, 0], 100, 0.95, 0).value == 0
